"""Estimates of the memory for weights, keys and values, and activations, from a model's config.

Nothing here reads weights. `request` combines the estimates, `plan` divides the memory.
"""

import copy
import logging
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import nn

from llmctl.engine.auto_model import auto_model_class
from llmctl.engine.batching.forward.cache_layout import batched_cache_layers
from llmctl.engine.batching.forward.experts import QuantisedExperts
from llmctl.engine.batching.forward.int4 import BYTES_PER_WEIGHT
from llmctl.engine.batching.forward.packed import PREFILL_CHUNK_TOKENS
from llmctl.engine.batching.kv_cache import MAX_SAVED_STATES
from llmctl.engine.memory.cache_sizes import CacheSizes, cache_sizes
from llmctl.errors import ModelLoadError
from llmctl.types import KVQuant, Quant

_log = logging.getLogger(__name__)

# Bytes per parameter. 4bit is NF4: half a byte, and doubly quantised scales with 64 weights per
# block (Dettmers et al. 2023, QLoRA, section 3: 0.127 bits per weight).
_QUANT_BYTES: dict[Quant, float] = {"4bit": 0.516, "8bit": 1.0}
_QUERY_BLOCK = 256
"""Queries whose attention scores over the whole context are held at once
(batching/forward/attention.py)."""
_SCORE_COPIES = 5
"""Scores, their softmax and the rest of the previous block; and two freed blocks, which the next,
larger block cannot reuse."""
_LOGIT_COPIES = 4
"""Logits in float32, with penalties, divided by the temperature, and as probabilities."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The dimensions of a model that determine its memory."""

    context_length: int
    """The model's context length in tokens."""
    hidden: int
    intermediate: int
    """Width of the feed-forward layer; with experts, of all experts of one token."""
    vocab: int
    query_heads: int
    cache: CacheSizes
    batched: bool
    """Whether rows can share forward passes. Other models run with `generate()`, one request at a
    time."""
    linear_parameters: int
    """Parameters of the layers that quantisation replaces: matrices except embeddings and head,
    those of experts included."""
    other_parameters: int
    largest_linear: int
    """Parameters of the largest of those layers."""
    tied_parameters: int = 0
    """Parameters that embedding and head share; packed for a CPU the head has a copy."""
    stored_bytes: int | None = None
    """Size of weights that are quantised on disk."""
    quantisable: bool = True
    """Whether `--quant` can be applied to the weights."""
    adapter_parameters: int = 0
    """Of the loaded adapter; they stay in float32 on a CPU."""

    def weight_bytes(self, itemsize: int, quant: Quant, *, int4: bool = False) -> int:
        """Return the size of the loaded weights with the adapter; see `estimate_weight_bytes`."""
        adapter = self.adapter_parameters * 4
        if self.stored_bytes is not None:
            return self.stored_bytes + adapter
        return adapter + estimate_weight_bytes(
            self.linear_parameters, self.other_parameters, itemsize, quant, int4=int4
        )

    def kv_bytes(self, tokens: int, itemsize: int, quant: KVQuant) -> int:
        """Return the size of the keys and values of one row of `tokens`.

        A batched row keeps all tokens in every layer, since a reused prefix must be complete. The
        cache of `generate()` drops tokens outside a sliding window.
        """
        return sum(
            layer.token_bytes(itemsize, quant)
            * (tokens if self.batched or layer.window is None else min(tokens, layer.window))
            for layer in self.cache.attention
        )

    def state_bytes(self, itemsize: int) -> int:
        """Return the size of the states of one row, which does not depend on its tokens.

        A batched row also has copies, saved for the reuse of prefixes.
        """
        copies = 1 + MAX_SAVED_STATES if self.batched else 1
        return copies * self.cache.state_bytes(itemsize)

    def activation_bytes(self, context: int, rows: int, itemsize: int, quant: Quant) -> int:
        """Return the peak memory of a step besides weights, keys and values.

        The sum of: the activations of a prefill chunk in the widest layer (about six vectors of
        `hidden` and two of `intermediate` per token), attention scores and mask over `context`
        tokens, the logits of `rows`, and one dequantised layer if weights are quantised. Without
        batching the whole prompt is one chunk, and attention materialises no scores and no mask.

        Measured with SmolLM2-135M on a CPU: for prompts of 512 to 8,000 tokens the resident set
        grew by 0.7 to 1.3 times the sum of this and `kv_bytes`. Not measured on a GPU.
        """
        tokens, scores = context, 0
        if self.batched:
            tokens = PREFILL_CHUNK_TOKENS
            scores = context * (
                _SCORE_COPIES * _QUERY_BLOCK * self.query_heads + PREFILL_CHUNK_TOKENS
            )
        activations = tokens * (6 * self.hidden + 2 * self.intermediate)
        quantised = quant != "none" or self.stored_bytes is not None
        dequantised = self.largest_linear if quantised else 0
        logits = rows * self.vocab * _LOGIT_COPIES * 4
        return (activations + scores + dequantised) * itemsize + logits


