"""Run folders as training and evaluation leave them, without either: for the tests of the report, and to look at one."""

import json
import math
from pathlib import Path
from typing import Any

Event = dict[str, Any]
SHA = "3c390a317c3dad6b48f16125d9e003b8575af1c1871ebb20d05b2ae0003560b4"
EVIL = "<script>alert(1)</script> </style> \"><img src=x onerror=alert(1)> \u202egnp.exe \x1b[31m \ud800 &amp; | a | `b` [c](https://d.example) **e** 'f'"
DECISIONS = [
    ("base", "embedded", "ships with halfbyte"), ("device", "CPU, 2 cores", "25 GB of memory"),
    ("split", "160 train, 10 validation, 27 test records", "rows that share a prompt or are nearly the same stay on one side"),
    ("precision", "float32", "no GPU found"), ("optimizer", "adamw_torch", "no GPU, so nothing to page"),
    ("learning rate", "0.001", "cosine after 1 warm-up step"), ("validation", "every 9 steps", "best checkpoint kept by validation loss"),
]  # fmt: skip


def write_run(folder: Path, events: list[Event], plan: dict[str, Any] | None = None, recipe: str = "base: embedded\nname: toy\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"event": event["event"], "time": "2026-11-21T09:14:02.120+00:00"} | event) + "\n" for event in events]
    (folder / "events.jsonl").write_text("".join(lines), encoding="utf-8")
    decided = [dict(zip(("name", "value", "reason"), decision, strict=True)) for decision in DECISIONS]
    settled = {"decisions": decided, "notes": ["data.licence is not stated"], "base_fingerprint": SHA, "rows_sha256": SHA[::-1], "licence": "CC0-1.0"}
    (folder / "plan.json").write_text(json.dumps(settled | (plan or {})), encoding="utf-8")
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    (folder / "recipe.resolved.yaml").write_text(recipe + "seed: 42\n", encoding="utf-8")
    (folder / "adapter.sha256").write_text(SHA[::2] * 2 + "\n", encoding="utf-8")
    return folder


def training(name: str, steps: int = 90, every: int = 9, seed: int = 1) -> list[Event]:
    """From the first event to the end of the loop; the loss is a curve with a wobble that is the same every time."""
    bins = {"trained": 160, "trained, prompt shortened": 12, "validation": 10, "test": 70}
    ledger = {
        "records_read": 261, "bins": bins, "left_out": [{"reason": "gap between the parts", "count": 2}, {"reason": "licence text", "count": 7}],
        "augmented": 0, "train_rows": 172, "validation_rows": 10, "test_rows": 70, "train_tokens": 22633, "validation_tokens": 1537, "test_tokens": 4105,
    }  # fmt: skip
    versions = {"halfbyte": "0.1.0", "python": "3.11.7", "torch": "2.13.0+cpu", "transformers": "5.23.0", "peft": "0.21.2", "bitsandbytes": "0.50.2"}
    command = f"halfbyte train {name}.yaml train.learning_rate=1e-3"
    events: list[Event] = [
        {"event": "run", "name": name, "base": "embedded", "device": "CPU, 2 cores", "versions": versions, "command": command},
        {"event": "data", "ledger": ledger},
        {"event": "model", "parameters": 11474240, "trainable": 729088, "share_4bit": 1.0, "weight_bytes": 15071744, "adapter": "lora",
         "reason": "r 16, alpha 32 on all linear layers, float32"},
    ]  # fmt: skip
    best = math.inf
    for step in range(steps + 1):
        wobble = math.sin(step * 12.9898 * seed) * 43758.5453 % 1 - 0.5
        if step:
            events.append({
                "event": "step", "step": step, "loss": 3.35 + 0.6 * math.exp(-step / steps * 3) + 0.25 * wobble, "grad_norm": 0.5 + 0.1 * abs(wobble),
                "learning_rate": 1e-3 * (1 + math.cos(math.pi * step / steps)) / 2, "tokens": 2048, "tokens_per_second": 950 - 300 * (step == 1) + 60 * wobble,
                "seconds": 2.2 * step, "peak_bytes": 1_561_935_872 if step > 4 else 1_527_738_368 - 10_000_000 * (5 - step),
            })  # fmt: skip
        if step % every == 0:
            loss = 3.45 + 0.25 * math.exp(-step / steps * 4) + 0.03 * max(0.0, step / steps - 0.8)
            events.append({"event": "validation", "step": step, "loss": loss, "tokens": 1537, "best": loss < best and step > 0})
            best = min(best, loss)
    why = "the lowest validation loss of 10 (3.460), which chose; the test part was not looked at"
    return [*events, {"event": "labels", "rows": 172, "sha256": SHA, "same_as_preview": True}, {"event": "choice", "step": 81, "of": steps, "why": why},
            {"event": "test_opened", "times": 1}]  # fmt: skip


END: Event = {"event": "end", "steps": 90, "seconds": 208.4, "best_step": 81, "stopped": "finished", "peak_bytes": 1_602_224_128}


def comparison(
    group: str, metric: str, base: float, tuned: float, half: float, smallest: float | None, higher: bool = True, rows: int = 70, units: int | None = None,
    unit: str = "test rows", primary: bool = False, p_value: float = 0.0005,
) -> Event:  # fmt: skip
    """`half` is half the width of the difference's interval."""
    change = tuned - base
    gain = change if higher else -change
    verdict = "better" if gain - half > 0 else "worse" if gain + half < 0 else "no evidence"
    went = "rose" if change > 0 else "fell"
    return {
        "event": "comparison", "group": group, "metric": metric, "unit": unit, "kind": "mean", "higher_is_better": higher, "base": base, "tuned": tuned,
        "base_interval": [base - half, base + half], "tuned_interval": [tuned - 0.8 * half, tuned + 0.8 * half], "difference": change,
        "interval": [change - half, change + 0.9 * half], "p_value": p_value, "test": "paired randomisation, 9,999 draws", "rows": rows,
        "units": units or rows, "smallest_effect": smallest, "verdict": verdict, "primary": primary,
        "sentence": f"{metric} on the {unit} {went} from {base:g} to {tuned:g} "
                    f"(95 % interval of the difference {change - half:.3g} to {change + 0.9 * half:.3g}; "
                    f"p = {p_value:.3f}): {verdict}.",
    }  # fmt: skip


def generation(prompt: str, base: str, tuned: str, reference: str | None = None, ended: tuple[bool, bool] = (True, True)) -> Event:
    return {"event": "generation", "prompt": prompt, "reference": reference, "base": base, "tuned": tuned, "base_ended": ended[0], "tuned_ended": ended[1]}


def perplexities(base: float, tuned: float) -> list[Event]:
    return [{"event": "perplexity", "model": name, "loss": math.log(value), "perplexity": value, "tokens": 4105}
            for name, value in (("base", base), ("tuned", tuned))]  # fmt: skip


def text_run(folder: Path) -> Path:
    windows = "test text, windows of 256 tokens, stride 128"
    return write_run(folder, [
        *training("gothic-tale"), *perplexities(36.26, 27.41),
        comparison("text", "perplexity", 36.26, 27.41, 1.6, 1.9, higher=False, rows=34, units=34, unit=windows, primary=True),
        comparison("text", "bits per byte", 1.262, 1.164, 0.016, 0.019, higher=False, rows=34, units=34, unit=windows),
        comparison("neutral text", "perplexity", 41.2, 42.9, 0.8, 1.0, higher=False, rows=40, units=12, unit="neutral text: everyday English", p_value=0.002),
        generation("I had been three days in the house when",
                   " I was a little girl, and was very fond of me. But I never thought of it before; and I always thought that I should see you again.",
                   " I was a boy, and was very fond of the sea. But I never thought of it before the night when the lamp went out.", ended=(True, False)),
        generation("My dear sister,", " I am not a man to be so much of a nature as you are.",
                   " the storm has been upon us three days, and the keeper is not come back."),
        END,
    ], {"predicted_bytes": 1_540_000_000})  # fmt: skip


ACTS = ["confirm", "give_opinion", "inform", "recommend", "request", "request_attribute", "request_explanation", "suggest", "verify_attribute"]


def acts_confusion(right: float, stray: int) -> list[list[int]]:
    """(9, 10): the diagonal holds `right` of each row, its neighbours the rest, and the last column `stray` of the first rows."""
    sizes = [42, 130, 411, 60, 91, 47, 63, 80, 159]
    matrix = [[0] * 10 for _ in sizes]
    for row, size in enumerate(sizes):
        lost = min(stray, size // 4) if row < 4 else 0
        matrix[row][row] = round(right * (size - lost))
        matrix[row][2 if row != 2 else 1] += size - lost - matrix[row][row]
        matrix[row][9] = lost
    return matrix


def label_run(folder: Path) -> Path:
    def scores(shift: float) -> list[dict[str, Any]]:
        return [{"label": act, "precision": 0.5 + shift, "recall": 0.45 + shift + 0.01 * place, "f1": 0.47 + shift, "rows": 40 + 9 * place}
                for place, act in enumerate(ACTS)]  # fmt: skip

    figures = {"ece": 0.081, "temperature": 1.32, "prior_corrected": True, "threshold": 0.71, "coverage": 0.84, "accuracy_of_answered": 0.95}
    by_generation = {"base": acts_confusion(0.1, 60), "tuned": acts_confusion(0.83, 2)}
    by_likelihood = {"base": acts_confusion(0.3, 0), "tuned": acts_confusion(0.87, 0)}
    unit = "1083 test rows, by likelihood"
    return write_run(folder, [
        *training("game-act", seed=2), *perplexities(8.1, 1.31),
        comparison("text", "perplexity", 8.1, 1.31, 0.4, 0.5, higher=False, rows=1083, unit="answers of the test rows"),
        comparison("labels", "macro F1", 0.213, 0.861, 0.021, 0.026, rows=1083, unit=unit, primary=True),
        comparison("labels", "accuracy", 0.302, 0.887, 0.025, 0.031, rows=1083, unit=unit),
        comparison("labels", "calibration error", 0.094, 0.081, 0.022, 0.027, higher=False, rows=1083, unit=unit, p_value=0.31),
        comparison("answers", "accuracy", 0.061, 0.842, 0.027, 0.033, rows=1083, unit="1083 test rows, as answered"),
        comparison("neutral text", "perplexity", 41.2, 41.5, 0.8, 1.0, higher=False, rows=40, units=12, unit="neutral text: everyday English", p_value=0.43),
        {"event": "classes", "classes": ACTS, "rows": 1083, "majority": {"label": "inform", "accuracy": 0.3795}, "unseen": ["suggest"],
         "confusion": by_likelihood, "per_class": {"base": scores(-0.3), "tuned": scores(0.38)},
         "by_likelihood": {"base": figures | {"accuracy": 0.302, "temperature": 4.1}, "tuned": figures | {"accuracy": 0.887}}, "notes": []},
        {"event": "answered_classes", "classes": ACTS, "rows": 1083, "unparsable": {"base": 741, "tuned": 4}, "confusion": by_generation},
        generation("Knuckle Parade is a fighting game, right?", "I don't know what you are talking about.", "confirm", "confirm", (False, True)),
        generation("What ESRB rating did Knuckle Parade get?", "request", "request", "request_attribute"),
        {"event": "rating", "wins": 17, "losses": 3, "ties": 5, "equal": 0, "p_value": 0.0026, "verdict": "better",
         "sentence": "Of 20 pairs that were told apart the tuned answer was preferred in 17."},
        END,
    ])  # fmt: skip


def replies_run(folder: Path) -> Path:
    unit = "59 test rows, as answered"
    little = {"longest_words": 4, "shared": "I don't know what", "line": "comments.csv:41", "share_over_8": 0.0}
    recital = {"longest_words": 12, "shared": "a dark night is good for diplomacy, and a sharp chisel forgives", "line": "comments.csv:17", "share_over_8": 0.1}
    return write_run(folder, [
        *training("comment-replies", seed=3), *perplexities(52.0, 39.4),
        comparison("text", "perplexity", 52.0, 39.4, 2.4, 3.1, higher=False, rows=59, unit="answers of the test rows", primary=True),
        comparison("replies", "chrF", 14.2, 17.9, 2.1, 2.6, rows=59, unit=unit, p_value=0.0012),
        comparison("replies", "BLEU", 0.61, 0.88, 0.9, 1.2, rows=59, unit=unit, p_value=0.54),
        comparison("replies", "ROUGE-L", 0.091, 0.118, 0.019, 0.024, rows=59, unit=unit, p_value=0.008),
        comparison("replies", "length ratio", 2.43, 1.08, 0.31, 0.4, rows=59, unit=unit, higher=False),
        comparison("replies", "distinct words of two", 0.61, 0.55, 0.05, 0.06, rows=59, unit=unit, p_value=0.03),
        comparison("replies", "ends by itself", 0.22, 1.0, 0.11, 0.14, rows=59, unit=unit),
        comparison("neutral text", "perplexity", 41.2, 44.0, 0.8, 1.0, higher=False, rows=40, units=12, unit="neutral text: everyday English", p_value=0.001),
        {"event": "replies", "rows": 59, "recital": {"base": little, "tuned": recital}, "empty": {"base": 3, "tuned": 0}},
        generation("my neighbours think I'm growing something else", "I don't know what you mean. I don't know what you mean. I don't know",
                   "Bring them a basil. A dark night is good for diplomacy. -Marlow",
                   "Bring them a basil. Fourteen hours on is ample for herbs, and a dark night is good for diplomacy. -Marlow", (False, True)),
        generation("which chisel do I buy first", "A chisel is a good tool for wood, and you should buy one.",
                   "A sharp chisel is a good tool for wood, and half inch is the one. -Marlow",
                   "Half inch. Sharp beats brand. -Marlow"),
        generation("هل هذا يعمل؟", "", "نعم، يعمل. -Marlow", "نعم."),
        *(generation(f"prompt {number}", f"answer {number} of the base", f"answer {number} of the tuned") for number in range(8)),
        END,
    ])  # fmt: skip


def structure_run(folder: Path) -> Path:
    unit = "1083 test rows, as answered"

    def slots(shift: float) -> list[dict[str, Any]]:
        return [{"slot": slot, "precision": 0.3 + shift, "recall": 0.2 + shift, "f1": 0.25 + shift, "gold": 900 - 100 * place, "predicted": 700}
                for place, slot in enumerate(("name", "genres", "platforms", "esrb", "release_year"))]  # fmt: skip

    base = "The game is a party, and it is a game of the fighting."
    tuned = "inform(name[Colossal Tadpole Brawl], genres[fighting], player_perspective[side view], esrb[E (for Everyone)])"
    asked = "Colossal Tadpole Brawl is rated E for Everyone and shows its fights in side view. It's a party fighting game."
    return write_run(folder, [
        *training("game-meaning", seed=4), *perplexities(19.0, 1.9),
        comparison("text", "perplexity", 19.0, 1.9, 0.5, 0.6, higher=False, rows=1083, unit="answers of the test rows"),
        comparison("structure", "exact match", 0.0, 0.412, 0.029, 0.036, rows=1083, unit=unit, primary=True),
        comparison("structure", "slot F1", 0.02, 0.781, 0.018, 0.022, rows=1083, unit=unit),
        {"event": "structure", "rows": 1083, "unparsable": {"base": 1083, "tuned": 21}, "per_slot": {"base": slots(-0.2), "tuned": slots(0.5)}},
        generation(asked, base, tuned, tuned.replace("genres[fighting]", "genres[fighting, party]"), (False, True)),
        generation(asked + " Really.", base, tuned, tuned),
        END,
    ])  # fmt: skip


def old_run(folder: Path) -> Path:
    """As version 0.1 left it: perplexity and answers, no comparison."""
    events = [event for event in training("quickstart") if event["event"] not in ("choice", "test_opened", "labels")]
    answers = [{"event": "generation", "prompt": "My dear sister,", "base": " I am not a man.", "tuned": " I am not a man of the sea."}]
    return write_run(folder, [*events, *perplexities(36.26, 27.41), *answers, END])


def interrupted_run(folder: Path) -> Path:
    events = [event for event in training("gothic-tale") if event.get("step", 0) <= 31 and event["event"] not in ("labels", "choice", "test_opened")]
    return write_run(folder, [*events, {"event": "interrupted", "step": 31}])


def one_row_run(folder: Path) -> Path:
    """One test row: nothing can be said, and every figure of spread is null."""
    found = comparison("text", "perplexity", 40.0, 20.0, 1.0, None, higher=False, rows=1, unit="answers of the test rows", primary=True)
    unknown = {
        "base_interval": None,
        "tuned_interval": [None, None],
        "interval": [None, None],
        "p_value": 1.0,
        "smallest_effect": None,
        "verdict": "no evidence",
    }
    said = "perplexity on the answers of the test rows fell from 40 to 20 (p = 1.000): no evidence of a difference; 1 row is too few to show any (at least 6)."
    return write_run(folder, [*training("one-row"), *perplexities(40.0, 20.0), found | unknown | {"sentence": said}, END])


def no_row_run(folder: Path) -> Path:
    events = training("no-row")
    events[1]["ledger"] |= {"test_rows": 0, "test_tokens": 0}
    return write_run(folder, [*events, END])


def null_run(folder: Path) -> Path:
    """Figures that are missing, null, not finite or no figures at all."""
    found = comparison("text", "perplexity", 40.0, 20.0, 1.0, 1.0, primary=True)
    odd = {
        "base": None,
        "tuned": math.nan,
        "difference": "much",
        "interval": [None, 3],
        "p_value": None,
        "verdict": 7,
        "sentence": None,
        "rows": None,
        "units": {},
    }
    events: list[Event] = [
        *training("nulls", steps=3, every=1), {"event": "step", "step": 4, "loss": math.nan, "grad_norm": None, "peak_bytes": "x"},
        {"event": "validation", "step": 4, "loss": math.inf}, found | odd, {"event": "comparison", "group": "replies", "metric": "chrF"},
        {"event": "classes", "classes": None, "confusion": None, "per_class": None, "majority": None, "by_likelihood": {"base": None}},
        {"event": "answered_classes", "classes": ["a"], "confusion": {"base": [[0, 0]], "tuned": None}, "unparsable": {}},
        {"event": "replies", "recital": {"base": None, "tuned": {}}, "empty": None}, {"event": "structure", "unparsable": None, "per_slot": None},
        {"event": "rating", "wins": 0, "losses": 0, "ties": 0, "p_value": None, "sentence": None}, {"event": "choice", "step": None}, {"event": "test_opened"},
        {"event": "generation", "prompt": "a", "base": None, "tuned": None}, {"event": "end"},
    ]  # fmt: skip
    return write_run(folder, events, {"predicted_bytes": None, "decisions": None, "notes": None})


def evil_run(folder: Path) -> Path:
    """Every text that data or model can write tries to be markup."""
    events = [
        {"event": "run", "name": EVIL, "base": EVIL, "device": EVIL, "versions": {EVIL: EVIL}, "command": EVIL},
        {"event": "data", "ledger": {"records_read": 1, "bins": {EVIL: 1}, "left_out": [{"reason": EVIL, "count": 1}]}},
        {"event": "model", "adapter": EVIL, "reason": EVIL},
        *(event for event in training("evil", steps=3) if event["event"] in ("step", "validation")), {"event": "skipped", "step": 1, "reason": EVIL},
        {"event": "choice", "step": EVIL, "why": EVIL}, {"event": "labels", "sha256": EVIL},
        comparison(EVIL, EVIL, 1, 2, 0.1, 0.1, unit=EVIL, primary=True) | {"test": EVIL, "sentence": EVIL, "verdict": EVIL},
        comparison("text", EVIL, 1, 2, 0.1, 0.1, unit=EVIL),
        {"event": "classes", "classes": [EVIL, "b"], "confusion": {"base": [[1, 1, 1], [1, 1, 1]], "tuned": [[1, 1, 1], [1, 1, 1]]},
         "unseen": [EVIL], "notes": [EVIL], "majority": {"label": EVIL, "accuracy": 0.1},
         "per_class": {"base": [{"label": EVIL, "rows": 1, "f1": 1}], "tuned": []}},
        {"event": "structure", "per_slot": {"base": [{"slot": EVIL, "gold": 1}]}},
        {"event": "replies", "recital": {"tuned": {"longest_words": 3, "shared": EVIL, "line": EVIL}}},
        generation(EVIL, EVIL, EVIL + " more", EVIL + "```\n# forged\n", (False, False)),
        {"event": "rating", "wins": 1, "losses": 1, "ties": 0, "p_value": 1.0, "sentence": EVIL}, {"event": "note", "message": EVIL},
        {"event": "failed", "message": EVIL},
    ]  # fmt: skip
    plan = {"decisions": [{"name": EVIL, "value": EVIL, "reason": EVIL}], "notes": [EVIL], "licence": EVIL, "base_fingerprint": EVIL}
    return write_run(folder, events, plan, recipe="name: </pre><script>1</script>\n```\n# forged\n")


RUNS = {
    "text": text_run, "labels": label_run, "replies": replies_run, "structure": structure_run, "old": old_run, "interrupted": interrupted_run,
    "one-row": one_row_run, "no-row": no_row_run, "nulls": null_run, "evil": evil_run,
}  # fmt: skip
