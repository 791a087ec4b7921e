"""Makes the toys: see conftest.py. Small enough that a test trains in a second."""

from pathlib import Path

WORDS = (
    "the keeper lit the lamp and the sea was quiet. who comes there, said the old man, and what do you want at this hour? "
    "i have walked a long way over the hills; let me in, for the night is cold and the road is dark. he opened the door. "
)
VOCABULARY = 320
# The line end behind an answer is written as text: jinja takes one off that stands behind a block.
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(bos: bool = True, chat: bool = True):
    """Byte-level BPE with <s>, </s>, <pad> and ChatML marks; begins texts with <s> if `bos`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    bpe.train_from_iterator([WORDS] * 3, trainer)
    if bos:
        bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>", additional_special_tokens=special[3:], clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = CHAT_TEMPLATE if chat else None
    return tokenizer


def make_model(kind: str = "mistral", seed: int = 0, **changes):
    """A random model of an architecture that transformers knows, float32, weights large enough to be told apart."""
    import torch
    import transformers as t

    shared = dict(vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, bos_token_id=0, eos_token_id=1, pad_token_id=2)
    llama = dict(intermediate_size=128, num_key_value_heads=1, max_position_embeddings=512, **shared)
    configs = {
        "mistral": lambda: t.MistralConfig(**{"sliding_window": None, **llama, **changes}),
        "llama": lambda: t.LlamaConfig(**{**llama, **changes}),
        "qwen2": lambda: t.Qwen2Config(**{**llama, **changes}),
        "qwen3": lambda: t.Qwen3Config(**{"head_dim": 32, **llama, **changes}),
        "falcon": lambda: t.FalconConfig(**{
            "multi_query": True, "parallel_attn": True, "alibi": False, "bias": False, "new_decoder_architecture": False,
            "max_position_embeddings": 512, "ffn_hidden_size": 128, **shared, **changes,
        }),
        "gemma3n": lambda: t.Gemma3nTextConfig(**{
            **llama, "vocab_size_per_layer_input": VOCABULARY, "head_dim": 32, "hidden_size_per_layer_input": 64, "laurel_rank": 16, "num_kv_shared_layers": 0,
            "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"], "activation_sparsity_pattern": [0.0] * 2, **changes,
        }),
        "mixtral": lambda: t.MixtralConfig(**{"num_local_experts": 4, **llama, **changes}),
    }  # fmt: skip
    torch.manual_seed(seed)
    model = t.AutoModelForCausalLM.from_config(configs[kind]()).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.08)
    return model


def make_base(folder: Path, kind: str = "mistral", bos: bool = True, chat: bool = True, **changes) -> Path:
    """A folder that from_pretrained loads: bf16 weights, config, tokenizer."""
    import torch

    make_model(kind, **changes).to(torch.bfloat16).save_pretrained(folder)
    make_tokenizer(bos, chat).save_pretrained(folder)
    return folder
