"""Where a layer's weights and activations lie must not change the loss, the gradient, what is trained, or what is answered."""

import pytest
import torch
from torch import nn

from halfbyte.data.batches import Batch, in_order
from halfbyte.data.pack import join_documents
from halfbyte.evaluate.loss import measure_loss
from halfbyte.generate.engine import Marks, Sampling, generate_batch
from halfbyte.model import placement
from halfbyte.model.adapter import add_adapter, load_adapter, save_adapter, without_adapter
from halfbyte.model.isolation import check_isolation
from halfbyte.model.placement import keep_in_16bit, place_layers
from halfbyte.recipe.plan import Placement
from halfbyte.recipe.schema import FP4, NF4, Adapter, NoQuant
from halfbyte.train.step import train_step
from tolerances import SAME_GRADIENT, SAME_LOSS
from toy_training import CPU, NONE, PAD, load_toy, logits, one_batch, random_rows, same, stir, trained_tensors

LAYERS = 5
PLAIN = [Placement()] * LAYERS
OFFLOADED = [Placement("cpu", "recomputed")] * LAYERS
AWAY = [Placement("cpu", "cpu")] * LAYERS
PLACES = {
    "recomputed": [Placement("4bit", "recomputed")] * LAYERS,
    "inputs away": [Placement("4bit", "cpu")] * LAYERS,
    "weights away": OFFLOADED,
    "both away": AWAY,
    "one layer away": [*PLAIN[:2], Placement("cpu", "cpu"), *PLAIN[3:]],
    "each its own": [Placement("cpu", "recomputed"), Placement(), Placement("cpu", "cpu"), Placement("4bit", "cpu"), Placement("cpu", "recomputed")],
}
FOUR_BIT, SINGLE_SCALES = NF4(), FP4(kind="fp4", double_quant=False)


def placed(folder, placements: list[Placement], section: Adapter | None = None, quant: NF4 | FP4 | NoQuant = FOUR_BIT, precision: str = "float32") -> nn.Module:
    """A toy as the trainer has it: loaded, with an adapter that does something, each layer in its place."""
    base = load_toy(folder, quant, precision).model
    keep_in_16bit(base, placements, base.dtype)
    model = stir(add_adapter(base, section or Adapter(r=4, alpha=8), 0)[0])
    place_layers(model, placements, CPU)
    return model


def course(model: nn.Module, precision: str = "float32") -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of three steps of two micro-batches, one of them packed, and what they trained; dropout draws the same each time."""
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2)
    model.train()
    torch.manual_seed(0)
    dtype = getattr(torch, precision)
    batches = [one_batch(random_rows([9, 14])), packed()]
    losses = [train_step(model, batches, optimizer, 1.0, dtype, torch.amp.GradScaler("cpu", enabled=False)).loss for _ in range(3)]
    return losses, trained_tensors(model)


def packed() -> Batch:
    return one_batch([join_documents(random_rows([6, 11, 4], seed=1)), join_documents(random_rows([12, 3], seed=2))])


def assert_same_course(left: nn.Module, right: nn.Module, precision: str = "float32") -> None:
    (losses, trained), (others, others_trained) = course(left, precision), course(right, precision)
    assert losses == others
    assert len(set(losses)) == 3  # it learned, so that there was something to differ
    assert same(trained, others_trained)


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("kind", ["mistral", "qwen2", "qwen3", "falcon"])
def test_training_is_the_same_to_the_bit(toy_base, kind, places):
    """Quantised, with dropout, whose draw is repeated when a layer runs again."""
    folder, section = toy_base(kind, num_hidden_layers=LAYERS), Adapter(r=4, alpha=8, dropout=0.2)
    assert_same_course(placed(folder, PLACES[places], section), placed(folder, PLAIN, section))


@pytest.mark.parametrize("quant", [NONE, SINGLE_SCALES], ids=["not quantised", "scales not quantised"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["mistral", "qwen2", "falcon"])
def test_other_number_formats_are_the_same_too(toy_base, kind, precision, quant):
    folder = toy_base(kind, num_hidden_layers=LAYERS)
    assert_same_course(*(placed(folder, places, quant=quant, precision=precision) for places in (AWAY, PLAIN)), precision)


@pytest.mark.parametrize("kind", ["rslora", "dora"])
def test_other_adapters_are_the_same_too(toy_base, kind):
    """DoRA reads the base's weights when it is made and in every pass."""
    folder, section = toy_base("qwen2", num_hidden_layers=LAYERS), Adapter(r=4, alpha=8, kind=kind, dropout=0.2)
    assert_same_course(placed(folder, AWAY, section), placed(folder, PLAIN, section))


