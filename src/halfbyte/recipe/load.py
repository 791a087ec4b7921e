"""From a recipe file and `section.key=value` words to a checked Recipe, every problem at once.

The spellings of TRL, Axolotl and LlamaFactory are accepted and translated; each translation is
returned as a note, so that it can be printed.
"""

import difflib
import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from halfbyte.errors import RecipeError
from halfbyte.recipe.plain_yaml import read_plain
from halfbyte.recipe.schema import Recipe, is_reserved
from halfbyte.redaction import hide_secrets, holds_secret

LARGEST_RECIPE_BYTES = 1_000_000
# Of files that are no recipes: people give the data where the recipe is asked for.
DATA_ENDINGS = {".csv", ".tsv", ".txt", ".text", ".md", ".json", ".jsonl", ".ndjson", ".parquet", ".gz", ".xz", ".zst"}
RECIPE_ENDINGS = {".yaml", ".yml"}
# Named in a hint; more of them hide the one that was meant.
MOST_RECIPES = 6
WITHOUT_POINT = re.compile(r"[-+]?\d+[eE][-+]?\d+")
EXPLAIN = "halfbyte recipe --explain lists every key"

# Spelling elsewhere -> key here. The values are checked by the schema like any other.
TRANSLATIONS = {
    "model_name_or_path": "base", "base_model": "base", "model_name": "base", "model": "base",
    "dataset": "data.path", "dataset_path": "data.path", "train_file": "data.path", "data_path": "data.path",
    "dataset_text_field": "data.column",
    "max_seq_length": "data.max_length", "max_length": "data.max_length", "sequence_len": "data.max_length", "cutoff_len": "data.max_length",
    "val_set_size": "data.validation_share", "val_size": "data.validation_share",
    "system_prompt": "data.system", "default_system": "data.system",
    "label_field": "data.label_column", "packing_strategy": "data.packing",
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
    "report_to": "track.report_to",
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
    "packing": ("data.packing", "best_fit", "none"),
    "sample_packing": ("data.packing", "best_fit", "none"),
    "train_on_inputs": ("data.loss", "all", "answers"),
    "train_on_prompt": ("data.loss", "all", "answers"),
    "completion_only_loss": ("data.loss", "answers", "all"),
    "assistant_only_loss": ("data.loss", "answers", "all"),
    "mask_history": ("data.loss", "last", None),
}
VALUES: dict[str, dict[str | bool, str]] = {
    "train.optimizer": {
        "adamw_torch_fused": "adamw_torch", "adamw": "adamw_torch", "paged_adamw": "paged_adamw_32bit", "adamw_bnb_8bit": "adamw_8bit",
    },
    "adapter.target_modules": {"all": "all-linear", "all_linear": "all-linear"},
    "data.packing": {"bfd": "best_fit", True: "best_fit", False: "none"},
    "data.kind": {"alpaca": "instruction", "chat_template": "messages", "openai": "messages", "completion": "text", "classification": "label"},
    "train.precision": {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"},
}  # fmt: skip
# LlamaFactory writes these lists as one text with commas.
LISTS = ("adapter.target_modules", "adapter.modules_to_save")
# An override of {a: b} is a text elsewhere, where {prompt} may stand in it.
MAPPINGS = ("data.merge_labels",)
# Keys that ask for a secret. Counts of tokens are no secret.
SECRET_KEY = re.compile(r"(^|[_.-])(token|(api_?|access_?|private_?)?key|secret|password|passwd|credentials?)$", re.IGNORECASE)
# Spellings that belong to a section here: TRL's names written inside it.
SECTIONS = ("data", "quant", "adapter", "train", "evaluate", "track")


@dataclass(frozen=True)
class Loaded:
    """A checked recipe, what it was translated from, and its text as asked."""

    recipe: Recipe
    notes: list[str]
    text: str


def load_recipe(path: Path, overrides: list[str] | None = None) -> Loaded:
    """Reads and checks a recipe whose data are here. Raises RecipeError with every problem, one a line."""
    loaded = load_recipe_alone(path, overrides)
    data = loaded.recipe.data
    given = [("path", name) for name in data.paths] + [("validation_path", data.validation_path), ("test_path", data.test_path)]
    missing = [f"data.{key}: there is no file {name}" for key, name in given if name is not None and not _is_there(name)]
    if missing:
        raise RecipeError(
            "\n".join(missing),
            hint=f"give another with {missing[0].split(':')[0]}=FILE; a relative path starts at the folder you call from; "
            "hub:owner/name is a data set of the hub",
        )
    return loaded


def load_recipe_alone(path: Path, overrides: list[str] | None = None) -> Loaded:
    """Reads and checks a recipe; its data may be elsewhere. Raises RecipeError."""
    if not os.path.isfile(path):  # Path.is_file raises for a name that is too long
        if os.path.isdir(path):
            raise RecipeError(f"{path}: is a folder, not a recipe", hint="name the recipe in it, such as FOLDER/train.yaml; halfbyte new FOLDER writes one")
        raise RecipeError(f"{path}: no such recipe file", hint=_recipes_near(path))
    if path.suffix.lower() not in RECIPE_ENDINGS and DATA_ENDINGS & {ending.lower() for ending in path.suffixes[-2:]}:
        raise RecipeError(f"{path}: is data, not a recipe", hint=f"halfbyte new {path} writes a recipe for it")
    if path.stat().st_size > LARGEST_RECIPE_BYTES:
        raise RecipeError(f"{path}: larger than 1 MB, so it is hardly a recipe", hint="is this the data file? halfbyte new FILE writes a recipe for it")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        looks = "is UTF-16, not UTF-8" if path.read_bytes()[:2] in (b"\xff\xfe", b"\xfe\xff") else f"byte {error.start} is not UTF-8"
        raise RecipeError(f"{path}: {looks}", hint="save the recipe as UTF-8") from error
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.EIO):
            raise  # of the machine, and told by the command as that
        raise RecipeError(f"{path}: cannot be read: {error.strerror}", hint="are you allowed to read it?") from error
    return parse_recipe(text, str(path), overrides or [], default_name=path.stem)


