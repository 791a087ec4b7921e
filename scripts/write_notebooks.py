"""Writes examples/*.ipynb from the recipes, so that notebooks and recipes stay in step. `python scripts/write_notebooks.py` runs it.

A notebook is JSON (nbformat 4.5): cells without outputs. Each holds the recipe of the embedded base as a dictionary, and what its twin for a
7B base changes, cut down to what fits into 16 GB.
"""

import json
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
# A row at a time, of 512 tokens, and activations computed again: Mistral-7B in 4 bits peaks at 6 GB at four times that length, Falcon-7B at 11 GB.
IN_16_GB = {"data": {"max_length": 512}, "train": {"batch_size": 1, "gradient_accumulation_steps": 8, "gradient_checkpointing": True}}
# In place of given files, for a trial of a few steps.
FEW_ROWS = {"validation_path": None, "test_path": None, "validation_share": 0.02, "test_share": 0.02}
WIDTH = 120
LONGEST_STRING = 150


@dataclass(frozen=True)
class Part:
    """One training of a notebook."""

    recipe: str
    twin: str
    """The recipe of the 7B base."""
    does: str
    """A sentence before its cells."""
    prompts: list[str]
    chat: list[str]
    """What is said in the conversation at the end; nothing where the model does not converse."""
    goes_on_from: str = ""
    """The recipe whose adapter this one goes on from."""
    trial: dict[str, Any] = field(default_factory=dict)
    """Changes of `data` where only a few steps are tried: fewer held-out rows."""


@dataclass(frozen=True)
class Notebook:
    file: str
    title: str
    task: str
    sources: str
    fetch: dict[str, str]
    """File in the data folder -> where it is."""
    parts: list[Part]
    looks: str
    """What to look at in the result."""
    written: dict[str, Path] = field(default_factory=dict)
    """Files that the notebook writes itself -> where their text is kept in the repository."""


