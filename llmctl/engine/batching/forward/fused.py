"""Fused forward pass for models of the Llama family, with the model's own weights.

On a CPU a decoding step is hundreds of small operators, and in Transformers' general code calling
them takes longer than computing them. Llama, Mistral, Qwen2, Qwen3, SmolLM and others share one
layer structure, implemented here with a third of the operators. `executor` compares the logits with
the model's own and uses this pass only if they agree.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  the usual name
from torch import Tensor, nn

from llmctl.engine.batching.forward.attention import attend
from llmctl.engine.batching.forward.linear import Linear, fuse
from llmctl.engine.batching.forward.lora import (
    AdapterSegments,
    AdapterSlices,
    LoraAdapter,
    LoraLinear,
)
from llmctl.engine.batching.forward.packed import (
    BatchItem,
    append_computed_tokens,
    pack,
    record_adapter_segments,
)
from llmctl.engine.batching.forward.packed_linear import Float16Linear, Int8Linear
from llmctl.engine.batching.forward.step import Scores

_REFINED_TOKENS = 16
"""Likeliest tokens of each row whose logits are computed again in float32."""
_MAX_REFINED_ROWS = 64
"""Rows up to which logits are refined; only scoring has more in one step."""


class _Norm(NamedTuple):
    weight: Tensor
    epsilon: float
    dtype: torch.dtype

    def __call__(self, x: Tensor) -> Tensor:
        return self.wide(x).to(self.dtype)

    def wide(self, x: Tensor) -> Tensor:
        """Normalise without rounding to the model's type."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


class _Layer(NamedTuple):
    input_norm: _Norm
    qkv: Linear
    query_norm: _Norm | None
    key_norm: _Norm | None
    output: Linear
    mlp_norm: _Norm
    gate_up: Linear
    down: Linear
    scores: Scores


class FusedForward:
    """A `Forward` for models with the layer structure of Llama.

    Args:
        model: of Transformers.
        release: free the weights in the model, which can then no longer run by itself.
    """

    def __init__(self, model: Any, *, release: bool = False) -> None:
        self.model = model
        body = model.model
        config = model.config
        first = body.layers[0].self_attn
        self._heads = config.num_attention_heads
        self._kv_heads = config.num_key_value_heads
        self._head_dim = first.head_dim
        self._device = model.device
        self._segments = AdapterSegments()
        self._lora_layers: list[LoraLinear] = []
        self._embed: nn.Embedding = body.embed_tokens
        self._rotary: Any = body.rotary_emb
        self._norm = _norm(body.norm)
        # Mistral's layers have no window of their own; the config's holds for all.
        window = config.sliding_window if config.model_type == "mistral" else None
        self._layers = [_layer(layer, window, release) for layer in body.layers]
        self._head, self._head_weight = _head(model, release)

    @torch.inference_mode()
    def run(self, batch: Sequence[BatchItem]) -> Tensor:
        """Compute one step; see `Forward.run`."""
        states, indices = self._body(batch)
        if len(indices) < len(states):
            states = states[indices]
        return self._logits(self._norm.wide(states))

    @torch.inference_mode()
    def states(self, batch: Sequence[BatchItem]) -> Tensor:
        """Compute one step up to the head; see `Forward.states`."""
        return self._norm.wide(self._body(batch)[0])

    def _body(self, batch: Sequence[BatchItem]) -> tuple[Tensor, list[int]]:
        """Run the layers; return (tokens, hidden) in float32, and the indices of logits."""
        step, token_ids, positions, indices = pack(batch)
        record_adapter_segments(self._segments, batch)
        ids = torch.tensor(token_ids, device=self._device)
        embedded = self._embed(ids)
        cos, sin = self._rotary(embedded, torch.tensor([positions], device=self._device))
        cos, sin = cos[0].unsqueeze(1), _signed(sin[0]).unsqueeze(1)
        # The residual stream is float32: that costs little, and rounding it causes half of the
        # error of bfloat16 against float32 (docs/performance.md).
        x = embedded.float()
        half = self._head_dim // 2
        heads, kv_heads = self._heads, self._kv_heads
        shape = (len(token_ids), heads + 2 * kv_heads, self._head_dim)
        for index, layer in enumerate(self._layers):
            mixed = layer.qkv(layer.input_norm(x)).view(shape)
            qk = mixed[:, : heads + kv_heads]
            if layer.query_norm is not None and layer.key_norm is not None:
                qk = torch.cat(
                    (layer.query_norm(qk[:, :heads]), layer.key_norm(qk[:, heads:])), dim=1
                )
            # Rotary embedding (Su et al. 2021) in Transformers' layout: halves, not pairs.
            qk = torch.addcmul(qk * cos, qk.roll(half, -1), sin).transpose(0, 1)
            value = mixed[:, heads + kv_heads :].transpose(0, 1)
            attended = attend(step, index, qk[:heads], qk[heads:], value, layer.scores)
            x = x + layer.output(attended.reshape(len(token_ids), -1))
            gate, up = layer.gate_up(layer.mlp_norm(x)).chunk(2, dim=-1)
            x = x + layer.down(F.silu(gate) * up)
        append_computed_tokens(batch)
        return x, indices

    def _logits(self, hidden: Tensor) -> Tensor:
        """Return logits (rows, vocab) of float32 hidden states (rows, hidden).

        In bfloat16 adjacent numbers around 25 differ by an eighth, so the likeliest tokens often
        have equal logits and the first would win. Their logits are computed again in float32, and
        so are those of an 8-bit head.
        """
        logits = self._head(hidden.to(self._norm.dtype))
        weight = self._head_weight
        if weight is None or hidden.shape[0] > _MAX_REFINED_ROWS:
            return logits
        best = logits.topk(min(_REFINED_TOKENS, logits.shape[-1]), dim=-1).indices
        exact = torch.matmul(weight[best].float(), hidden.unsqueeze(-1)).squeeze(-1)
        return logits.float().scatter_(1, best, exact)

    def put_adapter(self, key: str, adapter: LoraAdapter) -> None:
        """Add an adapter; see `Forward.put_adapter`."""
        if not self._lora_layers:
            self._add_lora_layers()
        if "lm_head" in adapter:
            # Logits refined with the weight alone would lack the adapter.
            self._head_weight = None
        for layer in self._lora_layers:
            layer.put(key, adapter)

    def drop_adapter(self, key: str) -> None:
        """Remove an adapter."""
        for layer in self._lora_layers:
            layer.drop(key)

    def _add_lora_layers(self) -> None:
        """Wrap every linear layer for adapters; only done when the first one is added."""

        def adapted(linear: Linear, rows: AdapterSlices, *paths: str) -> Linear:
            modules = {path: self.model.get_submodule(path) for path in paths}
            self._lora_layers.append(LoraLinear(modules, rows, self.model.dtype))
            return self._lora_layers[-1].adapt(linear)

        for index, layer in enumerate(self._layers):
            attention, mlp = f"model.layers.{index}.self_attn.", f"model.layers.{index}.mlp."
            qkv = [attention + name for name in ("q_proj", "k_proj", "v_proj")]
            tokens = self._segments.tokens
            self._layers[index] = layer._replace(
                qkv=adapted(layer.qkv, tokens, *qkv),
                output=adapted(layer.output, tokens, attention + "o_proj"),
                gate_up=adapted(layer.gate_up, tokens, mlp + "gate_proj", mlp + "up_proj"),
                down=adapted(layer.down, tokens, mlp + "down_proj"),
            )
        self._head = adapted(self._head, self._segments.logits, "lm_head")


