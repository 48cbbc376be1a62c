"""The layers of a model that get an adapter."""

from collections.abc import Collection
from itertools import zip_longest
from typing import Any

from torch import nn

from llmctl.engine.auto_model import text_decoder
from llmctl.engine.batching.forward.experts import QuantisedExperts

_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_MAMBA_TYPES = frozenset(("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"))
_REFUSED_IN_MAMBA = frozenset(("out_proj", "conv1d"))
"""Layers that PEFT 0.21 does not adapt in models of these types."""
UNREADABLE = {"laguna": frozenset(("gate_proj", "up_proj", "down_proj"))}
"""By type: layers whose adapters PEFT 0.21 reads under other names than it writes."""
_MAY_BE_EXPERTS = frozenset(
    ("all-linear", "gate_proj", "up_proj", "down_proj", "gate_up_proj", "w1", "w2", "w3", "experts")
)
"""Names for which PEFT may adapt the experts of a mixture."""


def default_target_modules(model: Any) -> tuple[str, ...]:
    """Return the names of the layers that get an adapter by default.

    These are all linear layers but the output layer. In a mixture of experts PEFT's "all-linear"
    would take the router and the experts' matrices along, which are trained by name only; and in
    models like Mamba layers that PEFT refuses.
    """
    text = model.config.get_text_config(decoder=True)
    experts = _expert_counts(text)
    if not experts and text.model_type not in _MAMBA_TYPES:
        return ("all-linear",)
    decoder, head = text_decoder(model), model.get_output_embeddings()
    names = {
        name.rsplit(".", 1)[-1]
        for name, module in decoder.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    # The layers of quantised experts have numbers for names.
    names = {name for name in names if not name.isdecimal()}
    routers = {
        name.rsplit(".", 1)[-1]
        for name, module in decoder.named_modules()
        if "router" in name.rsplit(".", 1)[-1].lower()
        or "router" in type(module).__name__.lower()
        or (isinstance(module, nn.Linear) and module.out_features in experts)
    }
    refused = _REFUSED_IN_MAMBA if text.model_type in _MAMBA_TYPES else frozenset[str]()
    names -= routers | refused | UNREADABLE.get(text.model_type, frozenset())
    return tuple(sorted(names - _names_of_experts(model, names)))


def _expert_counts(text: Any) -> set[int]:
    return {count for name in _EXPERT_COUNTS if isinstance(count := getattr(text, name, None), int)}


def _names_of_experts(model: Any, names: Collection[str]) -> set[str]:
    """Return the names that PEFT takes for those of experts, and not of linear layers.

    In some types each expert had layers `gate_proj` and so on before Transformers 5. PEFT adapts
    the fused matrices of all experts for these names, and not the layers that still have them.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    fused = {"gate_proj", "up_proj", "down_proj"}
    config = LoraConfig(target_modules=list(names))
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # some of the names of an expert, but not all
        return fused
    return set(names) - set(config.target_modules or ()) if config.target_parameters else set()


def may_train_experts(targets: Collection[str] | None) -> bool:
    """Whether adapters for these names, given by the user, may be ones of experts."""
    return not _MAY_BE_EXPERTS.isdisjoint(targets or ())


def parts_without_text(model: Any) -> tuple[str, ...]:
    """Return the names of the parts of a model that text does not pass: of images and audio."""
    decoder, head = text_decoder(model), model.get_output_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    path = names[id(decoder)].split(".")
    parts = set()
    for name, module in model.named_modules():
        own = name.split(".")
        if list(module.children()) or module is head or own[: len(path)] == path:
            continue
        shared = next(n for n, (a, b) in enumerate(zip_longest(own, path)) if a != b)
        parts.add(".".join(own[: shared + 1]))
    return tuple(sorted(parts))


def describe_mixture(model: Any) -> str | None:
    """Return which layers of a mixture of experts have an adapter; `None` for other models.

    Args:
        model: with PEFT's layers.
    """
    from peft.tuners.lora import LoraLayer, ParamWrapper

    base = model.get_base_model()
    has_experts = any(
        QuantisedExperts.replaces(module) or isinstance(module, QuantisedExperts)
        for module in base.modules()
    )
    layers = [(n, m) for n, m in base.named_modules() if isinstance(m, LoraLayer)]
    if not has_experts:
        return None
    linear = sorted({n.rsplit(".", 1)[-1] for n, m in layers if not isinstance(m, ParamWrapper)})
    text = f"mixture of experts: adapters are trained in {', '.join(linear)}"
    if any(isinstance(module, ParamWrapper) for _, module in layers):
        return (
            f"{text} and in the experts; such an adapter is served alone (--model ADAPTER), not "
            "per request"
        )
    return f"{text}; the routers and the routed experts keep their weights"
