"""The command line: parses, calls api, shows. torch is imported inside the commands, so that --help answers at once."""

import os
import shlex
import sys
import traceback
import warnings
from enum import StrEnum
from json import dumps as json_text
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from halfbyte import __version__
from halfbyte.cli import doctor, verdicts
from halfbyte.cli.check import check
from halfbyte.cli.outlet import output_may_close
from halfbyte.cli.reproduce import reproduce
from halfbyte.cli.screen import Screen, called, error_console, print_json, print_keys, printable
from halfbyte.cli.usage import UsageError, asks_for_help, machine_problem, usage_problem
from halfbyte.cli.verify import verify_resume
from halfbyte.errors import DataError, HalfbyteError, MachineError, RecipeError
from halfbyte.redaction import hide_in_logs, hide_secrets

app = typer.Typer(
    name="halfbyte", no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False,
    help="From a file of text to a fine-tuned language model you can trust.",
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML); `halfbyte new FILE` writes one.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the recipe, such as train.num_epochs=2.")]
RunsFolder = Annotated[Path, typer.Option("--runs", help="Folder that holds the run folders.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/quickstart.")]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"halfbyte {__version__}")
        raise typer.Exit()


@app.callback()
def _top(shown: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    pass


@app.command()
def quickstart(runs: RunsFolder = Path("runs")) -> None:
    """Fine-tune the embedded base on an embedded tale: plan, training, base against tuned, report. Two minutes on a laptop."""
    from halfbyte.recipe.load import load_recipe

    samples = Path(__file__).parent.parent / "samples"
    loaded = load_recipe(samples / "quickstart.yaml", [f"data.path={samples / 'gothic_tale.txt'}"])
    from halfbyte import api

    screen = Screen()
    with output_may_close(screen.on_closed):
        with screen:
            run = api.train(loaded, runs, screen.on_event, screen.on_plan, _command())
        screen.show_result(run.path)


@app.command()
def new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Your data: CSV, TSV, JSON, JSONL, Parquet, .txt or .md, a folder of them, or hub:owner/name.")],
    stated: Annotated[list[str] | None, typer.Argument(metavar="[DATA.KEY=VALUE]...", help="What looking does not tell: data.prompt_column=Frage.")] = None,
    base: Annotated[str, typer.Option(help="The model to start from.")] = "embedded",
    licence: Annotated[str | None, typer.Option(help="Licence of the data, kept beside the model.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write the recipe; FILE's name with .yaml here when not given.")] = None,
) -> None:
    """Look at a file and write a recipe for it, with every decision explained."""
    from halfbyte.data.look import run_name, write_recipe_for

    target = output or Path(f"{run_name(file)}.yaml")
    if os.path.lexists(target):  # a link that leads nowhere would be written through
        raise DataError(f"{target} exists and is left as it is", hint="choose another name with --output")
    words = [*(stated or []), *([f"data.licence={json_text(licence)}"] if licence else [])]
    with Screen() as screen:
        text = write_recipe_for(file, base, words, screen.ask_licence if sys.stdin.isatty() else None, screen.on_progress)
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MachineError(f"{target}: cannot be written: {error.strerror}", hint="choose another place with --output") from error
    typer.echo(printable(text))
    typer.echo(printable(f"Written to {target}. Next: {called()} train {shlex.quote(str(target))}"))


@app.command()
def audit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Your data, or a recipe.")],
    stated: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the recipe, such as data.column=text.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Look for what spoils training: duplicates, conflicting labels, boilerplate, damaged text, personal data."""
    from halfbyte.recipe.load import load_data_or_recipe

    loaded = load_data_or_recipe(file, stated)
    from halfbyte import api

    with Screen() as screen:
        found = api.audit(loaded.recipe.data, None if json else screen.on_event)
        if json:
            print_json(found.as_json())
        else:
            screen.show_audit(found, str(file))


@app.command()
def prepare(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Read, split, render and tokenise the data of a recipe, and keep the rows for training; shows what became of every row."""
    from halfbyte.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides)
    from halfbyte import api

    with Screen() as screen:
        screen.show_prepared(api.prepare(loaded, screen.on_event))


class Stage(StrEnum):
    """What `show` shows."""

    record = "record"
    example = "example"
    tokens = "tokens"
    batch = "batch"


