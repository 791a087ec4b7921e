"""A run, made again: its recipe as kept, what differs from then, and the step computed as it was then."""

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from halfbyte.api.identity import inputs_of, kept_recipe, places_apart
from halfbyte.checks.reproduce import Reproduction, finished, inputs_apart
from halfbyte.errors import IntegrityError
from halfbyte.recipe.load import Loaded
from halfbyte.recipe.plan import Computing, Placement
from halfbyte.runs.folder import RunFolder, open_run
from halfbyte.runs.manifest import SETTLED

if TYPE_CHECKING:
    from halfbyte.api import Planned


def recipe_again(path: Path, changes: list[str] | None) -> tuple[RunFolder, Loaded]:
    """`changes`: where files are now, such as data.path=FILE; any other key is told as a difference. No tracker hears of it.

    Raises DataError for a run that did not come to its end, IntegrityError for one whose adapter is not what was written.
    """
    run = open_run(path)
    finished(run.path)
    run.check_adapter()
    loaded = kept_recipe(run, changes)
    track = loaded.recipe.track.model_copy(update={"report_to": []})
    return run, replace(loaded, recipe=loaded.recipe.model_copy(update={"track": track}))


def compare_inputs(run: RunFolder, planned: "Planned") -> Reproduction:
    """Everything that a run is made of, before anything is trained."""
    manifest, now = finished(run.path), {**planned.plan.as_json(), "ledger": planned.prepared.ledger}
    found = inputs_apart(manifest, run.read_plan(*SETTLED), planned.recipe.model_dump(mode="json"), inputs_of(planned), now)
    return Reproduction(run.path, None, found, places_apart(manifest, planned))


def refuse_other_inputs(compared: Reproduction) -> None:
    """Raises IntegrityError with a line for each."""
    if compared.inputs:
        raise IntegrityError(
            "\n".join([f"{compared.first} was made of something else:", *(f"  {one}" for one in compared.inputs)]),
            hint="put the old ones back (data.path=FILE and base=FOLDER say where they are now), or run all the same with --anyway",
        )


def computed_as_then(planned: "Planned", run: RunFolder, compared: Reproduction) -> "Planned":
    """On the GPU of then a step is split and placed as it was then, whatever the plan has learned since: the split decides the rounding."""
    kept = run.read_plan().get("computing")
    if planned.machine.device == "cpu" or not kept or any(one.what.startswith("place.machine") for one in compared.place):
        return planned
    known = {one.name for one in fields(Computing)}
    values = {key: value for key, value in kept.items() if key in known}
    computing = Computing(**{**values, "layers": tuple(Placement(**layer) for layer in values.get("layers", ()))})
    return replace(planned, plan=replace(planned.plan, computing=computing))