def shape_from_config(
    config: Any,
    context_length: int,
    *,
    trust_remote_code: bool = False,
    stored_bytes: int | None = None,
    quantisable: bool = True,
    adapter_parameters: int = 0,
    experts: bool = True,
) -> ModelShape:
    """Read the dimensions from a Transformers config.

    Args:
        config: of the model.
        context_length: in tokens.
        trust_remote_code: whether code of the model may run.
        stored_bytes: size of weights that are quantised on disk.
        quantisable: whether `--quant` can be applied.
        adapter_parameters: of the loaded adapter.
        experts: whether quantisation includes the experts of a mixture.

    Raises:
        ModelLoadError: one of them is missing.
    """
    config = copy.deepcopy(config)  # the model that is made of it changes its settings
    text = config.get_text_config(decoder=True)
    try:
        hidden, vocab, intermediate = text.hidden_size, text.vocab_size, _intermediate(text)
        kinds = _cache_layers(text)
        model = _meta_model(config, trust_remote_code)
        sizes = cache_sizes(model, kinds)
    except AttributeError as error:
        raise ModelLoadError(f"config.json lacks a value of the memory plan: {error}") from error
    linear, other, largest = _count_parameters(model, experts=experts)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    is_tied = head is not None and getattr(head, "weight", None) is embedding.weight
    return ModelShape(
        context_length=context_length,
        hidden=hidden,
        intermediate=intermediate,
        vocab=vocab,
        query_heads=max(_by_layer(text, "num_attention_heads"), default=0),
        cache=sizes,
        batched=bool(sizes.attention or sizes.stateful_layers)
        and all(type(kind) in batched_cache_layers() for kind in kinds),
        linear_parameters=linear,
        other_parameters=other,
        largest_linear=largest,
        tied_parameters=embedding.weight.numel() if is_tied else 0,
        stored_bytes=stored_bytes,
        quantisable=quantisable,
        adapter_parameters=adapter_parameters,
    )


def _cache_layers(text: Any) -> list[Any]:
    """Return the layers of the cache that Transformers creates; none where it creates no cache."""
    from transformers.cache_utils import DynamicCache

    try:
        layers: list[Any] = DynamicCache(config=text).layers
    except AttributeError as error:  # RWKV, xLSTM: states of a class of their own
        _log.info("%s has no cache of Transformers: %s", text.model_type, error)
        return []
    return layers


def _intermediate(text: Any) -> int:
    dense = max(_by_layer(text, "intermediate_size"), default=4 * text.hidden_size)
    experts = max(_by_layer(text, "num_experts_per_tok"), default=0)
    return max(dense, experts * max(_by_layer(text, "moe_intermediate_size"), default=0))


def _by_layer(text: Any, name: str) -> list[int]:
    """Return the values that a config has for all layers together, or for each of them."""
    owners = [text]
    if getattr(text, "is_heterogeneous", False):
        owners = [text.per_layer_config[layer] for layer in range(text.num_hidden_layers)]
    found: list[int] = []
    for owner in owners:
        value = getattr(owner, name, None)
        found += value if isinstance(value, list) else [value or 0]
    return [value for value in found if value]


def _meta_model(config: Any, trust_remote_code: bool) -> Any:
    """Return the model on the meta device, without memory."""
    with torch.device("meta"):
        return auto_model_class(config).from_config(
            config, trust_remote_code=trust_remote_code, dtype=torch.bfloat16
        )


def _count_parameters(model: Any, *, experts: bool) -> tuple[int, int, int]:
    """Count the parameters of linear layers but the head, of the rest, and of the largest layer."""
    head = model.get_output_embeddings()
    matrices = [
        module.weight.shape
        for module in model.modules()
        if isinstance(module, nn.Linear) and module is not head
    ]
    if experts:
        for module in filter(QuantisedExperts.replaces, model.modules()):
            matrices += [p.shape for p in module.parameters(recurse=False) if p.ndim == 3]
    linear = sum(shape.numel() for shape in matrices)
    largest = max((shape[-2:].numel() for shape in matrices), default=0)
    return linear, sum(p.numel() for p in model.parameters()) - linear, largest


def estimate_weight_bytes(
    linear: int, other: int, itemsize: int, quant: Quant, *, int4: bool = False
) -> int:
    """Estimate the memory of loaded weights.

    Args:
        linear: parameters in the layers that quantisation replaces.
        other: parameters that are not quantised: embeddings, head, norms.
        itemsize: bytes of a parameter that is not quantised.
        quant: quantisation of the linear layers.
        int4: whether 4bit is the format of `Int4Linear`, as on a CPU, instead of NF4.
    """
    per_weight = BYTES_PER_WEIGHT if int4 and quant == "4bit" else _QUANT_BYTES.get(quant, itemsize)
    return int(linear * per_weight + other * itemsize)


def free_bytes(device: torch.device) -> int:
    """Return the memory that can be allocated on `device` now without swapping."""
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return int(free)
    return int(psutil.virtual_memory().available)


def format_gib(count: int) -> str:
    """Format a number of bytes in GiB, MiB or KiB, the units in which memory is sold."""
    if count >= 2**30:
        return f"{count / 2**30:.1f} GiB"
    return f"{count / 2**20:.0f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"
