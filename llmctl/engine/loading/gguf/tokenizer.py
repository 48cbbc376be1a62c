"""Tokenizers of GGUF files: vocabulary, pre-tokenizer, added tokens, chat templates, end tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from llmctl.did_you_mean import close_matches
from llmctl.engine.loading.gguf.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from llmctl.errors import ModelLoadError

_CONTROL, _USER_DEFINED = 3, 4
"""Values of `tokenizer.ggml.token_type`."""
_BYTE_LEVEL: Final = "gpt2"
_BYTE_FALLBACK: Final = frozenset({"gemma4", "sarvam-moe", "granite-embed-multi-311m"})
"""Values of `tokenizer.ggml.pre` of BPE without a byte alphabet, as SentencePiece has it."""
_TEMPLATE: Final = "tokenizer.chat_template"
_SENTENCEPIECE_IDS: Final = {"bos_token": 1, "eos_token": 2, "unk_token": 0}
"""Ids of a SentencePiece vocabulary whose file has none (llama.cpp)."""
_END_TOKENS: Final = frozenset(
    (
        *("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>"),
        *("<end_of_turn>", "<turn|>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "[EOT]"),
        "<end_of_utterance>",
    )
)
"""Control tokens that end a generation in llama.cpp, whether or not the file has their ids."""


def read_tokenizer(gguf: Path) -> Any:
    """Return the file's tokenizer as a Transformers class.

    Transformers (5.24) builds the vocabulary. The rest is done here: it knows 23 values of
    `tokenizer.ggml.pre` and takes GPT-2's split for all others, ignores `add_space_prefix` and all
    chat templates but the first, and gives control tokens like `<｜end▁of▁sentence｜>` other ids.

    Raises:
        ModelLoadError: llama.cpp has no pre-tokenizer of the name in the file.
        ValueError: the file has no tokenizer, or one that Transformers cannot build.
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf.gguf_tokenizer_mapping import (
        get_gguf_tokenizer,
        select_tokenizer_builder,
    )
    from transformers.integrations.gguf.reader import read_gguf_metadata

    metadata, _ = read_gguf_metadata(str(gguf))
    if "tokenizer.ggml.tokens" not in metadata:
        raise ValueError("it has no tokenizer")
    architecture, vocabulary, settings = get_gguf_tokenizer(str(gguf))
    kind, tokens = vocabulary.get("tokenizer_type"), vocabulary["tokens"]
    types = vocabulary.get("token_type") or []
    name = metadata.get("tokenizer.ggml.pre") or "default"
    if kind == _BYTE_LEVEL and name not in _BYTE_FALLBACK:
        pre = _pre_tokenizer(gguf, name)
        backend = _byte_level_bpe(vocabulary)
        pre.apply(backend)
        settings.setdefault("add_bos_token", pre.add_bos)
    else:
        kind = "gemma4" if kind == _BYTE_LEVEL else kind
        backend = select_tokenizer_builder(architecture, kind)(vocabulary).backend_tokenizer
    if kind == "llama":
        for name, number in _SENTENCEPIECE_IDS.items():
            settings[name] = settings.get(name) or tokens[number]
        if not architecture.startswith("gemma"):  # has its own normalizer
            _set_space_prefix(backend, add=vocabulary.get("add_prefix_space", True))
    _add_tokens(backend, tokens, types)
    if settings.get("bos_token") is None:
        settings["add_bos_token"] = False
    settings["chat_template"] = _chat_templates(metadata)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **settings)


