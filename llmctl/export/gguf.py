"""GGUF export of a model folder, for llama.cpp and Ollama, verified by reading the file back.

llama.cpp's converter is not on a package index, so this module has its own, with the writer and the
tensor names of the `gguf` library: Llama, Mistral, Qwen2 and Qwen3 with a byte-level BPE tokenizer.
Other models are refused. A file is kept only if Transformers reads the same model from it: equal
logits and equal tokens.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llmctl.engine.loading.gguf.pre_tokenizers import DIGIT_SPLIT, GPT2_SPLIT, find_name
from llmctl.engine.loading.gguf.tokenizer import end_token_ids, read_tokenizer
from llmctl.engine.loading.third_party import quiet_libraries
from llmctl.engine.loading.weights import read_original_weights
from llmctl.engine.models.weight_files import TensorEntry, model_entries
from llmctl.errors import ModelLoadError, UnsupportedError
from llmctl.export.verify import (
    compute_logits,
    relative_distance,
    sample_texts,
)
from llmctl.types import Progress, ProgressCallback, ignore_progress

_ARCHITECTURES: Final = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""Transformers' `model_type` -> llama.cpp's architecture."""
_PROBES: Final = (
    "In 2024,  3 caf\u00e9s sold 12.50 kg of\n    \u4f60\u597d don't <|x|>",
    "def f(x):\n\treturn x ** 2  # caf\u00e9\r\n\r\n'Ll 'll",
)
_MAX_DISTANCE = 1e-3
"""Relative distance of the logits. The types are equal, so only the order of summation differs."""


def check_gguf_supported(folder: Path) -> None:
    """Check the config and the tokenizer of a model; the weights are not read.

    Raises:
        UnsupportedError: the model cannot be written as GGUF; the message has the reason.
    """
    from transformers import AutoConfig, AutoTokenizer

    _check_config(AutoConfig.from_pretrained(folder))
    _tokenizer_kind(AutoTokenizer.from_pretrained(folder))


