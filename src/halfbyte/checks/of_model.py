"""Proofs about what is loaded and what is computed: weights, adapter, loss, packed and padded rows, gradients, the first steps."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from halfbyte.checks.proof import Claim, NotHere, Refuted
from halfbyte.checks.tolerance import SAME_SCALE, SAME_SUM
from halfbyte.checks.trial import (
    Gradient,
    Trial,
    apart,
    documents_of,
    ending,
    expected_labels,
    gradients_apart,
    length,
    plain_loss,
    supervised_of,
)
from halfbyte.data.batches import IGNORE, Batch
from halfbyte.data.tokens import Tokens
from halfbyte.errors import HalfbyteError
from halfbyte.train.step import StepResult

BASE_AGAIN = "load the base again; halfbyte train starts from its files"
PLACES_KEPT = 32
"""A layer keeps about so many times its input for the backward pass; a row so much shorter fits where all is kept."""
RATE = 1e-4
"""Not the run's, which may be as small as to be rounded away in two steps: what is looked at is what moves, not how far."""
# Weights that are no trained matrices of peft have none of these in their names.
ADAPTER_NAMES = ("lora_", "modules_to_save", "trainable_tokens")

# What is loaded


@torch.no_grad()
def fingerprints(trial: Trial) -> dict[str, tuple[int, float]]:
    """Of every tensor that is not trained, 4-bit data, their scales and buffers among them: the sum of its bits, and a sum that tells NaN and infinity.

    Those of a layer are read when it runs: a layer that waits in the computer's memory has its weights in place only then.
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}
    names = {id(module): name for name, module in trial.model.named_modules()}
    inner = {id(module) for layer in trial.layers for module in layer.modules()}

    def read(module: nn.Module) -> None:
        prefix = names[id(module)]
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in tensors:
            if not tensor.requires_grad:
                for part, held in _parts(name, tensor):
                    found[f"{prefix}.{part}"] = (_bits(held), held.sum(dtype=torch.float32) if held.is_floating_point() else torch.zeros(()))

    def when_it_runs(layer: nn.Module, inputs: Any) -> None:
        for module in layer.modules():
            read(module)

    hooks = [layer.register_forward_pre_hook(when_it_runs) for layer in trial.layers]
    try:
        trial.alone(ending(trial.rows[0], 4))
    finally:
        for hook in hooks:
            hook.remove()
    for module in trial.model.modules():
        if id(module) not in inner:
            read(module)
    return {name: (int(bits), float(total)) for name, (bits, total) in found.items()}


def _parts(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield name, tensor.data
    state = getattr(tensor, "quant_state", None)
    if state is not None:
        yield f"{name}.absmax", state.absmax
        yield f"{name}.code", state.code
        if state.nested:
            yield f"{name}.absmax2", state.state2.absmax
            yield f"{name}.offset", state.offset


def _bits(tensor: Tensor) -> Tensor:
    """Of whole words where the size allows."""
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    return (flat.view(torch.int32) if len(flat) % 4 == 0 and flat.storage_offset() % 4 == 0 else flat).sum(dtype=torch.int64)


def weights(trial: Trial) -> str:
    from peft.tuners.lora import LoraLayer

    subject = trial.subject
    for name, parameter in trial.trained.items():
        if not bool(parameter.isfinite().all()):
            raise Refuted(f"{name} of the adapter holds NaN or infinity", "the adapter is damaged", "start with a new adapter")
        if parameter.dtype != torch.float32:
            seen = f"{name} is kept in {str(parameter.dtype).removeprefix('torch.')}"
            raise Refuted(seen, "a 16-bit weight loses the updates that are small beside it", "keep what is trained in float32")
    found = fingerprints(trial)
    for name, (_, total) in found.items():
        if not math.isfinite(total):
            tensor = _tensor(trial.model, name)
            if tensor is None or not bool(tensor.isfinite().all()):
                raise Refuted(f"{name} of the base holds NaN or infinity", "the files of the base are damaged, or its type is too narrow", BASE_AGAIN)
    for name, module in trial.model.named_modules():
        if type(module).__name__ == "Linear4bit" and not isinstance(module, LoraLayer) and module.compute_dtype != subject.dtype:
            seen = f"{name} computes in {str(module.compute_dtype).removeprefix('torch.')}, the plan says {str(subject.dtype).removeprefix('torch.')}"
            raise Refuted(seen, "the base brings a compute type of its own", "set the plan's precision on the 4-bit layers")
    for name, parameter in trial.model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype not in (subject.dtype, torch.float32):
            seen = f"{name} is in {str(parameter.dtype).removeprefix('torch.')}, the plan says {str(subject.dtype).removeprefix('torch.')}"
            raise Refuted(seen, "the base was loaded in another type", "load the base in the plan's precision")
    _tied(trial)
    row = trial.rows[0]
    if not bool(trial.alone(row).isfinite().all()):
        raise Refuted("the logits of the first row are not finite", "a product overflows in this type", "train in bfloat16, or in float32")
    count = sum(parameter.numel() for parameter in trial.trained.values())
    return f"{len(found):,} tensors of the base and {len(trial.trained):,} of the adapter are finite; {count:,} weights are trained, in float32"


def _tensor(model: nn.Module, name: str) -> Tensor | None:
    """None for what is not simply an attribute, such as scales."""
    owner, _, last = name.rpartition(".")
    try:
        found = getattr(model.get_submodule(owner), last, None)
    except AttributeError:
        return None
    return found if isinstance(found, Tensor) else None


def _tied(trial: Trial) -> None:
    model = trial.model
    head, whole = model.get_output_embeddings(), any("modules_to_save" in name for name in trial.trained)
    if not getattr(model.config, "tie_word_embeddings", False) or head is None or whole:
        return
    embedding, head_weight = model.get_input_embeddings().weight, getattr(head, "base_layer", head).weight
    if embedding.shape != head_weight.shape or not torch.equal(embedding, head_weight):
        raise Refuted("embedding and head differ, the config ties them", "the head was made anew when the base was loaded or its size changed", BASE_AGAIN)


# The adapter


def adapter(trial: Trial) -> str:
    """On every layer that was asked for, trained and nothing else, scaled as the recipe says, and without effect before the first step."""
    from peft.tuners.lora import LoraLayer

    subject, model = trial.subject, trial.model
    if not trial.trained:
        raise Refuted("no tensor is trained", "the adapter is frozen, or was not added", "add a new adapter, not a loaded one, for training")
    others = [name for name in trial.trained if not any(mark in name for mark in ADAPTER_NAMES)]
    if others:
        raise Refuted(f"{len(others)} tensors of the base are trained, the first is {others[0]}", "the base is not frozen", "train the adapter alone")
    frozen = [name for name, parameter in model.named_parameters() if "lora_" in name and not parameter.requires_grad]
    if frozen:
        raise Refuted(
            f"{len(frozen)} tensors of the adapter are frozen, the first is {frozen[0]}", "part of the adapter does not train", "add the adapter anew"
        )
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    if not adapted:
        raise Refuted("no layer has an adapter", "the names of the layers match nothing", "look at adapter.target_modules")
    active = model.active_adapter
    for name, module in adapted.items():
        if not (active in module.lora_A or active in module.lora_embedding_A) or module.disable_adapters or module.merged:
            raise Refuted(f"{name} does not use its adapter", "it is switched off, merged or of another name", "add the adapter anew")
        scale = float(module.scaling[active])
        if abs(scale - subject.scale) > SAME_SCALE * subject.scale:
            raise Refuted(
                f"{name} scales by {scale:g}, by the recipe it is {subject.scale:g}", "alpha, r or rslora do not reach the layers", "alpha/r, or alpha/sqrt(r)"
            )
    targets = model.peft_config[active].target_modules
    if not isinstance(targets, str):
        for name, module in model.named_modules():
            path = name.removeprefix("base_model.model.")
            wanted = any(path == target or path.endswith(f".{target}") for target in targets)
            if wanted and name not in adapted and type(module).__name__ in ("Linear", "Linear4bit", "Conv1D"):
                raise Refuted(f"{path} has no adapter", "the adapter was not added to every layer that was asked for", "look at adapter.target_modules")
    row = trial.rows[-1]
    with_adapter = trial.alone(row)
    with model.disable_adapter():
        base = trial.alone(row)
    differs = apart(with_adapter, base, trial.tolerance.share)
    # A product of zero changes no bit; DoRA divides by the length of each row, and a module that is trained whole is one of another type.
    exact = not model.peft_config[active].use_dora and not model.peft_config[active].modules_to_save
    if subject.begins_as_base and not (torch.equal(with_adapter, base) if exact else differs <= trial.tolerance.logits):
        seen = f"the new adapter moves the logits by {differs:.2g} of their spread"
        raise Refuted(seen, "its matrices are not made so that their product is zero", "start with B at zero")
    told = f"moves the logits by {differs:.1g} before step 1"
    return f"{len(adapted)} layers, {len(trial.trained)} trained tensors, scale {subject.scale:g}; it {told}"


# The loss


def loss(trial: Trial) -> str:
    """Equal to the definition in float64, whatever is labelled; only what is labelled has a gradient."""
    subject = trial.subject
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    size = min(trial.vocabulary, 4096)
    logits = torch.randn(3, 7, size, generator=generator) * 3
    marks = [token for token in (subject.pad_id, 0, *subject.end_ids, *subject.begin_ids) if token < size]
    for number in range(6):
        made = torch.randint(size, (3, 7), generator=generator)
        made[0, 1 : 1 + len(marks)] = torch.tensor(marks[:6])
        labels = made.masked_fill(torch.rand(3, 7, generator=generator) < number / 6, IGNORE)
        if number == 1:
            labels = torch.full((3, 7), IGNORE).index_put((torch.tensor([1]), torch.tensor([6])), torch.tensor(3))
        seen = float(subject.loss(logits.to(trial.device), labels.to(trial.device)))
        truth = sum(float(plain_loss(one, label)) for one, label in zip(logits, labels, strict=True))
        worst = max(worst, _same_loss(seen, truth, "labels of ours"))
    batch = trial.batch(trial.together[0])
    some = torch.randn(*batch.ids.shape, size, generator=generator).requires_grad_()
    labels = torch.where(batch.labels == IGNORE, batch.labels, batch.labels % size)
    subject.loss(some, labels).backward()
    reached = torch.zeros_like(batch.labels, dtype=torch.bool) if some.grad is None else some.grad.abs().sum(-1) > 0
    wanted = torch.zeros_like(reached)
    for index, row in enumerate(trial.together[0]):
        wanted[index, : len(row.ids) - 1] = torch.tensor(expected_labels(row)[1:]) != IGNORE
    if not torch.equal(reached, wanted):
        missed, extra = int((wanted & ~reached).sum()), int((reached & ~wanted).sum())
        raise Refuted(
            f"{missed} of {int(wanted.sum())} supervised tokens do not move the loss, {extra} others do",
            "masked tokens are in the loss, or supervised ones are not",
            "sum over labelled tokens alone, each compared with the logits before it",
        )  # fmt: skip
    row = trial.rows[-1]
    logits = trial.alone(row)
    label = torch.tensor(expected_labels(row), device=trial.device)
    seen, truth = float(subject.loss(logits[None], label[None])), float(plain_loss(logits, label))
    worst = max(worst, _same_loss(seen, truth, "a row of the data"))
    count = supervised_of(row)
    return f"{seen / count:.4f} a token over {count} tokens, as in float64 (within {worst:.1g}); {int(wanted.sum())} of {wanted.numel()} places move it"


def _same_loss(seen: float, truth: float, what: str) -> float:
    differs = abs(seen - truth) / max(abs(truth), 1e-9)
    if not differs <= SAME_SUM:
        raise Refuted(
            f"of {what} the loss is {seen:.6g}, by its definition {truth:.6g}", "labels are shifted twice or not at all, averaged, smoothed, or left out by id",
            "sum -log p(label | what stands before it) over what is labelled",
        )  # fmt: skip
    return differs


# Rows that share a row or a batch

APART = "let no row see another: positions that begin anew, and a mask by document"


def packing(trial: Trial) -> str:
    """To the bit: a document's logits stay when its neighbours are others. Within rounding: they are what they are alone, so positions begin anew."""
    packed = [row for row in trial.looked_at if len(row.documents) > 1]
    if not packed:
        raise NotHere("no row holds more than one document")
    row = min(packed, key=lambda one: len(one.ids))
    if any(sum(one.documents) != len(one.ids) for one in packed):
        raise Refuted("the documents of a row do not add up to it", "rows were packed wrongly", "prepare the data again")
    _numbered(trial, trial.batch([row]), row)
    documents = _fitting(trial, documents_of(row))
    joined = Tokens(
        [token for one in documents for token in one.ids], [trained for one in documents for trained in one.trained], row.file, row.line,
        tuple(len(one.ids) for one in documents),
    )  # fmt: skip
    batch = trial.batch([joined])
    _numbered(trial, batch, joined)
    start = len(documents[0].ids)
    before = trial.logits(batch)[0]
    edited = batch.ids.clone()
    edited[0, :start] = (edited[0, :start] + 1) % trial.vocabulary
    after = trial.logits(_with_ids(batch, edited))[0]
    if not torch.equal(before[start:], after[start:]):
        leak = float((before[start:] - after[start:]).abs().max())
        seen = f"a document's logits move by {leak:.2g} when its neighbour in the row is another"
        raise Refuted(seen, "packed documents see each other", APART)
    place, worst = 0, 0.0
    for document in documents:
        alone = trial.alone(document)
        worst = max(worst, apart(before[place : place + len(document.ids)], alone, trial.tolerance.share))
        place += len(document.ids)
    if not worst <= trial.tolerance.logits:
        seen = f"in a shared row a document's logits are {worst:.2g} of their spread from what they are alone"
        raise Refuted(seen, "positions run on across documents", APART)
    return f"{len(documents)} documents in a row: no logit of one moves with another; {worst:.1g} from what each is alone"


