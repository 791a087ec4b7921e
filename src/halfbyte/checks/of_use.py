"""Proofs about what is measured, generated, saved and built again."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from halfbyte.checks.of_model import BASE_AGAIN, fingerprints
from halfbyte.checks.proof import Claim, NotHere, Refuted
from halfbyte.checks.tolerance import SAME_SUM, off
from halfbyte.checks.trial import Trial, apart, expected_labels, plain_loss, supervised_of
from halfbyte.errors import MachineError
from halfbyte.runs.disk import is_full, told

NEW_TOKENS = 5
MOST_ENDS = 4
CERTAIN = 1e4
"""Added to a logit, it makes its token certain in every type."""


@contextmanager
def _modes_seen(trial: Trial) -> Iterator[set[bool]]:
    """Whether the layers ran in training mode."""
    seen: set[bool] = set()
    parts = [module for module in trial.model.modules() if isinstance(module, nn.Dropout)] + [trial.layers[0]]

    def look(layer: nn.Module, inputs: Any) -> None:
        seen.update(part.training for part in parts)

    hook = trial.layers[0].register_forward_pre_hook(look)
    try:
        yield seen
    finally:
        hook.remove()


def _in_its_mode(trial: Trial, what: str, use: Callable[[], Any]) -> Any:
    """From training mode and back into it, in eval mode between, with no gradient and no draw left behind."""
    trial.model.train()
    trial.clear()
    drawn = torch.get_rng_state()
    trained = [parameter.requires_grad for parameter in trial.model.parameters()]
    with _modes_seen(trial) as seen:
        found = use()
    if seen != {False}:
        raise Refuted(f"{what} runs in training mode", "dropout is left on", "put the model into eval mode, and back afterwards")
    if not all(module.training for module in trial.model.modules()):
        raise Refuted(f"{what} leaves the model in eval mode", "training would go on without dropout and recomputation", "put the mode back")
    if not torch.equal(drawn, torch.get_rng_state()):
        raise Refuted(f"{what} draws from the run's random numbers", "what comes after it depends on it", "draw from a generator of its own")
    if [parameter.requires_grad for parameter in trial.model.parameters()] != trained:
        raise Refuted(f"{what} changes what is trained", "it freezes or unfreezes weights", "leave the model as it is")
    return found


def evaluation(trial: Trial) -> str:
    subject, model = trial.subject, trial.model
    single = [trial.batch([row]) for row in trial.rows]
    grouped = [trial.batch(rows) for rows in trial.together]
    total = sum(float(plain_loss(trial.alone(row), torch.tensor(expected_labels(row), device=trial.device))) for row in trial.rows)
    tokens = sum(supervised_of(row) for row in trial.rows)
    truth = total / tokens
    first = _in_its_mode(trial, "evaluation", lambda: subject.evaluate(model, single))
    other, second = subject.evaluate(model, grouped), subject.evaluate(model, single)
    hint = "sum the loss over the supervised tokens, in eval mode, and divide once"
    if first != second:
        raise Refuted(f"evaluated twice the loss is {first:.8g} and {second:.8g}", "dropout is left on, or something is drawn", "evaluate in eval mode")
    if not off(first, truth) <= SAME_SUM:
        raise Refuted(f"the loss is {first:.6g}, by its definition {truth:.6g}", "batch means are averaged, padding is scored, or exponentials are", hint)
    if not off(other, truth) <= trial.tolerance.loss:
        raise Refuted(f"the loss is {first:.6g} row by row and {other:.6g} in batches", "batch means are averaged, or padding is scored", hint)
    return f"{first:.4f} over {tokens} tokens, twice to the bit; {off(other, first):.1g} apart in other batches"


# Generation


def _prompts(trial: Trial) -> list[list[int]]:
    """What stands before the answers of our rows; of texts their first ids. Of unequal length."""
    found = []
    for place, row in enumerate(trial.rows):
        start = row.trained.index(True, 1)
        found.append(row.ids[:start] if start > 2 else row.ids[: max(1, len(row.ids) * (place + 1) // (2 * len(trial.rows)))])
    if len({len(prompt) for prompt in found}) == 1:
        found[0] = found[0][-max(1, len(found[0]) // 2) :]
    return found


def generation(trial: Trial) -> str:
    """Greedy answers of a batch, padded on the left, are those that the logits of each prompt by itself give; each end mark ends one."""
    subject, model = trial.subject, trial.model
    prompts = sorted(_prompts(trial), key=len)
    prompts = [prompts[-1], prompts[0]] if len(prompts) > 1 else prompts
    answers = _in_its_mode(trial, "generation", lambda: subject.generate(model, prompts, NEW_TOKENS))
    if len(answers) != len(prompts):
        raise Refuted(f"{len(prompts)} prompts have {len(answers)} answers", "answers are dropped", "one answer a prompt")
    worst = 0.0
    hint = "pad prompts on the left, with an attention mask and positions that leave the padding out"
    for prompt, answer in zip(prompts, answers, strict=True):
        if len(answer) > NEW_TOKENS or any(token in subject.end_ids for token in answer):
            raise Refuted(
                f"an answer of {NEW_TOKENS} tokens at most is {answer}", "prompt or end mark are left in it", "give the new tokens up to the end mark"
            )
        given = [*prompt, *answer]
        logits = trial.logits(_as_batch(trial, given))[0][len(prompt) - 1 :]
        spread = float((logits - logits.mean(-1, keepdim=True)).square().mean().sqrt())
        chosen = [*answer, *([] if len(answer) == NEW_TOKENS else [max(subject.end_ids, key=lambda token: float(logits[len(answer), token]))])]
        for place, token in enumerate(chosen):
            short = float(logits[place].max() - logits[place, token]) / spread
            worst = max(worst, short)
            if not short <= trial.tolerance.logits * 2:
                seen = f"token {place + 1} of an answer is {short:.2g} of the logits' spread below the most likely"
                raise Refuted(seen, "in a batch padding is seen or positions are moved, or answers are drawn", hint)
    alone = [subject.generate(model, [prompt], NEW_TOKENS)[0] for prompt in prompts]
    if subject.dtype == torch.float32 and alone != answers and worst == 0.0:
        raise Refuted("prompts are answered otherwise in a batch than one by one", "padding on the left is seen", hint)
    if subject.generate(model, prompts, NEW_TOKENS) != answers:
        raise Refuted("the same prompts are answered otherwise the second time", "answers are drawn", "generate greedily, or from a seed")
    _ends(trial, prompts)
    lengths = " and ".join(str(len(prompt)) for prompt in prompts)
    ends = "the end mark ends" if len(subject.end_ids) == 1 else f"each of {len(subject.end_ids)} end marks ends"
    return f"prompts of {lengths} tokens: one batch answers as one by one, twice; {ends} an answer"


def _as_batch(trial: Trial, ids: list[int]) -> Any:
    from halfbyte.data.tokens import Tokens

    return trial.batch([Tokens(ids, [False, *[True] * (len(ids) - 1)], "", 0)])


def _ends(trial: Trial, prompts: list[list[int]]) -> None:
    """A token is made certain: an end mark ends the answer at once, another one fills it."""
    subject, model = trial.subject, trial.model
    other = next(token for token in range(trial.vocabulary) if token not in trial.special_ids and token != subject.pad_id)
    for token in [*subject.end_ids[:MOST_ENDS], other]:
        with _certain(model, token):
            answers = subject.generate(model, prompts, 3)
        wanted = [other] * 3 if token == other else []
        if any(answer != wanted for answer in answers):
            name = subject.tokenizer.convert_ids_to_tokens(token)
            if token == other:
                raise Refuted(f"with {name!r} certain, 3 tokens are {answers[0]}", "answers are cut, or end at what is no end mark", "end at end marks alone")
            seen = f"with {name!r} certain, an answer goes on for {max(map(len, answers))} tokens"
            raise Refuted(seen, "generation does not know all end marks", "give generation every end mark: the tokenizer's, the base's and the template's")


@contextmanager
def _certain(model: nn.Module, token: int) -> Iterator[None]:
    def raise_logit(head: nn.Module, inputs: Any, logits: Tensor) -> Tensor:
        raised = logits.clone()
        raised[..., token] += CERTAIN
        return raised

    hook = model.get_output_embeddings().register_forward_hook(raise_logit)  # type: ignore[operator]
    try:
        yield
    finally:
        hook.remove()


# Saved, and built again

TEMPORARY = "make room there, or name another folder for temporary files with TMPDIR"


@contextmanager
def _place_for_an_adapter(trial: Trial) -> Iterator[Path]:
    """A name in a folder that goes afterwards. That there is no room for it is no fault of the set-up. Raises MachineError."""
    needs = sum(4 * value.numel() for value in trial.values.values())
    try:
        temporary = tempfile.TemporaryDirectory()
    except OSError as error:
        raise MachineError(f"no folder for temporary files can be made: {error.strerror}", hint=TEMPORARY) from error
    with temporary as folder:
        try:
            yield Path(folder) / "adapter"
        except Exception as error:
            if not is_full(error):
                raise
            with told(Path(folder), needs, TEMPORARY):
                raise


def saved_adapter(trial: Trial) -> str:
    """Stirred, as after training, saved, and read beside the base: the logits of the stirred one, and not the base's. While it is read the model's own
    adapter has other values, for one that is zero could be added to it unseen."""
    subject, model = trial.subject, trial.model
    row = trial.rows[-1]
    try:
        with _place_for_an_adapter(trial) as place:
            before = trial.alone(row)
            trial.stir()
            stirred = trial.alone(row)
            subject.save(model, place)
            if not torch.equal(trial.alone(row), stirred):
                raise Refuted("after it was saved the model answers otherwise", "saving changes the adapter that is trained", "save a copy")
            trial.stir(seed=1)
            own = trial.alone(row)
            with model.disable_adapter():
                base = trial.alone(row)
            moved, effect = apart(stirred, before), apart(stirred, base)
            if not min(moved, effect) > 0:
                seen = "with other values in every trained tensor the logits are the same"
                raise Refuted(seen, "what is computed does not use what is trained", "compute with the adapter that is trained")
            taken = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
            with subject.reloaded(model, place) as loaded, torch.no_grad():
                loaded.eval()
                again = subject.logits(loaded, trial.batch([row]).to(trial.device)).float()[0]
            if {name for name, parameter in model.named_parameters() if parameter.requires_grad} != set(trial.trained):
                raise Refuted("after a saved adapter was read, other tensors are trained", "reading it changes the model", "read it beside the model's own")
            if not torch.equal(trial.alone(row), own):
                raise Refuted(
                    "after a saved adapter was read, the model's own answers otherwise", "reading it changes the model", "read it beside the model's own"
                )
        if not torch.equal(again, stirred):
            differs, to_base, to_own = apart(again, stirred), apart(again, base), apart(again, own)
            likely = "its tensors are saved or read under other names, so that the base answers alone" if min(to_base, to_own) == 0 else (
                "it is saved in another type, or part of it is not saved or not read"
            )  # fmt: skip
            seen = f"read again, the logits are {differs:.2g} of their spread from what was saved, and {to_base:.2g} from the base's"
            raise Refuted(seen, likely, "save every trained tensor in float32; refuse tensors that are missing or unknown")
        return f"{taken / 1e6:.3g} MB, read again: the same logits to the bit, {effect:.2g} of their spread from the base's"
    finally:
        trial.put_values_back()


def second_build(trial: Trial) -> str:
    """Built twice more, with random numbers drawn between: adapter and base are those at hand, tensor by tensor."""
    base = fingerprints(trial)
    for number in (1, 2):
        torch.rand(number * 1001)
        built = Trial(_rebuilt(trial))
        if set(built.values) != set(trial.values):
            odd = sorted(set(built.values) ^ set(trial.values))
            raise Refuted(
                f"built again, {len(odd)} trained tensors have other names, the first is {odd[0]}", "the build is not settled", "build from the recipe alone"
            )
        for name, value in trial.values.items():
            if not torch.equal(built.values[name], value):
                seen = f"built again from the same seed, {name} is another"
                raise Refuted(seen, "the new adapter is drawn from random numbers that other code draws from too", "draw it from the recipe's seed alone")
        again = fingerprints(built)
        odd = [name for name in base if again.get(name, (None,))[0] != base[name][0]]
        if odd:
            raise Refuted(
                f"built again, {len(odd)} tensors of the base are others, the first is {odd[0]}", "the base is changed, or was loaded otherwise", BASE_AGAIN
            )
        del built, again
        if trial.device.type == "cuda":
            torch.cuda.empty_cache()
    return f"{len(trial.values)} trained and {len(base):,} other tensors are the same in 3 builds"


def _rebuilt(trial: Trial) -> Any:
    from dataclasses import replace

    return replace(trial.subject, model=trial.subject.build())


def fresh_process(trial: Trial) -> str:
    """Saved, and read with the base from the files by a process of its own."""
    subject = trial.subject
    if subject.afresh is None:
        raise NotHere("this set-up has no recipe that a fresh process could read")
    row = trial.rows[-1]
    try:
        with _place_for_an_adapter(trial) as place:
            trial.stir()
            stirred = trial.alone(row).cpu()
            subject.save(trial.model, place)
            again = subject.afresh(place, row.ids)
        if not torch.equal(again, stirred):
            differs = apart(again, stirred)
            seen = f"in a fresh process the logits are {differs:.2g} of their spread away"
            raise Refuted(seen, "base or adapter are read otherwise than they were saved", "load the base that was trained on, and every tensor")
        return f"{len(row.ids)} tokens: the same logits to the bit"
    finally:
        trial.put_values_back()


OF_USE = [
    Claim("evaluation", evaluation, "how loss is measured", "sum over supervised tokens, in eval mode, and divide once"),
    Claim("generation", generation, "generation", "pad prompts on the left, with an attention mask"),
    Claim("saved adapter", saved_adapter, "saving or loading the adapter", "save every trained tensor in float32; refuse tensors that are missing or unknown"),
]
DEEP = [
    Claim("second build", second_build, "how base and adapter are built", "build from the recipe and its seed alone"),
    Claim("fresh process", fresh_process, "saving, or loading from the files", "load the base that was trained on, and every tensor"),
]
