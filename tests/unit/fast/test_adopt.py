"""What the fast path takes and what it leaves to the plain path, by its words: a set-up that would be computed wrongly must not pass."""

import pytest
import torch
from torch import nn

from halfbyte.fast.adopt import Unfit, adopt
from tolerances import FAST_EXACT
from toy_fast import FALCON_LINEARS, LINEARS, adapted, batch_of, by_autograd, by_hand, farthest, four_bit, trained
from toys import make_base, make_model

F64 = torch.float64


def changed(change, kind="llama", **given):
    """A fit model with one thing changed."""
    model = adapted(kind, **given)
    change(model, model.get_base_model())
    return model


def replaced(path, make):
    """A change: the module at `path` of the base is another, made from it."""

    def change(model, causal):
        parent, _, name = path.rpartition(".")
        owner = causal.get_submodule(parent)
        setattr(owner, name, make(getattr(owner, name)))

    return change


def config(**values):
    def change(model, causal):
        for name, value in values.items():
            setattr(causal.config, name, value)

    return change


class OwnNorm(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.weight, self.variance_epsilon = norm.weight, norm.variance_epsilon


OwnNorm.__name__ = "LlamaRMSNorm"


def requires(name, grad=True):
    return lambda model, causal: model.get_parameter(name).requires_grad_(grad)


def two_adapters(active):
    def change(model, causal):
        from peft import LoraConfig

        model.add_adapter("second", LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM"))
        model.base_model.set_adapter(active)

    return change


def shared(model, causal):
    q = [layer.self_attn.q_proj for layer in causal.model.layers]
    q[1].lora_A["default"].weight = q[0].lora_A["default"].weight


def halved(model, causal):
    for parameter in trained(model).values():
        parameter.data = parameter.data.bfloat16()


def no_op(*_):
    return None


A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
NORM = "base_model.model.model.norm.weight"
FALCON_NORM = "base_model.model.transformer.ln_f.bias"
REFUSED = {
    "dropout": (lambda: adapted("llama", lora={"lora_dropout": 0.1}), "the adapter has dropout"),
    "DoRA": (lambda: adapted("llama", lora={"use_dora": True}), "the adapter is of another kind (DoraLinearVariant)"),
    "its own bias": (lambda: changed(no_op, lora={"lora_bias": True}, attention_bias=True, mlp_bias=True), "the adapter has a bias"),
    "the base's biases": (lambda: adapted("qwen2", lora={"bias": "all"}), "q_proj is trained whole"),
    "a trained head": (lambda: adapted("llama", lora={"modules_to_save": ["lm_head"]}), "the head is trained, in 4 bits or of another kind"),
    "an adapter on the head": (lambda: adapted("llama", (*LINEARS, "lm_head")), "the head is trained, in 4 bits or of another kind"),
    "an adapter on the embedding": (lambda: adapted("llama", (*LINEARS, "embed_tokens")), "the embedding is trained or of another kind"),
    "some trained words": (lambda: adapted("llama", lora={"trainable_token_indices": [5]}), "the embedding is trained or of another kind"),
    "a trained norm": (lambda: changed(requires(NORM)), f"{NORM} is trained, which they do not know"),
    "a norm of peft's": (lambda: adapted("llama", lora={"modules_to_save": ["norm"]}), "in place of LlamaRMSNorm there is a peft"),
    "half an adapter": (lambda: changed(requires(A, False)), f"{A} is not trained"),
    "two adapters": (lambda: changed(two_adapters(["default", "second"])), "v_proj has 2 active adapters"),
    "adapters switched off": (lambda: changed(lambda model, causal: model.base_model.disable_adapter_layers()), "is merged or disabled"),
    "a merged adapter": (lambda: changed(lambda model, causal: model.merge_adapter()), "is merged or disabled"),
    "an adapter in bfloat16": (lambda: changed(halved), "the adapter is in bfloat16, not in float32"),
    "an adapter twice": (lambda: changed(shared), "modules share an adapter"),
    "no adapter": (lambda: make_model("llama").double().requires_grad_(False), "no adapter is there"),
    "AdaLoRA": (lambda: other_tuner("AdaLoraConfig", r=4, total_step=9), "is a peft.tuners.adalora.layer.SVDLinear"),
    "IA3": (lambda: other_tuner("IA3Config", feedforward_modules=[]), "is a peft.tuners.ia3.layer.Linear"),
    "another family": (lambda: adapted("gemma3n", ["q_proj"]), "this base is of type gemma3n"),
    "falcon's biases": (lambda: adapted("falcon", lora={"lora_bias": True}), "the adapter has a bias"),
    "falcon's own linear layers": (lambda: changed(replaced("transformer.h.0.mlp.dense_h_to_4h.base_layer", falcon_s), kind="falcon"), "is a FalconLinear"),
    "falcon's activation in Python": (
        lambda: changed(replaced("transformer.h.1.mlp.act", lambda act: nn.GELU()), kind="falcon"), "in place of GELUActivation there is a torch",
    ),
    "falcon's norm without a bias": (
        lambda: changed(replaced("transformer.h.1.input_layernorm", lambda norm: nn.LayerNorm(64, bias=False).double()), kind="falcon"),
        "in place of a LayerNorm with weight and bias",
    ),
    "falcon's last norm, trained": (lambda: changed(requires(FALCON_NORM), kind="falcon"), f"{FALCON_NORM} is trained, which they do not know"),
    "falcon's norm, trained": (lambda: changed(requires(FALCON_NORM.replace("ln_f", "h.0.input_layernorm")), kind="falcon"), "a norm is trained"),
    "falcon's attention of another class": (
        lambda: changed(replaced("transformer.h.1.self_attention", nn.Sequential), kind="falcon"), "in place of FalconAttention there is a torch",
    ),
    "falcon's layer of another class": (lambda: changed(replaced("transformer.h.1", nn.Sequential), kind="falcon"), "in place of FalconDecoderLayer there is"),
    "falcon's heads, counted in another way": (
        lambda: changed(lambda model, causal: setattr(causal.transformer.h[0].self_attention, "num_heads", 5), kind="falcon"), "outputs for 5 heads of 16",
    ),
    "falcon's embedding, adapted": (lambda: adapted("falcon", ("dense", "word_embeddings")), "the embedding is trained or of another kind"),
    "a classifier": (lambda: classifier(), "in place of LlamaForCausalLM there is a"),
    "another activation": (lambda: adapted("llama", hidden_act="gelu"), "the base's activation is gelu, not silu"),
    "dropout of the base": (lambda: adapted("llama", attention_dropout=0.1), "the base drops attention out"),
    "somebody's attention": (lambda: changed(config(_attn_implementation="mine")), "its attention is mine"),
    "rotary positions of a part": (
        lambda: changed(config(rope_parameters={"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5})), "only a part of each head is rotated",
    ),
    "dynamic positions": (
        lambda: adapted("llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}), "its positions are of kind dynamic, not default",
    ),
    "positions of each kind of layer": (
        lambda: changed(config(rope_parameters={"full_attention": {"rope_type": "default"}})), "its layers have different positions",
    ),
    "split products": (lambda: changed(config(pretraining_tp=2)), "pretraining_tp is not 1"),
    "somebody's norm": (lambda: changed(replaced("model.norm", OwnNorm)), "test_adopt.LlamaRMSNorm"),
    "somebody's layer": (lambda: changed(replaced("model.layers.1", nn.Sequential)), "in place of LlamaDecoderLayer there is a torch"),
    "somebody's attention module": (lambda: changed(replaced("model.layers.1.self_attn", nn.Sequential)), "in place of LlamaAttention there is a torch"),
    "somebody's positions": (lambda: changed(replaced("model.rotary_emb", nn.Sequential)), "in place of LlamaRotaryEmbedding there is a torch"),
    "attention that looks ahead": (lambda: changed(ahead), "its attention looks ahead"),
    "a hook on a layer": (lambda: changed(hook("model.layers.0", "register_forward_pre_hook")), "layers.0 has hooks"),
    "a hook on a norm": (lambda: changed(hook("model.norm", "register_forward_hook")), "model.norm has hooks"),
    "a hook on a gradient": (lambda: changed(lambda model, causal: model.get_parameter(A).register_hook(no_op)), f"{A} has hooks"),
    "a hook on a summed gradient": (
        lambda: changed(lambda model, causal: model.get_parameter(A).register_post_accumulate_grad_hook(no_op)), f"{A} has hooks",
    ),
    "a forward of its own": (lambda: changed(lambda model, causal: setattr(causal.model.layers[0].mlp, "forward", no_op)), "layers.0.mlp has hooks"),
    "weights elsewhere": (lambda: changed(lambda model, causal: causal.model.layers[1].mlp.to("meta")), "the model lies on cpu and meta"),
    "heads of odd widths": (lambda: adapted("llama", head_dim=12, num_attention_heads=16, num_key_value_heads=16), "its heads are 12 wide"),
    "inputs of odd widths": (lambda: adapted("llama", intermediate_size=96), "down_proj has 96 inputs, not a multiple of 64"),
    "a head in another type": (lambda: changed(lambda model, causal: causal.lm_head.float()), "the head is in float32, not in float64"),
    "weights of another kind": (lambda: changed(replaced("model.layers.0.mlp.up_proj.base_layer", eight_bit)), "up_proj is a Tensor of int8"),
    "a linear layer of another kind": (lambda: changed(replaced("model.layers.0.mlp.up_proj.base_layer", OwnLinear)), "up_proj is a OwnLinear"),
    "something else that is trained": (lambda: changed(extra), "base_model.model.extra is trained, which they do not know"),
}  # fmt: skip


class OwnLinear(nn.Linear):
    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.requires_grad_(False)


def falcon_s(linear):
    from transformers.models.falcon.modeling_falcon import FalconLinear

    return FalconLinear(linear.in_features, linear.out_features, bias=False).double().requires_grad_(False)


def ahead(model, causal):
    causal.model.layers[1].self_attn.is_causal = False


def extra(model, causal):
    causal.extra = nn.Parameter(torch.zeros(1, dtype=F64))


def eight_bit(linear):
    linear.weight = nn.Parameter(linear.weight.to(torch.int8), requires_grad=False)
    return linear


def hook(path, kind):
    return lambda model, causal: getattr(causal.get_submodule(path), kind)(no_op)


def other_tuner(kind, **values):
    import peft

    return peft.get_peft_model(make_model("llama").double(), getattr(peft, kind)(target_modules=["q_proj"], task_type="CAUSAL_LM", **values)).double()


def classifier():
    import transformers

    return transformers.LlamaForSequenceClassification(make_model("llama").config).double()


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_blocks_do_not_know_is_refused_by_its_words(what):
    make, words = REFUSED[what]
    with pytest.raises(Unfit) as refusal:
        adopt(make(), F64)
    assert words in str(refusal.value)


def test_float16_is_refused():
    with pytest.raises(Unfit, match="float16 needs loss scaling"):
        adopt(adapted("llama", dtype=torch.float32), torch.float16)


@pytest.mark.parametrize(
    ("quantised", "words"), [({"quant_type": "fp4"}, "is in fp4 with blocks of 64, not nf4 with 64"), ({"repacked": True}, "was repacked for the CPU")]
)  # fmt: skip
def test_other_bytes_than_nf4_are_refused(quantised, words):
    repacked = quantised.pop("repacked", False)
    model = four_bit("llama", **quantised)
    if repacked:
        model.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(Unfit) as refusal:
        adopt(model, torch.float32)
    assert words in str(refusal.value)


def test_weights_that_are_not_quantised_yet_are_refused():
    model = four_bit("llama")
    model.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight.quant_state = None
    with pytest.raises(Unfit, match="q_proj is not quantised yet"):
        adopt(model, torch.float32)


def agree(model):
    batch = batch_of([[9], [14]])
    _, expected = by_autograd(model, [batch], 0.1)
    _, ours = by_hand(model, [batch], 0.1)
    assert farthest(ours, expected) < FAST_EXACT


def test_a_second_adapter_that_sleeps_changes_nothing():
    """Modules that the active adapter does not know are computed without one."""
    agree(changed(two_adapters("default")))
    agree(changed(two_adapters("second")))


def test_hooks_of_the_embedding_run():
    """enable_input_require_grads leaves one there, and so does noise on the embeddings."""
    model = adapted("llama")
    model.get_base_model().enable_input_require_grads()
    model.get_input_embeddings().register_forward_hook(lambda module, given, result: result * 2)
    agree(model)


def test_gradient_checkpointing_of_the_plain_path_changes_nothing():
    model = adapted("llama").train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    agree(model)


def test_adapters_that_lie_across_in_memory_are_read_right():
    """Some initialisations leave a transposed matrix behind."""
    model = adapted("llama")
    for parameter in trained(model).values():
        parameter.data = parameter.data.T.contiguous().T
    agree(model)


@pytest.mark.parametrize(("kind", "linears"), [("mistral", LINEARS), ("falcon", FALCON_LINEARS)])
def test_a_load_as_training_does_it_is_taken(tmp_path, kind, linears):
    from halfbyte.model.adapter import add_adapter
    from halfbyte.model.base import find_base
    from halfbyte.model.load import load_base
    from halfbyte.recipe.schema import NF4, Adapter

    base = make_base(tmp_path / "base", kind, hidden_size=64)
    loaded = load_base(find_base(str(base)), NF4(), "bfloat16", torch.device("cpu"))
    model, _ = add_adapter(loaded.model, Adapter(r=4, alpha=8, target_modules=list(linears)), seed=0)
    assert len(adopt(model, torch.bfloat16).layers) == 2
