"""Preflight: every proof holds on clean set-ups, fails when the part it is about is broken in one way, and leaves no trace (CORRECTNESS 1.0 to 1.40)."""

import errno
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import nn

from families import FAMILIES, encoded, family_tokenizer
from halfbyte.checks import preflight
from halfbyte.checks.proof import lead
from halfbyte.checks.trial import Trial, kept
from halfbyte.data.batches import IGNORE, epoch_steps
from halfbyte.data.render import render_prompt
from halfbyte.data.tokens import Tokens, encode_pieces
from halfbyte.errors import HalfbyteError, MachineError
from halfbyte.model.load import decoder_layers
from halfbyte.recipe.schema import FP4
from halfbyte.train.step import StepResult
from toy_subjects import TALK, make_subject

CLAIMS = {claim.name: claim for claim in [*preflight.CLAIMS, *preflight.DEEP]}
CLEAN = {
    "mistral": {}, "falcon": {"architecture": "falcon", "bos": False}, "dora": {"words": ["adapter.kind=dora"]}, "packed": {"words": ["data.packing=best_fit"]},
    "text": {"text": True}, "no chat template": {"chat": False}, "rslora, dropout, recomputed": {
        "words": ["adapter.kind=rslora", "adapter.dropout=0.1", "train.gradient_checkpointing=true"]
    }, "everything is trained": {"words": ["data.loss=all", "quant.kind=none", "adapter.modules_to_save=[embed_tokens,lm_head]", "train.batch_size=1"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """A function: name -> a clean set-up, made once."""
    made = {}

    def get(name="mistral"):
        if name not in made:
            made[name] = make_subject(tmp_path_factory.mktemp("subject"), **CLEAN[name])
        return made[name]

    return get


def proof_of(name, subject):
    """One proof alone, with all put back."""
    with kept(subject.model):
        trial = Trial(subject)
        try:
            return lead(CLAIMS[name], trial)
        finally:
            trial.put_values_back()


@pytest.mark.parametrize("name", CLEAN)
def test_every_proof_holds_on_a_clean_set_up(subjects, name):
    subject = subjects(name)
    heard = []
    proofs = preflight.prove(subject, deep=name == "mistral", listener=heard.append)
    assert heard == proofs
    assert [proof for proof in proofs if proof.passed is False] == []
    not_here = {proof.name for proof in proofs if proof.passed is None}
    wanted = {"fresh process"} if name == "mistral" else set()
    wanted |= {"prompts", "control marks"} if name == "text" else set()
    assert not_here == wanted | ({"packing"} if name != "packed" else set())
    assert all(proof.told for proof in proofs)


def test_training_after_the_proofs_is_training_without_them(tmp_path):
    """To the bit: values, modes, gradients and random states are put back, and so is what is recomputed."""

    def losses(number, proven):
        subject = make_subject(tmp_path / str(number), words=["adapter.dropout=0.3", "train.gradient_checkpointing=true"])
        torch.manual_seed(7)
        if proven:
            assert not [proof for proof in preflight.prove(subject) if proof.passed is False]
        modes = [module.training for module in subject.model.modules()]
        optimizer = subject.make_optimizer(subject.model)
        subject.model.train()
        results = [subject.step(subject.model, batches, optimizer) for batches in subject.epoch(0)]
        values = [parameter.detach().clone() for parameter in subject.model.parameters() if parameter.requires_grad]
        return modes, [(result.loss, result.grad_norm) for result in results], values, torch.rand(3)

    (modes, plain, values, drawn), (proven_modes, proven, proven_values, proven_drawn) = losses(0, proven=False), losses(1, proven=True)
    assert modes == proven_modes
    assert plain == proven
    assert all(torch.equal(one, other) for one, other in zip(values, proven_values, strict=True))
    assert torch.equal(drawn, proven_drawn)


# One way each part may be broken. Each takes a clean set-up and gives a broken one.


def with_rows(change):
    return lambda subject: replace(subject, rows=[change(row) for row in subject.rows])


def with_batches(change):
    def broken(subject):
        return replace(subject, collate=lambda rows: change(subject, subject.collate(rows)))

    return broken


def doubled_begin(row):
    return Tokens([row.ids[0], *row.ids], [False, *row.trained], row.file, row.line)


def shifted(subject, batch):
    return replace(batch, labels=batch.labels.roll(-1, 1))


def left_out_by_id(subject, batch):
    return replace(batch, labels=batch.labels.masked_fill(batch.labels == subject.end_ids[-1], IGNORE))


def padding_trained(subject, batch):
    labels = batch.labels.clone()
    for row, length in enumerate(batch.lengths):
        labels[row, length:] = subject.pad_id
    return replace(batch, labels=labels)


def marks_are_read(subject):
    """Contents with a mark's text get the mark."""

    def encode(messages):
        row = subject.encode_row(messages)
        if "</s>" not in messages[0]["content"]:
            return row
        return Tokens([*row.ids[:3], subject.tokenizer.eos_token_id, *row.ids[3:]], [*row.trained[:3], False, *row.trained[3:]], "", 0)

    return replace(subject, encode_row=encode)


def answers_from_their_second_token(subject):
    def encode(messages):
        row = subject.encode_row(messages)
        first = row.trained.index(True)
        return Tokens(row.ids, [trained and place != first for place, trained in enumerate(row.trained)], "", 0)

    return replace(subject, encode_row=encode)


def one_order(subject):
    return replace(subject, epoch=lambda number: subject.epoch(0))


def drawn_order(subject):
    count = iter(range(1000))
    return replace(subject, epoch=lambda number: subject.epoch(number + 10 * next(count)))


def last_dropped(subject):
    return replace(subject, epoch=lambda number: iter(list(subject.epoch(number))[:-1]))


def averaged_step(subject, divisor):
    """divisor: (supervised of the micro-batch, micro-batches) -> what its summed loss is divided by."""

    def step(model, batches, optimizer):
        total = 0.0
        for batch in batches:
            loss = subject.loss(subject.logits(model, batch), batch.labels) / divisor(batch.supervised, len(batches))
            loss.backward()
            total += float(loss.detach())
        norm = float(nn.utils.clip_grad_norm_([one for one in model.parameters() if one.requires_grad], 1.0))
        optimizer.step()
        optimizer.zero_grad()
        return StepResult(total, norm, sum(batch.supervised for batch in batches), sum(batch.tokens for batch in batches), False)

    return replace(subject, step=step)


def never_cleared(subject):
    def step(model, batches, optimizer):
        optimizer.zero_grad = lambda set_to_none=True: None
        return subject.step(model, batches, optimizer)

    return replace(subject, step=step)


def goes_on(subject):
    def step(model, batches, optimizer):
        try:
            return subject.step(model, batches, optimizer)
        except HalfbyteError:
            optimizer.step()
            return StepResult(0.0, 0.0, 1, 1, False)

    return replace(subject, step=step)


def of_copies(subject):
    """The optimizer was made, then the weights were moved."""
    return replace(
        subject,
        make_optimizer=lambda model: torch.optim.AdamW([nn.Parameter(one.detach().clone()) for one in model.parameters() if one.requires_grad]),
    )


def uphill(subject):
    return replace(subject, make_optimizer=lambda model: torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], maximize=True))


def base_moves(subject):
    def step(model, batches, optimizer):
        with torch.no_grad():
            model.get_input_embeddings().weight[5, 5] += 0.25
        return subject.step(model, batches, optimizer)

    return replace(subject, step=step)


def sees_its_neighbours(subject):
    def logits(model, batch):
        found = subject.logits(model, batch)
        return found + 0.1 * (found.mean(0, keepdim=True) - found)

    return replace(subject, logits=logits)


def without_documents(subject):
    """The borders reach the batch, but not the model."""
    return replace(subject, logits=lambda model, batch: subject.logits(model, replace(batch, positions=None, documents=None)))


def recomputed_without_the_first_layer(subject):
    @contextmanager
    def recompute(model, on):
        first = [one for name, one in model.named_parameters() if "layers.0." in name and "lora" in name]
        with subject.recompute(model, on):
            for one in first:
                one.requires_grad_(not on)
            yield
            for one in first:
                one.requires_grad_(True)

    return replace(subject, recompute=recompute)


def never_switched_back(subject):
    @contextmanager
    def recompute(model, on):
        with subject.recompute(model, on):
            yield
        for layer in decoder_layers(model):
            layer.gradient_checkpointing = on

    return replace(subject, recompute=recompute)


def reading_freezes(subject):
    @contextmanager
    def reloaded(model, folder):
        with subject.reloaded(model, folder):
            yield model
        lora(model, "lora_B").requires_grad_(False)

    return replace(subject, reloaded=reloaded)


def mean_of_means(subject):
    return replace(subject, evaluate=lambda model, batches: sum(subject.evaluate(model, [batch]) for batch in batches) / len(batches))


def left_in_eval_mode(subject):
    def evaluate(model, batches):
        found = subject.evaluate(model, batches)
        model.eval()
        return found

    return replace(subject, evaluate=evaluate)


def drawn_answers(subject):
    def generate(model, prompts, new_tokens):
        return [[(token + 1) % 300 + 10 for token in answer] for answer in subject.generate(model, prompts, new_tokens)]

    return replace(subject, generate=generate)


def padded_on_the_right(subject):
    def generate(model, prompts, new_tokens):
        longest = max(map(len, prompts))
        return subject.generate(model, [[*prompt, *[subject.pad_id] * (longest - len(prompt))] for prompt in prompts], new_tokens)

    return replace(subject, generate=generate)


def knows_one_end(subject):
    """An end mark that it does not know is said, and the answer goes on."""

    def generate(model, prompts, new_tokens):
        return [answer or [7] * new_tokens for answer in subject.generate(model, prompts, new_tokens)]

    return replace(subject, generate=generate)


def saved_in_16_bits(subject):
    def save(model, folder):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.bfloat16().float()
        subject.save(model, folder)

    return replace(subject, save=save)


def never_read(subject):
    @contextmanager
    def reloaded(model, folder):
        yield model

    return replace(subject, reloaded=reloaded)


def reads_the_base(subject):
    @contextmanager
    def reloaded(model, folder):
        with model.disable_adapter():
            yield model

    return replace(subject, reloaded=reloaded)


def built_by_chance(subject):
    def build():
        model = subject.build()
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                nn.init.normal_(parameter)
        return model

    return replace(subject, build=build)


BROKEN = [
    ("ids and lengths", with_rows(lambda row: Tokens([*row.ids[:-1], 320], row.trained, "", 0))),
    ("ids and lengths", lambda subject: replace(subject, max_length=20)),
    ("ids and lengths", lambda subject: replace(subject, pad_id=320)),
    ("labels", with_batches(shifted)),
    ("labels", with_batches(left_out_by_id)),
    ("labels", with_batches(padding_trained)),
    ("answers", with_rows(lambda row: replace(row, trained=[False, *[True] * (len(row.ids) - 1)]))),
    ("answers", with_rows(lambda row: replace(row, trained=[False] * len(row.ids)))),
    ("answers", with_rows(lambda row: replace(row, trained=row.trained[2:] + [True] * 2))),
    ("answers", answers_from_their_second_token),
    ("end mark", with_rows(lambda row: Tokens(row.ids[:-1], row.trained[:-1], "", 0))),
    ("end mark", lambda subject: replace(subject, end_ids=(9,))),
    ("end mark", lambda subject: replace(subject, loss=lambda logits, labels: subject.loss(logits[:, :-1], labels[:, :-1]))),
    ("begin mark", with_rows(doubled_begin)),
    ("begin mark", with_rows(lambda row: Tokens(row.ids[1:], row.trained[1:], "", 0))),
    ("begin mark", lambda subject: replace(subject, encode_prompt=lambda messages: [0, *subject.encode_prompt(messages)])),
    ("prompts", lambda subject: replace(subject, encode_prompt=lambda messages: [*subject.encode_prompt(messages)[:-1], 11])),
    ("control marks", marks_are_read),
    ("epochs", one_order),
    ("epochs", drawn_order),
    ("epochs", last_dropped),
    ("epochs", lambda subject: replace(subject, rows_per_step=3)),
    ("learning rate", lambda subject: replace(subject, rate=lambda step: subject.rate(step) * (step - 1))),
    ("learning rate", lambda subject: replace(subject, rate=lambda step: subject.rate(step) / 2)),
    ("learning rate", lambda subject: replace(subject, rate=lambda step: subject.rate(1 + step // 4))),
    ("learning rate", lambda subject: replace(subject, total_steps=5)),
    ("loss", lambda subject: replace(subject, loss=lambda logits, labels: subject.loss(logits, labels) / (labels != IGNORE).sum())),
    ("loss", lambda subject: replace(subject, loss=lambda logits, labels: subject.loss(logits, labels.roll(1, 1)))),
    ("loss", lambda subject: replace(subject, loss=lambda logits, labels: 0.999 * subject.loss(logits, labels) + 0.001 * logits.logsumexp(-1).sum())),
    ("padding", sees_its_neighbours),
    ("accumulation", lambda subject: averaged_step(subject, lambda supervised, times: supervised * times)),
    ("accumulation", lambda subject: averaged_step(subject, lambda supervised, times: supervised)),
    ("accumulation", lambda subject: averaged_step(subject, lambda supervised, times: 20)),
    ("accumulation", never_cleared),
    ("recomputation", recomputed_without_the_first_layer),
    ("first steps", of_copies),
    ("first steps", uphill),
    ("first steps", lambda subject: replace(subject, weight_decay=0.1)),
    ("accumulation", lambda subject: replace(subject, max_norm=0.1)),
    ("recomputation", never_switched_back),
    ("saved adapter", reading_freezes),
    ("weights", lambda subject: replace(subject, quant=FP4(kind="fp4"))),
    ("adapter", lambda subject: replace(subject, asked=subject.asked.model_copy(update={"r": 8}))),
    ("adapter", lambda subject: replace(subject, asked=subject.asked.model_copy(update={"dropout": 0.1}))),
    ("adapter", lambda subject: replace(subject, asked=subject.asked.model_copy(update={"kind": "dora"}))),
    ("no update on NaN", goes_on),
    ("evaluation", mean_of_means),
    ("evaluation", left_in_eval_mode),
    ("generation", drawn_answers),
    ("generation", padded_on_the_right),
    ("generation", knows_one_end),
    ("saved adapter", saved_in_16_bits),
    ("saved adapter", never_read),
    ("saved adapter", reads_the_base),
    ("second build", built_by_chance),
]


@pytest.mark.parametrize(("name", "broken"), BROKEN, ids=[f"{name} {place}" for place, (name, _) in enumerate(BROKEN)])
def test_a_proof_fails_when_its_part_is_broken(subjects, name, broken):
    found = proof_of(name, broken(subjects()))
    assert found.passed is False, found.told
    assert found.told
    assert found.likely
    assert found.hint
    assert proof_of(name, subjects()).passed is True, "what was broken is put back"


def test_a_warm_up_that_the_recipe_asks_for_beyond_the_run_is_told_and_no_fault(tmp_path):
    """A smoke run of two steps, of a recipe whose warm-up has five; a warm-up that never ends by mistake is still one."""
    asked = make_subject(tmp_path, words=["train.max_steps=2", "train.warmup_steps=5"])
    found = next(proof for proof in preflight.prove(asked) if proof.name == "learning rate")
    assert found.passed
    assert "the warm-up of 5 steps is longer than the run" in found.told
    slipped = replace(asked, warmup_steps=1)
    assert next(proof for proof in preflight.prove(slipped) if proof.name == "learning rate").passed is False


def test_packed_rows_that_see_each_other_are_found(subjects):
    """CORRECTNESS 1.6."""
    assert proof_of("packing", without_documents(subjects("packed"))).passed is False
    assert proof_of("packing", with_batches(lambda subject, batch: replace(batch, positions=None, documents=None))(subjects("packed"))).passed is False
    run_on = with_batches(lambda subject, batch: replace(batch, positions=torch.arange(batch.ids.shape[1]).expand_as(batch.ids)))
    assert proof_of("packing", run_on(subjects("packed"))).passed is False


@pytest.mark.parametrize(("name", "breaks"), [
    ("weights", lambda model: model.get_input_embeddings().weight.data[3].fill_(float("nan"))),
    ("weights", lambda model: setattr(lora(model, "lora_A"), "data", lora(model, "lora_A").data.bfloat16())),
    ("weights", lambda model: lora(model, "lora_B").data.fill_(float("inf"))),
    ("adapter", lambda model: model.get_input_embeddings().weight.requires_grad_(True)),
    ("adapter", lambda model: lora(model, "lora_A").requires_grad_(False)),
    ("adapter", lambda model: lora(model, "lora_B").data.add_(1e-3)),
    ("adapter", lambda model: next(module for module in model.modules() if hasattr(module, "lora_A")).scaling.update(default=1.0)),
    ("adapter", lambda model: model.set_submodule("base_model.model.model.layers.1.mlp.up_proj", nn.Linear(64, 128))),
])  # fmt: skip
def test_a_model_that_is_not_what_it_should_be_is_found(tmp_path, name, breaks):
    subject = make_subject(tmp_path)
    breaks(subject.model)
    assert proof_of(name, subject).passed is False


def lora(model, kind):
    return next(parameter for name, parameter in model.named_parameters() if kind in name)


def test_layers_that_the_recipe_asks_for_and_that_have_no_adapter_are_found(tmp_path):
    """CORRECTNESS 1.10: the names of a library's default are narrower than all linear layers."""
    subject = make_subject(tmp_path, words=["adapter.target_modules=[q_proj,v_proj]"])
    assert proof_of("adapter", subject).passed is True
    found = proof_of("adapter", replace(subject, asked=subject.asked.model_copy(update={"target_modules": "all-linear"})))
    assert found.passed is False
    assert "k_proj of layer 0" in found.told.replace("self_attn.", "")


def test_a_base_that_moves_is_found(tmp_path):
    found = proof_of("first steps", base_moves(make_subject(tmp_path)))
    assert found.passed is False
    assert "embed_tokens" in found.told


def test_whatever_a_set_up_raises_is_a_failed_proof(subjects):
    def broken(*arguments):
        raise KeyError("labels")

    parts = {"collate": broken, "loss": broken, "epoch": broken, "rate": broken, "logits": broken, "step": broken, "evaluate": broken, "generate": broken,
             "save": broken, "encode_row": broken, "make_optimizer": broken, "recompute": broken, "build": broken}  # fmt: skip
    proofs = preflight.prove(replace(subjects(), **parts), deep=True)
    assert all(proof.passed is False for proof in proofs if proof.name not in ("ids and lengths", "packing", "adapter", "fresh process"))
    assert "KeyError: 'labels'" in proofs[1].told


def test_ids_that_the_model_does_not_know_never_reach_it(subjects):
    """On a GPU they would end the process."""
    proofs = preflight.prove(with_rows(lambda row: Tokens([*row.ids[:-1], 320], row.trained, "", 0))(subjects()))
    assert proofs[0].passed is False
    assert all(proof.passed is None for proof in proofs[len(preflight.WITHOUT_MODEL) :])


# Set-ups that look odd and are sound


def of_family(subject, name):
    """The same with tokenizer, template and rows of a family."""
    family, tokenizer = FAMILIES[name], family_tokenizer(name)
    talks = [({"role": "user", "content": f"who is it, {place}?"}, {"role": "assistant", "content": f"number {place}."}) for place in range(4)]
    return replace(
        subject, tokenizer=tokenizer, begin_ids=(), end_ids=tuple({*tokenizer.convert_tokens_to_ids([family.eos, family.end.strip()])}), pad_id=0,
        encode_row=lambda messages: encoded(name, tuple(messages)), encode_prompt=lambda messages: encode_pieces(
            render_prompt(tuple(messages), family.form, tokenizer), tokenizer
        ), rows=[encoded(name, talk) for talk in talks],
    )  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_the_template_of_every_family_is_sound(subjects, name):
    """Qwen 3 writes empty thoughts around the last answer alone."""
    subject = of_family(subjects(), name)
    for claim in ("answers", "prompts", "control marks"):
        found = proof_of(claim, subject)
        assert found.passed, found.told


@pytest.mark.parametrize("name", ["qwen-2.5", "qwen-3", "qwen-3-thinking", "llama-3"])
@pytest.mark.parametrize("last", [False, True])
def test_a_prompt_trained_before_one_answer_of_two_is_found(subjects, name, last):
    subject = of_family(subjects(), name)

    def encode(messages):
        row = subject.encode_row(messages)
        starts = [place for place in range(1, len(row.ids)) if row.trained[place] and not row.trained[place - 1]]
        place = starts[-1 if last else 0]
        early = range(place - 3, place) if last or len(starts) > 1 else ()
        return replace(row, trained=[trained or number in early for number, trained in enumerate(row.trained)])

    assert proof_of("answers", replace(subject, encode_row=encode)).passed is False


def test_dropout_by_a_call_is_switched_off_and_on_again(subjects, tmp_path):
    subject = make_subject(tmp_path, attention_dropout=0.5)
    functions = F.dropout, F.scaled_dot_product_attention
    for name in ("accumulation", "recomputation", "first steps"):
        found = proof_of(name, subject)
        assert found.passed, found.told
    assert (F.dropout, F.scaled_dot_product_attention) == functions
    assert proof_of("accumulation", averaged_step(subject, lambda supervised, times: supervised * times)).passed is False


def test_a_base_that_draws_otherwise_is_not_looked_at(subjects, monkeypatch):
    mlp = decoder_layers(subjects().model)[0].mlp
    forward = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda x: forward(x) * (1 + 0.1 * torch.rand(()) * mlp.training))
    found = proof_of("accumulation", subjects())
    assert found.passed is None
    assert "draws random numbers" in found.told


def test_adapters_that_no_row_reaches_are_told_and_no_fault(subjects, monkeypatch):
    """As towers for pictures; one that is run, and learns nothing, is a fault."""
    mlp = decoder_layers(subjects().model)[0].mlp
    forward = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda x: x)
    found = proof_of("first steps", subjects())
    assert found.passed, found.told
    assert "(6 are on modules that these rows do not reach" in found.told
    monkeypatch.setattr(mlp, "forward", lambda x: forward(x).detach())
    assert proof_of("first steps", subjects()).passed is False
    monkeypatch.undo()
    layer = decoder_layers(subjects().model)[0]
    monkeypatch.setattr(type(layer), "__call__", lambda self, x, *_, **__: x if self is layer else nn.Module.__call__(self, x, *_, **__))
    found = proof_of("first steps", subjects())
    assert found.passed is False, "a layer that is left out is a fault"


def test_a_base_that_was_never_trained_is_told_as_the_cause(tmp_path):
    """A new Gemma 3n multiplies by zeros what goes into some modules (correct_output_scale), so that their adapters could never learn; a trained one does not.

    In 4 bits, as by default: of its coefficients that are clamped in place in every pass of training none may be.
    """
    subject = make_subject(tmp_path / "new", "gemma3n")
    found = proof_of("first steps", subject)
    assert found.passed is False
    assert found.likely == "model.layers.0.per_layer_input_gate is given zeros alone, as altup.correct_output_scale of its layer is"
    assert found.hint.endswith("adapter.target_modules without per_layer_input_gate, per_layer_model_projection, per_layer_projection")
    for name, parameter in subject.model.named_parameters():
        if name.endswith("correct_output_scale"):
            parameter.data.fill_(1)
    assert [proof.told for proof in preflight.prove(subject) if proof.passed is False] == []


@pytest.mark.slow
def test_a_run_that_goes_on_keeps_the_scale_of_its_adapter(tmp_path):
    before = make_subject(tmp_path / "before", words=["adapter.r=2", "adapter.alpha=32"])
    before.save(before.model, tmp_path / "adapter")
    after = make_subject(tmp_path / "after", words=[f"adapter.init_from={tmp_path / 'adapter'}"])
    assert after.scale == 16
    assert proof_of("adapter", after).passed
    assert proof_of("adapter", replace(after, scale=2.0)).passed is False


def test_a_tokenizer_may_have_tokens_that_no_row_has(subjects):
    """Gemma 3 has one for pictures."""
    tokenizer = deepcopy(subjects().tokenizer)
    tokenizer.add_tokens(["<picture>"], special_tokens=True)
    tokenizer.add_tokens([f"<more {place}>" for place in range(320)], special_tokens=True)
    longer = replace(subjects(), tokenizer=tokenizer)
    found = proof_of("ids and lengths", longer)
    assert found.passed, found.told
    assert "which no row has" in found.told
    assert proof_of("ids and lengths", replace(longer, encode_prompt=lambda messages: [len(tokenizer) - 1])).passed is False


def test_of_three_rows_six_epochs_may_be_one_order(subjects):
    """Two a step, as they are in every 243rd seed; that they are never another is found all the same."""
    rows = subjects().rows[:3]

    def few(number_of):
        def epoch(number):
            return epoch_steps(rows, 2, 1, subjects().pad_id, 0, number_of(number))

        return proof_of("epochs", replace(subjects(), rows=rows, rows_per_step=2, epoch=epoch))

    assert few(lambda number: 0 if number < 8 else number).passed
    assert few(lambda number: 0).passed is False


def known_by_heart(subject, epochs):
    """After so many epochs at a rate as high as toys take."""
    optimizer = subject.make_optimizer(subject.model)
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    subject.model.train()
    for number in range(epochs):
        for batches in subject.epoch(number):
            subject.step(subject.model, batches, optimizer)
    return replace(subject, asked=None, begins_as_base=False)


def test_a_model_that_knows_its_rows_by_heart_is_no_fault(tmp_path):
    # log p of a token that is nearly certain is rounded beside 1, so near to zero two sums of it are not within 1e-5 of their value.
    words = ["quant.kind=none", "adapter.r=16", "adapter.modules_to_save=[lm_head]"]
    subject = known_by_heart(make_subject(tmp_path, words=words, talk=[(asked, "yes it is") for asked, _ in TALK]), 40)
    proofs = preflight.prove(subject)
    assert not [proof for proof in proofs if proof.passed is False]
    loss = next(proof.told for proof in proofs if proof.name == "loss")
    assert float(loss.split()[0]) < 0.01, loss


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device (os error 28)")])
def test_a_full_disk_for_temporary_files_is_the_machines(subjects, error):
    def full(model, folder):
        raise error

    with pytest.raises(MachineError, match="disk full") as raised:
        proof_of("saved adapter", replace(subjects(), save=full))
    assert "TMPDIR" in raised.value.hint


def test_an_adapter_that_cannot_be_read_again_is_a_failed_proof(subjects):
    def broken(model, folder):
        raise SafetensorError("Error while deserializing header: header too large")

    assert proof_of("saved adapter", replace(subjects(), save=broken)).passed is False
