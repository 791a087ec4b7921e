"""From a recipe file and `section.key=value` words to a checked Recipe, every problem at once.

The spellings of TRL, Axolotl and LlamaFactory are accepted and translated; each translation is
returned as a note, so that it can be printed.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from halfbyte.errors import RecipeError
from halfbyte.recipe.schema import Recipe

LARGEST_RECIPE_BYTES = 1_000_000
EXPLAIN = "halfbyte recipe --explain lists every key"

# Spelling elsewhere -> key here. The values are checked by the schema like any other.
TRANSLATIONS = {
    "model_name_or_path": "base", "base_model": "base", "model_name": "base", "model": "base",
    "dataset": "data.path", "dataset_path": "data.path", "train_file": "data.path", "data_path": "data.path",
    "dataset_text_field": "data.column",
    "max_seq_length": "data.max_length", "max_length": "data.max_length", "sequence_len": "data.max_length", "cutoff_len": "data.max_length",
    "val_set_size": "data.validation_share", "val_size": "data.validation_share",
    "system_prompt": "data.system", "default_system": "data.system",
    "lora_r": "adapter.r", "lora_rank": "adapter.r", "rank": "adapter.r", "r": "adapter.r",
    "lora_alpha": "adapter.alpha", "lora_dropout": "adapter.dropout",
    "lora_target_modules": "adapter.target_modules", "lora_target": "adapter.target_modules", "target_modules": "adapter.target_modules",
    "modules_to_save": "adapter.modules_to_save", "lora_modules_to_save": "adapter.modules_to_save", "additional_target": "adapter.modules_to_save",
    "learning_rate": "train.learning_rate", "lr": "train.learning_rate",
    "num_train_epochs": "train.num_epochs", "num_epochs": "train.num_epochs", "epochs": "train.num_epochs", "max_steps": "train.max_steps",
    "per_device_train_batch_size": "train.batch_size", "micro_batch_size": "train.batch_size", "batch_size": "train.batch_size",
    "gradient_accumulation_steps": "train.gradient_accumulation_steps",
    "optim": "train.optimizer", "optimizer": "train.optimizer", "weight_decay": "train.weight_decay",
    "lr_scheduler_type": "train.schedule", "lr_scheduler": "train.schedule",
    "warmup_ratio": "train.warmup_steps", "warmup_steps": "train.warmup_steps",
    "max_grad_norm": "train.max_grad_norm", "gradient_checkpointing": "train.gradient_checkpointing",
    "activation_checkpointing": "train.gradient_checkpointing",
    "eval_steps": "train.eval_steps", "save_steps": "train.eval_steps",
    "early_stopping_patience": "train.early_stopping_patience", "save_total_limit": "train.keep_checkpoints",
    "per_device_eval_batch_size": "evaluate.batch_size", "max_new_tokens": "evaluate.max_new_tokens",
    "bnb_4bit_quant_type": "quant.kind", "bnb_4bit_use_double_quant": "quant.double_quant", "double_quantization": "quant.double_quant",
    "run_name": "name", "random_state": "seed", "data_seed": "seed",
}  # fmt: skip
# A switch elsewhere -> (key, value when on, value when off). None leaves the key alone.
SWITCHES: dict[str, tuple[str, Any, Any]] = {
    "load_in_4bit": ("quant.kind", "nf4", "none"),
    "bf16": ("train.precision", "bfloat16", None),
    "fp16": ("train.precision", "float16", None),
    "use_rslora": ("adapter.kind", "rslora", None),
    "peft_use_rslora": ("adapter.kind", "rslora", None),
    "use_dora": ("adapter.kind", "dora", None),
    "peft_use_dora": ("adapter.kind", "dora", None),
    "lora_target_linear": ("adapter.target_modules", "all-linear", None),
}
VALUES = {
    "train.optimizer": {
        "adamw_torch_fused": "adamw_torch", "adamw": "adamw_torch", "paged_adamw": "paged_adamw_32bit", "adamw_bnb_8bit": "adamw_8bit",
    },
    "adapter.target_modules": {"all": "all-linear", "all_linear": "all-linear"},
    "train.precision": {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"},
}  # fmt: skip
# Spellings that belong to a section here: TRL's names written inside it.
SECTIONS = ("data", "quant", "adapter", "train", "evaluate")


@dataclass(frozen=True)
class Loaded:
    """A checked recipe, what it was translated from, and its text as asked."""

    recipe: Recipe
    notes: list[str]
    text: str


def load_recipe(path: Path, overrides: list[str] | None = None) -> Loaded:
    """Reads and checks a recipe. Raises RecipeError with every problem, one a line."""
    if not path.is_file():
        near = [str(p) for p in sorted(Path("recipes").glob("*.yaml"))]
        raise RecipeError(f"{path}: no such recipe file", hint="there are: " + ", ".join(near) if near else "halfbyte new FILE writes one")
    if path.stat().st_size > LARGEST_RECIPE_BYTES:
        raise RecipeError(f"{path}: larger than 1 MB, so it is hardly a recipe", hint="is this the data file? halfbyte new FILE writes a recipe for it")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: byte {error.start} is not UTF-8", hint="save the recipe as UTF-8") from error
    loaded = parse_recipe(text, str(path), overrides or [], default_name=path.stem)
    if not Path(loaded.recipe.data.path).expanduser().exists():
        raise RecipeError(
            f"data.path: there is no file {loaded.recipe.data.path}",
            hint="give another with data.path=FILE; a relative path starts at the folder you call from",
        )
    return loaded


def parse_recipe(text: str, file: str, overrides: list[str], default_name: str = "run") -> Loaded:
    """Checks recipe text; `file` is only for messages."""
    asked, lines, problems = _read_yaml(text, file)
    for word in overrides:
        key, found, value = word.partition("=")
        if not found:
            problems.append(f"{word}: not an override; write section.key=value")
            continue
        _put(asked, key.strip(), _value(value), problems)
    values, notes = _translate(asked, problems)
    values.setdefault("name", _folder_name(default_name))
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        problems += [_explain(item, lines, file) for item in error.errors()]
    if problems:
        raise RecipeError("\n".join(problems), hint=EXPLAIN)
    return Loaded(recipe, notes, text if not overrides else _as_asked(text, overrides))


def dump_recipe(recipe: Recipe) -> str:
    """The recipe with every default written out, as YAML that loads back to the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _as_asked(text: str, overrides: list[str]) -> str:
    return text.rstrip("\n") + "\n\n# given on the command line:\n" + "".join(f"# {word}\n" for word in overrides)


