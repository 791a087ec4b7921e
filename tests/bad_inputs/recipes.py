"""Recipes and command lines that are wrong (59-84 of the list), as people write them."""

from collections.abc import Callable
from pathlib import Path

from bad_inputs.case import CONFIG, DATA, NOTE, WORDS, Case, Make

RECIPE = """\
base: embedded
data:
  kind: prompt_response
  path: pairs.csv
  prompt_column: prompt
  response_column: response
  max_length: 64
adapter:
  r: 8
train:
  learning_rate: 2.0e-4
  max_steps: 4
  batch_size: 4
evaluate:
  max_new_tokens: 4
"""
PLAN = "plan train.yaml"
WHO = ("the keeper", "my sister", "an old sailor", "the doctor", "nobody", "a tall stranger", "the miller's boy", "your aunt")
WHAT = ("lights the lamp", "sells herring", "walks to church", "writes long letters", "hides the key", "counts sheep", "mends a net")
WHERE = ("by the harbour", "on Sundays", "before the storm", "without a word", "in the attic")


def pairs(folder: Path, rows: int = 24) -> None:
    lines = "".join(f"{WHO[i % 8]} {WHAT[i % 7]} {WHERE[i % 5]} ({i})?,{WHERE[i % 5]} {WHO[i % 3]} {WHAT[i % 4]} indeed\n" for i in range(rows))
    (folder / "pairs.csv").write_text("prompt,response\n" + lines, encoding="utf-8")


def long_prompts(folder: Path) -> None:
    lines = "".join(f"{' '.join(WHO[i % 8] + ' ' + WHAT[i % 7] for _ in range(60))} {i}?,{WHERE[i % 5]} {i}\n" for i in range(24))
    (folder / "pairs.csv").write_text("prompt,response\n" + lines, encoding="utf-8")


def write(text: str | bytes, name: str = "train.yaml") -> Make:
    """The recipe as it is written, beside the pairs."""

    def make(folder: Path) -> None:
        pairs(folder)
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))

    return make


def with_(old: str, new: str) -> Make:
    """The recipe with one place of it changed."""
    assert RECIPE.count(old) == 1, old
    return write(RECIPE.replace(old, new))


def plus(lines: str) -> Make:
    return write(RECIPE + lines)


def and_then(first: Make, second: Callable[[Path], object]) -> Make:
    def make(folder: Path) -> None:
        first(folder)
        second(folder)

    return make


good = write(RECIPE)


def recipe_case(number: str, does: str, make: Make, *says: str, words: str = PLAN, stage: str = WORDS, **more) -> Case:
    return Case(number, does, words, stage, 0 if stage == NOTE else 2, says, make, **more)