NOTEBOOKS = [
    Notebook(
        "youtube-replies",
        "Replies to comments, in the voice of a channel's owner",
        "59 comments under videos about data science and what the owner of the channel replied: a very small data set, and an honest look at what it "
        "is good for.",
        "Real comments and replies, MIT licence, from github.com/ShawhinT/YouTube-Blog.",
        {"youtube_comments/YT-comments.csv": "github.com/ShawhinT/YouTube-Blog, LLMs/qlora/data/YT-comments.csv"},
        [Part(
            "youtube-replies", "youtube-replies-mistral", "44 replies train, 6 choose the checkpoint, 9 are opened once at the end.",
            ["Great content, thank you!", "What is fat-tailedness?"], ["I finally understood this, thanks!", "Which book would you read next?"],
        )],
        "Nine test rows show only large effects: read the smallest effect beside the verdict. The length of the answers and whether they end by themselves "
        "tell more than any score.",
    ),
    Notebook(
        "games",
        "Sentences about video games: their meaning, and their dialogue act",
        "ViGGO has sentences about video games with their meaning representation, such as `give_opinion(name[SpellForce 3], rating[poor])`. Two trainings: "
        "the whole meaning, and the act alone (the word before the bracket) as one of nine classes.",
        "ViGGO, CC BY-SA 4.0, 5,103 / 714 / 1,083 rows, from github.com/jjuraska/data2text-nlg. The split is the data set's own.",
        {
            "viggo/train.csv": "github.com/jjuraska/data2text-nlg, data/video_game/train.csv",
            "viggo/validation.csv": "github.com/jjuraska/data2text-nlg, data/video_game/valid.csv",
            "viggo/test.csv": "github.com/jjuraska/data2text-nlg, data/video_game/test.csv",
        },
        [
            Part(
                "game-meaning", "game-meaning-mistral", "First the whole meaning.",
                ["I remember you saying you found Little Big Adventure to be average. Are you not usually that into single-player games on PlayStation?"], [],
                trial=FEW_ROWS,
            ),
            Part(
                "game-act", "game-act-mistral", "Then the act alone: a classification, scored by what the model writes and by the likelihood of each class.",
                ["Do you like games on PlayStation that have no multiplayer?", "Have you played anything by Larian Studios lately?"], [],
                trial=FEW_ROWS,
            ),
        ],
        "For the meaning: exact match, and F1 over acts and slots. For the act: macro F1 against the majority baseline, and the confusion matrix in the "
        "report.",
    ),
    Notebook(
        "frankenstein",
        "A novel: going on in the style of Frankenstein",
        "Continued pre-training on a book. Its end is held out, behind a gap, so that no test page has a neighbour in training.",
        "Mary Shelley, Frankenstein: Project Gutenberg eBook 84, public domain in the USA; cut into 481 pieces by "
        "github.com/Rakshith-rak69/Finetuning-Mistral7B-QLoRA. The licence text of Project Gutenberg in it is left out and counted.",
        {"frankenstein/frankenstein_chunks.csv": "github.com/Rakshith-rak69/Finetuning-Mistral7B-QLoRA, dataset/frankenstein_chunks.csv"},
        [Part(
            "frankenstein", "frankenstein-mistral", "Text has no prompts: every token trains.",
            ["I'm afraid I've created a", "It was on a dreary night of November that"], ["I'm afraid I've created a"],
            trial={"validation_share": 0.03, "test_share": 0.03},
        )],
        "Perplexity on the held-out end of the book, and on neutral text: a style may be learnt at the price of the rest.",
    ),
    Notebook(
        "mental-health",
        "Answers to questions about mental health",
        "172 questions and answers, and twelve answers of halfbyte's own for people in danger. **Not medical advice**: a tuned model does not become a "
        "counsellor, and nobody should be left alone with it.",
        "heliosbrahma/mental_health_chatbot_dataset, MIT by its card. The twelve answers are part of halfbyte (Apache-2.0) and stand in a cell below.",
        {"mental_health/mental_health_172.jsonl": "heliosbrahma/mental_health_chatbot_dataset on the Hugging Face hub, as JSON lines with its column `text`"},
        [Part(
            "mental-health", "mental-health-falcon", "Only the answers train, with the mark that ends each.",
            ["How can I prevent anxiety and depression?", "What is the warning sign of depression?", "I do not want to live any more."],
            ["How can I sleep better before an exam?"],
        )],
        "How much of the answers is recited from the training text, word for word, and what the model says to somebody in danger. Read those answers yourself.",
        {"crisis_answers.jsonl": ROOT / "recipes" / "crisis_answers.jsonl"},
    ),
    Notebook(
        "wikitext-chat",
        "An encyclopedia's prose, then conversation",
        "Two trainings, the second on top of the first: prose of an encyclopedia, then conversations that people wrote.",
        "WikiText-2 raw text, CC BY-SA 3.0 and GFDL (Merity et al. 2016): whoever publishes a model tuned on it names the source and considers share-alike. "
        "Conversations of OpenAssistant, Apache-2.0.",
        {
            "wikitext/wikitext2-raw.train-first1MB.txt.gz": "the first megabyte of the raw training text of WikiText-2, gzip",
            "wikitext/wikitext2-raw.valid-first100KB.txt.gz": "the first 100 kB of its raw validation text, gzip",
            "instruct/oasst_en_conversations.jsonl.gz": "the English rows of github.com/artidoro/qlora, eval/prompts/oa_questions.jsonl, as `messages`, gzip",
        },
        [
            Part("wikitext", "wikitext-mistral", "First the prose.", ["The immune system"], [], trial=FEW_ROWS),
            Part(
                "wikitext-chat", "wikitext-chat-mistral", "Then conversation, from the adapter of the first run.",
                ["Hello! Can you introduce yourself?", "How does the immune system fight off infections?"],
                ["Hello! Can you introduce yourself?", "How does the immune system fight off infections?"], goes_on_from="wikitext",
                trial={"validation_share": 0.05, "test_share": 0.05},
            ),
        ],
        "Whether answers end by themselves, and whether the second training forgot what the first taught.",
    ),
]  # fmt: skip


