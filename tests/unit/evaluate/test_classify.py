"""A class is scored as it was trained, in one pass or apart; the scorer that evaluation fits is the one that production loads."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig

from halfbyte.data.prepare import prepare_data
from halfbyte.data.render import Template, choose_template, render_prompt
from halfbyte.data.tokens import Encoder
from halfbyte.errors import DataError, IntegrityError, ModelError
from halfbyte.evaluate import classify as module
from halfbyte.evaluate.calibration import Calibration
from halfbyte.evaluate.classify import Scorer, answer_ids, classify, fit_scorer, label_scores, load_scorer
from halfbyte.recipe.load import parse_recipe
from halfbyte.recipe.schema import Adapter
from tolerances import SAME_LOSS
from toy_tokenizers import KINDS, TEMPLATES, tokenizer_of
from toy_training import PAD, adapted, stir
from toys import VOCABULARY, make_model

F32 = torch.float32
CLASSES = ["good", "the old man", "x", "goodness", "a.b", "</s>"]
ANSWERS = [[7, 1], [7, 9, 1], [30, 31, 32, 1], [1], [40, 7, 9, 50, 51, 1]]
# Two ways of one sum in float32; SAME_LOSS is relative, and log p of an answer is about -30.
BOTH_WAYS = 1e-5


def prompts_of(lengths, seed=0):
    draw = np.random.default_rng(seed)
    return [draw.integers(5, VOCABULARY, length).tolist() for length in lengths]


def reference(model, prompts, answers):
    """The definition: one row, no padding, float64, token by token."""
    scores = np.zeros((len(prompts), len(answers)))
    for row, prompt in enumerate(prompts):
        for column, answer in enumerate(answers):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0].double().log_softmax(-1)
            scores[row, column] = sum(float(logits[len(prompt) + place - 1, token]) for place, token in enumerate(answer))
    return scores


# Likelihood


@pytest.fixture
def never_apart(monkeypatch):
    """Fails where a model is asked for every class apart, once it has been tried."""
    tried = module._can_score_together

    def check(*arguments):
        assert tried(*arguments)
        return True

    monkeypatch.setattr(module, "_can_score_together", check)


FAMILIES = {
    "llama": {}, "mistral": {}, "qwen3": {}, "falcon": {}, "falcon, new": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "llama, eager": {"attn_implementation": "eager"}, "falcon, eager": {"attn_implementation": "eager"},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_one_pass_is_the_definition(family, never_apart):
    """Prompts of unequal lengths, answers of one to six ids, whatever the batches."""
    model = make_model(family.split(",")[0], **FAMILIES[family]).eval()
    assert model.config._attn_implementation == FAMILIES[family].get("attn_implementation", "sdpa")
    prompts = prompts_of([3, 41, 1, 17, 17, 8])
    expected = reference(model, prompts, ANSWERS)
    assert expected.std() > 1
    for size in (1, 2, 6):
        scores = label_scores(model, prompts, ANSWERS, F32, size, PAD)
        assert scores.dtype == np.float64
        np.testing.assert_allclose(scores, expected, rtol=BOTH_WAYS)
    with torch.no_grad():
        np.testing.assert_allclose(module._score_apart(model, prompts, ANSWERS, F32, PAD), expected, rtol=BOTH_WAYS)


@pytest.mark.parametrize(("kind", "changes"), [("mistral", {"sliding_window": 8}), ("falcon", {"alibi": True})])
def test_a_model_that_does_something_else_with_the_mask_is_asked_for_each_class_apart(kind, changes):
    """One pass would be wrong: the mask that it is given replaces a window, and ALiBi takes its distances from columns."""
    model = make_model(kind, **changes).eval()
    prompts = prompts_of([30, 4, 12])
    expected = reference(model, prompts, ANSWERS)
    np.testing.assert_allclose(label_scores(model, prompts, ANSWERS, F32, 2, PAD), expected, rtol=BOTH_WAYS)
    with torch.no_grad():
        assert not module._can_score_together(model, prompts, ANSWERS, F32, PAD)


def test_a_model_that_takes_no_positions_is_found_out_by_the_trial():
    """Without a complaint it counts columns, so that each branch would stand further off than the one before."""
    model, prompts = make_model("llama").eval(), prompts_of([30, 4])
    expected, forward = reference(model, prompts, ANSWERS), model.forward
    model.forward = lambda position_ids=None, **inputs: forward(**inputs)
    np.testing.assert_allclose(label_scores(model, prompts, ANSWERS, F32, 2, PAD), expected, rtol=BOTH_WAYS)


def test_a_window_is_not_left_to_the_trial(monkeypatch):
    """In bfloat16 what lies beyond the window may move a score by less than rounding does."""
    monkeypatch.setattr(module, "SAME_LOSS", {F32: 1e9})
    model, prompts = make_model("mistral", sliding_window=20).eval(), prompts_of([30, 4])
    np.testing.assert_allclose(label_scores(model, prompts, ANSWERS, F32, 2, PAD), reference(model, prompts, ANSWERS), rtol=BOTH_WAYS)
    with torch.no_grad():
        assert module._can_score_together(model, prompts_of([14, 4]), ANSWERS, F32, PAD)


def test_many_classes_take_several_passes(monkeypatch, never_apart):
    model, prompts = make_model("llama").eval(), prompts_of([9, 5])
    whole = label_scores(model, prompts, ANSWERS, F32, 2, PAD)
    monkeypatch.setattr(module, "MOST_BRANCH_TOKENS", 6)
    assert [len(group) for group in module._groups(ANSWERS)] == [2, 2, 1]
    np.testing.assert_allclose(label_scores(model, prompts, ANSWERS, F32, 2, PAD), whole, rtol=SAME_LOSS)


def test_an_adapter_counts_dropout_does_not_and_the_mode_is_put_back(toy_base, never_apart):
    model = stir(adapted(toy_base("llama"), Adapter(r=4, dropout=0.5)))
    prompts = prompts_of([9, 5])
    model.train()
    first, second = (label_scores(model, prompts, ANSWERS, F32, 2, PAD) for _ in range(2))
    assert model.training
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, reference(model.eval(), prompts, ANSWERS), rtol=BOTH_WAYS)
    with model.disable_adapter():
        base = label_scores(model, prompts, ANSWERS, F32, 2, PAD)
    assert np.abs(base - first).max() > 0.1


class Bigram(nn.Module):
    """Known logits: what follows depends on the last id alone. It takes no mask, as a recurrent model would not."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(torch.as_tensor(table, dtype=torch.float32))
        self.config = PreTrainedConfig(attn_implementation="sdpa")

    def forward(self, input_ids, use_cache):
        return SimpleNamespace(logits=self.table[input_ids])


