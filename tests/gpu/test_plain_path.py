"""The plain path on the chip: precision kinds, paged optimizers, resume, reload. Skips, and says so, without a GPU."""

import json

import pytest
import torch

from toys import make_base

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]


@pytest.fixture
def recipe(tmp_path):
    """A function: changes -> a checked recipe over a toy base and 60 short rows."""
    from halfbyte.recipe.load import parse_recipe

    file = tmp_path / "rows.csv"
    rows = [f"what is number {i},it is the {i}th lamp of the old road" for i in range(60)]
    file.write_text("prompt,response\n" + "\n".join(rows) + "\n")
    base = make_base(tmp_path / "base", hidden_size=128, intermediate_size=256)

    def make(*changes: str):
        text = f"base: {base}\ndata:\n  path: {file}\n  near_duplicates: ignore\ntrain:\n  max_steps: 12\n  eval_steps: 4\n  learning_rate: 1e-3\n"
        return parse_recipe(text, "gpu.yaml", list(changes), default_name="gpu")

    return make


def events(run, kind):
    return [event for event in map(json.loads, run.events.read_text().splitlines()) if event["event"] == kind]


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "float32"])
def test_every_precision_trains_with_float32_adapters(recipe, tmp_path, precision):
    from safetensors.torch import load_file

    from halfbyte import api

    run = api.train(recipe(f"train.precision={precision}"), tmp_path / "runs")
    losses = [event["loss"] for event in events(run, "step")]
    assert losses[-1] < losses[0]
    assert {tensor.dtype for tensor in load_file(run.adapter / "adapter_model.safetensors").values()} == {torch.float32}
    base, tuned = (event["perplexity"] for event in events(run, "perplexity"))
    assert tuned < base


def test_float16_overflow_skips_the_step_and_says_so(recipe, tmp_path, monkeypatch):
    """The first scale of 2**16 is made absurd, so that gradients overflow and the scale has to fall."""
    from halfbyte import api
    from halfbyte.train import loop

    scaler = torch.amp.GradScaler
    monkeypatch.setattr(loop.torch.amp, "GradScaler", lambda device, enabled: scaler(device, enabled=enabled, init_scale=2.0**40))
    run = api.train(recipe("train.precision=float16"), tmp_path / "runs")
    skipped = events(run, "skipped")
    assert skipped
    assert "overflowed" in skipped[0]["reason"]


@pytest.mark.parametrize("optimizer", ["paged_adamw_32bit", "paged_adamw_8bit", "adamw_8bit", "adamw_torch"])
def test_resume_goes_on_where_it_stopped(recipe, tmp_path, optimizer):
    """Interrupted after step 5 and resumed: the losses of an uninterrupted run.

    Not to the bit, since sums on a GPU have no order; but five times closer than a resume that forgets the optimizer's state.
    """
    from halfbyte import api
    from halfbyte.errors import Interrupted
    from halfbyte.train import loop

    def cut_and_resume(folder, forget):
        seen = []
        original = loop.Hooks
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(api, "Hooks", lambda validate, log, stop: original(validate, log, lambda: len(seen) >= 5))
            with pytest.raises(Interrupted):
                api.train(recipe(f"train.optimizer={optimizer}"), folder, listener=lambda e: seen.append(e) if e["event"] == "step" else None)
        with pytest.MonkeyPatch.context() as patch:
            if forget:
                kind = type(loop.make_optimizer(optimizer, [torch.nn.Parameter(torch.zeros(8, device="cuda"))], 1e-3, 0.0))
                patch.setattr(kind, "load_state_dict", lambda self, state: None)
            return losses(api.resume(folder / "gpu"))

    def losses(run):
        return {event["step"]: event["loss"] for event in events(run, "step")}

    expected = losses(api.train(recipe(f"train.optimizer={optimizer}"), tmp_path / "whole"))
    got, forgetful = cut_and_resume(tmp_path / "cut", forget=False), cut_and_resume(tmp_path / "forgetful", forget=True)
    assert got.keys() == expected.keys()
    off, off_without = (max(abs(run[step] - expected[step]) for step in expected) for run in (got, forgetful))
    print(f"{optimizer}: off by {off:.2e}, without the optimizer's state by {off_without:.2e}")
    assert off < off_without / 5


def test_reloaded_adapter_gives_the_same_perplexity(recipe, tmp_path):
    from halfbyte import api

    run = api.train(recipe(), tmp_path / "runs")
    before = events(run, "perplexity")
    api.evaluate(run.path)
    again = events(run, "perplexity")[2:]
    for first, second in zip(before, again, strict=True):
        assert second["perplexity"] == pytest.approx(first["perplexity"], rel=1e-4)


def test_falcon_is_quantised_on_the_chip_too(tmp_path):
    from halfbyte.model.base import find_base
    from halfbyte.model.load import load_base
    from halfbyte.recipe.schema import NF4

    loaded = load_base(find_base(str(make_base(tmp_path, "falcon"))), NF4(), "bfloat16", torch.device("cuda", 0))
    assert loaded.share_4bit == 1.0


@pytest.mark.parametrize("kind", ["mistral", "llama", "qwen2", "qwen3", "falcon"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_documents_do_not_see_each_other_on_the_chip(tmp_path, kind, attention):
    """CORRECTNESS 1.6 on NF4 weights in bfloat16: to the bit, with kernels that a CPU does not have."""
    from halfbyte.model.base import find_base
    from halfbyte.model.isolation import check_isolation
    from halfbyte.model.load import load_base
    from halfbyte.recipe.schema import NF4

    model = load_base(find_base(str(make_base(tmp_path, kind))), NF4(), "bfloat16", torch.device("cuda", 0)).model
    model.set_attn_implementation(attention)
    check_isolation(model, torch.bfloat16)


def test_packed_rows_train_on_the_labels_that_were_prepared(recipe, tmp_path):
    from halfbyte import api

    run = api.train(recipe("data.packing=best_fit", "data.max_length=128", "train.max_steps=40"), tmp_path / "runs")
    losses = [event["loss"] for event in events(run, "step")]
    assert losses[-1] < losses[0]
    assert [event["same_as_preview"] for event in events(run, "labels")] == [True]