@app.command()
def show(
    file: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, or a file of data.")],
    overrides: Overrides = None,
    stage: Annotated[Stage, typer.Option(help="How far on the way from the file to the model.")] = Stage.tokens,
    rows: Annotated[int, typer.Option(min=1, help="How many; a batch is shown whole.")] = 3,
    line: Annotated[int | None, typer.Option(min=1, help="Begin at this line of the file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page that opens without a network, instead.")] = None,
) -> None:
    """Show what trains, exactly: the supervised tokens are coloured."""
    from halfbyte.recipe.load import load_data_or_recipe

    loaded = load_data_or_recipe(file, overrides)
    if line is not None and stage is Stage.batch:
        raise RecipeError("--line: a batch has no line of its own", hint="use --stage tokens for one row, or leave --line out")
    if html is not None and os.path.lexists(html):
        raise DataError(f"{html} exists and is left as it is", hint="choose another name with --html")
    from halfbyte import api
    from halfbyte.data.show import to_page

    with Screen() as screen:
        shown, facts = api.show(loaded, stage.value, rows, line, screen.on_event)
        if html is None:
            screen.show_spans(shown, facts, stage.value)
            return
    try:
        html.write_text(to_page(shown, f"{loaded.recipe.name}: {stage.value}", facts, stage.value), encoding="utf-8")
    except OSError as error:
        raise MachineError(f"{html}: cannot be written: {error.strerror}", hint="choose another place with --html") from error
    typer.echo(printable(f"Written to {html}"))


@app.command()
def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    gpu: Annotated[str | None, typer.Option("--gpu", metavar="MEMORY|NAME", help='Memory and time on a GPU that need not be here: 24GB, "RTX 4090".')] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Show what a recipe would run, and why; loads no weights. With --gpu at once, without the data: from the base's config.json alone."""
    if gpu is not None:
        from halfbyte.cli.plans import plan_for_gpu

        plan_for_gpu(recipe, overrides, gpu, json, Screen().console)
        return
    from halfbyte.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides)  # before torch is imported: a slip in a recipe is told at once
    from halfbyte import api
    from halfbyte.cli.plans import forecast_as_json

    with Screen() as screen:
        planned = api.plan(loaded, None if json else screen.on_event)
        if json:
            print_json({**planned.plan.as_json(), "forecast": forecast_as_json(planned.forecast, planned.recipe) if planned.forecast else None})
        else:
            screen.show_plan(planned, weighed=True)


