"""What the pages say is so: keys, verbs, recipes, claims."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from halfbyte.cli.main import app
from halfbyte.recipe.load import load_recipe, parse_recipe

ROOT = Path(__file__).parent.parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
# Rows that each recipe of real data reads.
REAL_DATA = {
    "youtube-replies": 59, "youtube-replies-mistral": 59, "game-meaning": 6900, "game-meaning-mistral": 6900, "game-act": 6900, "game-act-mistral": 6900,
    "frankenstein": 481, "frankenstein-mistral": 481, "mental-health": 184, "mental-health-falcon": 184, "wikitext": 2368, "wikitext-mistral": 2368,
    "wikitext-chat": 402, "wikitext-chat-mistral": 402,
}  # fmt: skip


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_keys_is_that_of_the_schema():
    """`make docs` was run after the last change of schema.py or load.py."""
    assert (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8") == load(ROOT / "scripts" / "write_docs.py").write()


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md", "docs/design.md", "docs/data.md", "docs/doctor.md", "docs/checks.md", "CONTRIBUTING.md"])
def test_every_verb_that_a_page_names_exists(page):
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands}
    text = (ROOT / page).read_text(encoding="utf-8")
    code = [inline or indented for inline, indented in re.findall(r"`([^`\n]+)`|^    (.*)$", text, re.M)]
    named = {verb for line in code for verb in re.findall(r"(?:^|/|\s)halfbyte ([a-z]+(?:-[a-z]+)*)\b", line)}
    assert named <= verbs, named - verbs


@pytest.mark.parametrize("page", ["README.md", "docs/design.md", "docs/data.md", "docs/perplexity.md", "docs/results.md", "src/halfbyte/base/CARD.md"])
def test_every_file_that_a_page_links_to_exists(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        assert ((ROOT / page).parent / target).exists(), target


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid(recipe):
    parsed = parse_recipe(recipe.read_text(encoding="utf-8"), recipe.name, [])
    assert parsed.recipe.name == recipe.stem
    assert not parsed.notes


@pytest.mark.parametrize("recipe", [path for path in RECIPES if "src/halfbyte/samples" in path.read_text()], ids=lambda path: path.stem)
def test_every_recipe_of_a_sample_plans(recipe, monkeypatch):
    from halfbyte import api

    monkeypatch.chdir(ROOT)
    planned = api.plan(load_recipe(recipe))
    assert planned.prepared.ledger["test_tokens"] > 1000
    held_out = planned.prepared.ledger["test_tokens"] + planned.prepared.ledger["validation_tokens"]
    assert held_out < 0.3 * (planned.prepared.ledger["train_tokens"] + held_out)
    assert {item["reason"] for item in planned.prepared.ledger["left_out"]} <= {"gap between the parts"}


def test_every_recipe_stands_in_a_list_above():
    """A recipe that no test prepares would be wrong unseen."""
    samples = {path.stem for path in RECIPES if "src/halfbyte/samples" in path.read_text()}
    assert {path.stem for path in RECIPES} == samples | set(REAL_DATA)


@pytest.mark.data
@pytest.mark.parametrize("name", REAL_DATA)
def test_every_recipe_of_real_data_prepares_and_its_rows_add_up(name, real_data, tmp_path, monkeypatch):
    """Those of 7B bases on the embedded base's tokenizer and no longer than its positions, for there is no other here; everything else as it stands."""
    from halfbyte import api

    (tmp_path / "data").symlink_to(real_data.resolve())
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    recipe = Path("recipes") / f"{name}.yaml"
    asked = load_recipe(recipe).recipe
    prepared = api.prepare(load_recipe(recipe, ["base=embedded", f"data.max_length={min(asked.data.max_length, 1024)}"]))
    ledger = prepared.ledger
    assert ledger["records_read"] == REAL_DATA[name]
    assert sum(ledger["bins"].values()) + sum(item["count"] for item in ledger["left_out"]) == REAL_DATA[name]
    assert ledger["train_tokens"] > 1000
    assert ledger["test_rows"] > 1
    assert prepared.section.licence


def test_every_claim_says_where_it_comes_from():
    claims = json.loads((ROOT / "benchmarks" / "results" / "claims.json").read_text())
    wanted = {
        "quickstart-s",
        "quickstart-peak-gb",
        "nf4-ppl-cost",
        "base-bits-per-byte",
        "plain-7b-ms",
        "plain-falcon-7b-ms",
        "conversations-mask-exact",
        "mutated-files-no-traceback",
        "near-duplicates-found",
        "tokenise-share-of-tokenizers",
        "prepare-5gb-peak-gb",
        "resume-changes-caught",
    }
    assert wanted <= {claim["claim"] for claim in claims}
    for claim in claims:
        assert set(claim) >= {"claim", "value", "unit", "command", "where", "date", "versions"}
        assert set(claim) >= {"peak_gb", "peer_peak_gb"} or "-vs-" not in claim["claim"]
        script = claim["command"].split()[1]
        assert (ROOT / script).is_file(), claim["command"]


def test_the_figures_of_the_card_are_those_of_the_raw_results():
    raw = json.loads((ROOT / "benchmarks" / "results" / "base_quality.json").read_text())
    card = (ROOT / "src" / "halfbyte" / "base" / "CARD.md").read_text()
    for figure in (
        f"{raw['formats']['bf16']['novels']['bits_per_byte']:.3f} bits a byte",
        f"NF4+DQ {raw['formats']['nf4+dq']['wikitext']['perplexity']:.1f}",
        f"{raw['minimal_pairs']['right']} of {raw['minimal_pairs']['pairs']}",
        f"{raw['endings']['ended']} of {raw['endings']['turns']} answers",
    ):
        assert figure in card


def test_no_page_and_no_figure_names_a_folder_of_somebody_s_machine():
    places = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/*.yaml"), *ROOT.glob("benchmarks/results/*.json"),
              *ROOT.glob("src/halfbyte/base/*.json"), *ROOT.glob("src/halfbyte/**/*.py"), *ROOT.glob("scripts/**/*.py")]  # fmt: skip
    found = [str(file) for file in places if re.search(r"(^|[\s\"'=])/(tmp|root|home|work)/", file.read_text(encoding="utf-8"))]
    assert not found


def test_no_page_holds_what_a_merge_left():
    """Guards against a page that went out with both sides of a conflict in it."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("src/**/*.md")]
    assert len(pages) > 10
    marks = re.compile(r"^(<{7} |={7}$|>{7} )", re.MULTILINE)
    assert [page.name for page in pages if marks.search(page.read_text(encoding="utf-8"))] == []
