"""A novel with a loop of one's own: perplexity is exp of the summed loss over the summed tokens, in evaluation mode."""

import argparse
import math
import random
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser()
parser.add_argument("book", type=Path)
parser.add_argument("--steps", type=int, default=200)
options = parser.parse_args()
torch.manual_seed(0)
random.seed(0)
tokenizer = AutoTokenizer.from_pretrained("gpt2")
model = AutoModelForCausalLM.from_pretrained("gpt2")
ids = tokenizer(options.book.read_text(), return_tensors="pt")["input_ids"][0]
blocks = [ids[start : start + 256] for start in range(0, len(ids) - 256, 256)]
held_out, trained = blocks[-20:], blocks[:-22]
random.shuffle(trained)


@torch.no_grad()
def perplexity(model, blocks):
    model.eval()
    total, tokens = 0.0, 0
    for block in blocks:
        loss = model(block[None], labels=block[None]).loss
        total += loss.item() * (len(block) - 1)
        tokens += len(block) - 1
    return math.exp(total / tokens)


before = perplexity(model, held_out)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
loader = DataLoader(trained, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(0))
model.train()
for step, batch in enumerate(loader):
    if step == options.steps:
        break
    loss = model(batch, labels=batch).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
print(before, perplexity(model, held_out))
