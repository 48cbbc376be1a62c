"""Tokens per second of one and of eight streams on random models of about 100M parameters.

Run `python tests/benchmarks/families.py`. To compare with another checkout of llmctl, run both in
turns, this one with `PYTHONPATH=CHECKOUT`. The weights are float32 and random; every stream has a
prompt of its own of about 110 tokens and generates 64 tokens. `--five-shot` measures an evaluation
in place of streams: 100 questions with four options each, below the same five examples.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from llmctl.engine.hf_runner import HFRunner
from llmctl.types import GenerationRequest, ModelSpec, SamplingParams, ScoreRequest
from tests.tiny import byte_tokenizer

_COMMON: dict[str, Any] = {
    "vocab_size": 32_000,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": 258,
    "eos_token_id": 257,
    "pad_token_id": 257,
}
_LAYERS = ["conv", "conv", "full_attention"] * 4
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_5_text": {
        "intermediate_size": 2048,
        "num_hidden_layers": 16,
        "head_dim": 64,
        "linear_num_value_heads": 8,
        "linear_num_key_heads": 4,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
        "tie_word_embeddings": True,
    },
    "lfm2": {"block_ff_dim": 2048, "num_hidden_layers": 12, "layer_types": _LAYERS},
    "gpt_oss": {
        "intermediate_size": 768,
        "num_hidden_layers": 8,
        "head_dim": 64,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "sliding_window": 128,
    },
    "deepseek_v3": {
        "intermediate_size": 1536,
        "moe_intermediate_size": 384,
        "num_hidden_layers": 10,
        "num_key_value_heads": 8,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 256,
        "kv_lora_rank": 128,
        "qk_rope_head_dim": 32,
        "qk_nope_head_dim": 64,
        "v_head_dim": 64,
        "qk_head_dim": 96,
    },
}


def streams_per_s(engine: HFRunner, count: int, tag: str) -> float:
    """Return the tokens per second of `count` streams together."""
    sampling = SamplingParams(temperature=0, max_new_tokens=64, ignore_eos=True)
    text = "the quick brown fox " * 5
    requests = [
        GenerationRequest(prompt=f"{tag} {number} {text}", sampling=sampling)
        for number in range(count)
    ]
    begin = time.perf_counter()
    streams = [engine.submit(request) for request in requests]
    for stream in streams:
        for _ in stream:
            pass
    return count * 64 / (time.perf_counter() - begin)


def evaluation_s(engine: HFRunner) -> float:
    """Return the seconds of an evaluation of 100 questions with five examples (1,050 tokens)."""
    shots = "".join(
        f"Question {n}: which of these is the number {n}?\n" + "A text of the same length.\n" * 5
        for n in range(5)
    )
    answers = (" A", " B", " C", " D")
    requests = [
        ScoreRequest(f"{shots}Question: what is {n} times {n + 1}? Answer:", answers)
        for n in range(100)
    ]
    begin = time.perf_counter()
    engine.submit_scores(requests).result()
    return time.perf_counter() - begin


def main() -> None:
    """Measure the families that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--five-shot", action="store_true")
    options = parser.parse_args()
    logging.set_verbosity_error()
    columns = ["1 stream", "8 streams"] if not options.five_shot else ["100 questions, s"]
    header = ["model", "parameters", "path", *columns]
    print(f"| {' | '.join(header)} |\n|{' --- |' * len(header)}")
    for family in options.families:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / family
            torch.manual_seed(0)
            config = AutoConfig.for_model(family, **(_COMMON | FAMILIES[family]))
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            count = sum(parameter.numel() for parameter in model.parameters())
            model.save_pretrained(folder)
            byte_tokenizer().save_pretrained(folder)
            del model
            with HFRunner(ModelSpec(str(folder), dtype="float32", device="cpu")) as engine:
                engine.load()
                streams_per_s(engine, 2, "warm up")
                if options.five_shot:
                    figures = [evaluation_s(engine)]
                else:
                    figures = [
                        max(streams_per_s(engine, rows, f"{rows} {n}") for n in range(2))
                        for rows in (1, 8)
                    ]
                path = engine.path
        cells = [family, f"{count / 1e6:.0f}M", path, *(f"{figure:.1f}" for figure in figures)]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
