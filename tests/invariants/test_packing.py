"""Documents packed into one row see only themselves, and train as they would alone (CORRECTNESS 1.6, DEPENDENCIES T7)."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from halfbyte.data.batches import Batch, in_order, labels_hash, row_lengths
from halfbyte.data.pack import PackedRows, best_fit, join_documents
from halfbyte.errors import ModelError
from halfbyte.evaluate.loss import measure_loss
from halfbyte.model import isolation
from halfbyte.model.isolation import check_isolation, model_inputs
from halfbyte.recipe.schema import Adapter, Train
from halfbyte.train import loop as loops
from halfbyte.train.step import batch_logits, summed_loss
from tolerances import SAME_GRADIENT, SAME_LOSS
from toy_training import PAD, adapted, gradients, one_batch, random_rows, row, run_toy, same, toy_plan, trained_tensors
from toys import VOCABULARY, make_model

F32 = torch.float32
WINDOWED = {"sliding_window": 5}
KINDS = {
    "mistral": ("mistral", {}), "mistral, sliding window": ("mistral", WINDOWED), "llama": ("llama", {}), "qwen2": ("qwen2", {}),
    "qwen2, one layer with a sliding window": ("qwen2", {**WINDOWED, "use_sliding_window": True, "max_window_layers": 1}), "qwen3": ("qwen3", {}),
    "falcon": ("falcon", {}), "falcon, new decoder": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
}  # fmt: skip


def toy(name: str, attention: str = "sdpa", training: bool = False, checkpointing: bool = False, dropout: float = 0.0) -> nn.Module:
    kind, changes = KINDS[name]
    model = make_model(kind, attention_dropout=dropout, **changes)
    model.config._attn_implementation = attention
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train(training)


def packed_batch(lengths: tuple[int, ...] = (9, 14, 1, 11), short: int = 6, seed: int = 0) -> Batch:
    """One packed row, and a shorter one that is padded."""
    rows = random_rows([*lengths, short, 3], seed)
    return one_batch([join_documents(rows[: len(lengths)]), join_documents(rows[len(lengths) :])])


def edited(batch: Batch, end: int) -> Batch:
    """The first `end` tokens of the first row are others."""
    ids = batch.ids.clone()
    ids[0, :end] = 5 + (ids[0, :end] + 100) % (VOCABULARY - 5)
    assert not (ids[0, :end] == batch.ids[0, :end]).any()
    return replace(batch, ids=ids)


def logits_of(model: nn.Module, batch: Batch) -> torch.Tensor:
    torch.manual_seed(0)  # dropout
    return batch_logits(model, batch, F32).detach()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_editing_a_document_leaves_its_neighbours_logits_to_the_bit(monkeypatch, name, attention, training, checkpointing):
    calls = []
    plain = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args, **kwargs: calls.append(1) or plain(*args, **kwargs))
    model, batch = toy(name, attention, training, checkpointing, dropout=0.2), packed_batch()
    before, after = logits_of(model, batch), logits_of(model, edited(batch, 9))
    assert bool(calls) == (attention == "sdpa")
    assert torch.equal(before[0, 9:], after[0, 9:])
    assert torch.equal(before[1], after[1])
    assert not torch.isclose(before[0, :9], after[0, :9]).all(-1).any(), "the document itself has changed"


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_loss_of_a_document_has_no_gradient_in_its_neighbour(name, attention, checkpointing):
    model, batch = toy(name, attention, True, checkpointing), packed_batch()
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, out: (out.retain_grad(), seen.append(out))[0])
    labels = batch.labels.clone()
    labels[1], labels[0, :9], labels[0, 9 + 14 :] = -100, -100, -100  # the second document alone is in the loss
    summed_loss(batch_logits(model, batch, F32), labels).backward()
    moved = seen[0].grad.abs().amax(-1)
    assert moved[0, 9 : 9 + 13].min() > 0
    assert moved[0, :9].max() == moved[0, 9 + 14 :].max() == moved[1].max() == 0


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("size", [1, 3])
def test_the_losses_of_rows_alone_add_up_to_the_loss_packed(name, attention, size):
    """Also where a document is longer than the model's window. Without isolation the losses differ by percents (MeetKai/functionary#265)."""
    model = toy(name, attention)
    rows = random_rows([9, 14, 2, 11, 30, 6, 17, 25, 12, 4], untrained=2)
    packed = PackedRows(rows, best_fit(row_lengths(rows), 40))
    assert len(packed) <= 4
    alone, together = measure_loss(model, in_order(rows, 1, PAD), F32), measure_loss(model, in_order(packed, size, PAD), F32)
    assert together.tokens == alone.tokens == sum(len(item.ids) - 2 for item in rows)
    assert together.mean == pytest.approx(alone.mean, rel=SAME_LOSS)
    leaky = [replace(batch, positions=None, documents=None) for batch in in_order(packed, size, PAD)]
    apart = (measure_loss(model, [batch], F32).mean for batch in in_order(packed, size, PAD))
    assert max(abs(measure_loss(model, [batch], F32).mean / loss - 1) for batch, loss in zip(leaky, apart, strict=True)) > 100 * SAME_LOSS


