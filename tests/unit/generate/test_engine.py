"""Decoding: the same answer in a batch and alone, an end that is kept to, and nothing left changed in the model."""

import pytest
import torch
from torch import nn
from transformers import GenerationConfig

from halfbyte.errors import DataError
from halfbyte.generate.engine import Marks, Sampling, _RepetitionPenalty, generate_batch, generate_stream
from halfbyte.recipe.schema import Adapter
from toy_training import NONE, adapted, load_toy, random_rows
from toys import make_tokenizer

F32 = torch.float32
MARKS = Marks(end=[1], pad=2)
PROMPTS = [item.ids for item in random_rows([1, 23, 4, 9, 2, 40, 7])]


@pytest.fixture
def model(toy_base):
    return adapted(toy_base(), Adapter(r=4, dropout=0.5), stirred=True)


def alone(model, prompts, marks, sampling):
    return [generate_batch(model, [prompt], marks, sampling, F32)[0] for prompt in prompts]


@pytest.mark.parametrize("kind", ["mistral", "llama", "qwen2", "qwen3", "falcon"])
def test_a_batch_answers_as_each_prompt_alone(toy_base, kind):
    """Greedy, float32, prompts of very different length: padding on the left is neither seen nor counted (CORRECTNESS 1.9)."""
    model = adapted(toy_base(kind), stirred=True)
    sampling = Sampling(max_new_tokens=24)
    expected = alone(model, PROMPTS, MARKS, sampling)
    assert len({tuple(answer) for answer in expected}) > 4
    for size in (2, 4, 7):
        assert generate_batch(model, PROMPTS, MARKS, sampling, F32, batch_size=size) == expected


def test_greedy_is_the_most_likely_token_each_time(model):
    """Against a loop without cache, in eval mode (the adapter's dropout of one half is off)."""
    model.eval()
    ids = list(PROMPTS[1])
    with torch.no_grad():
        for _ in range(12):
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    model.train()
    assert generate_batch(model, [PROMPTS[1]], MARKS, Sampling(12), F32) == [ids[len(PROMPTS[1]) :]]


def end_for(model, prompts, at):
    """Marks whose end is what the first prompt says at a place, as if the model had learnt to stop there."""
    answer = generate_batch(model, prompts[:1], MARKS, Sampling(24), F32)[0]
    place = next(i for i in range(at, len(answer)) if answer[i] not in answer[:i])
    return Marks(end=[1, answer[place]], pad=2), answer[:place]


def test_an_answer_stops_before_its_end_mark(model):
    """Each row of a batch at its own place; what follows in the others goes on."""
    marks, expected = end_for(model, PROMPTS, at=3)
    answers = generate_batch(model, PROMPTS, marks, Sampling(24), F32, batch_size=7)
    assert answers[0] == expected
    assert answers == alone(model, PROMPTS, marks, Sampling(24))
    assert not any(token in marks.end for answer in answers for token in answer)
    assert max(map(len, answers)) == 24


def test_an_end_mark_that_is_also_the_pad_ends_once(model):
    marks, expected = end_for(model, PROMPTS, at=3)
    shared = Marks(end=marks.end, pad=marks.end[1])
    assert generate_batch(model, PROMPTS, shared, Sampling(24), F32, batch_size=7) == alone(model, PROMPTS, marks, Sampling(24))
    assert generate_batch(model, PROMPTS, shared, Sampling(24), F32, batch_size=7)[0] == expected


def test_never_more_tokens_than_asked_for(model):
    for count in (1, 2, 30):
        assert [len(answer) for answer in generate_batch(model, PROMPTS[:2], Marks([], 2), Sampling(count), F32)] == [count, count]


# Drawing


def test_one_seed_draws_one_answer(model):
    free = Sampling(16, temperature=1.0, seed=3)
    state = torch.get_rng_state()
    first = generate_batch(model, PROMPTS, MARKS, free, F32)
    assert torch.equal(torch.get_rng_state(), state)  # a chat in between does not change a training
    torch.rand(9)
    assert generate_batch(model, PROMPTS, MARKS, free, F32) == first
    assert generate_batch(model, PROMPTS, MARKS, Sampling(16, temperature=1.0, seed=4), F32) != first
    assert first != generate_batch(model, PROMPTS, MARKS, Sampling(16), F32)


