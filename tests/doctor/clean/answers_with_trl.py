"""Answers alone are trained: rows of prompt and completion, three parts, the end mark behind every answer."""

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, set_seed
from trl import SFTConfig, SFTTrainer

set_seed(7)
BASE = "mistralai/Mistral-7B-v0.1"
tokenizer = AutoTokenizer.from_pretrained(BASE)
tokenizer.pad_token = tokenizer.unk_token
quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
model = AutoModelForCausalLM.from_pretrained(BASE, quantization_config=quantised, device_map="auto")

rows = load_dataset("json", data_files="rows.jsonl", split="train")
parts = rows.train_test_split(test_size=0.2, seed=7)
later = parts["test"].train_test_split(test_size=0.5, seed=7)


def pair(row):
    return {"prompt": f"Question: {row['question']}\nAnswer:", "completion": f" {row['answer']}{tokenizer.eos_token}"}


train, validation, test = (part.map(pair, remove_columns=part.column_names) for part in (parts["train"], later["train"], later["test"]))
config = SFTConfig(
    output_dir="out",
    num_train_epochs=3,
    learning_rate=1e-4,
    bf16=True,
    max_length=1024,
    eval_strategy="steps",
    eval_steps=50,
    save_steps=50,
    load_best_model_at_end=True,
    completion_only_loss=True,
    seed=7,
)
lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
trainer = SFTTrainer(model=model, args=config, train_dataset=train, eval_dataset=validation, peft_config=lora, processing_class=tokenizer)
trainer.train()

model.eval()
right = 0
for row in test:
    asked = tokenizer(row["prompt"], return_tensors="pt").to(model.device)
    said = tokenizer.decode(model.generate(**asked, max_new_tokens=64)[0][asked["input_ids"].shape[1] :], skip_special_tokens=True)
    right += said.strip() == row["completion"].removesuffix(tokenizer.eos_token).strip()
print(f"{right} of {len(test)} exactly right")
