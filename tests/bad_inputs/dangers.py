"""What a recipe or a model from elsewhere must not bring (84, 91 and 100 of the list): secrets, bombs, devices, code."""

from pathlib import Path

from bad_inputs.case import CONFIG, DATA, WORDS, Case, Make
from bad_inputs.models import adapter, base, config
from bad_inputs.recipes import PLAN, plus, with_, write

SECRET = "hf_" + "AbCdEfGhIj" * 3 + "KlMn"  # of the form, and nobody's
BOMB = "a: &a [x, x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


def danger(number: str, does: str, make: Make, *says: str, words: str = PLAN, stage: str = WORDS, code: int = 2, **more) -> Case:
    return Case(number, does, words, stage, code, says, make, **more)


def pickle_of(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


CASES = [
    danger("84", "a token in the recipe", plus(f"hub_token: {SECRET}\n"), "train.yaml:16:", hides=SECRET),
    danger("84", "a token in a value that is a text", with_("path: pairs.csv", f"path: pairs.csv?token={SECRET}"), "train.yaml:4:", hides=SECRET),
    danger("84", "a bomb of aliases", write(BOMB), "train.yaml", "aliases"),
    danger("84", "a device instead of data", with_("path: pairs.csv", "path: /dev/zero"), "/dev/zero", stage=DATA),
    danger("84+", "a tag that makes an object", plus("name: !!python/object/apply:os.system ['true']\n"), "train.yaml", "not YAML"),
    danger("84+", "a device instead of a recipe", with_("r: 8", "r: 16"), "/dev/zero", words="plan /dev/zero"),
    danger("91+", "an adapter that is a pickle", adapter(pickle_of), "adapter_model.bin", "may run code",
           words="train train.yaml base=base adapter.init_from=adapter", stage=CONFIG, long=True),
    danger("100+", "a model that brings its own code", base(config(model_type="own", auto_map={"AutoModelForCausalLM": "own.Own"})), "its own code",
           words="plan train.yaml base=base", stage=CONFIG),
]  # fmt: skip