@pytest.mark.parametrize("kind", ["mistral", "falcon"])
def test_packing_does_not_change_the_gradient(toy_base, kind):
    """Of a 4-bit base with its adapter, as training sees it."""
    model, rows = adapted(toy_base(kind), stirred=True), random_rows([9, 14, 2, 11, 30, 6])
    packed = PackedRows(rows, best_fit(row_lengths(rows), 40))
    plain, together = gradients(model, list(in_order(rows, 2, PAD))), gradients(model, list(in_order(packed, 1, PAD)))
    assert max(float((plain[name] - together[name]).abs().max() / plain[name].abs().max()) for name in plain) <= SAME_GRADIENT


def test_the_plain_path_is_given_ids_and_nothing_else():
    """Rows that are not packed are trained as before: no positions, and no mask that would cost memory."""
    batch = one_batch(random_rows([9, 4]))
    assert model_inputs(toy("falcon"), batch.ids, batch.positions, batch.documents) == {"input_ids": batch.ids, "use_cache": False}


class NextNumber(nn.Module):
    """Predicts id + 1 with certainty."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.roll(torch.eye(20), 1, dims=1) * 100)
        self.config = SimpleNamespace(model_type="toy")

    def forward(self, input_ids, use_cache, position_ids):
        return SimpleNamespace(logits=self.table[input_ids])


def test_labels_are_shifted_once_and_cross_no_border():
    """Loss 0 for a model that predicts the next token; a label across a border would cost 100 (CORRECTNESS 1.6, 1.26)."""
    packed = join_documents([row([3, 4, 5]), row([10, 11]), row([2]), row([2, 3, 4, 5])])
    measured = measure_loss(NextNumber(), [one_batch([packed, row([7, 8])])], F32)
    assert measured.tokens == 2 + 1 + 0 + 3 + 1
    assert measured.mean < 1e-6
    standing = join_documents([row([3, 3]), row([9, 9])])
    assert measure_loss(NextNumber(), [one_batch([standing])], F32).mean == pytest.approx(100)


# The proof on the user's own model


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_check_lets_pass_what_keeps_documents_apart(name, attention):
    check_isolation(toy(name, attention, training=True, checkpointing=True, dropout=0.2), F32)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["mistral", "falcon"])
def test_the_check_leaves_mode_and_random_state(toy_base, kind, precision):
    """A run with packed rows draws the same dropout whether the check ran or not."""
    for training in (True, False):
        model = adapted(toy_base(kind), Adapter(r=4, dropout=0.3), precision=precision, stirred=True).train(training)
        modes, before = [module.training for module in model.modules()], torch.get_rng_state()
        check_isolation(model, getattr(torch, precision))
        assert torch.equal(torch.get_rng_state(), before)
        assert [module.training for module in model.modules()] == modes
        assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_model_that_leaks_is_refused(monkeypatch, attention):
    """Falcon's own mask does not look at positions: 0.68 in the logits (DEPENDENCIES T7)."""
    monkeypatch.setattr(isolation, "BLIND_MASKS", ())
    model = toy("falcon", attention).train()
    with pytest.raises(ModelError, match=r"logits move by [01]\.\d+ when its neighbour") as raised:
        check_isolation(model, F32)
    assert raised.value.hint == "set data.packing=none"
    assert model.training


