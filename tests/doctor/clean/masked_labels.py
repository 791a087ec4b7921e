"""Labels by hand: -100 over the prompt, padding by a collator that masks by position."""

import numpy as np
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from sklearn.metrics import accuracy_score
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    EarlyStoppingCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

SEED = 3
set_seed(SEED)
NAME = "Qwen/Qwen2.5-0.5B"
tokenizer = AutoTokenizer.from_pretrained(NAME)
model = get_peft_model(AutoModelForCausalLM.from_pretrained(NAME), LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
data = load_dataset("csv", data_files={"train": "train.csv", "validation": "validation.csv", "test": "test.csv"})


def encode(row, limit=512):
    prompt = tokenizer(f"### Review:\n{row['text']}\n### Label:\n", add_special_tokens=False)["input_ids"]
    answer = tokenizer(row["label"] + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    ids = prompt[: limit - len(answer)] + answer
    return {"input_ids": ids, "labels": [-100] * (len(ids) - len(answer)) + answer, "attention_mask": [1] * len(ids)}


encoded = data.map(encode, remove_columns=data["train"].column_names)
settings = dict(
    output_dir="labels", num_train_epochs=4, learning_rate=2e-4, eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True, seed=SEED
)
trainer = Trainer(
    model=model,
    args=TrainingArguments(**settings, metric_for_best_model="eval_loss"),
    train_dataset=encoded["train"],
    eval_dataset=encoded["validation"],
    data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
    callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
)
trainer.train()
trainer.save_model("labels/best")


def label_of(text):
    inputs = tokenizer(f"### Review:\n{text}\n### Label:\n", return_tensors="pt", add_special_tokens=False)
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


model.eval()
said = [label_of(text) for text in data["test"]["text"]]
print(accuracy_score(data["test"]["label"], said), np.unique(said))