def load_data_or_recipe(file: Path, overrides: list[str] | None = None) -> Loaded:
    """A recipe, or the recipe that a file of data has when nothing is stated."""
    if file.suffix.lower() in RECIPE_ENDINGS:
        return load_recipe(file, overrides)
    quoted = yaml.safe_dump(str(file), default_style='"', allow_unicode=True, width=float("inf")).rstrip("\n")
    loaded = parse_recipe("", str(file), [f"data.path={quoted}", *(overrides or [])], file.stem)
    if not _is_there(str(file)):
        near = difflib.get_close_matches(file.name, os.listdir(file.parent), n=1) if file.parent.is_dir() else []
        raise RecipeError(f"{file}: no such file", hint=f"did you mean {file.parent / near[0]}?" if near else "give a file of data or a recipe")
    return loaded


def _is_there(name: str) -> bool:
    """Or is something else than a missing file: a link that leads nowhere, an address, several names in one; the reader of files tells what."""
    return name.startswith("hub:") or ":/" in name or "," in name or os.path.lexists(Path(name).expanduser())


def parse_recipe(text: str, file: str, overrides: list[str], default_name: str = "run") -> Loaded:
    """Checks recipe text; `file` is only for messages. An override wins over the file, in whatever spelling either is."""
    _refuse_secrets(text, file, overrides)
    return _parse(text, file, overrides, default_name)


def parse_resolved(text: str, file: str, overrides: list[str]) -> Loaded:
    """The resolved recipe of a run. What it was made of was searched for secrets; since then it holds whole paths, which may look like one."""
    _refuse_secrets("", file, overrides)
    return _parse(text, file, overrides, "run")


def _parse(text: str, file: str, overrides: list[str], default_name: str) -> Loaded:
    asked, places, problems = _read_yaml(text, file)
    _refuse_by_name(asked, places, problems)
    values, notes = _translate(asked, places, problems)
    given: dict[str, Any] = {}
    for word in overrides:
        key, found, value = word.partition("=")
        if found:
            _put(given, key.strip(), _value(value), problems)
        else:
            problems.append(f"{word}: not an override; write section.key=value")
    _refuse_by_name(given, {}, problems)
    words, more = _translate(given, {}, problems)
    _overlay(values, words, places)
    values.setdefault("name", folder_name(default_name))
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        problems += _explain(error, places, file)
    if problems:
        raise RecipeError("\n".join(problems), hint=EXPLAIN)
    return Loaded(recipe, notes + more + _numbers_in_text(values, recipe, places), text if not overrides else _as_asked(text, overrides))


