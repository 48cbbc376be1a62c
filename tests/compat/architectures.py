"""Table of the model types of Transformers: how each runs, and whether its replies are right.

Run `python -m tests.compat.architectures [TYPE ...]`; all types take twenty minutes on two cores.
Each type is a random model of a few thousand parameters; of vision-language models the text part is
tested. Sixteen prompts of very different lengths are
generated greedily in one batch and compared with `generate()` of each alone, in float32.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.utils import logging

from llmctl.engine.auto_model import auto_model_class
from llmctl.engine.hf_runner import HFRunner
from llmctl.types import GenerationRequest, ModelSpec, SamplingParams
from tests.compat.table import write_table
from tests.tiny import byte_tokenizer

# fmt: off
_OTHER_TASKS = (
    "bart", "bert", "bert-generation", "big_bird", "bigbird_pegasus", "blenderbot",
    "blenderbot-small", "camembert", "data2vec-text", "electra", "ernie", "marian", "mbart",
    "megatron-bert", "mvp", "pegasus", "plbart", "prophetnet", "rembert", "roberta",
    "roberta-prelayernorm", "roformer", "roc_bert", "trocr", "whisper", "xlm", "xlm-roberta",
    "xlm-roberta-xl", "xlnet", "xmod", "musicgen", "musicgen_melody", "git", "reformer", "moshi",
    "florence2", "pix2struct", "pp_formulanet", "t5gemma2", "udop", "vision-encoder-decoder", "pi0",
    "evolla",
    "blip", "blip-2", "instructblip", "instructblipvideo", "idefics", "kosmos-2", "kosmos-2.5",
    "diffusion_gemma", "pp_chart2table", "gemma4_assistant", "gemma4_unified_assistant",
    "shieldgemma2",
)
"""Encoders, encoder-decoders, drafts of other models, and models that need an image or audio."""
_TINY: dict[str, Any] = {
    "vocab_size": 260, "unpadded_vocab_size": 260, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 32, "n_embd": 32, "d_model": 32, "embedding_size": 32, "word_embed_proj_dim": 32,
    "intermediate_size": 48, "n_inner": 48, "ffn_dim": 48, "block_dim": 32, "block_ff_dim": 48,
    "num_hidden_layers": 4, "n_layer": 4,
    "num_attention_heads": 4, "n_head": 4, "num_key_value_heads": 2, "head_dim": 8,
    "global_head_dim": 16, "num_global_key_value_heads": 1, "kv_channels": 8, "rotary_dim": 8,
    "max_position_embeddings": 512, "n_positions": 512, "n_ctx": 512,
    "sliding_window": 16, "attention_chunk_size": 16, "window_size": 16,
    "attention_window_size": 16, "attention_window": 16, "lru_width": 32,
    # Mixture of experts
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_layer": 4, "num_experts_per_tok": 2, "num_experts_per_token": 2,
    "moe_topk": 2, "moe_k": 2, "n_shared_experts": 1, "num_shared_experts": 1, "n_group": 1,
    "topk_group": 1, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    "expert_intermediate_size": 16, "shared_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16, "first_k_dense_replace": 1,
    "moe_layer_start_index": 1,
    # Latent attention, indexers
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 12, "qk_head_dim": 16, "index_n_heads": 2, "index_head_dim": 8, "index_topk": 16,
    # Recurrent layers
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "linear_conv_kernel_dim": 4, "mamba_n_heads": 4, "mamba_d_state": 8,
    "mamba_d_conv": 4, "mamba_expand": 2, "mamba_n_groups": 1, "mamba_chunk_size": 16,
    "mamba_d_head": 16, "mamba_dt_rank": 4, "mamba_d_ssm": 64, "mamba_num_heads": 4,
    "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 16, "conv_kernel": 4,
    "expand": 2, "state_size": 8, "num_heads": 4, "n_mamba_heads": 4, "mamba_headdim": 16,
    "mamba_ngroups": 1, "conv_L_cache": 3,
    # Embeddings per layer, shared keys and values
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 260, "num_kv_shared_layers": 1,
}
# fmt: on
_ALTERNATING = ["mamba", "attention"] * 2
_OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "granitemoehybrid": {"layer_types": _ALTERNATING},
    "bailing_hybrid": {"layer_group_size": 2, "num_key_value_heads": 4},
    "mamba2": {"head_dim": 16},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid"] * 2,
        "head_dim": 16,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_mem_blocks": 1,
    },
    "gemma4_unified_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
    },
    "zaya": {"num_experts_per_tok": 1},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
        "max_seq_len": 512,
    },
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
    },
    "zamba": {"num_hidden_layers": 8, "attn_layer_period": 3, "attn_layer_offset": 1},
    "glm5_next_text": {"qk_rope_head_dim": 0, "num_key_value_heads": 4},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]},
    "gemma4_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
    },
    "qwen3_vl_moe_text": {"sliding_window": None},  # it has no windows
    "qwen3_omni_moe_text": {"sliding_window": None},
    "ernie4_5_vl_moe_text": {"moe_intermediate_size": [16, 16]},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_layers": 4},
    "kimi_linear": {
        "num_key_value_heads": 4,
        "linear_attn_config": {
            "kda_layers": [1, 3],
            "full_attn_layers": [2, 4],
            "num_heads": 4,
            "head_dim": 8,
            "short_conv_kernel_size": 4,
        },
    },
}
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "embed_dim": 32,
    "intermediate_size": 48,
    "out_hidden_size": 32,
    "num_hidden_layers": 2,
    "depth": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_heads": 4,
    "head_dim": 8,
    "patch_size": 14,
    "image_size": 28,
    "deepstack_visual_indexes": [0, 1],
    "fullatt_block_indexes": [1],
    "num_position_embeddings": 16,
}
_MULTIMODAL_ROPE = (
    "glm4v",
    "glm46v",
    "glm_ocr",
    "qwen2_vl",
    "qwen2_5_vl",
    "paddleocr_vl",
    "omni",
    "cosmos3_edge",
    "hy_v4_vl",
    "ernie4_5_vl",
    "hunyuan_vl",
)
"""Parts of the names of types whose rotary embeddings have three sections."""
_OWN_VISION: dict[str, dict[str, Any]] = {
    "molmo2_vision": {"image_size": [28, 28]},
    "inkling2_vision": {"text_hidden_size": 32},
    "molmo2_adapter": {"vision_feature_layer": [1, 0]},
    "radio": {"video_temporal_patch_size": 2},
}
_WHOLE: dict[str, dict[str, Any]] = {
    "qwen2_5_omni_thinker": {"vision_start_token_id": 7, "vision_end_token_id": 8},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 7, "vision_end_token_id": 8},
    "chameleon": {"vocabulary_map": {"<image>": 5}},
    "emu3": {"vocabulary_map": {"<image>": 5}},
}
_TOKENS = {
    "image_token_id": 5,
    "image_token_index": 5,
    "video_token_id": 6,
    "pad_token_id": 0,
    "vision_start_token_id": 7,
    "vision_end_token_id": 8,
}
_LATENT = (
    *("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"),
    *("glm_moe_dsa", "minicpm3", "youtu", "sarvam_mla", "mistral4", "longcat_flash"),
    *("mistral_large4_text", "dots3_note_text", "glm5_next_text", "hy_v4_vl_text"),
)
for _name in _LATENT:
    _OWN[_name] = {"num_key_value_heads": 4} | _OWN.get(_name, {})
_LEFT_OUT: dict[str, tuple[str, ...]] = dict.fromkeys(
    (*_LATENT, "kimi_linear", "falcon"), ("head_dim",)
)
_LEFT_OUT["xlstm"] = ("v_head_dim", "qk_head_dim")
_MAX_PARAMETERS = 260_000_000


def causal_types() -> list[str]:
    """Return the types of language models, and of vision-language models with a text part."""
    known = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
    return sorted(known.difference(_OTHER_TASKS))


def build(model_type: str, dtype: torch.dtype = torch.float32) -> Any:
    """Return a tiny random model.

    Raises:
        Exception: its configuration is not covered by the tiny values.
    """
    config = tiny_config(model_type)
    # Checkpoints of vision-language models are whole.
    whole = model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    model_class: Any = AutoModelForImageTextToText if whole else auto_model_class(config)
    with torch.device("meta"):
        skeleton = model_class.from_config(config)
    if (count := sum(p.numel() for p in skeleton.parameters())) > _MAX_PARAMETERS:
        raise ValueError(f"{count:,} parameters: its sizes have other names")
    torch.manual_seed(0)
    model: Any = model_class.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.3 if parameter.ndim == 2 else 0.2)
    return model


def tiny_config(model_type: str, **text: Any) -> Any:
    """Return a tiny configuration; `text` changes that of the text part."""
    default = AutoConfig.for_model(model_type)
    parts = {
        name: _part_values(name, part, text)
        for name in getattr(default, "sub_configs", {})
        if isinstance(part := getattr(default, name, None), PreTrainedConfig)
    }
    own = _own_values(default, model_type) if "text_config" not in parts else {}
    own |= {n: v for n, v in _TOKENS.items() if hasattr(default, n)}
    return AutoConfig.for_model(model_type, **(own | parts | _WHOLE.get(model_type, {})))


def _part_values(name: str, part: Any, text: dict[str, Any]) -> dict[str, Any]:
    if name == "text_config":
        values = _own_values(part, part.model_type) | text
    else:
        tiny = _VISION | _OWN_VISION.get(part.model_type, {})
        values = {n: v for n, v in tiny.items() if _has(part, n)}
    return values | {"model_type": part.model_type}


def _own_values(config: Any, model_type: str) -> dict[str, Any]:
    values = tiny_values(config)
    for name in _LEFT_OUT.get(model_type, ()):
        values.pop(name, None)
    if any(mark in model_type for mark in _MULTIMODAL_ROPE):
        part = getattr(config, "rope_parameters", {}).get("partial_rotary_factor", 1)
        section = [2, 1, 1] if part == 1 else [1, 1, 0]
        if model_type.startswith("hunyuan"):
            section = [1, 1, 1, 1]
        values["rope_parameters"] = config.rope_parameters | {"mrope_section": section}
    return values | _OWN.get(model_type, {})


def tiny_values(config: Any) -> dict[str, Any]:
    """Return the tiny values of the options that a config has."""
    aliases = getattr(type(config), "attribute_map", {})
    return {n: v for n, v in _TINY.items() if n in aliases or _has(config, n)}


def _has(config: Any, name: str) -> bool:
    try:
        return hasattr(config, name)
    except Exception:  # a value that differs by layer raises an error of its own
        return True


def check(model_type: str, folder: Path) -> list[str]:
    """Return a row: type, path in float32 and bfloat16, right replies, distinct tokens, reuse."""
    model = build(model_type)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    if model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        loaded_class = auto_model_class(AutoConfig.from_pretrained(folder))
        model = loaded_class.from_pretrained(folder, dtype=torch.float32)
        model.generation_config.eos_token_id = None
    prompts = [[3 + (7 * i + 5 * j) % 250 for j in range(1 + 5 * i)] for i in range(16)]
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=12,
                pad_token_id=0,
            )
        expected.append(output[0, len(prompt) :].tolist())
    paths, reason, right, reused = [], "", 0, 0
    for dtype in ("float32", "bfloat16"):
        with HFRunner(ModelSpec(str(folder), device="cpu", dtype=dtype)) as engine:
            engine.load()
            paths.append(engine.path)
            if engine.path == "serial":
                reason = engine.info().execution_reason
            if dtype == "float32":
                found = _replies(engine, prompts)
                right = sum(ids == own for (ids, _), own in zip(found, expected, strict=True))
                reused = _replies(engine, [prompts[-1] + expected[-1][:5]])[0][1]
    distinct = len({token for ids in expected for token in ids})
    path = paths[0] if paths[0] == paths[1] else " / ".join(paths)
    note = f" ({reason})" if reason else ""
    return [model_type, path + note, f"{right} of 16", str(distinct), f"{reused} of 80"]


def _replies(engine: HFRunner, prompts: list[list[int]]) -> list[tuple[list[int], int]]:
    """Return the ids of each reply, and how many prompt tokens came from the cache."""
    sampling = SamplingParams(temperature=0, max_new_tokens=12, ignore_eos=True, logprobs=0)
    streams = [
        engine.submit(GenerationRequest(prompt=tuple(prompt), sampling=sampling))
        for prompt in prompts
    ]
    replies = []
    for stream in streams:
        ids, cached = [], 0
        for chunk in stream:
            ids += [entry.chosen.token_id for entry in chunk.logprobs]
            cached = chunk.usage.cached_tokens if chunk.usage else cached
        replies.append((ids, cached))
    return replies


def main() -> None:
    """Check all types, or those named, and write the table."""
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    rows = []
    for model_type in sys.argv[1:] or causal_types():
        with tempfile.TemporaryDirectory() as folder:
            try:
                rows.append(check(model_type, Path(folder)))
            except Exception as error:
                what = (str(error).strip().splitlines() or [""])[0][:80]
                rows.append(
                    [model_type, f"not checked: {type(error).__name__}: {what}", "", "", ""]
                )
        print(rows[-1], flush=True)
    if not sys.argv[1:]:
        header = ["type", "path", "equal to generate()", "distinct tokens", "reused prefix"]
        write_table("architectures", header, rows, ["transformers", "torch"])


if __name__ == "__main__":
    main()
