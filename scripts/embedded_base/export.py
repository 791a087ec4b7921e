"""Puts the trained weights, the tokenizer and their configuration into the package, and checks them against the trainer's decoder.

    python scripts/embedded_base/export.py PREPARED_FOLDER PRETRAINED_FOLDER ANNEALED_FOLDER src/halfbyte/base

Without a second phase, give the first folder twice.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, processors
from transformers import GenerationConfig, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parent))
import train as pretraining
from prepare import CHAT_TEMPLATE, CONTEXT_TOKENS, SPECIAL, VOCABULARY

BOS, EOS, PAD = (SPECIAL.index(name) for name in ("<s>", "</s>", "<pad>"))


def main(prepared: Path, pretrained: Path, trained: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    state = load_file(trained / "model.safetensors")
    config = MistralConfig(
        vocab_size=VOCABULARY, hidden_size=pretraining.WIDTH, intermediate_size=pretraining.HIDDEN, num_hidden_layers=pretraining.LAYERS,
        num_attention_heads=pretraining.HEADS, num_key_value_heads=pretraining.KV_HEADS, head_dim=pretraining.HEAD_WIDTH,
        max_position_embeddings=CONTEXT_TOKENS, sliding_window=None, rms_norm_eps=pretraining.NORM_EPS,
        rope_parameters={"rope_type": "default", "rope_theta": pretraining.ROPE_THETA}, tie_word_embeddings=True,
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, dtype="bfloat16",
    )  # fmt: skip
    model = MistralForCausalLM(config).to(torch.bfloat16)
    left = model.load_state_dict(state, strict=False)
    assert left.missing_keys in ([], ["lm_head.weight"]), left
    assert not left.unexpected_keys, left
    model.tie_weights()
    check_against_trainer(model, state)
    model.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    model.save_pretrained(target, safe_serialization=True)

    bpe = Tokenizer.from_file(str(prepared / "tokenizer" / "tokenizer.json"))
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>", additional_special_tokens=SPECIAL[3:],
        model_max_length=CONTEXT_TOKENS, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(target)

    curves = {"pretraining": json.loads((pretrained / "curve.json").read_text()), "annealing": json.loads((trained / "curve.json").read_text())}
    (target / "training_curve.json").write_text(json.dumps(curves, indent=1) + "\n")
    sizes = {file.name: file.stat().st_size for file in sorted(target.iterdir())}
    print(json.dumps(sizes, indent=1))


@torch.no_grad()
def check_against_trainer(model: MistralForCausalLM, state: dict[str, torch.Tensor]) -> None:
    """transformers' decoder and the one that was trained give one loss, in float32."""
    ours = pretraining.Decoder()
    for name, tensor in pretraining.hugging_face_names(ours).items():
        tensor.copy_(state[name].float())
    ids = torch.randint(0, VOCABULARY, (2, 65), generator=torch.Generator().manual_seed(0))
    mine = float(ours.eval()(ids[:, :-1], ids[:, 1:]))
    exported = MistralForCausalLM.from_pretrained(None, config=model.config, state_dict=model.state_dict(), dtype=torch.float32)
    theirs = float(exported(input_ids=ids, labels=ids).loss)
    assert abs(mine - theirs) < 1e-4 * mine, f"the exported model is another one: loss {theirs}, trained {mine}"


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:5]))
