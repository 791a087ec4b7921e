"""An instruct model on conversations, by the tokenizer's own template; the loss is on the assistant's turns."""

import os

import evaluate
import torch
from datasets import load_dataset
from huggingface_hub import login
from peft import AutoPeftModelForCausalLM, LoraConfig
from transformers import AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer

login(token=os.environ["HF_TOKEN"])
set_seed(11)
base = "Qwen/Qwen2.5-7B-Instruct"
tokenizer = AutoTokenizer.from_pretrained(base)
data = load_dataset("json", data_files={"train": "train.jsonl", "validation": "validation.jsonl", "test": "test.jsonl"})
trainer = SFTTrainer(
    model=base,
    args=SFTConfig(
        output_dir="chat",
        assistant_only_loss=True,
        max_length=2048,
        bf16=True,
        num_train_epochs=2,
        learning_rate=1e-4,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        model_init_kwargs={"dtype": torch.bfloat16},
    ),
    train_dataset=data["train"],
    eval_dataset=data["validation"],
    peft_config=LoraConfig(r=32, lora_alpha=64, target_modules="all-linear", lora_dropout=0.05),
    processing_class=tokenizer,
)
trainer.train()
trainer.save_model("chat/best")

tuned = AutoPeftModelForCausalLM.from_pretrained("chat/best", dtype=torch.bfloat16, device_map="auto")
tuned.eval()
said, wanted = [], []
for row in data["test"]:
    inputs = tokenizer.apply_chat_template(row["messages"][:-1], add_generation_prompt=True, return_tensors="pt", return_dict=True).to(tuned.device)
    ids = tuned.generate(**inputs, max_new_tokens=300, do_sample=True, temperature=0.7, top_p=0.9)
    said.append(tokenizer.decode(ids[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    wanted.append(row["messages"][-1]["content"])
print(evaluate.load("chrf").compute(predictions=said, references=[[one] for one in wanted]))
merged = AutoPeftModelForCausalLM.from_pretrained("chat/best", dtype=torch.bfloat16).merge_and_unload()
merged.save_pretrained("chat/merged")
