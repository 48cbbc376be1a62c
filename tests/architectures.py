"""Tiny models of the kinds of caches that current architectures have."""

from typing import Any

_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "qk_head_dim": 16,
}
_DELTA_NET: dict[str, Any] = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_MAMBA_2: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("fused", {}),
    "mistral": ("fused", {"sliding_window": 12}),
    "qwen2": ("fused", {"use_sliding_window": False}),
    "qwen3": ("fused", {"tie_word_embeddings": True}),
    # Sliding and full layers alternate; four norms per layer, with weights offset by one.
    "gemma3_text": ("batched", {"sliding_window": 8, "num_hidden_layers": 6}),
    "gpt_neox": ("batched", {"rotary_pct": 0.25, "num_key_value_heads": 4}),
    "phi3": ("batched", {"pad_token_id": 0}),
    # Scores are limited by tanh.
    "gemma2": ("batched", {"sliding_window": 8, "attn_logit_softcapping": 3.0}),
    # Sinks take part in the softmax.
    "gpt_oss": (
        "batched",
        {"sliding_window": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    # The last two layers use the keys and values of earlier ones; layers differ in head size.
    "gemma4_text": (
        "batched",
        {
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "sliding_window": 8,
            "global_head_dim": 16,
            "num_global_key_value_heads": 1,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 259,
        },
    ),
    # Attention within chunks; the others scale queries by their positions.
    "llama4_text": (
        "batched",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 48,
            "attention_chunk_size": 8,
            "floor_scale": 10,
            "attn_scale": 0.5,
            "no_rope_layers": [1, 0],
            "head_dim": 8,
        },
    ),
    # Latent attention.
    "deepseek_v3": (
        "batched",
        {
            **_LATENT,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
    ),
    # Latent attention beside recurrent layers.
    "kimi_linear": (
        "batched",
        {
            **_LATENT,
            "num_experts": 4,
            "num_experts_per_token": 2,
            "moe_intermediate_size": 16,
            "linear_num_heads": 4,
            "linear_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
            "mlp_layer_types": ["dense", "sparse"],
        },
    ),
    # Gated delta nets beside attention.
    "qwen3_next": (
        "batched",
        {**_EXPERTS, **_DELTA_NET, "layer_types": ["linear_attention", "full_attention"]},
    ),
    # Short convolutions.
    "lfm2": ("batched", {"layer_types": ["conv", "full_attention"], "block_ff_dim": 64}),
    # Recurrent states and attention in one layer.
    "falcon_h1": ("batched", {**_MAMBA_2, "mamba_d_ssm": 64}),
    # No attention at all.
    "mamba2": (
        "batched",
        {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    ),
    # Continues from a state by one token only.
    "jamba": (
        "batched",
        {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 4,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
        },
    ),
    # Attention by its own code, not by Transformers' interface.
    "bloom": ("serial", {"n_layer": 2, "n_head": 4}),
}
"""Model type -> how it runs, and the options of `save_tiny_model`."""
