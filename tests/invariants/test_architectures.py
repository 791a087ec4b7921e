"""Families of models beyond the toys': each is quantised whole, trains everywhere, answers alike in a batch and alone, and reloads to the bit."""

import pytest
import torch
import transformers as t

from halfbyte.generate.engine import Marks, Sampling, generate_batch
from halfbyte.model.adapter import load_adapter, save_adapter
from toy_training import adapted, gradients, load_toy, logits, one_batch, random_rows
from toys import VOCABULARY, make_tokenizer

SIZES = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = {**SIZES, "intermediate_size": 128, "num_key_value_heads": 1, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
GPT = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 128, "bos_token_id": 0, "eos_token_id": 1}
CONFIGS = {
    "gpt2": (t.GPT2Config, GPT),  # Conv1D, tied
    "gptj": (t.GPTJConfig, {**GPT, "rotary_dim": 16}),
    "gpt-neox": (t.GPTNeoXConfig, {**SIZES, "intermediate_size": 128}),
    "opt": (t.OPTConfig, {**SIZES, "ffn_dim": 128, "word_embed_proj_dim": 64, "max_position_embeddings": 128, "pad_token_id": 2}),
    "bloom": (t.BloomConfig, {"vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 2, "n_head": 2}),
    "mpt": (t.MptConfig, {"vocab_size": VOCABULARY, "d_model": 64, "n_heads": 2, "n_layers": 2}),
    "falcon, alibi": (t.FalconConfig, {**SIZES, "alibi": True, "new_decoder_architecture": False, "multi_query": False, "parallel_attn": False, "bias": True}),
    "falcon, new": (t.FalconConfig, {**SIZES, "num_kv_heads": 1, "new_decoder_architecture": True}),
    "gemma": (t.GemmaConfig, {**LLAMA, "head_dim": 32}),
    "gemma2": (t.Gemma2Config, {**LLAMA, "head_dim": 32}),
    "gemma3": (t.Gemma3TextConfig, {**LLAMA, "head_dim": 32}),
    **{kind.__name__: (kind, LLAMA) for kind in (t.PhiConfig, t.Phi3Config, t.StableLmConfig, t.Olmo2Config, t.SmolLM3Config, t.GraniteConfig, t.CohereConfig)},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_family_goes_the_whole_way(tmp_path, name):
    kind, settings = CONFIGS[name]
    torch.manual_seed(0)
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    t.AutoModelForCausalLM.from_config(kind(**settings)).to(torch.bfloat16).save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    assert load_toy(base).share_4bit == 1.0

    model = adapted(base, stirred=True)
    found = gradients(model, [one_batch(random_rows([9, 5]))])
    assert [tensor for tensor, gradient in found.items() if not gradient.any()] == []

    ids = [5, 6, 7, 8, 9, 10]
    here, other_end = logits(model, [ids]), logits(model, [[*ids[:-1], 99]])
    assert torch.equal(here[:, :-1], other_end[:, :-1])  # it does not look ahead

    prompts = [item.ids for item in random_rows([3, 17, 6])]
    marks, sampling = Marks([1], 2), Sampling(8, repetition_penalty=1.3)
    alone = [generate_batch(model, [prompt], marks, sampling, torch.float32)[0] for prompt in prompts]
    assert generate_batch(model, prompts, marks, sampling, torch.float32) == alone

    save_adapter(model, adapter, "toy")
    assert torch.equal(logits(load_adapter(load_toy(base).model, str(adapter)), [ids]), here)
