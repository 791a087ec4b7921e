"""What is unwise in a recipe: rules on what it says, and, where the data are here, on what became of every row. Needs no torch.

A recipe that loads is no nonsense; what is told here works, and gives less than its author hopes, or a figure that means less.
"""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from halfbyte.recipe.schema import ChatData, Recipe, TextData

Ledger = dict[str, Any]
INSTRUCT = re.compile(r"\b(instruct|chat|it)\b", re.I)
MANY_EPOCHS = 15
FEWEST_STEPS_A_PASS = 4
# Of 30 rows three may change from wrong to right by chance (p = 0.25 by McNemar's exact test), which is ten points of accuracy.
FEW_TEST_ROWS = 30
MOST_NEW_TOKENS = 4096


@dataclass(frozen=True)
class RecipeFinding:
    """`key` is where the mend is written; `line` where it stands in the file, None where the default holds."""

    rule: str
    level: Literal["fault", "note"]
    key: str
    line: int | None
    seen: str
    silently: str
    mend: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class RecipeRule:
    name: str
    level: Literal["fault", "note"]
    key: str
    silently: str
    mend: str
    find: Callable[[Recipe, Ledger | None], str | None]
    """-> what was seen, None where nothing is wrong. The ledger is None where the data are not here."""
    else_key: str = ""
    """Where the mend is written when `key` does not stand in the file and this one does."""


def examine_recipe(recipe: Recipe, text: str, ledger: Ledger | None = None) -> list[RecipeFinding]:
    """`text`: the file, for the lines."""
    lines = _lines(text)
    found = []
    for rule in RULES:
        seen = rule.find(recipe, ledger)
        if seen is not None:
            key = rule.else_key if rule.key not in lines and rule.else_key in lines else rule.key
            found.append(RecipeFinding(rule.name, rule.level, key, lines.get(key), seen, rule.silently, rule.mend))
    return found


