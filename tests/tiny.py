"""A tiny random model and a byte-level tokenizer."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}


def byte_tokenizer(chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token per byte, in GPT-2's order, and control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(t, special=True) for t in ("<|im_start|>", "<|im_end|>", "<|bos|>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        bos_token="<|bos|>",
        pad_token="<|im_end|>",
        chat_template=chat_template,
        model_max_length=256,
    )


def save_tiny_model(
    folder: Path,
    *,
    model_type: str = "llama",
    chat_template: str | None = CHATML,
    generation: dict[str, Any] | None = None,
    **overrides: Any,
) -> Path:
    """Save a random model with its tokenizer to `folder`."""
    tokenizer = byte_tokenizer(chat_template)
    shape = SHAPE | {"vocab_size": len(tokenizer), "eos_token_id": 257, "pad_token_id": 257}
    config = AutoConfig.for_model(model_type, **(shape | overrides))
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config)
    # Freshly initialised weights are so small that every token is about equally likely.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    for name, value in (generation or {}).items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEXTS = [
    "Say hello, then say it 12 times: hello hello hello!",
    "你好，世界。 it's 2024\n\n  x = 3",
] * 5


def save_gguf_model(folder: Path, kind: str, **shape: Any) -> Path:
    """Write a tiny model with a BPE tokenizer that has a few merges.

    It is byte-level, or for Gemma that of SentencePiece.
    """
    tokenizer = _sentencepiece() if kind.startswith("gemma") else _byte_level(kind)
    # More rows than tokens, as many models have them.
    save_tiny_model(folder, model_type=kind, vocab_size=len(tokenizer) + 5, **shape)
    tokenizer.save_pretrained(folder)
    return folder


def _sentencepiece() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = ["<|end|>", "<|im_end|>", "<|im_start|>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    backend.train_from_iterator(_TEXTS, trainer)
    # The bytes are tokens, but not special ones.
    state = json.loads(backend.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in special]
    backend = Tokenizer.from_str(json.dumps(state))
    return _with_control_tokens(backend)


def _byte_level(kind: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    bytes_: Any = pre_tokenizers.ByteLevel
    if kind.startswith("qwen"):
        backend.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(_QWEN_SPLIT), behavior="isolated")
        words = [split, bytes_(add_prefix_space=False, use_regex=False)]
    else:
        words = [
            pre_tokenizers.Digits(individual_digits=True),
            bytes_(add_prefix_space=False, use_regex=True),
        ]
    backend.pre_tokenizer = pre_tokenizers.Sequence(words)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=bytes_.alphabet(),
        special_tokens=["<|im_start|>", "<|im_end|>", "<|end|>"],
        show_progress=False,
    )
    backend.train_from_iterator(_TEXTS, trainer)
    return _with_control_tokens(backend)


def _with_control_tokens(backend: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|end|>",
        eos_token="<|im_end|>",
        pad_token="<|end|>",
        chat_template=CHATML,
    )