def _head(model: Any, release: bool) -> tuple[Linear, Tensor | None]:
    """Return the output layer, and its weights (vocab, hidden) if they refine the logits."""
    head, embedding = model.lm_head, model.model.embed_tokens
    is_plain = type(head) is nn.Linear and head.bias is None
    is_tied = (is_plain and head.weight is embedding.weight) or getattr(embedding, "is_head", False)
    if is_tied and isinstance(model.model.layers[0].mlp.down_proj, Int8Linear):
        weight = embedding.weight.detach()
        if release and isinstance(head, Float16Linear):
            head.release_weights()
        return Int8Linear.of(weight).multiply, weight
    # The weight is kept beside its packed copy: a tied one is also the embedding, and `_logits`
    # reads single rows of it.
    refines = is_plain and head.weight.dtype != torch.float32
    return fuse([head]), head.weight.detach() if refines else None


def _signed(sin: Tensor) -> Tensor:
    """Negate the first half, so that `roll` does the work of `rotate_half`."""
    first, second = sin.chunk(2, dim=-1)
    return torch.cat((-first, second), dim=-1)


def _norm(module: Any, *, wide: bool = True) -> _Norm:
    """Copy a norm. `wide`: its input is the float32 residual stream."""
    weight = module.weight.detach()
    return _Norm(weight.float() if wide else weight, module.variance_epsilon, weight.dtype)


def _layer(layer: Any, window: int | None, release: bool) -> _Layer:
    a, m = layer.self_attn, layer.mlp
    return _Layer(
        _norm(layer.input_layernorm),
        fuse([a.q_proj, a.k_proj, a.v_proj], release=release),
        _norm(a.q_norm, wide=False) if hasattr(a, "q_norm") else None,
        _norm(a.k_norm, wide=False) if hasattr(a, "k_norm") else None,
        fuse([a.o_proj], release=release),
        _norm(layer.post_attention_layernorm),
        fuse([m.gate_proj, m.up_proj], release=release),
        fuse([m.down_proj], release=release),
        Scores(a.scaling, getattr(a, "sliding_window", window)),
    )