def test_scores_of_a_model_with_known_logits():
    """After 0 comes 1 with 1/2 and 2 with 1/4; 1 ends (3) with 1/2; 2 goes on to 1 with 1/4, which then ends with 1/2."""
    chances = np.array([[1, 4, 2, 1], [2, 1, 1, 4], [1, 2, 1, 4], [2, 2, 2, 2]]) / 8
    scores = label_scores(Bigram(np.log(chances)), [[3, 0], [0]], [[1, 3], [2, 1, 3], [2, 3]], F32, 2, 0)
    np.testing.assert_allclose(np.exp(scores), [[1 / 4, 1 / 32, 1 / 8]] * 2, rtol=1e-6)


def test_a_model_that_is_nearly_certain_is_scored_in_one_pass(never_apart):
    """log p is nearly 0, so that what the order of sums changes is much beside it; guards against falling back for that."""
    model = make_model("llama").eval()
    head = model.lm_head.forward
    model.lm_head.forward = lambda hidden: head(hidden) + nn.functional.one_hot(torch.tensor(7), VOCABULARY) * 16
    scores = label_scores(model, prompts_of([9, 5]), [[7], [7, 7], [8, 7]], F32, 2, PAD)
    assert (np.abs(scores[:, :2]) < 0.01).all()
    assert (scores[:, 2] < -10).all()


