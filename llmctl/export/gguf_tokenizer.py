"""Writing of tokenizers to GGUF files: byte-level BPE, and BPE of SentencePiece."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llmctl.engine.loading.gguf.pre_tokenizers import DIGIT_SPLIT, GPT2_SPLIT, find_name
from llmctl.errors import UnsupportedError

_SPACE = "\u2581"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_UNMERGED_SCORE = -1000.0
"""Score of tokens that no merge makes, as Gemma's files have it."""


def unsupported(reason: str) -> UnsupportedError:
    """Return the error of a model that cannot be written."""
    return UnsupportedError(
        f"this model cannot be written as GGUF: {reason}",
        hint="llama.cpp's convert_hf_to_gguf.py converts the merged folder",
    )


def check_tokenizer(tokenizer: Any) -> None:
    """Check that a tokenizer can be written.

    Raises:
        UnsupportedError: it cannot.
    """
    backend = _backend(tokenizer)
    if _is_sentencepiece(backend):
        _has_space_prefix(backend)
    else:
        _pre_tokenizer_name(backend)


def add_tokenizer(writer: Any, tokenizer: Any, size: int, ends: Sequence[int]) -> None:
    """Add a tokenizer to the header of a file.

    Args:
        writer: of the `gguf` library.
        tokenizer: of Transformers.
        size: rows of the embedding.
        ends: ids that end a generation.

    Raises:
        UnsupportedError: as `check_tokenizer`.
    """
    backend = _backend(tokenizer)
    merges = [
        tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m)
        for m in backend["model"]["merges"]
    ]
    tokens = _tokens(tokenizer, size)
    is_sentencepiece = _is_sentencepiece(backend)
    types = _types(tokens, tokenizer, is_sentencepiece=is_sentencepiece)
    writer.add_token_list(_texts(tokens, types) if is_sentencepiece else tokens)
    writer.add_token_types(types)
    if is_sentencepiece:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(_scores(tokens, merges, tokenizer.added_tokens_decoder))
        writer.add_add_space_prefix(_has_space_prefix(backend))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_pre_tokenizer_name(backend))
        writer.add_token_merges([" ".join(merge) for merge in merges])
    for name in ("bos", "eos", "pad", "unk"):
        if (number := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    ids = tokenizer("a").input_ids
    writer.add_add_bos_token(ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(ids[-1] == tokenizer.eos_token_id)
    # The format has two more ids that end a generation: of a turn and of a message.
    more = [number for number in ends if number != tokenizer.eos_token_id]
    for name, number in zip(("eot", "eom"), more, strict=False):
        getattr(writer, f"add_{name}_token_id")(number)
    templates = tokenizer.chat_template
    if isinstance(templates, dict):
        templates = [{"name": name, "template": text} for name, text in templates.items()]
    if templates:
        writer.add_chat_template(templates)


def _backend(tokenizer: Any) -> Any:
    backend = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    if backend.get("model", {}).get("type") != "BPE":
        raise unsupported("its tokenizer is not BPE")
    return backend


def _is_sentencepiece(backend: Mapping[str, Any]) -> bool:
    return bool(backend["model"].get("byte_fallback"))


def _has_space_prefix(backend: Mapping[str, Any]) -> bool:
    """Return whether a SentencePiece tokenizer puts a space before each text.

    Raises:
        UnsupportedError: its normalizer is of another kind.
    """
    normalizer = backend["normalizer"] or {"type": None}
    steps = normalizer.get("normalizers", [normalizer])
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prepend = {"type": "Prepend", "prepend": _SPACE}
    if steps not in ([replace], [prepend, replace]):
        raise unsupported("its tokenizer has a normalizer that the format has no key for")
    return prepend in steps


def _pre_tokenizer_name(backend: Mapping[str, Any]) -> str:
    """Return llama.cpp's name of the pre-tokenizer of byte-level BPE.

    Raises:
        UnsupportedError: it is unknown.
    """
    if (backend["normalizer"] or {"type": "NFC"})["type"] != "NFC":
        raise unsupported(f"its tokenizer has the normalizer {backend['normalizer']['type']}")
    first = backend["pre_tokenizer"] or {"type": None}
    splits = [_split(part) for part in first.get("pretokenizers", [first])]
    kind = find_name(
        [split for split in splits if split],
        ignore_merges=bool(backend["model"].get("ignore_merges")),
    )
    if kind is None or None in splits:
        raise unsupported("its pre-tokenizer has no known name in llama.cpp")
    return kind


def _split(part: Mapping[str, Any]) -> str | None:
    """Return the regular expression of a pre-tokenizer, "" for none, `None` for another kind."""
    match part:
        case {"type": "Digits", "individual_digits": True}:
            return DIGIT_SPLIT
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use_regex}:
            return GPT2_SPLIT if use_regex else ""
        case {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated"}:
            return str(regex)
    return None


def _tokens(tokenizer: Any, size: int) -> list[str]:
    vocab = {number: text for text, number in tokenizer.get_vocab().items()}
    return [vocab.get(number, f"[PAD{number}]") for number in range(size)]


def _types(tokens: Sequence[str], tokenizer: Any, *, is_sentencepiece: bool) -> list[Any]:
    from gguf import TokenType

    added, known = tokenizer.added_tokens_decoder, set(tokenizer.get_vocab().values())
    types = []
    for number, text in enumerate(tokens):
        if number not in known:
            types.append(TokenType.UNUSED)
        elif number in added:
            special = added[number].special
            types.append(TokenType.CONTROL if special else TokenType.USER_DEFINED)
        elif is_sentencepiece and _BYTE.fullmatch(text):
            types.append(TokenType.BYTE)
        else:
            types.append(TokenType.NORMAL)
    return types


def _texts(tokens: Sequence[str], types: Sequence[Any]) -> list[str]:
    """Return the texts of SentencePiece tokens: user-defined ones as they are in raw text."""
    from gguf import TokenType

    return [
        text.replace(_SPACE, " ") if kind == TokenType.USER_DEFINED else text
        for text, kind in zip(tokens, types, strict=True)
    ]


def _scores(
    tokens: Sequence[str], merges: Sequence[tuple[str, ...]], added: Mapping[int, Any]
) -> list[float]:
    """Return a score for each token: a token that is merged earlier has a higher one."""
    ranks: dict[str, int] = {}
    for rank, parts in enumerate(merges):
        ranks.setdefault("".join(parts), rank)
    order = {text: place for place, text in enumerate(sorted(ranks, key=ranks.__getitem__))}
    return [
        _UNMERGED_SCORE
        if number in added
        else 0.0
        if _BYTE.fullmatch(text)
        else -float(order.get(text, len(order) + number))
        for number, text in enumerate(tokens)
    ]
