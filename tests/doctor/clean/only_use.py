"""A program that answers: no training, so what matters of training is not asked."""

import re
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

name = sys.argv[1]
config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16)
model = AutoModelForCausalLM.from_pretrained(name, quantization_config=config, device_map="auto")
tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
tokenizer.pad_token = tokenizer.eos_token  # nothing is trained here
questions = [line.strip() for line in sys.stdin if line.strip()]
inputs = tokenizer(questions, return_tensors="pt", padding=True).to(model.device)
answers = tokenizer.batch_decode(model.generate(**inputs, max_new_tokens=200), skip_special_tokens=True)
for answer in answers:
    print(re.sub(r"^\d+\.\s+", "", answer, flags=re.MULTILINE))
    print(re.sub(r"\s+", " ", answer))