def _lines(text: str) -> dict[str, int]:
    """Line of every dotted key, as it is spelled here."""
    lines: dict[str, int] = {}

    def walk(node: yaml.Node | None, above: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                lines[f"{above}{key.value}"] = key.start_mark.line + 1
                walk(value, f"{above}{key.value}.")

    walk(yaml.compose(text, yaml.SafeLoader), "")
    return lines


def _no_test(recipe: Recipe, ledger: Ledger | None) -> str | None:
    data = recipe.data
    return "test_share is 0, and no test_path" if data.test_share == 0 and data.test_path is None else None


def _no_validation(recipe: Recipe, ledger: Ledger | None) -> str | None:
    data = recipe.data
    return "validation_share is 0, and no validation_path" if data.validation_share == 0 and data.validation_path is None else None


def _same_file(recipe: Recipe, ledger: Ledger | None) -> str | None:
    data = recipe.data
    given = {key: _place(value) for key, value in (("validation_path", data.validation_path), ("test_path", data.test_path)) if value is not None}
    trained = {_place(path) for path in data.paths}
    for key, place in given.items():
        if place in trained:
            return f"{key} is a file that trains"
    return "validation_path and test_path are one file" if len(set(given.values())) < len(given) else None


def _place(path: str) -> str:
    return path if path.startswith("hub:") else str(Path(path).expanduser().resolve())


def _high_rate(recipe: Recipe, ledger: Ledger | None) -> str | None:
    # The embedded base is small, and takes more: its recipes have 5e-4 to 1e-3.
    highest = 1e-2 if recipe.base == "embedded" else 1e-3
    rate = recipe.train.learning_rate
    return f"{rate:g}, where {highest:g} is much already" if rate > highest else None


def _low_rate(recipe: Recipe, ledger: Ledger | None) -> str | None:
    rate = recipe.train.learning_rate
    return f"{rate:g}: full fine-tuning takes that; adapters take ten times more" if rate < 1e-5 else None


def _rows_a_step(recipe: Recipe) -> int:
    return recipe.train.batch_size * recipe.train.gradient_accumulation_steps


def _epochs(recipe: Recipe, ledger: Ledger | None) -> float | None:
    if recipe.train.max_steps is None:
        return recipe.train.num_epochs
    return recipe.train.max_steps * _rows_a_step(recipe) / ledger["train_rows"] if ledger and ledger["train_rows"] else None


def _many_epochs(recipe: Recipe, ledger: Ledger | None) -> str | None:
    epochs = _epochs(recipe, ledger)
    if epochs is None or epochs < MANY_EPOCHS:
        return None
    rows = f" over {ledger['train_rows']:,} rows" if ledger else ""
    return f"{epochs:.0f} passes{rows}"


def _few_steps(recipe: Recipe, ledger: Ledger | None) -> str | None:
    if not ledger or not ledger["train_rows"]:
        return None
    steps = ledger["train_rows"] / _rows_a_step(recipe)
    return f"{ledger['train_rows']:,} rows in steps of {_rows_a_step(recipe)}: {steps:.1f} steps a pass" if steps < FEWEST_STEPS_A_PASS else None


def _no_licence(recipe: Recipe, ledger: Ledger | None) -> str | None:
    return "not stated" if recipe.data.licence is None else None


def _blank_in_template(recipe: Recipe, ledger: Ledger | None) -> str | None:
    template = recipe.data.prompt_template if isinstance(recipe.data, ChatData) else "chat"
    return f"ends in {template[-8:]!r}" if template != "chat" and template.endswith((" ", "\t")) else None


def _blank_in_prompt(recipe: Recipe, ledger: Ledger | None) -> str | None:
    ends = [prompt for prompt in recipe.evaluate.prompts if prompt.endswith((" ", "\t"))]
    return f"{ends[0][-12:]!r} ends in a blank" if ends and isinstance(recipe.data, TextData) else None


def _prompts_in_loss(recipe: Recipe, ledger: Ledger | None) -> str | None:
    return "loss: all" if isinstance(recipe.data, ChatData) and recipe.data.loss == "all" else None


def _cut(recipe: Recipe, ledger: Ledger | None) -> str | None:
    if not ledger:
        return None
    lost = sum(item["count"] for item in ledger["left_out"] if item["reason"].startswith("the answer does not fit"))
    shortened = sum(count for name, count in ledger["bins"].items() if "shorten" in name)
    read = ledger["records_read"]
    if not lost and shortened <= 0.05 * read:
        return None
    longest = (ledger.get("truncation") or {}).get("longest_row")
    return f"of {read:,} rows {lost:,} are left out and {shortened:,} shortened" + (f"; the longest has {longest:,} tokens" if longest else "")


def _few_test_rows(recipe: Recipe, ledger: Ledger | None) -> str | None:
    if not ledger or isinstance(recipe.data, TextData) or not 0 < ledger["test_rows"] < FEW_TEST_ROWS:
        return None
    return f"{ledger['test_rows']} rows"


def _instruct(base: str) -> bool:
    return bool(INSTRUCT.search(base.rpartition("/")[2].replace("-", " ").replace("_", " ")))


def _text_on_instruct(recipe: Recipe, ledger: Ledger | None) -> str | None:
    return f"plain text on {recipe.base}" if isinstance(recipe.data, TextData) and _instruct(recipe.base) else None


def _own_template(recipe: Recipe, ledger: Ledger | None) -> str | None:
    own = isinstance(recipe.data, ChatData) and recipe.data.prompt_template != "chat"
    return f"a template of one's own on {recipe.base}" if own and _instruct(recipe.base) else None


def _few_modules(recipe: Recipe, ledger: Ledger | None) -> str | None:
    wanted = recipe.adapter.target_modules
    return ", ".join(wanted) if isinstance(wanted, list) and wanted and set(wanted) <= {"q_proj", "k_proj", "v_proj", "query_key_value"} else None


def _fp4(recipe: Recipe, ledger: Ledger | None) -> str | None:
    return "fp4" if recipe.quant.kind == "fp4" else None


def _duplicates(recipe: Recipe, ledger: Ledger | None) -> str | None:
    if recipe.data.near_duplicates == "ignore":
        return "near_duplicates: ignore"
    return "keep_duplicates: true" if recipe.data.keep_duplicates else None


def _no_gap(recipe: Recipe, ledger: Ledger | None) -> str | None:
    return "0" if isinstance(recipe.data, TextData) and recipe.data.rows != "separate" and recipe.data.gap == 0 else None


def _boilerplate(recipe: Recipe, ledger: Ledger | None) -> str | None:
    return "true" if isinstance(recipe.data, TextData) and recipe.data.keep_boilerplate else None


def _endless(recipe: Recipe, ledger: Ledger | None) -> str | None:
    asked = recipe.evaluate.max_new_tokens
    return f"{asked:,}" if asked > MOST_NEW_TOKENS else None


def _scale(recipe: Recipe, ledger: Ledger | None) -> str | None:
    scale = recipe.adapter.alpha / recipe.adapter.r
    plain = recipe.adapter.kind != "rslora" and recipe.adapter.init_from is None
    return f"alpha/r is {scale:g}" if plain and not 0.25 <= scale <= 8 else None


def _dropout(recipe: Recipe, ledger: Ledger | None) -> str | None:
    return f"{recipe.adapter.dropout:g}" if recipe.adapter.dropout > 0.3 else None


def _decay(recipe: Recipe, ledger: Ledger | None) -> str | None:
    return f"{recipe.train.weight_decay:g}" if recipe.train.weight_decay >= 0.3 else None


def _float16(recipe: Recipe, ledger: Ledger | None) -> str | None:
    return "float16" if recipe.train.precision == "float16" else None


RULES = (
    RecipeRule(
        "no-test-rows",
        "fault",
        "data.test_share",
        "nothing tells whether the tuned model is better: the report has no comparison",
        "test_share: 0.15, or a test_path of its own",
        _no_test,
    ),
    RecipeRule(
        "no-validation",
        "note",
        "data.validation_share",
        "the last state is kept, also where an earlier one was better",
        "validation_share: 0.08",
        _no_validation,
    ),
    RecipeRule(
        "one-file-on-two-sides",
        "fault",
        "data.test_path",
        "the figure is of rows that were trained on, or that chose the checkpoint",
        "another file, or a share of the first",
        _same_file,
        "data.validation_path",
    ),
    RecipeRule(
        "learning-rate-high",
        "fault",
        "train.learning_rate",
        "the loss jumps, or the model forgets more than it learns",
        "2e-4 for a 7B base; lower for a larger one",
        _high_rate,
    ),
    RecipeRule(
        "learning-rate-low", "note", "train.learning_rate", "the adapter hardly moves: base and tuned come out alike", "1e-4 to 2e-4 for a 7B base", _low_rate
    ),
    RecipeRule(
        "many-passes",
        "note",
        "train.num_epochs",
        "a small file is learned by heart; the training loss falls to almost nothing, and says so",
        "2 to 4 passes, and train.early_stopping_patience: 3",
        _many_epochs,
        "train.max_steps",
    ),
    RecipeRule(
        "few-steps-a-pass",
        "note",
        "train.gradient_accumulation_steps",
        "few updates, each an average over much of the file; the last of a pass is smaller",
        "a smaller batch_size x gradient_accumulation_steps",
        _few_steps,
        "train.batch_size",
    ),
    RecipeRule(
        "no-licence",
        "note",
        "data.licence",
        "nobody who gets the model can know what it may be used for",
        "the licence of the data, such as CC-BY-SA-4.0",
        _no_licence,
    ),
    RecipeRule(
        "template-ends-in-a-blank",
        "note",
        "data.prompt_template",
        "words begin with their blank in most tokenizers: the answer begins with a token that the base hardly knows there",
        "end it in a line end or a colon",
        _blank_in_template,
    ),
    RecipeRule(
        "prompt-ends-in-a-blank",
        "note",
        "evaluate.prompts",
        "the same: the answer shown is made to look worse than the model is",
        "take the blank away",
        _blank_in_prompt,
    ),
    RecipeRule(
        "prompts-in-the-loss",
        "note",
        "data.loss",
        "where prompts are long or alike, most of the gradient learns them, and the loss says little of the answers",
        "loss: answers",
        _prompts_in_loss,
    ),
    RecipeRule(
        "max-length-cuts",
        "note",
        "data.max_length",
        "rows whose answer does not fit are lost, and long prompts lose their middle",
        "halfbyte prepare shows what each max_length keeps",
        _cut,
    ),
    RecipeRule(
        "few-test-rows",
        "note",
        "data.test_share",
        "only a large difference could be shown; 'no evidence' is the likely verdict",
        "a larger test_share, or more rows",
        _few_test_rows,
    ),
    RecipeRule(
        "plain-text-on-an-instruct-model",
        "note",
        "base",
        "it learns to go on with text, and forgets how to answer",
        "the base model of the same family",
        _text_on_instruct,
    ),
    RecipeRule(
        "another-template-than-the-model-s",
        "note",
        "data.prompt_template",
        "what the model knows of turns is not used; whoever serves it by its chat template gets another prompt",
        "prompt_template: chat",
        _own_template,
    ),
    RecipeRule(
        "few-modules", "note", "adapter.target_modules", "attention's inputs alone adapt little of the model", "target_modules: all-linear", _few_modules
    ),
    RecipeRule("fp4", "note", "quant.kind", "less exact than nf4 at the same size", "kind: nf4", _fp4),
    RecipeRule(
        "copies-on-two-sides",
        "note",
        "data.near_duplicates",
        "rows that are nearly the same weigh double, or stand on both sides of the split and flatter the figure",
        "near_duplicates: together, keep_duplicates: false",
        _duplicates,
        "data.keep_duplicates",
    ),
    RecipeRule("no-gap", "note", "data.gap", "the last page that trains goes on in the first that tests", "gap: 1000", _no_gap),
    RecipeRule("boilerplate-kept", "note", "data.keep_boilerplate", "header and licence are learned, and recited", "keep_boilerplate: false", _boilerplate),
    RecipeRule(
        "endless-answers",
        "note",
        "evaluate.max_new_tokens",
        "a model that has learned to stop needs no such limit; one that has not fills it",
        "the longest answer that makes sense",
        _endless,
    ),
    RecipeRule(
        "odd-scale",
        "note",
        "adapter.alpha",
        "the adapter's output is scaled by alpha/r: far from 1 or 2 it acts as another learning rate",
        "alpha: twice r",
        _scale,
    ),
    RecipeRule("much-dropout", "note", "adapter.dropout", "much of the adapter's input is missing in every step", "0.05 to 0.1, or 0", _dropout),
    RecipeRule("much-weight-decay", "note", "train.weight_decay", "the adapter is pulled back to nothing", "0 to 0.1", _decay),
    RecipeRule(
        "float16", "note", "train.precision", "gradients can overflow, and steps are skipped", "precision: auto takes bfloat16 where the GPU has it", _float16
    ),
)