def dump_recipe(recipe: Recipe) -> str:
    """The recipe with every default written out, as YAML that loads back to the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _as_asked(text: str, overrides: list[str]) -> str:
    words = "".join("# " + word.replace("\n", "\n# ") + "\n" for word in overrides)
    return text.rstrip("\n") + "\n\n# given on the command line:\n" + words


def _refuse_secrets(text: str, file: str, overrides: list[str]) -> None:
    """A recipe is kept with its run and shown in its report, so a token in it would go wherever those go. Nothing is repeated of it here."""
    mend = "take it out: HF_TOKEN or `hf auth login` is for the hub, and trackers read their own variables"
    for number, line in enumerate(text.split("\n"), 1):
        if kind := holds_secret(line):
            raise RecipeError(f"{hide_secrets(file)}:{number}: holds {kind}, which has no place in a recipe", hint=mend)
    for word in overrides:
        if kind := holds_secret(word):
            raise RecipeError(f"{hide_secrets(word.partition('=')[0])}: holds {kind}, which has no place in a recipe", hint=mend)


def _refuse_by_name(asked: dict[str, Any], places: dict[str, str], problems: list[str]) -> None:
    """Keys for secrets, and the key that runs a model's own code, get a sentence of their own, and are taken out."""
    for above, section in [("", asked), *((f"{name}.", inner) for name, inner in asked.items() if isinstance(inner, dict))]:
        for key in [key for key in section if isinstance(key, str)]:
            where = f"{places.get(above + key, '')}{above}{key}: "
            if SECRET_KEY.search(key):
                problems.append(where + "secrets have no place in a recipe, which is kept with the run; set HF_TOKEN, or the tracker's own variable")
            elif key.startswith("trust_remote_code"):
                problems.append(where + "code that a model brings is never run here; take it out, and give a model that transformers knows")
            else:
                continue
            del section[key]


