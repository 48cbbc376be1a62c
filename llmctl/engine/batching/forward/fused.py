"""A leaner forward pass for the Llama family, with the model's own weights.

On a small machine a decoding step is hundreds of small operators, and Transformers' general code
spends more on calling them than they take. Llama, Mistral, Qwen2, Qwen3, SmolLM and their like
share one shape of layer; for those it is written out here with a third of the operators. Whether
a model really has that shape is not believed but tried: `executor` compares logits with the model's
own, and any difference beyond rounding leaves the model as it is.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  its name everywhere
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

_REFINED = 16
"""Tokens of each row whose logits are computed again in float32."""
_MOST_REFINED_ROWS = 64
"""More rows are wanted at once only where texts are scored."""


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
    window: int | None


class FusedForward:
    """A `Forward`, for models of the Llama shape."""

    def __init__(self, model: Any, *, release: bool = False) -> None:
        """`release` takes the weights out of the model, which can then no longer run by itself."""
        self.model = model
        body = model.model
        config = model.config
        first = body.layers[0].self_attn
        self._heads = config.num_attention_heads
        self._kv_heads = config.num_key_value_heads
        self._head_dim = first.head_dim
        self._scaling: float = first.scaling
        self._device = model.device
        self._rows = AdapterSegments()
        self._sites: list[LoraLinear] = []
        self._embed: nn.Embedding = body.embed_tokens
        self._rotary: Any = body.rotary_emb
        self._norm = _norm(body.norm)
        # Mistral's layers do not know their window; it is one for all.
        window = config.sliding_window if config.model_type == "mistral" else None
        self._layers = [_layer(layer, window, release) for layer in body.layers]
        head = model.lm_head
        # The head's own layout stands beside its weight: a tied one is the embedding too, and
        # `_logits` looks single tokens up in it.
        plain = type(head) is nn.Linear and head.bias is None
        self._head_weight: Tensor | None = head.weight.detach() if plain else None
        self._head = fuse([head])

    @torch.inference_mode()
    def run(self, work: Sequence[BatchItem]) -> Tensor:
        """Compute one step; see `Forward.run`."""
        states, wanted = self._body(work)
        if len(wanted) < len(states):
            states = states[wanted]
        return self._logits(self._norm.wide(states))

    @torch.inference_mode()
    def states(self, work: Sequence[BatchItem]) -> Tensor:
        """Compute one step up to the head; see `Forward.states`."""
        return self._norm.wide(self._body(work)[0])

    def _body(self, work: Sequence[BatchItem]) -> tuple[Tensor, list[int]]:
        """Run the layers; return (tokens, hidden) in float32, and for which logits are wanted."""
        step, token_ids, positions, wanted = pack(work)
        record_adapter_segments(self._rows, work)
        ids = torch.tensor(token_ids, device=self._device)
        embedded = self._embed(ids)
        cos, sin = self._rotary(embedded, torch.tensor([positions], device=self._device))
        cos, sin = cos[0].unsqueeze(1), _signed(sin[0]).unsqueeze(1)
        # Between the layers in float32: it costs next to nothing, and half of what a bfloat16
        # model is off from its float32 self comes from rounding here (docs/performance.md).
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
            seen = attend(step, index, qk[:heads], qk[heads:], value, self._scaling, layer.window)
            x = x + layer.output(seen.reshape(len(token_ids), -1))
            gate, up = layer.gate_up(layer.mlp_norm(x)).chunk(2, dim=-1)
            x = x + layer.down(F.silu(gate) * up)
        append_computed_tokens(work)
        return x, wanted

    def _logits(self, hidden: Tensor) -> Tensor:
        """Return logits (rows, vocab) of float32 hidden states (rows, hidden).

        In bfloat16 neighbouring logits around 25 are an eighth apart, so the likeliest tokens often
        come out equal, and the first of them would win. Theirs are computed again in float32.
        """
        dtype = self._norm.dtype
        logits = self._head(hidden.to(dtype))
        weight = self._head_weight
        if weight is None or dtype == torch.float32 or hidden.shape[0] > _MOST_REFINED_ROWS:
            return logits
        best = logits.topk(min(_REFINED, logits.shape[-1]), dim=-1).indices
        exact = torch.matmul(weight[best].float(), hidden.unsqueeze(-1)).squeeze(-1)
        return logits.float().scatter_(1, best, exact)

    def put_adapter(self, key: str, adapter: LoraAdapter) -> None:
        """Hold an adapter; see `Forward.put_adapter`."""
        if not self._sites:
            self._make_sites()
        if "lm_head" in adapter:
            # Logits that are computed again from the weight alone would lack what it adds.
            self._head_weight = None
        for site in self._sites:
            site.put(key, adapter)

    def drop_adapter(self, key: str) -> None:
        """Forget an adapter."""
        for site in self._sites:
            site.drop(key)

    def _make_sites(self) -> None:
        """Make every linear layer a site for adapters; until the first comes, none pays for it."""

        def adapted(linear: Linear, rows: AdapterSlices, *paths: str) -> Linear:
            modules = {path: self.model.get_submodule(path) for path in paths}
            self._sites.append(LoraLinear(modules, rows, self.model.dtype))
            return self._sites[-1].adapt(linear)

        for index, layer in enumerate(self._layers):
            attention, mlp = f"model.layers.{index}.self_attn.", f"model.layers.{index}.mlp."
            qkv = [attention + name for name in ("q_proj", "k_proj", "v_proj")]
            tokens = self._rows.tokens
            self._layers[index] = layer._replace(
                qkv=adapted(layer.qkv, tokens, *qkv),
                output=adapted(layer.output, tokens, attention + "o_proj"),
                gate_up=adapted(layer.gate_up, tokens, mlp + "gate_proj", mlp + "up_proj"),
                down=adapted(layer.down, tokens, mlp + "down_proj"),
            )
        self._head = adapted(self._head, self._rows.wanted, "lm_head")


def _signed(sin: Tensor) -> Tensor:
    """Negate the first half, so that rolling stands in for `rotate_half`."""
    first, second = sin.chunk(2, dim=-1)
    return torch.cat((-first, second), dim=-1)


def _norm(module: Any, *, wide: bool = True) -> _Norm:
    """`wide`: its input is the float32 stream between the layers."""
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
        getattr(a, "sliding_window", window),
    )