def test_scores_are_in_the_order_of_the_prompts():
    """They are batched by length; guards against scores that stay in that order."""
    model, prompts = make_model("llama").eval(), prompts_of([20, 3, 11, 7])
    together = label_scores(model, prompts, ANSWERS, F32, 2, PAD)
    for prompt, row in zip(prompts, together, strict=True):
        np.testing.assert_allclose(label_scores(model, [prompt], ANSWERS, F32, 2, PAD)[0], row, rtol=BOTH_WAYS)
    assert label_scores(model, [], ANSWERS, F32, 2, PAD).shape == (0, len(ANSWERS))


def test_nothing_to_score_and_no_number_are_told():
    model = make_model("llama")
    with pytest.raises(DataError, match="has no tokens"):
        label_scores(model, [[5], []], ANSWERS, F32, 2, PAD)
    with torch.no_grad():
        model.model.embed_tokens.weight[33] = float("nan")
    with pytest.raises(ModelError, match="scores of row 2 are not numbers"):
        label_scores(model, [[5], [6, 33, 7]], ANSWERS, F32, 1, PAD)


# The ids of a class


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", [*TEMPLATES, "format"])
def test_a_class_has_the_ids_that_were_trained(tmp_path, monkeypatch, kind, template):
    """Of every row of prepared data: its trained ids are those of its class, and what stands before them is the prompt in production."""
    monkeypatch.setenv("HALFBYTE_CACHE", str(tmp_path / "cache"))
    tokenizer = tokenizer_of(kind, None if template == "format" else template)
    lines = [{"text": f"number {n} of the hills", "mood": CLASSES[n % len(CLASSES)]} for n in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = [f"data.path={tmp_path / 'a.jsonl'}", "data.kind=label", "data.text_column=text", "data.label_column=mood", "data.instruction=Which?"]
    words += ["data.prompt_template='Text:{prompt} Class:'"] if template == "format" else []
    made = prepare_data(parse_recipe("", "r.yaml", words).recipe.data, 0, tokenizer)
    encoder = Encoder(tokenizer)
    ids = dict(zip(CLASSES, answer_ids(CLASSES, made.template, encoder), strict=True))
    rows = [*made.train, *made.validation, *made.test]
    assert len(rows) == 60
    for row in rows:
        line = lines[row.line - 1]
        assert [token for token, trained in zip(row.ids, row.trained, strict=True) if trained] == ids[line["mood"]]
        asked = [token for token, trained in zip(row.ids, row.trained, strict=True) if not trained]
        assert asked == encoder.prompt(render_prompt([{"role": "user", "content": line["text"]}], made.template, tokenizer))


# The scorer


SCORER = Scorer(("a", "b\u00e9", "c"), Calibration((-0.1, -2.5, -7.0), 1.25, 0.6, ("prior correction used",)), "Which?")


def test_a_scorer_is_loaded_as_it_was_saved(tmp_path):
    for scorer in (SCORER, Scorer(("a", "b"), Calibration(None, 0.1 + 0.2, None)), Scorer(("a", "b"), Calibration(None, 1.0, 0.0, ("x", "y")))):
        scorer.save(tmp_path / "scorer.json")
        assert load_scorer(tmp_path / "scorer.json") == scorer


def test_what_cannot_be_loaded_again_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        Scorer(("a", "b"), Calibration(None, float("nan"), None)).save(tmp_path / "scorer.json")
    assert not (tmp_path / "scorer.json").exists()


@pytest.mark.parametrize("change", [
    {"classes": ["a"]}, {"classes": ["a", "a", "b"]}, {"classes": ["a", 1, "b"]}, {"classes": "abc"}, {"instruction": 3}, {"more": 1},
    {"calibration": None}, {"calibration": {}}, {"log_prior": [0.1]}, {"log_prior": [0.1, "x", 0.2]}, {"log_prior": [0.1, float("nan"), 0.2]},
    {"temperature": 0.0}, {"temperature": None}, {"temperature": float("inf")}, {"threshold": 1.5}, {"threshold": "0.5"}, {"notes": "x"},
])  # fmt: skip
def test_a_damaged_scorer_is_refused(tmp_path, change):
    SCORER.save(tmp_path / "scorer.json")
    kept = json.loads((tmp_path / "scorer.json").read_text())
    inner = kept["calibration"]
    (inner if change.keys() <= inner.keys() else kept).update(change)
    (tmp_path / "scorer.json").write_text(json.dumps(kept))
    with pytest.raises(IntegrityError, match=r"scorer\.json is damaged: its"):
        load_scorer(tmp_path / "scorer.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_file_that_is_no_scorer_is_refused(tmp_path, content):
    (tmp_path / "scorer.json").write_bytes(content)
    with pytest.raises(IntegrityError, match="is damaged"):
        load_scorer(tmp_path / "scorer.json")
    with pytest.raises(DataError, match="no scorer there"):
        load_scorer(tmp_path / "other.json")


def test_it_abstains_below_the_threshold():
    probabilities = np.array([[0.6, 0.3, 0.1], [0.5, 0.49, 0.01], [0.0, 0.0, 1.0]])
    assert SCORER.decide(probabilities) == ["a", None, "c"]
    always, never = (Scorer(SCORER.classes, Calibration(None, 1.0, threshold)) for threshold in (0.0, None))
    assert always.decide(probabilities) == ["a", "a", "c"]
    assert never.decide(probabilities) == [None, None, None]


# From texts to classes


@pytest.fixture(scope="module")
def toy():
    tokenizer = tokenizer_of("bytes", "chatml")
    return make_model("llama").eval(), tokenizer, choose_template("chat", None, tokenizer, instruction="Which?")[0]


def test_production_says_what_evaluation_measured(toy):
    """The same texts as rows and as texts: fitted on the one, read by the other."""
    model, tokenizer, template = toy
    draw = np.random.default_rng(0)
    texts = [f"the lamp {n} and the sea {n % 7}" for n in range(40)]
    classes = ["quiet", "cold", "dark"]
    encoder = Encoder(tokenizer)
    prompts = [encoder.prompt(render_prompt([{"role": "user", "content": text}], template, tokenizer)) for text in texts]
    scores = label_scores(model, prompts, answer_ids(classes, template, encoder), F32, 4, PAD)
    gold = [classes[place] for place in np.where(draw.random(40) < 0.6, scores.argmax(axis=1), draw.integers(0, 3, 40))]
    scorer = fit_scorer(classes, scores, gold, template.instruction, wanted_accuracy=0.6)
    assert scorer.calibration.temperature != 1.0
    measured = scorer.probabilities(scores)
    said = classify(model, tokenizer, template, scorer, texts, F32, 512, PAD, batch_size=16)
    np.testing.assert_allclose([list(one["probabilities"].values()) for one in said], measured, rtol=1e-4)
    assert [list(one["probabilities"]) for one in said] == [classes] * 40
    assert [one["label"] for one in said] == scorer.decide(measured)
    for one in said:
        assert one["confidence"] == max(one["probabilities"].values())
        assert one["abstained"] == (one["label"] is None) == (one["confidence"] < (scorer.calibration.threshold or 0))
    json.dumps(said)
    assert classify(model, tokenizer, template, scorer, [], F32, 512, PAD) == []


def test_a_class_that_validation_rows_have_and_the_scorer_does_not_counts_as_wrong():
    scores = np.log(np.array([[0.9, 0.1], [0.2, 0.8]] * 30))
    scorer = fit_scorer(["a", "b"], scores, ["a", "new"] * 30, wanted_accuracy=0.9)
    assert "not calibrated: 30 validation rows of 1 class " in scorer.calibration.notes[0]


def test_a_scorer_of_another_instruction_and_a_text_without_room_are_refused(toy):
    model, tokenizer, template = toy
    with pytest.raises(IntegrityError, match="fitted with the instruction None, the model is asked with 'Which\\?'"):
        classify(model, tokenizer, template, Scorer(("a", "b"), SCORER.calibration), ["x"], F32, 512, PAD)
    scorer = Scorer(("a", "b"), Calibration(None, 1.0, 0.0), "Which?")
    with pytest.raises(DataError, match=r"text 2 has \d+ tokens, room is 58 \(60 less the longest class\)"):
        classify(model, tokenizer, template, scorer, ["x", "many words " * 30], F32, 60, PAD)
    assert isinstance(template, Template)