def end_token_ids(gguf: Path) -> frozenset[int]:
    """Return the ids of the tokens that end a generation.

    These are the end of text, of a turn (`eot`) and of a message (`eom`), and the control tokens
    that llama.cpp knows to end a turn. `<|end|>` ends a message only where `<|return|>` exists.
    """
    from transformers.integrations.gguf.reader import read_gguf_metadata

    metadata, _ = read_gguf_metadata(str(gguf), ("tokenizer.ggml.tokens",))
    tokens = metadata.get("tokenizer.ggml.tokens") or []
    types = metadata.get("tokenizer.ggml.token_type") or []
    keys = (f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
    found = {metadata[key] for key in keys if metadata.get(key, len(tokens)) < len(tokens)}
    named = {
        text: number
        for number, (text, kind) in enumerate(zip(tokens, types, strict=False))
        if kind == _CONTROL and text in _END_TOKENS
    }
    if "<|return|>" in named:
        found.discard(named.pop("<|end|>", -1))
    return frozenset(found | set(named.values()))


def _pre_tokenizer(gguf: Path, name: str) -> PreTokenizer:
    if (found := PRE_TOKENIZERS.get(name)) is not None:
        return found
    close = close_matches(name, list(PRE_TOKENIZERS), limit=2)
    suggestion = f"; did its author mean {' or '.join(close)}?" if close else ""
    raise ModelLoadError(
        f"{gguf}: tokenizer.ggml.pre is {name!r}, a pre-tokenizer that is not known{suggestion}",
        hint="take the model's safetensors, or write a known name into the file with "
        "`gguf-new-metadata --pre-tokenizer NAME IN.gguf OUT.gguf`",
    )


def _byte_level_bpe(vocabulary: Mapping[str, Any]) -> Any:
    """Return a `tokenizers.Tokenizer` of a vocabulary in GPT-2's byte alphabet.

    The texts of added tokens are not in that alphabet.
    """
    from tokenizers import Tokenizer, decoders, models

    tokens = vocabulary["tokens"]
    merges = []
    for merge in vocabulary.get("merges") or []:
        left, _, right = merge[1:].partition(" ")
        merges.append((merge[0] + left, right))
    vocab = {text or f"[EMPTY_{number}]": number for number, text in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.decoder = decoders.ByteLevel()
    return backend


def _set_space_prefix(backend: Any, *, add: bool) -> None:
    """Put a space before each text between control tokens, as llama.cpp does, or none.

    `LlamaTokenizer` of Transformers puts it before the first text only, and not before a space.
    """
    from tokenizers import decoders, normalizers

    replace = normalizers.Replace(" ", "\u2581")
    prefix = [normalizers.Prepend("\u2581")] if add else []
    backend.normalizer = normalizers.Sequence([*prefix, replace])
    backend.pre_tokenizer = None
    strip = [decoders.Strip(" ", left=1)] if add else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )


def _add_tokens(backend: Any, tokens: Sequence[str], types: Sequence[int]) -> None:
    """Add control and user-defined tokens, which are found in a text before it is split.

    Files have the user-defined runs of spaces of a SentencePiece vocabulary with spaces, the
    vocabulary has them with its own character: those are found in the normalised text.
    """
    from tokenizers import AddedToken

    by_kind: dict[int, list[Any]] = {_CONTROL: [], _USER_DEFINED: []}
    for number, (text, kind) in enumerate(zip(tokens, types, strict=False)):
        if kind in by_kind and text:
            own = text if backend.token_to_id(text) == number else backend.id_to_token(number)
            token = AddedToken(own, normalized=own != text, special=kind == _CONTROL)
            by_kind[kind].append(token)
    backend.add_special_tokens(by_kind[_CONTROL])
    backend.add_tokens(by_kind[_USER_DEFINED])


def _chat_templates(metadata: Mapping[str, Any]) -> str | dict[str, str] | None:
    """Return the only template, or all by name; `tokenizer.chat_template` is the default."""
    named = {
        key.removeprefix(f"{_TEMPLATE}."): text
        for key, text in metadata.items()
        if key.startswith(f"{_TEMPLATE}.") and isinstance(text, str)
    }
    default: str | None = metadata.get(_TEMPLATE)
    if not named:
        return default
    return named if default is None else {"default": default, **named}