def _read_yaml(text: str, file: str) -> tuple[dict[str, Any], dict[str, int], list[str]]:
    """Values, the line of every dotted key, and problems such as keys written twice."""
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise RecipeError(f"{file}: YAML aliases (*name) are not used in recipes", hint="write the value out")
        node, values = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{file}:{mark.line + 1}" if mark else file
        raise RecipeError(f"{where}: not YAML: {error.problem or error.context}", hint="indent with blanks, not tabs; write `key: value`") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{file}: not YAML: {error}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise RecipeError(f"{file}: a recipe is a list of `key: value` lines", hint="halfbyte new FILE writes one")
    lines: dict[str, int] = {}
    problems: list[str] = []

    def walk(mapping: yaml.Node | None, above: str) -> None:
        if isinstance(mapping, yaml.MappingNode):
            for key, value in mapping.value:
                dotted = f"{above}{key.value}"
                if dotted in lines:
                    problems.append(f"{file}:{key.start_mark.line + 1}: {dotted} stands twice, first in line {lines[dotted]}")
                lines[dotted] = key.start_mark.line + 1
                walk(value, dotted + ".")

    walk(node, "")
    return values, lines, problems


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text) if text.strip() else ""
    except yaml.YAMLError:
        return text


def _put(values: dict[str, Any], dotted: str, value: Any, problems: list[str]) -> None:
    *above, last = dotted.split(".")
    for name in above:
        if values.get(name) is None:
            values[name] = {}
        if not isinstance(values[name], dict):
            problems.append(f"{dotted}: {name} is a value here, not a section")
            return
        values = values[name]
    values[last] = value