def write_gguf(folder: Path, file: Path, progress: ProgressCallback = ignore_progress) -> None:
    """Write the model in `folder` to `file`, read it back and compare.

    Matrices keep their type; norms and biases become float32, as llama.cpp requires. Writing holds
    one tensor at a time in memory, the comparison holds the model twice.

    Raises:
        UnsupportedError: this kind of model cannot be written, or the file differs from the model;
            the file is deleted then.
    """
    try:
        _write(folder, file, progress)
        progress(Progress(f"reading {file.name} back"))
        _check(folder, file)
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def _write(folder: Path, file: Path, progress: ProgressCallback) -> None:
    from gguf import GGUFWriter
    from transformers import AutoConfig, AutoTokenizer

    config: Any = AutoConfig.from_pretrained(folder)
    _check_config(config)
    writer = GGUFWriter(file, _ARCHITECTURES[config.model_type])
    _add_settings(writer, config, folder.name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    _add_tokenizer(writer, tokenizer, config.vocab_size, _end_token_ids(folder))
    entries = _named(model_entries(folder), config)
    for name, (_, entry) in entries.items():
        kind = _kind(entry)
        size = entry.parameters * (4 if kind.name == "F32" else 2)
        writer.add_tensor_info(name, entry.shape, np.dtype(np.float32), size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    total = sum(entry.bytes for _, entry in entries.values())
    done = 0
    for stored, entry in entries.values():
        writer.write_tensor_data(_array(stored, entry, config))
        done += entry.bytes
        progress(Progress(f"writing {file.name}", done, total, "B"))
    writer.close()


def _check_config(config: Any) -> None:
    if config.model_type not in _ARCHITECTURES:
        raise _unsupported(
            f"the architecture {config.model_type} is not one of {', '.join(_ARCHITECTURES)}"
        )
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "default":
        raise _unsupported(f"RoPE scaling ({rope['rope_type']}) cannot be verified")
    layers = getattr(config, "layer_types", None) or []
    if "sliding_attention" in layers or (config.model_type == "mistral" and config.sliding_window):
        raise _unsupported("the format has no key for its sliding window attention")


def _end_token_ids(folder: Path) -> list[int]:
    """Return the ids that end a generation by the model's `generation_config.json`."""
    from transformers import GenerationConfig

    if not (folder / "generation_config.json").is_file():
        return []
    ids = GenerationConfig.from_pretrained(folder).eos_token_id
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def _add_settings(writer: Any, config: Any, name: str) -> None:
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_name(name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _named(entries: Mapping[str, TensorEntry], config: Any) -> dict[str, tuple[str, TensorEntry]]:
    """Return the tensors by llama.cpp's names: stored name and location in the file."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    kind = MODEL_ARCH[_ARCHITECTURES[config.model_type].upper()]
    names = get_tensor_name_map(kind, config.num_hidden_layers)
    tensors = {}
    for stored, entry in entries.items():
        if stored == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name = names.get_name(stored, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise _unsupported(f"the format has no name for its tensor {stored}")
        tensors[name] = (stored, entry)
    return tensors


def _kind(entry: TensorEntry) -> Any:
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType[entry.dtype if len(entry.shape) > 1 else "F32"]


def _array(stored: str, entry: TensorEntry, config: Any) -> npt.NDArray[Any]:
    """Read a tensor, and convert it to the layout of the file."""
    from safetensors import safe_open

    with safe_open(entry.file, framework="pt") as file:
        tensor: Tensor = file.get_tensor(stored)
    if _ARCHITECTURES[config.model_type] == "llama":
        if ".q_proj." in stored:
            tensor = _permute_rope(tensor, config.num_attention_heads)
        elif ".k_proj." in stored:
            tensor = _permute_rope(tensor, config.num_key_value_heads)
    if tensor.ndim == 1:
        tensor = tensor.float()
    # numpy has no bfloat16: pass the bits as int16.
    bits = tensor.contiguous().view(torch.int16) if tensor.itemsize == 2 else tensor.contiguous()
    return bits.numpy()


def _permute_rope(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of a query or key matrix for llama.cpp's rotary embedding.

    Transformers rotates dimension i of a head with i + dim / 2, llama.cpp's Llama with i + 1.
    """
    rows, *rest = weight.shape
    return weight.view(heads, 2, rows // heads // 2, *rest).transpose(1, 2).reshape(rows, *rest)


def _tokenizer_kind(tokenizer: Any) -> str:
    """Return llama.cpp's name of the tokenizer's pre-tokenizer.

    Raises:
        UnsupportedError: it is not byte-level BPE, or its pre-tokenizer is unknown.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    if backend.get("model", {}).get("type") != "BPE" or backend["model"].get("byte_fallback"):
        raise _unsupported("its tokenizer is not byte-level BPE")
    if (backend["normalizer"] or {"type": "NFC"})["type"] != "NFC":
        raise _unsupported(f"its tokenizer has the normalizer {backend['normalizer']['type']}")
    first = backend["pre_tokenizer"] or {"type": None}
    splits = [_split(part) for part in first.get("pretokenizers", [first])]
    kind = find_name(
        [split for split in splits if split],
        ignore_merges=bool(backend["model"].get("ignore_merges")),
    )
    if kind is None or None in splits:
        raise _unsupported("its pre-tokenizer has no known name in llama.cpp")
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


def _add_tokenizer(writer: Any, tokenizer: Any, size: int, ends: Sequence[int]) -> None:
    from gguf import TokenType

    vocab = {number: text for text, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, types = [], []
    for number in range(size):
        tokens.append(vocab.get(number, f"[PAD{number}]"))
        if number not in vocab:
            types.append(TokenType.UNUSED)
        elif number in added:
            control = added[number].special
            types.append(TokenType.CONTROL if control else TokenType.USER_DEFINED)
        else:
            types.append(TokenType.NORMAL)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_tokenizer_kind(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
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


def _check(folder: Path, file: Path) -> None:
    from transformers import AutoTokenizer

    before: Any = AutoTokenizer.from_pretrained(folder)
    with quiet_libraries():
        after = read_tokenizer(file)
    for what, one, other in (
        ("chat template", before.chat_template, after.chat_template),
        ("end-of-text token", before.eos_token, after.eos_token),
        *(("tokens", before(text).input_ids, after(text).input_ids) for text in _PROBES),
    ):
        if one != other:
            raise _unsupported(f"its {what} cannot be read back from the file unchanged")
    if missing := set(_end_token_ids(folder)) - end_token_ids(file):
        raise _unsupported(f"the format has no key for all tokens that end its replies: {missing}")
    texts = sample_texts(folder)
    model = read_original_weights(folder)
    expected, dtype = compute_logits(model, texts), model.dtype
    del model
    try:
        read = read_original_weights(file, dtype)
    except (OSError, ValueError, RuntimeError, KeyError, ModelLoadError) as error:
        reason = " ".join(str(error).split())
        raise _unsupported(f"the file could not be read back: {reason}") from error
    difference = relative_distance(compute_logits(read, texts), expected)
    if not difference <= _MAX_DISTANCE:
        raise _unsupported(
            f"the logits of the file differ by {difference:.1%}, above the limit of "
            f"{_MAX_DISTANCE:.1%}"
        )


def _unsupported(reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"this model cannot be written as GGUF: {reason}",
        hint="llama.cpp's convert_hf_to_gguf.py converts the merged folder",
    )
