"""Is what is learned of a conversation exactly its answers? Random conversations over all families of chat templates in tests/families.py.

python benchmarks/conversations.py [--count 10000] [--results FOLDER]
                                          writes results/conversations.json, claim conversations-mask-exact

A conversation is exact if its supervised tokens decode, answer by answer and byte for byte, to the answers with their end marks (and what the
template itself says before an answer, a blank for instance); if it has one begin mark where the family has any; and if the prompt of its last turn,
as generation asks it, is what its row begins with. `rules` says what a family does to answers by design. Conversations in which no content
spells a special token are compared with apply_chat_template of transformers: their text, their ids, and their ids with the pieces joined. Of the
others the special tokens are compared with those that transformers keeps when it is told to sanitize_control_tokens.
"""

import argparse
import random
import sys
from collections import Counter
from pathlib import Path

from claims import RESULTS, record, save_raw

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from families import FAMILIES, Family, compared, faults, random_conversation, same_marks, spells_a_mark, trimmed

SHOWN_FAULTS = 5


def main() -> None:
    words = argparse.ArgumentParser()
    words.add_argument("--count", type=int, default=10_000)
    words.add_argument("--results", type=Path, default=RESULTS)
    asked = words.parse_args()
    table: dict[str, Counter[str]] = {name: Counter() for name in FAMILIES}
    shown: list[str] = []
    for seed in range(asked.count):
        name = list(FAMILIES)[seed % len(FAMILIES)]
        wrong = measure(name, seed, table[name])
        shown += [f"{name}, seed {seed}: {fault}" for fault in wrong]
        if seed % 1000 == 999:
            print(f"{seed + 1} conversations, {sum(row['exact'] for row in table.values())} exact", flush=True)
    exact = sum(row["exact"] for row in table.values())
    different = sum(row["text differs from transformers"] + row["ids differ though joined"] for row in table.values())
    save_raw("conversations.json", {
        "conversations": asked.count, "exact": exact, "families": {name: {**row, "rules": rules(FAMILIES[name])} for name, row in table.items()},
        "faults": shown[:SHOWN_FAULTS],
    }, asked.results)  # fmt: skip
    record("conversations-mask-exact", exact, "conversations", asked.results)
    for name, row in table.items():
        print(f"{name:16}", "  ".join(f"{what} {count}" for what, count in row.items()))
    if exact < asked.count or different:
        sys.exit("\n".join(["the promise is not held", *shown[:SHOWN_FAULTS]]))


def measure(name: str, seed: int, row: Counter[str]) -> list[str]:
    """Counts one conversation into the row of its family. Every second one spells special tokens, its own and those of others."""
    draw = random.Random(seed)
    messages = random_conversation(draw, FAMILIES[name], marks=draw.random() < 0.5)
    wrong = faults(name, messages)
    row["conversations"] += 1
    row["answers"] += sum(message["role"] == "assistant" for message in messages)
    row["exact"] += not wrong
    if spells_a_mark(name, messages):
        row["spell a special token"] += 1
        row["other special tokens than transformers, sanitized"] += FAMILIES[name].chats and not same_marks(name, messages)
    elif FAMILIES[name].chats:
        found = compared(name, messages)
        row["compared with transformers"] += 1
        row["same ids"] += found["ids"]
        row["other ids at the border of pieces only"] += found["joined ids"] and not found["ids"]
        row["ids differ though joined"] += not found["joined ids"]
        row["text differs from transformers"] += not found["text"]
    return wrong


def rules(family: Family) -> list[str]:
    """What differs from 'one begin mark, the answer as it stands, its end mark' by the family's design."""
    said = [
        (family.writes is trimmed, "the template takes blanks off both ends of every content: the trimmed answer is learned"),
        (family.asks_contents, "the template writes (empty) thoughts before the last answer and takes line ends off its start"),
        (bool(family.opens), f"the template says {family.opens!r} before every answer and behind the prompt: it is learned"),
        (family.end != family.end.strip(), f"the template writes {family.end!r} behind an answer: the blank is learned with the mark"),
        (family.begins_each_turn, "the template writes the begin mark before every question"),
        (family.adds_end, "the template writes no end mark: the tokenizer's is put behind every answer, in prompts too"),
        (not family.knows_system, "the template has no system text in an answered conversation: folded into the first question (data.system_as=user)"),
        (family.bos is None, "the family has no begin mark"),
        (not family.chats, "no chat template: our plain one, repeated turn by turn"),
    ]
    return [rule for holds, rule in said if holds]


if __name__ == "__main__":
    main()