def _translate(asked: dict[str, Any], problems: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Moves the field's other spellings to ours; says so."""
    values: dict[str, Any] = {}
    notes: list[str] = []
    moved: dict[str, str] = {}
    flat = [(key, value) for key, value in asked.items() if not (key in SECTIONS and isinstance(value, dict))]
    for section in SECTIONS:
        inner = asked.get(section)
        if isinstance(inner, dict):
            known = {target.split(".")[1] for target in TRANSLATIONS.values() if target.startswith(section + ".")}
            for key, value in inner.items():
                target = TRANSLATIONS.get(str(key), "")
                foreign = str(key) not in known and (target.startswith(section + ".") or str(key) in SWITCHES)
                if foreign:
                    flat.append((f"{section}.{key}", value))
                else:
                    values.setdefault(section, {})[key] = _known_value(f"{section}.{key}", value, notes)
    for spelled, value in flat:
        key = str(spelled).rsplit(".", 1)[-1]
        if spelled == "adapter" and value in ("lora", "qlora"):
            target, value = "adapter.kind", "lora"
            notes.append(f"adapter: {asked['adapter']} is read as adapter.kind=lora" + (", quant.kind=nf4" if asked["adapter"] == "qlora" else ""))
            if asked["adapter"] == "qlora":
                values.setdefault("quant", {}).setdefault("kind", "nf4")
        elif key in SWITCHES and isinstance(value, bool):
            target, on, off = SWITCHES[key]
            value = on if value else off
            notes.append(f"{spelled} is read as {target}={value}" if value is not None else f"{spelled}=false changes nothing here")
            if value is None:
                continue
        elif key in TRANSLATIONS and TRANSLATIONS[key] != spelled:
            target = TRANSLATIONS[key]
            notes.append(f"{spelled} is read as {target}")
        else:
            values[spelled] = value
            continue
        if target in moved:
            problems.append(f"{spelled} and {moved[target]} both mean {target}; keep one")
        elif _has(values, target) and target not in ("quant.kind",):
            problems.append(f"{spelled} means {target}, which is given too; keep one")
        else:
            moved[target] = str(spelled)
            _put(values, target, _known_value(target, value, notes), problems)
    return values, notes


def _known_value(target: str, value: Any, notes: list[str]) -> Any:
    if isinstance(value, str) and value in VALUES.get(target, {}):
        notes.append(f"{target}={value} is read as {VALUES[target][value]}")
        return VALUES[target][value]
    return value


def _has(values: dict[str, Any], dotted: str) -> bool:
    section, _, key = dotted.partition(".")
    inner = values.get(section)
    return section in values if not key else isinstance(inner, dict) and key in inner


def _folder_name(name: str) -> str:
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name.lower()).strip("._-")
    return kept[:64] or "run"


def _explain(item: Any, lines: dict[str, int], file: str) -> str:
    """One line of a pydantic error: where, what, the mend."""
    path = [str(part) for part in item["loc"]]
    section: type[BaseModel] | None = Recipe
    named: list[str] = []
    for part in path:
        if part in ("auto", "text", "prompt_response", "nf4", "fp4", "none") and named and named[-1] in ("data", "quant"):
            continue  # the tag of a kind, which is no key of the recipe
        named.append(part)
    dotted = ".".join(named)
    where = f"{file}:{lines[dotted]}: " if dotted in lines else ""
    if item["type"] == "extra_forbidden":
        section = _section_of(path)
        names = list(section.model_fields) if section else []
        near = difflib.get_close_matches(named[-1], names, n=1, cutoff=0.6)
        mend = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names)}"
        return f"{where}{dotted}: no such key; {mend}"
    if item["type"] == "missing":
        return f"{where}{dotted}: is missing"
    message = item["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    given = item.get("input")
    shown = f", got {given!r}" if isinstance(given, (str, int, float)) and not isinstance(given, bool) and "got" not in message else ""
    return f"{where}{dotted}: {message}{shown}" if dotted else f"{where}{message}"


def _section_of(path: list[str]) -> type[BaseModel] | None:
    """The model class whose key was refused; path is pydantic's, tags of kinds included."""
    current: Any = Recipe
    for index, part in enumerate(path[:-1]):
        field = current.model_fields.get(part)
        if field is None:
            continue
        options = [field.annotation, *getattr(field.annotation, "__args__", ())]
        classes = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        tag = path[index + 1] if index + 1 < len(path) else ""
        tagged = [c for c in classes if tag in getattr(c.model_fields.get("kind", None) and c.model_fields["kind"].annotation, "__args__", ())]
        if not classes:
            return None
        current = (tagged or classes)[0]
    return current
