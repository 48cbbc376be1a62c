"""GGUF export of a model folder, for llama.cpp and Ollama, verified by reading the file back.

llama.cpp's converter is not on a package index, so this module has its own, with the writer and the
tensor names of the `gguf` library: Llama, Mistral, Qwen2, Qwen3 and Gemma 3. Others are refused. A
file is kept only if Transformers reads the same model from it: equal logits and equal tokens.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llmctl.engine.loading.gguf.tokenizer import end_token_ids, read_tokenizer
from llmctl.engine.loading.third_party import quiet_libraries
from llmctl.engine.loading.weights import read_original_weights
from llmctl.engine.models.weight_files import TensorEntry, model_entries
from llmctl.errors import ModelLoadError
from llmctl.export.gguf_tokenizer import add_tokenizer, check_tokenizer, unsupported
from llmctl.export.verify import (
    compute_logits,
    relative_distance,
    sample_texts,
)
from llmctl.types import Progress, ProgressCallback, ignore_progress

_ARCHITECTURES: Final = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3_text": "gemma3",
}
"""Transformers' `model_type` -> llama.cpp's architecture."""
_GEMMA_PERIOD: Final = 6
"""Every sixth layer of Gemma 3 has no window."""
_GEMMA_LOCAL_THETA: Final = 10000.0
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
    check_tokenizer(AutoTokenizer.from_pretrained(folder))


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
    add_tokenizer(writer, tokenizer, config.vocab_size, _end_token_ids(folder))
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
        raise unsupported(
            f"the architecture {config.model_type} is not one of {', '.join(_ARCHITECTURES)}"
        )
    if config.model_type == "gemma3_text":
        _check_gemma(config)
        return
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "default":
        raise unsupported(f"RoPE scaling ({rope['rope_type']}) cannot be verified")
    layers = getattr(config, "layer_types", None) or []
    if "sliding_attention" in layers or (config.model_type == "mistral" and config.sliding_window):
        raise unsupported("the format has no key for its sliding window attention")


def _check_gemma(config: Any) -> None:
    """Check what llama.cpp takes as given of Gemma 3."""
    count = config.num_hidden_layers
    pattern = [
        "full_attention" if layer % _GEMMA_PERIOD == 0 else "sliding_attention"
        for layer in range(1, count + 1)
    ]
    full, local = (config.rope_parameters[kind] for kind in ("full_attention", "sliding_attention"))
    for what, found, needed in (
        ("layer types", list(config.layer_types), pattern),
        ("RoPE type", {full["rope_type"], local["rope_type"]}, {"default"}),
        ("RoPE base of its windows", float(local["rope_theta"]), _GEMMA_LOCAL_THETA),
        ("size of query_pre_attn_scalar", config.query_pre_attn_scalar, config.head_dim),
        ("limit of scores", config.attn_logit_softcapping, None),
        ("limit of logits", config.final_logit_softcapping, None),
        ("bidirectional attention", bool(config.use_bidirectional_attention), False),
    ):
        if found != needed:
            raise unsupported(f"its {what} is {found}, where llama.cpp assumes {needed}")


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
    rope = config.rope_parameters
    if config.model_type == "gemma3_text":
        rope = rope["full_attention"]
        writer.add_sliding_window(config.sliding_window)
    else:
        writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
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
            raise unsupported(f"the format has no name for its tensor {stored}")
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
        if config.model_type == "gemma3_text":  # its norms multiply by 1 + weight
            tensor = tensor + 1
    # numpy has no bfloat16: pass the bits as int16.
    bits = tensor.contiguous().view(torch.int16) if tensor.itemsize == 2 else tensor.contiguous()
    return bits.numpy()


def _permute_rope(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of a query or key matrix for llama.cpp's rotary embedding.

    Transformers rotates dimension i of a head with i + dim / 2, llama.cpp's Llama with i + 1.
    """
    rows, *rest = weight.shape
    return weight.view(heads, 2, rows // heads // 2, *rest).transpose(1, 2).reshape(rows, *rest)


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
            raise unsupported(f"its {what} cannot be read back from the file unchanged")
    if missing := set(_end_token_ids(folder)) - end_token_ids(file):
        raise unsupported(f"the format has no key for all tokens that end its replies: {missing}")
    texts = sample_texts(folder)
    model = read_original_weights(folder)
    expected, dtype = compute_logits(model, texts), model.dtype
    del model
    try:
        read = read_original_weights(file, dtype)
    except (OSError, ValueError, RuntimeError, KeyError, ModelLoadError) as error:
        reason = " ".join(str(error).split())
        raise unsupported(f"the file could not be read back: {reason}") from error
    difference = relative_distance(compute_logits(read, texts), expected)
    if not difference <= _MAX_DISTANCE:
        raise unsupported(
            f"the logits of the file differ by {difference:.1%}, above the limit of "
            f"{_MAX_DISTANCE:.1%}"
        )