def test_a_small_top_p_and_a_low_temperature_are_nearly_greedy(model):
    greedy = generate_batch(model, PROMPTS, MARKS, Sampling(16), F32)
    assert generate_batch(model, PROMPTS, MARKS, Sampling(16, temperature=1.0, top_p=1e-6), F32) == greedy
    assert generate_batch(model, PROMPTS, MARKS, Sampling(16, temperature=1e-4), F32) == greedy


def test_drawing_is_from_the_whole_vocabulary(toy_base):
    """top_k is not 50, transformers' default: a nearly flat model, asked the same 300 times, says more than 50 different things."""
    model = load_toy(toy_base(), NONE).model
    with torch.no_grad():
        model.lm_head.weight *= 0.01  # nearly flat; flat would be no test, as a tie is never cut off
    said = generate_batch(model, [[5]] * 300, Marks([], 2), Sampling(1, temperature=1.0), F32, batch_size=300)
    assert len({token for answer in said for token in answer}) > 150


# The repetition penalty


@pytest.mark.parametrize("pad", [2, 1, 77])
def test_padding_is_not_taken_for_something_said(toy_base, pad):
    """Guards against transformers' penalty on the padding: with pad = end mark the rows of a batch stopped less readily."""
    model = load_toy(toy_base(), NONE).model
    with torch.no_grad():
        model.lm_head.weight *= 0.05
        model.lm_head.weight[pad] *= 20  # a mark that the model often says, so that a penalty on it is seen
    sampling = Sampling(12, repetition_penalty=1.9)
    marks = Marks([], pad)
    assert generate_batch(model, PROMPTS, marks, sampling, F32, batch_size=7) == alone(model, PROMPTS, marks, sampling)


def test_the_penalty_is_that_of_the_paper():
    """arXiv 1909.05858: scores of ids in the text are divided by the penalty when positive, multiplied when negative."""
    ids, mask = torch.tensor([[9, 9, 3], [4, 5, 6]]), torch.tensor([[0, 0, 1], [1, 1, 1]])
    scores = torch.tensor([[2.0, -2.0] * 5, [2.0, -2.0] * 5])
    said = torch.cat([ids, torch.tensor([[8], [7]])], dim=1)
    found = _RepetitionPenalty(2.0, ids, mask)(said, scores)
    expected = scores.clone()
    for line, tokens in ((0, {3, 8}), (1, {4, 5, 6, 7})):
        for token in tokens:
            expected[line, token] = scores[line, token] / 2 if scores[line, token] > 0 else scores[line, token] * 2
    assert torch.equal(found, expected)


def test_a_penalty_breaks_a_loop(model):
    plain, penalised = (generate_batch(model, PROMPTS[:1], Marks([], 2), Sampling(40, repetition_penalty=penalty), F32)[0] for penalty in (1.0, 1.9))
    assert len(set(penalised)) > len(set(plain))


# What the base brings and what it keeps


@pytest.mark.parametrize("wrapped", [True, False])
def test_nothing_of_the_base_is_inherited_and_nothing_is_left(toy_base, wrapped):
    """The base asks for drawing, a penalty, a suppressed token and 3 tokens; the answer is greedy and long."""
    folder = toy_base()
    model = adapted(folder, stirred=True) if wrapped else load_toy(folder).model
    expected = generate_batch(model, PROMPTS, MARKS, Sampling(16), F32)
    own = GenerationConfig(
        do_sample=True, temperature=5.0, repetition_penalty=5.0, max_new_tokens=3, eos_token_id=list(range(3, 300)), no_repeat_ngram_size=1, num_beams=3,
        suppress_tokens=expected[0][:2], min_new_tokens=2,
    )  # fmt: skip
    owner = model.get_base_model() if wrapped else model
    owner.generation_config = own
    before = own.to_dict()
    assert generate_batch(model, PROMPTS, MARKS, Sampling(16), F32) == expected
    assert owner.generation_config is own
    assert model.generation_config is own
    assert own.to_dict() == before
    assert owner.config.use_cache is False
    with pytest.raises(IndexError):
        generate_batch(model, [[100_000]], MARKS, Sampling(16), F32)
    assert owner.generation_config is own


def test_settings_that_old_models_keep_in_their_config_are_no_hindrance(toy_base):
    """transformers 5 refuses to generate from a model whose config.json has, say, a temperature (Llama 2 does)."""
    model = load_toy(toy_base()).model
    expected = generate_batch(model, PROMPTS, MARKS, Sampling(8), F32)
    model.config.temperature = 0.3
    model.config.max_length = 12
    assert generate_batch(model, PROMPTS, MARKS, Sampling(8), F32) == expected