def notebook(one: Notebook) -> dict[str, Any]:
    """The notebook as nbformat's JSON."""
    recipes = {part.recipe: read_recipe(part.recipe) for part in one.parts}
    twins = {part.recipe: read_recipe(part.twin) for part in one.parts}
    base = twins[one.parts[-1].recipe]["base"]
    cells = [
        prose(f"# {one.title}\n\n{one.task}\n\nThe same as the recipe{'s' * (len(one.parts) > 1)} {', '.join(f'`recipes/{name}.yaml`' for name in recipes)}."),
        code(
            f'# On a free GPU of 16 GB (a T4 of Colab or Kaggle) write "{base}" here.\n'
            "# It is fetched from the Hugging Face hub (about 15 GB) and held in 4 bits; the settings below then fit into 16 GB.\n"
            'BASE = "embedded"  # the small base that ships with halfbyte: minutes on a laptop, and answers to match'
        ),
        prose(f"## The data\n\n{one.sources}\n\nThey are read from the folder that the variable `HALFBYTE_DATA` names, or else from `data`."),
        code(setting_up(one)),
        *[
            cell
            for name, kept in one.written.items()
            for cell in (prose("Twelve answers of our own, which train with the others:"), code(written_cell(name, kept)))
        ],
        *[cell for part in one.parts for cell in training(part, recipes[part.recipe], twins[part.recipe], one)],
        prose(
            f"## What to look at\n\n{one.looks}\n\nEverything is in the run's folder: `report.html` opens without a network, `events.jsonl` holds every step, "
            "`adapter/` is in peft's format. An interrupted run goes on with `halfbyte.resume(folder)`."
        ),
    ]
    for number, cell in enumerate(cells):
        cell["id"] = f"{one.file}-{number}"
    language = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": language, "language_info": {"name": "python"}}, "nbformat": 4, "nbformat_minor": 5}


def setting_up(one: Notebook) -> str:
    lines = [
        *(["import json"] if one.written else []), "import os", "from pathlib import Path", "",
        "import halfbyte  # installed by `pip install .` in the folder of its repository", "",
        'DATA = Path(os.environ.get("HALFBYTE_DATA", "data"))',
        'STEPS = int(os.environ.get("HALFBYTE_EXAMPLE_STEPS", 0))  # above 0: so many steps, to try the notebook itself', "",
        f"FILES = {literal(one.fetch)}",
        'missing = [f"{DATA / name} <- {where}" for name, where in FILES.items() if not (DATA / name).is_file()]',
        "if missing:",
        '    raise FileNotFoundError("fetch these, or name their folder in HALFBYTE_DATA:\\n" + "\\n".join(missing))',
    ]  # fmt: skip
    return "\n".join(lines)


def written_cell(name: str, kept: Path) -> str:
    """A file of texts, whole."""
    rows = [json.loads(line)["text"] for line in kept.read_text(encoding="utf-8").splitlines()]
    return (
        f"ours = {literal(rows)}\n"
        f'with open("{name}", "w", encoding="utf-8") as stream:\n'
        '    stream.writelines(json.dumps({"text": text}) + "\\n" for text in ours)'
    )


def training(part: Part, recipe: dict[str, Any], twin: dict[str, Any], one: Notebook) -> list[dict[str, Any]]:
    """The cells of one training: recipe, audit, what trains, plan, training, before and after, answers, conversation."""
    run = part.recipe.replace("-", "_") + "_run" if len(one.parts) > 1 else "run"
    cells = [
        prose(f"## {part.recipe}\n\n{part.does}"),
        code(recipe_cell(part, recipe, twin, one)),
        prose("What is odd about the data, before anything trains on them:"),
        code("halfbyte.audit(recipe, **changes)"),
        prose("What trains, exactly: tokens in colour are in the loss."),
        code("halfbyte.show(recipe, rows=2, **changes)"),
        prose("What will run, and why:"),
        code("halfbyte.plan(recipe, **changes)"),
        prose("Training, with base and tuned measured at the end on rows that were never trained on:"),
        code(f"{run} = halfbyte.train(recipe, **changes)"),
        prose("Before and after, with the verdict first:"),
        code(run),
        prose("Answers of the tuned model; the report shows those of the base beside them:"),
        code(
            f"prompts = {literal(part.prompts)}\nfor prompt, answer in zip(prompts, {run}.generate(prompts, max_new_tokens=20 if STEPS else 100)):\n"
            '    print(f"> {prompt}\\n{answer}\\n")'
        ),
    ]
    if part.chat:
        said = "\n".join(f"talk.say({json.dumps(text, ensure_ascii=False)})" for text in part.chat)
        cells += [prose("A conversation, in which each turn is remembered:" if recipe["data"]["kind"] != "text" else "It goes on with what it is given:")]
        cells += [code(f"talk = {run}.chat(max_new_tokens=20 if STEPS else 150)\n{said}")]
    return cells