@pytest.mark.parametrize("name", ["mistral", "llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("leak", [lambda ids: {"use_cache": True}, lambda ids: {"attention_mask": torch.ones_like(ids)}], ids=["cache", "mask"])
def test_the_check_finds_the_leaks_that_were_found(monkeypatch, name, leak):
    """A cache, or any 2-D mask, switches the isolation of transformers off without a word (CORRECTNESS 1.6)."""
    through = isolation.model_inputs
    monkeypatch.setattr(isolation, "model_inputs", lambda model, ids, positions, documents: {**through(model, ids, positions, documents), **leak(ids)})
    with pytest.raises(ModelError, match="logits move by"):
        check_isolation(toy(name), F32)


def test_wrong_positions_are_refused(monkeypatch):
    """Falcon is isolated by its mask; only its losses tell that its positions are not those of a row of its own."""
    through = isolation.model_inputs

    def squares(model, ids, positions, documents):
        return {**through(model, ids, positions, documents), "position_ids": torch.arange(ids.shape[1])[None] ** 2}

    monkeypatch.setattr(isolation, "model_inputs", squares)
    with pytest.raises(ModelError, match="has a loss of"):
        check_isolation(toy("falcon"), F32)


@pytest.mark.parametrize(("kind", "changes"), [("falcon", {"alibi": True}), ("mixtral", {})])
def test_a_base_that_cannot_is_refused_with_the_mend(kind, changes):
    """ALiBi takes no mask of ours; experts compute a document together with its neighbours, so its roundings differ."""
    with pytest.raises(ModelError, match="packed rows: ") as raised:
        check_isolation(make_model(kind, **changes), F32)
    assert raised.value.hint == "set data.packing=none"


# In the loop

ROWS = random_rows([9, 22, 14, 30, 6, 17, 25, 12, 19, 8, 11, 4, 7], untrained=2)
PACKED = PackedRows(ROWS, best_fit(row_lengths(ROWS), 32))
SECTION = Train(learning_rate=2e-2, batch_size=1, gradient_accumulation_steps=2)
DROPOUT = Adapter(r=4, dropout=0.1)


def go(folder, path, **how):
    return run_toy(folder, path, PACKED, SECTION, toy_plan(len(PACKED), SECTION, total=7, eval_steps=3), adapter=DROPOUT, **how)


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_run_with_packed_rows_is_resumed_to_the_bit(toy_base, tmp_path, stop):
    folder = toy_base()
    whole = go(folder, tmp_path / "whole")
    first = go(folder, tmp_path / "cut", stop_after=stop)
    second = go(folder, tmp_path / "cut", resume_from=tmp_path / "cut" / f"step-{stop}")
    for keys in (("step", "step", "loss", "tokens", "supervised"), ("validation", "step", "loss"), ("labels", "rows", "sha256")):
        assert first.told(*keys) + second.told(*keys) == whole.told(*keys)
    assert same(trained_tensors(second.model), trained_tensors(whole.model))
    assert whole.told("labels", "rows", "sha256") == [(len(ROWS), labels_hash(ROWS))]


def test_the_loop_proves_isolation_before_the_first_packed_step(toy_base, tmp_path, monkeypatch):
    """Once, and only where rows are packed."""
    told = []
    monkeypatch.setattr(loops, "check_isolation", lambda model, dtype: told.append((model.training, dtype)))
    go(toy_base(), tmp_path / "packed")
    assert told == [(True, F32)]
    run_toy(toy_base(), tmp_path / "plain", ROWS, SECTION, toy_plan(len(ROWS), SECTION, total=2))
    assert told == [(True, F32)]


def test_a_base_that_leaks_is_refused_before_a_step_is_taken(toy_base, tmp_path, monkeypatch):
    monkeypatch.setattr(isolation, "BLIND_MASKS", ())
    model = adapted(toy_base("falcon"))
    before = trained_tensors(model)
    with pytest.raises(ModelError, match="packed rows"):
        go(None, tmp_path, model=model, validate=None)
    assert same(trained_tensors(model), before)
