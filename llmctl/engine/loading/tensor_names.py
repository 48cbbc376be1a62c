"""Names of tensors in checkpoints: what tools put around them, and what a text model lacks."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

_OUTER_WRAPPERS = r"^(?:(?:module|_orig_mod|base_model\.model)\.)+"
"""What data parallelism, `torch.compile` and PEFT put before all names of tensors."""
_INNER_WRAPPERS = r"(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+"
"""What `torch.compile`, FSDP and activation checkpointing put into names, a layer at a time."""
_COMPUTED = re.compile(
    r"rotary_emb\.|\.inv_freq$|masked_bias$|attn\.bias$|attention\.bias$"
    r"|[kvq]_scale$|(?:input|output)_scale$|num_batches_tracked$"
)
"""Tables that a model computes, and scales of quantised caches and activations."""
_OTHER_PARTS = re.compile(
    r"(?:\w*_)?(?:vision|visual|audio|speech|image|multi_modal|multimodal|mm|vq|vqmodel)(?:_\w+)?"
    r"|mtp(?:_\w+)?"
)
"""Modules of a multimodal model beside the text, and those of multi-token prediction."""
_PREDICTION_LAYER = re.compile(r"\.(?:eh_proj|enorm|hnorm|shared_head)\.")
"""Modules that only a layer of multi-token prediction has (DeepSeek-V3, section 2.2)."""
_ADAPTER = re.compile(r"\.(?:base_layer|lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector)\b")


def key_mapping(names: Sequence[str]) -> dict[str, str]:
    """Return the patterns of `from_pretrained` that remove known wrappers from names of tensors."""
    mapping = {}
    if names and all(re.match(_OUTER_WRAPPERS, name) for name in names):
        mapping[_OUTER_WRAPPERS] = ""
    if any(re.search(_INNER_WRAPPERS, re.sub(_OUTER_WRAPPERS, "", name)) for name in names):
        mapping[_INNER_WRAPPERS] = ""
    return mapping


def unknown_names(names: Iterable[str], text_config: Any) -> list[str]:
    """Return the names of tensors that may matter, of those that the model does not have."""
    names = sorted(names)
    known = _prediction_layers(names, text_config)
    return [
        name
        for name in names
        if _layer(name) not in known and not _COMPUTED.search(name) and not is_other_part(name)
    ]


def is_other_part(name: str) -> bool:
    """Return whether a tensor or module around the layers is not of the text model."""
    around, _, _ = name.partition(".layers.")
    return any(map(_OTHER_PARTS.fullmatch, around.split(".")))


def is_of_adapter(name: str) -> bool:
    """Return whether a name is that of PEFT for a layer with an adapter."""
    return _ADAPTER.search(name) is not None


def _layer(name: str) -> int | None:
    number = re.search(r"\.layers\.(\d+)\.", name)
    return None if number is None else int(number[1])


def _prediction_layers(names: Iterable[str], text: Any) -> set[int]:
    """Return the layers for multi-token prediction, which are numbered after those of the model."""
    if (count := getattr(text, "num_hidden_layers", None)) is None:
        return set()
    declared = [
        value
        for key, value in text.to_dict().items()
        if ("nextn" in key or "mtp" in key) and type(value) is int
    ]
    recognised = {_layer(name) for name in names if _PREDICTION_LAYER.search(name)}
    found = {*range(count, count + max(declared, default=0)), *recognised}
    return {number for number in found if number is not None and number >= count}