def test_training_mode_is_put_back(model):
    for training in (True, False):
        model.train(training)
        generate_batch(model, PROMPTS[:1], MARKS, Sampling(2), F32)
        assert model.training is training


def test_a_prompt_without_tokens_is_refused_by_its_number(model):
    with pytest.raises(DataError, match="prompt 2 has no tokens"):
        generate_batch(model, [[5], []], MARKS, Sampling(2), F32)
    assert generate_batch(model, [], MARKS, Sampling(2), F32) == []


# Streaming


class Says(nn.Module):
    """Says a fixed text, whatever it is asked, then the end mark."""

    def __init__(self, ids, toy_base):
        super().__init__()
        self.inner = load_toy(toy_base(), NONE).model
        self.ids = ids
        self.inner.forward = self.say
        self.at = 0

    def say(self, input_ids, **_):
        out = torch.zeros(*input_ids.shape, 320)
        out[:, -1, [*self.ids, 1][self.at]] = 10
        self.at += 1
        return type("Out", (dict,), {"logits": out, "past_key_values": None, "__getattr__": dict.get})(logits=out)


def stream(model, prompt, marks, sampling, tokenizer):
    pieces = []
    ids = generate_stream(model, prompt, marks, sampling, F32, tokenizer, pieces.append)
    return ids, pieces


def test_a_stream_is_the_batch_piece_by_piece(model):
    tokenizer = make_tokenizer()
    for prompt in PROMPTS:
        ids, pieces = stream(model, prompt, MARKS, Sampling(24), tokenizer)
        assert [ids] == generate_batch(model, [prompt], MARKS, Sampling(24), F32)
        assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
        assert len(pieces) > 3
        assert all(pieces)


TEXTS = ["the old man lit the lamp", "naïve café 日本語 🜲🦜", "line\n  indented\n\n\ttab ", " blank first", "🦜" * 9, "", "\n", "end of line\n"]


@pytest.mark.parametrize("text", TEXTS)
def test_characters_of_many_tokens_come_whole(toy_base, text):
    """A parrot is four tokens to a byte-level tokenizer; no half of one is ever shown."""
    tokenizer = make_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    told, pieces = stream(Says(ids, toy_base).inner, [5], Marks([1], 2), Sampling(200), tokenizer)
    assert told == ids
    assert "".join(pieces) == text == tokenizer.decode(ids, skip_special_tokens=True)
    assert not any("\ufffd" in piece for piece in pieces)
    if text.startswith("🦜"):
        assert pieces == ["🦜"] * 9
        assert len(ids) == 36


def test_bytes_that_are_no_character_are_shown_as_such_at_the_end(toy_base):
    tokenizer = make_tokenizer()
    ids = tokenizer("ab🦜", add_special_tokens=False)["input_ids"][:-1]
    _, pieces = stream(Says(ids, toy_base).inner, [5], Marks([1], 2), Sampling(200), tokenizer)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert "".join(pieces).startswith("ab\ufffd")


def test_an_end_mark_that_is_a_word_is_not_shown(toy_base):
    """A base may end its turns with a token that its tokenizer does not call special."""
    tokenizer = make_tokenizer()
    end = tokenizer("!", add_special_tokens=False)["input_ids"]
    ids = tokenizer("who comes there", add_special_tokens=False)["input_ids"]
    _, pieces = stream(Says(ids + end, toy_base).inner, [5], Marks(end, 2), Sampling(200), tokenizer)
    assert "".join(pieces) == "who comes there"


class Sentences:
    """As SentencePiece decodes: the blank before the first word of what is decoded is taken off."""

    def decode(self, ids, skip_special_tokens):
        return "".join({5: "\n", 6: " yes", 7: " no"}[token] for token in ids).removeprefix(" ")


def test_a_stream_keeps_blanks_behind_a_line_end(toy_base):
    """Guards against transformers' TextStreamer, which decodes anew after each line and loses the blank there."""
    _, pieces = stream(Says([6, 5, 7, 5, 6], toy_base).inner, [9], Marks([1], 2), Sampling(200), Sentences())
    assert "".join(pieces) == "yes\n no\n yes"