def _numbered(trial: Trial, batch: Batch, row: Tokens) -> None:
    positions = torch.cat([torch.arange(size) for size in row.documents])
    numbers = torch.cat([torch.full((size,), number) for number, size in enumerate(row.documents)])
    for what, made, wanted in (("positions", batch.positions, positions), ("document numbers", batch.documents, numbers)):
        if made is None or not torch.equal(made[0, : len(row.ids)], wanted):
            seen = f"{what} of a packed row do not begin anew with each document" if made is not None else f"a packed row has no {what}"
            raise Refuted(seen, "the collator does not tell documents apart", APART)
    starts = (positions == 0).nonzero()[:, 0]
    if bool((batch.labels[0, starts] != IGNORE).any()):
        raise Refuted("the first token of a document has a label", "it would be predicted from another document", "leave out the first label of every document")


def _fitting(trial: Trial, documents: list[Tokens]) -> list[Tokens]:
    """The first two or three, their ends, so that together they are no longer than a row of ours."""
    some = documents[:3]
    longest = max(4, max(len(row.ids) for row in trial.rows) // len(some))
    return [ending(one, longest) for one in some]


def _with_ids(batch: Batch, ids: Tensor) -> Batch:
    return Batch(ids, batch.labels, batch.lengths, batch.positions, batch.documents)


def padding(trial: Trial) -> str:
    """Right: logits in a padded batch are those of the row alone, whatever stands in the padding. Left: see `generation`."""
    rows = [trial.rows[0], trial.rows[-1]]
    batch = trial.batch(rows)
    together = trial.logits(batch)
    worst = 0.0
    for index, row in enumerate(rows):
        worst = max(worst, apart(together[index, : len(row.ids)], trial.alone(row), trial.tolerance.share))
    if not worst <= trial.tolerance.logits:
        seen = f"in a padded batch logits are {worst:.2g} of their spread from those of the row alone"
        raise Refuted(seen, "rows of a batch, or padding, are seen", "pad on the right, behind what is trained")
    size = len(rows[0].ids)
    if size < batch.ids.shape[1]:
        edited = batch.ids.clone()
        edited[0, size:] = (edited[0, size:] + 1) % trial.vocabulary
        if not torch.equal(trial.logits(_with_ids(batch, edited))[0, :size], together[0, :size]):
            raise Refuted("logits move with the id that pads", "padding is seen", "pad on the right, behind what is trained")
    ids = trial.batch([rows[1]])
    edited = ids.ids.clone()
    edited[0, -1] = (edited[0, -1] + 1) % trial.vocabulary
    if not torch.equal(trial.logits(_with_ids(ids, edited))[0, :-1], trial.logits(ids)[0, :-1]):
        raise Refuted("logits move with a token that comes later", "the mask lets tokens look ahead", "use a causal mask")
    return f"a row of {size} tokens beside one of {len(rows[1].ids)}: {worst:.1g} of their spread from each alone"


# Gradients


class Watched(torch.optim.Optimizer):
    """Takes the gradient that a step hands over, and changes nothing."""

    def __init__(self, trial: Trial) -> None:
        super().__init__(list(trial.trained.values()), {"lr": 0.0})
        self.trial = trial
        self.seen: Gradient = {}
        self.base_has: list[str] = []

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.seen = self.trial.gradient()
        self.base_has = [name for name, one in self.trial.model.named_parameters() if name not in self.trial.trained and one.grad is not None]


def accumulation(trial: Trial) -> str:
    """One gradient, one loss, one count, however rows fall into micro-batches; and those of a last, smaller step are its own rows'."""
    subject, reference = trial.subject, trial.reference
    worst, clips = 0.0, []
    ways = [
        (f"{len(trial.rows)} x 1", [[row] for row in trial.rows], reference.gradient, reference.loss, reference.supervised),
        ("x".join(str(len(rows)) for rows in trial.together), trial.together, reference.gradient, reference.loss, reference.supervised),
        ("a last step of 1", [[trial.rows[-1]]], reference.last_gradient, reference.last_loss, reference.last_supervised),
    ]
    with trial.in_training():
        for name, way, gradient, mean, supervised in ways:
            optimizer = Watched(trial)
            result = subject.step(trial.model, [trial.batch(rows) for rows in way], optimizer)
            if result.skipped:
                raise NotHere("a float16 gradient overflowed, and the step was left out as it should be")
            _counted(name, result, supervised, sum(len(row.ids) for rows in way for row in rows))
            if optimizer.base_has:
                raise Refuted(f"{optimizer.base_has[0]} of the base gets a gradient", "the base is not frozen", "train the adapter alone")
            tight = abs(result.loss - mean) / abs(mean)
            if not tight <= trial.tolerance.loss:
                raise Refuted(*_uneven(f"{name}: the loss is {result.loss:.6g}, by its definition {mean:.6g}"))
            size, taken = length(gradient), length(optimizer.seen)
            if not abs(result.grad_norm - size) <= trial.tolerance.gradient * size:
                raise Refuted(*_uneven(f"{name}: the gradient's length is {result.grad_norm:.6g}, by its definition {size:.6g}"))
            if not taken > 0:
                raise Refuted(f"{name}: no gradient reaches the optimizer", "gradients are cleared before the update", "clear them after the update")
            if taken > size * (1 + trial.tolerance.gradient):
                raise Refuted(*_uneven(f"{name}: the gradient has grown from {size:.4g} to {taken:.4g}"))
            clips += [taken] if taken < size * (1 - trial.tolerance.gradient) else []
            scaled = {key: value * (size / taken) for key, value in optimizer.seen.items()}
            differs, where = gradients_apart(scaled, gradient)
            if not differs <= trial.tolerance.gradient * (1 if trial.subject.dtype == torch.float32 else 3):
                raise Refuted(*_uneven(f"{name}: the gradient of {where} is {differs:.2g} of its length from its definition"))
            worst = max(worst, differs)
            if any(one.grad is not None and bool(one.grad.any()) for one in trial.trained.values()):
                raise Refuted("gradients are left after the step", "they are not cleared, so each step adds those before it", "clear them after the update")
    if clips and max(clips) > min(clips) * (1 + 2 * trial.tolerance.gradient):
        raise Refuted(*_uneven(f"gradients are cut to lengths from {min(clips):.4g} to {max(clips):.4g}"))
    counts = [supervised_of(row) for row in trial.rows]
    return f"{', '.join(way[0] for way in ways)} over {min(counts)} to {max(counts)} supervised tokens a row: {worst:.1g} from the definition"


def _counted(name: str, result: StepResult, supervised: int, tokens: int) -> None:
    if result.supervised != supervised or result.tokens != tokens:
        raise Refuted(
            f"{name}: a step tells of {result.supervised} supervised of {result.tokens} tokens, there are {supervised} of {tokens}",
            "padding or prompts are counted",
            "count what is labelled, and tokens without padding",
        )  # fmt: skip


def _uneven(seen: str) -> tuple[str, str, str]:
    return (
        seen,
        "each micro-batch is averaged by itself, or divided by another number than its own step's",
        "divide the sum by the supervised tokens of the step",
    )


def recomputation(trial: Trial) -> str:
    """With the same dropout, too."""
    subject = trial.subject
    keeps_all = not any(getattr(layer, "gradient_checkpointing", False) for layer in trial.layers)
    row = trial.rows[-1] if keeps_all else ending(trial.rows[-1], max(4, trial.room // PLACES_KEPT))
    batch = trial.batch([row]).to(trial.device)
    found: list[tuple[float, Gradient, int]] = []
    calls = 0

    def count(layer: nn.Module, inputs: Any) -> None:
        nonlocal calls
        calls += 1

    inner = [module for module in trial.layers[0].modules() if module is not trial.layers[0]]
    for on in (False, True):
        calls = 0
        with trial.in_training(dropout=True), subject.recompute(trial.model, on):
            hook = inner[0].register_forward_pre_hook(count)
            try:
                torch.manual_seed(0)
                value = subject.loss(subject.logits(trial.model, batch), batch.labels)
                value.backward()
            finally:
                hook.remove()
            found.append((float(value.detach()), trial.gradient(), calls))
    (kept_loss, kept_gradient, once), (again_loss, again_gradient, twice) = found
    differs, where = gradients_apart(again_gradient, kept_gradient)
    missing = [name for name in kept_gradient if kept_gradient[name].any() and not again_gradient[name].any()]
    hint = "recompute with non-reentrant checkpoints, whose inputs need no gradient"
    if missing:
        raise Refuted(f"recomputed, {len(missing)} adapters get no gradient, the first is {missing[0]}", "reentrant checkpoints behind frozen embeddings", hint)
    if not abs(again_loss - kept_loss) <= trial.tolerance.loss * abs(kept_loss) or not differs <= 3 * trial.tolerance.gradient:
        seen = f"recomputed, the loss is {again_loss:.6g} for {kept_loss:.6g}, the gradient of {where} {differs:.2g} of its length away"
        raise Refuted(seen, "the second run is not the first: dropout drawn anew, or weights exchanged between", hint)
    if twice <= once and once < 2:
        raise NotHere("no layer of this base is recomputed")
    return f"gradients {differs:.1g} apart, losses {abs(again_loss - kept_loss):.1g}, over {len(row.ids)} tokens"


# The first steps


def first_steps(trial: Trial) -> str:
    """Two steps with the run's optimizer: every adapter has a gradient by then (while B is zero, A's is zero), all of them moved, and nothing else did."""
    subject, model = trial.subject, trial.model
    optimizer = subject.make_optimizer(model)
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    if {id(one) for one in held} != {id(one) for one in trial.trained.values()} or len(held) != len(trial.trained):
        strange = sum(id(one) not in names for one in held)
        raise Refuted(
            f"the optimizer holds {len(held)} tensors, {strange} of them not the model's; {len(trial.trained)} are trained",
            "the optimizer was made for other tensors than the model's", "make the optimizer from the model as it is trained, once all is in its place",
        )  # fmt: skip
    reference = trial.reference.gradient
    before = fingerprints(trial)
    batches = [trial.batch([row]) for row in trial.rows]
    try:
        with trial.in_training(), _gradients_seen(trial) as reached:
            for group in optimizer.param_groups:
                group["lr"] = RATE
            results = [subject.step(model, batches, optimizer)]
            against = sum(float(((one.detach().cpu() - trial.values[name]) * reference[name]).sum()) for name, one in trial.trained.items())
            results.append(subject.step(model, batches, optimizer))
        if any(result.skipped for result in results):
            raise NotHere("a float16 gradient overflowed, and the step was left out as it should be")
        dead = [name for name in trial.trained if not bool(reached.get(name, False))]
        if dead:
            seen = f"{len(dead)} of {len(trial.trained)} tensors of the adapter have no gradient after two steps, the first is {dead[0]}"
            raise Refuted(seen, "what stands between it and the loss passes no gradient on", "look at adapter.target_modules and train.gradient_checkpointing")
        still = [name for name, one in trial.trained.items() if torch.equal(one.detach().cpu(), trial.values[name])]
        if still:
            seen = f"{len(still)} of {len(trial.trained)} tensors of the adapter did not move in two steps, the first is {still[0]}"
            raise Refuted(seen, "the optimizer does not hold them, or their updates are rounded away", "keep what is trained in float32, in the optimizer")
        if any(not bool(one.isfinite().all()) for one in trial.trained.values()):
            raise Refuted("after two steps an adapter is not finite", "the learning rate is too high", "lower train.learning_rate")
        after = fingerprints(trial)
        moved = [name for name in before if before[name][0] != after.get(name, (None, 0))[0]]
        if moved:
            raise Refuted(f"{len(moved)} tensors of the base moved, the first is {moved[0]}", "the base is not frozen", "train the adapter alone")
        if not against < 0:
            raise Refuted("the first step goes along its gradient, not against it", "the sign of the loss or of the update is wrong", "minimise the loss")
        losses = f"loss {results[0].loss:.4f}, then {results[1].loss:.4f}"
        return f"2 steps moved {len(trial.trained)} of {len(trial.trained)} adapters and 0 of {len(before):,} other tensors; {losses}"
    finally:
        trial.put_values_back()


@contextmanager
def _gradients_seen(trial: Trial) -> Iterator[dict[str, Tensor]]:
    """By name, whether a gradient other than zero has arrived."""
    seen: dict[str, Tensor] = {}

    def hook_for(name: str) -> Any:
        def look(parameter: Tensor) -> None:
            if parameter.grad is not None:
                now = parameter.grad.detach().any()
                seen[name] = now if name not in seen else seen[name] | now

        return look

    hooks = [parameter.register_post_accumulate_grad_hook(hook_for(name)) for name, parameter in trial.trained.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def not_finite(trial: Trial) -> str:
    """A step whose loss is not finite stops before the update."""
    subject = trial.subject
    name, parameter = next(iter(trial.trained.items()))
    optimizer = Watched(trial)
    try:
        with trial.in_training():
            with torch.no_grad():
                parameter.fill_(float("nan"))
            try:
                result = subject.step(trial.model, [trial.batch([trial.rows[0]])], optimizer)
            except HalfbyteError as error:
                if optimizer.seen:
                    raise Refuted("the update was made before the loss was looked at", "the check comes too late", "look at loss and gradient first") from error
                return f"with NaN in {name} a step stops before the update"
        seen = f"with NaN in {name} a step went on, with a loss of {result.loss:g}"
        raise Refuted(seen, "loss and gradient are not looked at", "stop where either is not finite")
    finally:
        trial.put_values_back()


OF_MODEL = [
    Claim("weights", weights, "the base or the adapter, as loaded", BASE_AGAIN),
    Claim("adapter", adapter, "the adapter", "look at adapter.*"),
    Claim("loss", loss, "the loss", "sum -log p(label | what stands before it) over what is labelled"),
    Claim("packing", packing, "packed rows", "set data.packing=none"),
    Claim("padding", padding, "padded batches", "pad on the right, behind what is trained"),
    Claim("accumulation", accumulation, "the step", "divide the sum by the supervised tokens of the step"),
    Claim("recomputation", recomputation, "recomputation", "set train.gradient_checkpointing=false"),
    Claim("first steps", first_steps, "the optimizer or the step", "make the optimizer from the model as it is trained"),
    Claim("no update on NaN", not_finite, "the step", "stop where loss or gradient are not finite"),
]