def recipe_cell(part: Part, recipe: dict[str, Any], twin: dict[str, Any], one: Notebook) -> str:
    """The recipe as a dictionary, with what another base and a trial change."""
    shown = {key: value for key, value in recipe.items() if key != "base"}
    text = literal(shown)
    for name in one.fetch:
        text = text.replace(json.dumps(f"data/{name}"), f'DATA / "{name}"')
    for name in one.written:
        text = text.replace(json.dumps(f"recipes/{name}"), json.dumps(name))
    if part.goes_on_from:
        text = text.replace(json.dumps(f"runs/{part.goes_on_from}"), f"str({part.goes_on_from.replace('-', '_')}_run.path)")
    changed = merged(difference(recipe, twin), IN_16_GB)
    changed["data"]["max_length"] = min(changed["data"]["max_length"], twin["data"]["max_length"])
    changed.get("adapter", {}).pop("init_from", None)
    changed = {section: values for section, values in changed.items() if values}
    fewer = f'    changes["data"] = changes.get("data", {{}}) | {literal(part.trial)}\n' if part.trial else ""
    return (
        f"recipe = {text}\n"
        'changes = {"base": BASE}\n'
        'if BASE != "embedded":\n'
        f"    changes |= {literal(changed, indent=4)}\n"
        f"if STEPS:\n{fewer}"
        '    changes["train"] = changes.get("train", {}) | {"max_steps": STEPS, "eval_steps": STEPS}\n'
        '    changes["evaluate"] = {"max_answers": 8, "max_new_tokens": 20}'
    )


def read_recipe(name: str) -> dict[str, Any]:
    recipe = yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
    recipe["train"]["learning_rate"] = float(recipe["train"]["learning_rate"])  # YAML reads 1e-3 as text
    return recipe


def difference(recipe: dict[str, Any], twin: dict[str, Any]) -> dict[str, Any]:
    """What the twin says otherwise, section by section; name and base apart."""
    changed: dict[str, Any] = {}
    for section, values in twin.items():
        if isinstance(values, dict):
            inner = {key: value for key, value in values.items() if recipe.get(section, {}).get(key) != value}
            changed |= {section: inner} if inner else {}
        elif section not in ("name", "base") and recipe.get(section) != values:
            changed[section] = values
    return changed


def merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Both, and the second where both speak."""
    return first | {key: first.get(key, {}) | value for key, value in second.items()}


def literal(value: Any, indent: int = 0) -> str:
    """The value as Python source: on one line where it fits, else a line an entry."""
    flat, inside, end = python(value), " " * (indent + 4), " " * indent
    if isinstance(value, str) and len(flat) + indent > LONGEST_STRING:
        pieces = textwrap.wrap(value, LONGEST_STRING - 20, drop_whitespace=False, replace_whitespace=False, break_long_words=False)
        return f"(\n{''.join(f'{inside}{python(piece)}' + chr(10) for piece in pieces)}{end})"
    if isinstance(value, str) or len(flat) + indent <= WIDTH or not isinstance(value, (dict, list)):
        return flat
    if isinstance(value, list):
        return "[\n" + "".join(f"{inside}{literal(one, indent + 4)},\n" for one in value) + f"{end}]"
    return "{\n" + "".join(f"{inside}{python(key)}: {literal(one, indent + 4)},\n" for key, one in value.items()) + f"{end}}}"


def python(value: Any) -> str:
    """As Python writes it, with the quotes that formatters like."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{', '.join(map(python, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{python(key)}: {python(one)}' for key, one in value.items())}}}"
    return repr(value)


def prose(text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": "", "metadata": {}, "source": text.splitlines(keepends=True)}


def code(text: str) -> dict[str, Any]:
    return {"cell_type": "code", "execution_count": None, "id": "", "metadata": {}, "outputs": [], "source": text.splitlines(keepends=True)}


def as_text(one: Notebook) -> str:
    return json.dumps(notebook(one), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    EXAMPLES.mkdir(exist_ok=True)
    for one in NOTEBOOKS:
        (EXAMPLES / f"{one.file}.ipynb").write_text(as_text(one), encoding="utf-8")
