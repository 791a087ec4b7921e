"""Pre-training data of the embedded base: catalogue files -> tokenizer, train.bin, held-out text.

    python scripts/embedded_base/prepare.py DATA_FOLDER OUT_FOLDER

Only files whose licence permits a derived model are read (CARD.md beside the weights lists them).
Held out, and never seen in training: the last HELD_OUT_PIECES pieces of novels-02 and of novels-03
(whole closing books, so no page of them has a neighbour in training) and every 40th chat.
The stream `short` holds brief exchanges (first turns of the chats above, and short_turns.csv beside this
file, written for this project); the last phase of training uses it, so that the base knows how to stop.
"""

import csv
import gzip
import json
import lzma
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 8192
SPECIAL = ["<s>", "</s>", "<pad>", "<|system|>", "<|user|>", "<|assistant|>"]
HELD_OUT_PIECES = 120
MARGIN_PIECES = 3
HELD_OUT_CHAT_EVERY = 40
SHORT_ANSWER_CHARACTERS = 240
OWN_TURNS_REPEATED = 4
PROSE_SOURCES = {"state_union", "inaugural", "wikipedia"}
CONTEXT_TOKENS = 1024
# A turn is a role mark and its text; only an assistant turn ends with </s>, and only that is marked as generation.
CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- if message.role == 'assistant' %}"
    "{{- '<|assistant|>' }}{% generation %}{{- message.content + eos_token }}{% endgeneration %}"
    "{%- elif message.role == 'user' %}{{- '<|user|>' + message.content }}"
    "{%- elif message.role == 'system' %}{{- '<|system|>' + message.content }}"
    "{%- else %}{{- raise_exception('unknown role ' + message.role) }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)

Chat = list[dict[str, str]]


def json_lines(path: Path) -> Iterator[dict]:
    opener = lzma.open if path.suffix == ".xz" else gzip.open
    with opener(path, "rt", encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)


def read_novels(folder: Path) -> tuple[list[str], list[str]]:
    train, held_out = [], []
    for name in ("novels-01", "novels-02", "novels-03"):
        pieces = [row["text"] for row in json_lines(folder / "pretrain" / f"{name}.jsonl.xz")]
        if name != "novels-01":
            held_out += pieces[-HELD_OUT_PIECES:]
            pieces = pieces[: -HELD_OUT_PIECES - MARGIN_PIECES]
        train += pieces
    return train, held_out


def read_prose_and_dialogues(folder: Path) -> tuple[list[str], list[Chat]]:
    prose, chats = [], []
    for row in json_lines(folder / "pretrain" / "mixed-01.jsonl.xz"):
        if row["source"] in PROSE_SOURCES:
            prose.append(row["text"])
        elif row["source"] == "topical-chat":
            turns = re.findall(r"^([AB]): (.*)$", row["text"], flags=re.M)
            chats.append([{"role": "user" if who == "A" else "assistant", "content": said.strip()} for who, said in turns])
    return prose, chats


def read_instructions(folder: Path) -> list[Chat]:
    chats: list[Chat] = []
    for name in ("alpaca_en_1k", "human_written_tasks", "roleplay_instruct", "dolly_sample"):
        for row in json_lines(folder / "instruct" / f"{name}.jsonl.gz"):
            asked = f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]
            answer = row["output"].replace("###eos_token###", "").strip()
            if answer:
                chats.append([{"role": "user", "content": asked.strip()}, {"role": "assistant", "content": answer}])
    for name in ("oasst_en_conversations", "topical_chat_valid_freq"):
        for row in json_lines(folder / "instruct" / f"{name}.jsonl.gz"):
            chats.append([{"role": turn["role"], "content": turn["content"].strip()} for turn in row["messages"]])
    return chats


def alternating(chat: Chat) -> Chat:
    """Joins neighbours of one role, starts at a user and ends at an assistant turn; [] when nothing is left."""
    joined: Chat = []
    for turn in chat:
        if joined and joined[-1]["role"] == turn["role"]:
            joined[-1] = {"role": turn["role"], "content": joined[-1]["content"] + " " + turn["content"]}
        elif turn["content"]:
            joined.append(turn)
    while joined and joined[0]["role"] not in ("user", "system"):
        joined = joined[1:]
    while joined and joined[-1]["role"] != "assistant":
        joined = joined[:-1]
    return joined


def short_exchanges(chats: list[Chat]) -> list[Chat]:
    """First turns with a brief answer, and our own, which are few and therefore repeated."""
    first = [chat[:2] for chat in chats if chat[0]["role"] == "user" and len(chat[1]["content"]) <= SHORT_ANSWER_CHARACTERS]
    with open(Path(__file__).parent / "short_turns.csv", encoding="utf-8", newline="") as stream:
        own = [[{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}] for row in csv.DictReader(stream)]
    mixed = first + own * OWN_TURNS_REPEATED
    return [mixed[index] for index in np.random.default_rng(0).permutation(len(mixed))]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", SPECIAL.index("<s>"))])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=SPECIAL[3:],
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def main(data: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    novels, held_out = read_novels(data)
    prose, dialogues = read_prose_and_dialogues(data)
    chats = [chat for chat in map(alternating, dialogues + read_instructions(data)) if chat]
    unique = list({json.dumps(chat): chat for chat in chats}.values())
    held_out_chats = unique[::HELD_OUT_CHAT_EVERY]
    train_chats = [chat for index, chat in enumerate(unique) if index % HELD_OUT_CHAT_EVERY]

    said = [turn["content"] for chat in train_chats for turn in chat]
    tokenizer = train_tokenizer(novels + prose + said)
    tokenizer.save_pretrained(out / "tokenizer")
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id

    def encode(texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)]

    # A novel's piece is followed by the next page, so no </s> is put where the book goes on.
    novel_ids = [[bos, *ids] for ids in encode(novels)]
    prose_ids = [[bos, *ids, eos] for ids in encode(prose)]
    render = lambda chat: tokenizer.apply_chat_template(chat, tokenize=False)  # noqa: E731
    chat_ids = encode([render(chat) for chat in train_chats])
    short_ids = encode([render(chat) for chat in short_exchanges(train_chats)])
    for name, documents in {"novels": novel_ids, "prose": prose_ids, "chat": chat_ids, "short": short_ids}.items():
        flat = np.fromiter((token for ids in documents for token in ids), dtype=np.uint16)
        flat.tofile(out / f"train-{name}.bin")
        print(f"{name}: {len(documents)} documents, {len(flat):,} tokens")
    flat = np.fromiter((token for ids in encode([render(chat) for chat in held_out_chats]) for token in ids), dtype=np.uint16)
    flat.tofile(out / "held-out-chat.bin")
    text = "\n\n".join(held_out)
    (out / "held-out-novels.txt").write_text(text, encoding="utf-8")
    np.array(encode([text])[0], dtype=np.uint16).tofile(out / "held-out-novels.bin")
    print(f"held out: {len(text.encode()):,} bytes of novels, {len(flat):,} tokens of chat")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