@app.command()
def train(
    recipe: Annotated[Path | None, typer.Argument(metavar="[RECIPE]", help="Recipe file (YAML).")] = None,
    overrides: Overrides = None,
    resume: Annotated[Path | None, typer.Option("--resume", metavar="RUN", help="Go on with an interrupted run.")] = None,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Train by a recipe, measure base against tuned, write the report. Ctrl-C saves and stops; --resume goes on."""
    from halfbyte.recipe.load import load_recipe

    if (recipe is None) == (resume is None):
        raise RecipeError("give a recipe, or --resume RUN, and not both", hint="a resumed run keeps the recipe that it was started with")
    loaded = load_recipe(recipe, overrides) if recipe is not None else None
    from halfbyte import api

    screen = Screen()
    with output_may_close(screen.on_closed):
        with screen:
            if loaded is not None:
                run = api.train(loaded, runs, screen.on_event, screen.on_plan, _command())
            elif resume is not None:
                run = api.resume(resume, screen.on_event, screen.on_plan, _command())
        screen.show_result(run.path)


@app.command()
def evaluate(
    run: RunPath,
    changes: Annotated[list[str] | None, typer.Argument(metavar="[EVALUATE.KEY=VALUE]...", help="Such as evaluate.batch_size=1.")] = None,
    tasks: Annotated[str | None, typer.Option(metavar="NAME,NAME", help="Tasks of lm-eval instead (the extra `harness`), base and tuned.")] = None,
    include_path: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Your own tasks for lm-eval, YAML files.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many questions of each task.")] = None,
) -> None:
    """Measure a finished run again, base and adapter loaded anew from disk, and rewrite its report; or ask it tasks of the field's harness."""
    if tasks is not None:
        verdicts.evaluate_tasks(run, tasks, include_path, limit)
        return
    if include_path is not None or limit is not None:
        raise RecipeError("--include-path and --limit are for --tasks", hint="name the tasks with --tasks, or leave them out")
    from halfbyte import api

    screen = Screen()
    with output_may_close(screen.on_closed):
        with screen:
            api.evaluate(run, screen.on_event, changes)
        screen.show_result(run)


app.command()(check)
app.command()(verdicts.compare)
app.command()(verdicts.rate)
app.command()(verdicts.gate)
app.command()(reproduce)
app.command("verify-resume")(verify_resume)
app.command()(doctor.doctor)


@app.command()
def classify(
    run: RunPath,
    input: Annotated[Path, typer.Option("--input", "-i", help="Texts: .txt (one a line), .jsonl or .csv with a column or key `prompt`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Classes: .jsonl or .csv; must not exist.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Texts computed at a time.")] = 16,
) -> None:
    """The class of every text of a file with its confidence, by the scorer that the run's evaluation fitted; empty where it abstains."""
    from halfbyte.cli.files import read_prompts, write_answers

    texts = read_prompts(input)
    with write_answers(output, columns=("prompt", "label", "confidence")) as write:
        from halfbyte import api

        found = api.classify(run, texts, batch_size)
        write(texts, [one["label"] or "" for one in found], [round(one["confidence"], 4) for one in found])
    withheld = sum(one["abstained"] for one in found)
    for note in api.scorer_of(run).calibration.notes:
        Screen().print(f"[yellow]note[/] {escape(note)}", highlight=False)
    Screen().print(f"{len(found)} texts, {withheld} withheld as too uncertain; written to [bold]{escape(str(output))}[/]", highlight=False)


@app.command()
def chat(
    run: RunPath,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy; higher is freer.")] = 0.7,
    top_p: Annotated[float, typer.Option(min=0.01, max=1, help="Draw from the most likely tokens that make up this share.")] = 0.9,
    seed: Annotated[int, typer.Option(help="Seed of the drawing.")] = 0,
) -> None:
    """Talk to a tuned model in the terminal, streaming. Also from a pipe, one prompt a line."""
    from halfbyte.cli.chat import converse
    from halfbyte.generate.engine import Sampling

    # Small models fall into loops; a light penalty on what was said keeps them moving.
    converse(run, Sampling(max_new_tokens, temperature, top_p, repetition_penalty=1.1 if temperature else 1.0, seed=seed))


@app.command()
def generate(
    run: RunPath,
    input: Annotated[Path, typer.Option("--input", "-i", help="Prompts: .txt (one a line), .jsonl or .csv with a column or key `prompt`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Answers: .jsonl or .csv; must not exist.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts computed at a time.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the drawing.")] = 0,
) -> None:
    """Answer every prompt of a file."""
    from halfbyte.cli.files import read_prompts, write_answers

    prompts = read_prompts(input)
    with write_answers(output) as write:
        from halfbyte import api
        from halfbyte.generate.engine import Sampling

        tuned = api.open_tuned(run, fast_cpu=False)
        screen = Screen()
        done = 0

        def take(part: list[str], answers: list[str]) -> None:
            nonlocal done
            write(part, answers)
            done += len(part)
            screen.print(f"{done} of {len(prompts)} answered", highlight=False)

        api.answer_all(
            tuned, prompts, Sampling(max_new_tokens, temperature, seed=seed), batch_size, take, lambda less: screen.print(escape(less), style="yellow")
        )
    screen.print(f"Written to [bold]{escape(str(output))}[/]")


@app.command()
def recipe(
    context: typer.Context, explain: Annotated[bool, typer.Option("--explain", help="List every key with its default and its sentence.")] = False
) -> None:
    """What a recipe may say."""
    if explain:
        print_keys()
    else:
        typer.echo(context.get_help())


def main() -> None:
    """Runs a command; every error a user can meet is two lines and an exit code, without a traceback."""
    # Idle OpenMP threads that spin take the cores from the next process: two runs at once were 37 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # nothing here forks
    # transformers would ask a service to convert a base that has pickles only.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    # One library telling another that a name of theirs will change: nothing a user can act on.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
    hide_in_logs()
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except UsageError as error:
        if asks_for_help(error):
            error.show()
            sys.exit(error.exit_code)
        _tell(usage_problem(error))
        sys.exit(RecipeError.exit_code)
    except HalfbyteError as error:
        _tell(error)
        sys.exit(error.exit_code)
    except MemoryError as error:
        _tell(MachineError(f"the computer's memory ran out{f': {error}' if str(error) else ''}", hint="close other programs, or use less data at a time"))
        sys.exit(MachineError.exit_code)
    except Exception as error:  # noqa: BLE001 - the last place: told as our bug, with the traceback and exit code 1
        if (problem := machine_problem(error)) is not None:
            _tell(problem)
            sys.exit(problem.exit_code)
        sys.stderr.write(hide_secrets(traceback.format_exc()))
        error_console().print("This is a bug of halfbyte, not of your input: please report it with the lines above.", style="bold red")
        sys.exit(1)


def _tell(error: HalfbyteError) -> None:
    with output_may_close(lambda _: None):
        console = error_console()
        console.print(escape(printable(hide_secrets(error.message))), style="bold red" if error.exit_code != 4 else "bold yellow", highlight=False)
        if error.hint:
            console.print("hint: " + escape(printable(hide_secrets(error.hint))), highlight=False)


def _command() -> str:
    return " ".join(["halfbyte", *sys.argv[1:]])