def test_a_trained_norm_stays_while_its_layer_is_away(toy_base):
    folder, section = toy_base(num_hidden_layers=LAYERS), Adapter(r=4, alpha=8, modules_to_save=["input_layernorm"])
    assert_same_course(placed(folder, AWAY, section), placed(folder, PLAIN, section))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["mistral", "qwen2", "falcon"])
def test_dequantised_once_or_each_time_is_the_same(toy_base, kind, precision):
    """Not the next best thing: the weights before they were quantised give another loss."""
    folder = toy_base(kind, num_hidden_layers=LAYERS)
    rows = in_order(random_rows([9, 14, 30]), 3, PAD)
    places = [Placement("16bit", "recomputed")] * LAYERS
    found = [
        measure_loss(placed(folder, *how, precision=precision), rows, getattr(torch, precision)).mean
        for how in ((PLAIN,), (places,), (PLAIN, None, NONE))
    ]  # fmt: skip
    assert found[1] == pytest.approx(found[0], rel=SAME_LOSS)
    assert found[2] != pytest.approx(found[0], rel=10 * SAME_LOSS)


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "falcon"])
def test_gradients_through_weights_dequantised_once(toy_base, kind):
    folder = toy_base(kind, num_hidden_layers=LAYERS)
    (losses, trained), (others, others_trained) = (course(placed(folder, places)) for places in ([Placement("16bit", "cpu")] * LAYERS, PLAIN))
    assert losses == pytest.approx(others, rel=SAME_GRADIENT)
    for name, tensor in trained.items():
        torch.testing.assert_close(tensor, others_trained[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["mistral", "falcon"])
def test_use_is_the_same_to_the_bit(toy_base, tmp_path, kind):
    """Evaluation, the base alone, generation with a cache, the proof of packing, the saved adapter: then training as if nothing had been."""
    folder, ids = toy_base(kind, num_hidden_layers=LAYERS), random_rows([9])[0].ids
    prompts, marks, sampling = [row.ids for row in random_rows([3, 8, 5])], Marks([1], PAD), Sampling(8, repetition_penalty=1.3)
    found, models = [], [placed(folder, places) for places in (PLAIN, AWAY)]
    for number, model in enumerate(models):
        tuned = logits(model, [ids])
        with without_adapter(model):
            alone = logits(model, [ids])
        check_isolation(model, torch.float32)
        saved = tmp_path / f"{number}"
        save_adapter(model, saved, "toy")
        loaded = load_toy(folder).model
        reloaded = load_adapter(loaded, str(saved))
        place_layers(reloaded, AWAY, CPU)
        found.append((tuned, alone, logits(reloaded, [ids]), generate_batch(model, prompts, marks, sampling, torch.float32)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    assert torch.equal(found[0][0], found[0][2])
    assert not torch.equal(found[0][0], found[0][1])
    assert_same_course(*models)


AS_BEFORE_2_13 = """
def context():
    with hooks(lambda tensor: tensor, lambda tensor: tensor):
        yield

def checkpoint(function, *inputs, use_reentrant):
    gen = context()
    next(gen)
    result = function(*inputs)
    next(gen, None)
    return result
"""


@pytest.mark.parametrize("places", ["recomputed", "inputs away"])
def test_a_forward_pass_that_breaks_off_leaves_no_context_open(toy_base, places, monkeypatch):
    """While somebody holds the error, and with it the frame in which torch's checkpoint stands: what is saved next is nobody else's."""
    model = placed(toy_base("llama", num_hidden_layers=LAYERS), PLACES[places]).train()
    layer = model.get_base_model().model.layers[1]
    older = {"__name__": "torch.utils.checkpoint", "hooks": torch.autograd.graph.saved_tensors_hooks}
    exec(AS_BEFORE_2_13, older)
    monkeypatch.setattr(placement, "checkpoint", older["checkpoint"])

    def refuse(module, inputs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    handle = layer.mlp.register_forward_pre_hook(refuse)
    with pytest.raises(torch.OutOfMemoryError) as held:
        model(input_ids=torch.arange(3, 40)[None], use_cache=False)
    handle.remove()
    assert held.value.__traceback__ is not None
    assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None