CASES = [
    recipe_case("59", "a misspelt key", with_("learning_rate", "leraning_rate"), "train.yaml:11:", "no such key", "did you mean 'train.learning_rate'?"),
    recipe_case("59+", "a misspelt section", with_("evaluate:", "evalute:"), "train.yaml:14:", "evalute", "did you mean 'evaluate'?"),
    recipe_case("59+", "a misspelt key on the command line", good, "train.lerning_rate", "did you mean", words=f"{PLAN} train.lerning_rate=1e-4"),
    recipe_case("59+", "a key of another section", with_("  r: 8", "  r: 8\n  batch_size: 2"), "train.yaml:10:", "train.batch_size"),
    recipe_case("59+", "three slips at once", write(RECIPE.replace("  r:", "  rr:").replace("max_steps: 4", "max_steps: four") + "seed: -1\n"),
                "train.yaml:9:", "train.yaml:12:", "train.yaml:16:", lines=3),
    recipe_case("60", "2e-4, which YAML 1.1 reads as text", with_("2.0e-4", "2e-4"), "learning rate", "0.0002", stage=NOTE),
    recipe_case("60", "a number in quotes", with_("max_steps: 4", "max_steps: '4'"), "train.yaml:12:", "the text '4' is read as the number 4", stage=NOTE),
    recipe_case("60", "on where a number belongs", with_("max_steps: 4", "max_steps: on"), "train.yaml:12:", "train.max_steps", "'on'"),
    recipe_case("60", "yes where true belongs", plus("  \nquant:\n  double_quant: yes\n"), "train.yaml:18:", "quant.double_quant", "true or false", "'yes'"),
    recipe_case("60+", "a number in words", with_("batch_size: 4", "batch_size: four"), "train.yaml:13:", "train.batch_size", "'four'"),
    recipe_case("60+", "half a row at a time", with_("batch_size: 4", "batch_size: 2.5"), "train.yaml:13:", "train.batch_size", "2.5"),
    recipe_case("60+", "a number with a comma", with_("2.0e-4", "0,0002"), "train.yaml:11:", "train.learning_rate", "0,0002", "point"),
    recipe_case("60+", "a section that is a number", with_("adapter:\n  r: 8", "adapter: 8"), "train.yaml:8:", "adapter"),
    recipe_case("60+", "a list of one number", with_("r: 8", "r: [8]"), "train.yaml:9:", "adapter.r"),
    recipe_case("60+", "a name that is a number", plus("name: 007\n"), "train.yaml:16:", "name", "quotes"),
    recipe_case("61", "a tab at the beginning of a line", with_("  r: 8", "\tr: 8"), "train.yaml:9:", "tab"),
    recipe_case("61+", "a line that is indented too far", with_("  max_steps: 4", "    max_steps: 4"), "train.yaml:12:", "not YAML"),
    recipe_case("61+", "no blank behind the colon", with_("r: 8", "r:8"), "train.yaml", "adapter"),
    recipe_case("61+", "a bracket that is not closed", plus("track:\n  report_to: [trackio\n"), "train.yaml:18:", "not YAML"),
    recipe_case("61+", "an empty recipe", write(""), "train.yaml", "data", "is missing"),
    recipe_case("61+", "a recipe that is a list", write("- base: embedded\n- data: pairs.csv\n"), "train.yaml", "key: value"),
    recipe_case("61+", "a recipe in UTF-16", write(RECIPE.encode("utf-16")), "train.yaml", "UTF-16"),
    recipe_case("61+", "a key that stands twice", plus("seed: 1\nseed: 2\n"), "train.yaml:17:", "seed stands twice", "line 16"),
    recipe_case("61+", "two spellings of one key that disagree", with_("  max_steps: 4", "  max_steps: 4\n  lr: 1.0e-3"),
                "train.yaml:13:", "lr", "learning_rate"),
    recipe_case("63", "a learning rate of 1e3", with_("2.0e-4", "1.0e+3"), "train.yaml:11:", "train.learning_rate", "1000", "1e-3"),
    recipe_case("63", "a learning rate of 0", with_("2.0e-4", "0"), "train.learning_rate", "nothing would be learned"),
    recipe_case("63+", "a negative learning rate", with_("2.0e-4", "-2.0e-4"), "train.yaml:11:", "train.learning_rate", "-0.0002"),
    recipe_case("63+", "a learning rate that is not a number", with_("2.0e-4", ".nan"), "train.yaml:11:", "finite"),
    recipe_case("63+", "a learning rate of 1e-12", with_("2.0e-4", "1.0e-12"), "train.yaml:11:", "train.learning_rate", "1e-12", "1e-7"),
    recipe_case("63+", "a learning rate of full fine-tuning's", with_("2.0e-4", "0.05"), "train.learning_rate", "0.05", "diverge", stage=NOTE),
    recipe_case("64", "a rank of 0", with_("r: 8", "r: 0"), "train.yaml:9:", "adapter.r", "got 0"),
    recipe_case("64", "a negative rank", with_("r: 8", "r: -8"), "train.yaml:9:", "adapter.r", "got -8"),
    recipe_case("64", "a rank larger than the layers", with_("r: 8", "r: 4096"), "adapter.r", "4096", "1 to 320", stage=CONFIG),
    recipe_case("64+", "an alpha of 0", with_("r: 8", "r: 8\n  alpha: 0"), "train.yaml:10:", "adapter.alpha", "got 0"),
    recipe_case("66", "a dropout of 1", with_("r: 8", "r: 8\n  dropout: 1.0"), "train.yaml:10:", "adapter.dropout", "less than 1"),
    recipe_case("66+", "a dropout in per cent", with_("r: 8", "r: 8\n  dropout: 5"), "train.yaml:10:", "adapter.dropout", "got 5"),
    recipe_case("67", "target modules that the model has not", with_("r: 8", "r: 8\n  target_modules: [q_projj]"),
                "q_projj", "matches 0", "q_proj", stage=CONFIG),
    recipe_case("67+", "target modules of another family", with_("r: 8", "r: 8\n  target_modules: [query_key_value]"),
                "query_key_value", "matches 0", stage=CONFIG),
    recipe_case("67+", "an empty list of target modules", with_("r: 8", "r: 8\n  target_modules: []"),
                "train.yaml:10:", "adapter.target_modules", "all-linear"),
    recipe_case("69", "rows longer than the model's positions", with_("max_length: 64", "max_length: 8192"),
                "data.max_length", "8192", "positions", stage=CONFIG),
    recipe_case("70", "rows of 8 tokens", with_("max_length: 64", "max_length: 8"), "max_length 8", stage=DATA),
    recipe_case("70+", "rows so short that every prompt is cut", and_then(good, long_prompts), "24 rows shortened", "keeps 99 %", stage=NOTE),
    recipe_case("70+", "rows of 0 tokens", with_("max_length: 64", "max_length: 0"), "train.yaml:7:", "data.max_length", "got 0"),
    recipe_case("72", "a warm-up longer than the run", with_("max_steps: 4", "max_steps: 4\n  warmup_steps: 100"),
                "100", "longer than the run of 4", stage=NOTE),
    recipe_case("72+", "a warm-up in per cent", with_("max_steps: 4", "max_steps: 4\n  warmup_steps: -3"), "train.yaml:13:", "train.warmup_steps", "got -3"),
    recipe_case("73", "a save interval longer than the run", with_("max_steps: 4", "max_steps: 4\n  save_steps: 500"),
                "500", "saved at the end only", stage=NOTE),
    recipe_case("75", "a tracker that there is not", plus("track:\n  report_to: [tensorbord]\n"),
                "train.yaml:17:", "track.report_to", "did you mean 'tensorboard'?"),
    recipe_case("75+", "an optimizer that there is not", with_("batch_size: 4", "batch_size: 4\n  optimizer: lion"), "train.yaml:14:", "'lion'", "adamw_torch"),
    recipe_case("75+", "a schedule that there is not", with_("batch_size: 4", "batch_size: 4\n  schedule: cosin"), "train.yaml:14:", "did you mean 'cosine'?"),
    recipe_case("76", "a seed in words", plus("seed: lucky\n"), "train.yaml:16:", "seed", "'lucky'"),
    recipe_case("76", "a seed beyond 32 bits", plus("seed: 4294967296\n"), "train.yaml:16:", "seed", "4294967296"),
    recipe_case("76+", "a seed with a point", plus("seed: 1.5\n"), "train.yaml:16:", "seed", "1.5"),
    recipe_case("79", "a kind of quantisation with a slip", plus("quant:\n  kind: nf5\n"), "train.yaml:17:", "'nf5'", "nf4, fp4, none", "did you mean 'nf4'?"),
    recipe_case("79+", "8 bits, which there is not here", plus("load_in_8bit: true\n"), "train.yaml:16:", "load_in_8bit"),
    recipe_case("79+", "a precision that there is not", with_("batch_size: 4", "batch_size: 4\n  precision: half"), "train.yaml:14:", "'half'", "float16"),
    recipe_case("82+", "a template without its place", with_("  max_length: 64", "  max_length: 64\n  prompt_template: 'Q: A:'"), "train.yaml:8:", "{prompt}"),
    recipe_case("82+", "data of a kind that there is not", with_("kind: prompt_response", "kind: prompts"),
                "train.yaml:3:", "'prompts'", "prompt_response", long=True),
    recipe_case("59+", "an address instead of a name", plus("name: ../../etc\n"), "train.yaml:16:", "name"),
    recipe_case("59+", "a budget without a unit", plus("memory_budget: 24\n"), "train.yaml:16:", "memory_budget", "24GB"),
    recipe_case("59+", "nothing left to train on", with_("max_length: 64", "max_length: 64\n  validation_share: 0.5\n  test_share: 0.5"),
                "leave nothing to train on"),
    recipe_case("59+", "no epochs", with_("max_steps: 4", "num_epochs: 0"), "train.yaml:12:", "train.num_epochs", "got 0"),
    recipe_case("59+", "a word that is no override", good, "epochs", "section.key=value", words=f"{PLAN} epochs"),
    recipe_case("59+", "an override below a value", good, "data.path", words=f"{PLAN} data.path.x=1"),
    recipe_case("59+", "a blank around the = of an override", good, "section.key=value", words=f"{PLAN} train.max_steps = 2", lines=3),
    recipe_case("59+", "a recipe that is not there", good, "trian.yaml", "no such recipe", words="plan trian.yaml"),
    recipe_case("59+", "a folder instead of a recipe", and_then(good, lambda folder: (folder / "recipes").mkdir()), "recipes", "folder", words="plan recipes"),
    recipe_case("59+", "the data instead of the recipe", good, "pairs.csv", "is data, not a recipe", "halfbyte new", words="train pairs.csv"),
    recipe_case("59+", "data that are not there", with_("pairs.csv", "paris.csv"), "data.path", "paris.csv"),
    recipe_case("59+", "a recipe with data's megabytes", write("# " + "x" * 1_100_000), "train.yaml", "1 MB"),
    recipe_case("59+", "no recipe at all", good, "give a recipe", words="train"),
    recipe_case("59+", "a command with a slip", good, "trian", "train", words="trian train.yaml"),
    recipe_case("59+", "an option with a slip", good, "--rus", "--runs", words="train train.yaml --rus here"),
    recipe_case("59+", "an option that has no value", good, "--runs", words="train train.yaml --runs"),
    recipe_case("59+", "a number that is none for an option", good, "--rows", words="show train.yaml --rows many"),
    recipe_case("59+", "a stage that there is not", good, "--stage", "token", words="show train.yaml --stage token"),
    recipe_case("59+", "a command without its file", good, "RECIPE", words="plan"),
    recipe_case("59+", "a new recipe over an old one", and_then(good, lambda folder: (folder / "pairs.yaml").write_text("mine")), "pairs.yaml exists",
                words="new pairs.csv"),
]  # fmt: skip