def _read_yaml(text: str, file: str) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Values, the place (`file:line: `) of every dotted key, and problems such as keys written twice."""
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise RecipeError(f"{file}: YAML aliases (*name) are not used in recipes", hint="write the value out")
        node, values = yaml.compose(text, yaml.SafeLoader), read_plain(text)
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
    return values, {dotted: f"{file}:{line}: " for dotted, line in lines.items()}, problems


def _value(text: str) -> Any:
    """The value of an override: a number, a switch, nothing, or a [list], as YAML reads it. Any other word is text as it stands,
    a colon or a # in it too; quotes keep a text that looks like a number."""
    try:
        value = read_plain(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
    if isinstance(value, str) and text.lstrip().startswith(("'", '"')):
        return value
    return value if text.strip() and isinstance(value, (bool, int, float, list, type(None))) else text


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


def _overlay(values: dict[str, Any], words: dict[str, Any], places: dict[str, str], above: str = "") -> None:
    """Puts the words of the command line over the values of the file, whose lines no longer say where they stand."""
    for key, value in words.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _overlay(values[key], value, places, f"{above}{key}.")
        else:
            values[key] = value
            places[f"{above}{key}"] = ""


def _translate(asked: dict[str, Any], places: dict[str, str], problems: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Moves the field's other spellings to ours; says so. Two spellings of one key must agree."""
    values: dict[str, Any] = {}
    notes: list[str] = []
    spelled_before: dict[str, str] = {}
    flat = [(key, value) for key, value in asked.items() if not (key in SECTIONS and isinstance(value, dict))]
    for section in SECTIONS:
        inner = asked.get(section)
        if isinstance(inner, dict):
            values[section] = {}
            known = {target.split(".")[1] for target in TRANSLATIONS.values() if target.startswith(section + ".")}
            for key, value in inner.items():
                target = TRANSLATIONS.get(str(key), "")
                foreign = str(key) not in known and (target.startswith(section + ".") or str(key) in SWITCHES)
                if foreign:
                    flat.append((f"{section}.{key}", value))
                else:
                    values[section][key] = _known_value(f"{section}.{key}", value, notes)

    def move(spelled: str, target: str, value: Any, loosely: bool = False) -> None:
        value = _known_value(target, value, notes)
        if not _has(values, target):
            spelled_before[target] = spelled
            places[target] = places.get(spelled, "")
            _put(values, target, value, problems)
        elif not (loosely or _get(values, target) == value):
            other = spelled_before.get(target)
            both = f"{spelled} and {other} both mean {target}" if other else f"{spelled} means {target}, which is given too"
            problems.append(f"{places.get(spelled, '')}{both}; keep one")

    def turn(item: tuple[Any, Any]) -> int:
        """Our own keys, then spellings of them, then switches: load_in_4bit means 4 bits of whatever kind is named beside it."""
        key = str(item[0]).rsplit(".", 1)[-1]
        return 2 if key in SWITCHES or item[0] == "adapter" else int(key in TRANSLATIONS)

    for spelled, value in sorted(flat, key=turn):
        key = str(spelled).rsplit(".", 1)[-1]
        if spelled == "adapter" and value in ("lora", "qlora"):
            notes.append(f"adapter: {value} is read as adapter.kind=lora" + (", quant.kind=nf4" if value == "qlora" else ""))
            move(spelled, "adapter.kind", "lora")
            if value == "qlora":
                move(spelled, "quant.kind", "nf4", loosely=_get(values, "quant.kind") == "fp4")
        elif key in SWITCHES:
            target, on, off = SWITCHES[key]
            meant = {True: on, False: off}.get(value) if isinstance(value, bool) else None
            if not isinstance(value, bool) and value != "auto":
                problems.append(f"{places.get(spelled, '')}{spelled}: input should be true or false, got {value!r}")
            elif meant is None:
                notes.append(f"{spelled}={str(value).lower()} changes nothing here")
            else:
                notes.append(f"{spelled} is read as {target}={meant}")
                move(spelled, target, meant, loosely=key == "load_in_4bit" and (_get(values, target), meant) == ("fp4", "nf4"))
        elif key in TRANSLATIONS and TRANSLATIONS[key] != spelled:
            notes.append(f"{spelled} is read as {TRANSLATIONS[key]}")
            move(spelled, TRANSLATIONS[key], value)
        else:
            values[spelled] = value
    return values, notes


def _known_value(target: str, value: Any, notes: list[str]) -> Any:
    if isinstance(value, (str, bool)) and value in VALUES.get(target, {}):
        spelled = str(value).lower() if isinstance(value, bool) else value
        notes.append(f"{target}={spelled} is read as {VALUES[target][value]}")
        return VALUES[target][value]
    if target in MAPPINGS and isinstance(value, str) and value.startswith("{"):
        return _mapping(value)
    if target in LISTS and isinstance(value, str) and value != "all-linear":
        return [name.strip() for name in value.split(",")]
    return value


def _mapping(text: str) -> Any:
    try:
        return read_plain(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def _has(values: dict[str, Any], dotted: str) -> bool:
    section, _, key = dotted.partition(".")
    inner = values.get(section)
    return section in values if not key else isinstance(inner, dict) and key in inner


def _get(values: dict[str, Any], dotted: str) -> Any:
    section, _, key = dotted.partition(".")
    return (values[section][key] if key else values[section]) if _has(values, dotted) else None


def folder_name(name: str) -> str:
    """The name of a file as the name of a run: small letters, digits, dot, dash and underscore."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name.lower()).strip("._-")
    name = kept[:64].rstrip(".") or "run"
    return f"run-{name}"[:64].rstrip(".") if is_reserved(name) else name


def _numbers_in_text(values: dict[str, Any], recipe: Recipe, places: dict[str, str]) -> list[str]:
    """Of the file: '512' in quotes is read as the number that it must mean, and said. So is 2e-4, but as everybody takes it for a number, and
    YAML 1.2 does, the plan's own figure is enough."""
    read = []
    for section, inner in values.items():
        for key, value in inner.items() if section in SECTIONS and isinstance(inner, dict) else ():
            meant = getattr(getattr(recipe, section), key)
            known = isinstance(value, str) and type(meant) in (int, float) and not WITHOUT_POINT.fullmatch(value)
            if known and (place := places.get(f"{section}.{key}")):
                read.append(f"{place}{section}.{key}: the text {value!r} is read as the number {meant:g}")
    return read


def _explain(error: ValidationError, places: dict[str, str], file: str) -> list[str]:
    """One line for each key that pydantic refused: where, what, the mend."""
    said: dict[str, list[str]] = {}
    for item in error.errors():
        path = [str(part) for part in item["loc"]]
        kinds = _kinds(path[0]) if path else {}
        section = next(iter(kinds.values()), None)
        if len(path) > 1 and len(kinds) > 1 and path[1] in kinds:
            section = kinds[path.pop(1)]  # the tag of a kind is no key of the recipe
        if item["type"] == "union_tag_invalid":
            path = [*path, "kind"]
        # Behind section.key come places in a list, which say something, and names of alternatives, which do not.
        dotted = ".".join(path[:2] + [part for part in path[2:] if part.isdigit()])
        said.setdefault(dotted, []).append(_say(item, path, section if len(path) > 1 else Recipe))
    whole = {dotted for dotted, lines in said.items() if lines == ["is missing"] and dotted in SECTIONS}  # a section that stands nowhere
    return [
        (f"{file}: " if dotted in whole else _place(dotted, places)) + (f"{dotted}: " if dotted else "") + " or ".join(dict.fromkeys(lines))
        for dotted, lines in said.items()
    ]


def _say(item: Any, path: list[str], section: type[BaseModel] | None) -> str:
    if item["type"] == "extra_forbidden":
        return f"no such key; {_meant(path, list(section.model_fields) if section else [])}"
    if item["type"] == "missing":
        return "is missing"
    if item["type"] == "union_tag_invalid":
        return _one_of(str(item["ctx"]["tag"]), list(_kinds(path[0])))
    if item["type"] == "literal_error" and isinstance(item["input"], str):
        return _one_of(item["input"], re.findall(r"'([^']*)'", item["ctx"]["expected"]))
    if item["type"] == "string_pattern_mismatch" and path == ["name"]:
        return f"{item['input']!r} is no name for a folder: 1 to 64 of a-z 0-9 . _ - that begin with a letter or a digit"
    message = item["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    given = item.get("input")
    if item["type"] in ("int_from_float", "int_parsing"):
        message = "input should be a whole number"
    elif item["type"] == "bool_parsing" or (item["type"] == "bool_type" and isinstance(given, str)):
        message = "input should be true or false"
    elif item["type"] == "float_parsing" and isinstance(given, str) and re.fullmatch(r"-?\d+,\d+", given):
        message = "write a point before the decimals, not a comma"
    elif item["type"] == "float_parsing":
        message = "input should be a number"
    shown = str(given).lower() if isinstance(given, bool) else repr(given)
    message += f", got {shown}" if isinstance(given, (str, int, float)) and "got" not in message else ""
    return message + ": write it in quotes" * (item["type"] == "string_type" and isinstance(given, (int, float)))


def _one_of(given: str, allowed: list[str]) -> str:
    near = difflib.get_close_matches(given, allowed, n=1, cutoff=0.6)
    return f"{given!r} is none of {', '.join(allowed)}" + (f"; did you mean {near[0]!r}?" if near else "")


def _meant(path: list[str], names: list[str]) -> str:
    """What a key that does not exist may have meant: one of its section, of another kind of its section, or of elsewhere."""
    key = path[-1]
    kinds = [kind for kind, section in _kinds(path[0]).items() if key in section.model_fields] if len(path) > 1 else []
    if kinds:
        return f"it belongs to {path[0]}.kind={' or '.join(kinds)}"
    in_kinds = {name: kind for kind, section in reversed(_kinds(path[0]).items()) for name in section.model_fields} if len(path) > 1 else {}
    if near := difflib.get_close_matches(key, [*names, *in_kinds], n=1, cutoff=0.6):
        belongs = "" if near[0] in names else f" It belongs to {path[0]}.kind={in_kinds[near[0]]}"
        return f"did you mean {'.'.join([*path[:-1], near[0]])!r}?{belongs}"
    others = [top for top in SECTIONS if top != path[0]]
    elsewhere = {name: f"{top}.{name}" for top in others for section in _kinds(top).values() for name in section.model_fields if name != "kind"}
    if near := difflib.get_close_matches(key, list(elsewhere | TRANSLATIONS), n=1, cutoff=0.8):
        return f"did you mean {(elsewhere | TRANSLATIONS)[near[0]]!r}?"
    return f"there are: {', '.join(names)}"


def _recipes_near(path: Path) -> str:
    """The recipe that was meant, where a name is close; otherwise those that are here: the user's own first."""
    here = sorted(Path().glob("*.yaml")) + sorted(Path("recipes").glob("*.yaml"))
    if meant := [str(one) for one in here if one.stem in difflib.get_close_matches(path.stem, [one.stem for one in here], n=1, cutoff=0.7)]:
        return f"did you mean {meant[0]}?"
    more = f" and {len(here) - MOST_RECIPES} more" if len(here) > MOST_RECIPES else ""
    return f"there are: {', '.join(map(str, here[:MOST_RECIPES]))}{more}" if here else "halfbyte new FILE writes one"


def _kinds(top: str) -> dict[str, type[BaseModel]]:
    """The classes that a section may be, by their kind; a section of one class has it under its own name."""
    if top not in SECTIONS:
        return {}
    annotation = Recipe.model_fields[top].annotation
    classes = [part for part in (annotation, *get_args(annotation)) if isinstance(part, type) and issubclass(part, BaseModel)]
    return {get_args(c.model_fields["kind"].annotation)[0]: c for c in classes} if len(classes) > 1 else {top: classes[0]}


def _place(dotted: str, places: dict[str, str]) -> str:
    """Where a key stands, or else the section that it should stand in."""
    while dotted and dotted not in places:
        dotted = dotted.rpartition(".")[0]
    return places.get(dotted, "")
