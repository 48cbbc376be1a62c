"""Adapters of every kind that PEFT writes for causal language models, with their numbers."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmctl.engine.hf_runner import HFRunner
from llmctl.services.merge import MergeOptions, merge
from llmctl.types import ModelSpec, ScoreRequest

TEXT = tuple(b"Hello world, ABCF\n and 42!")
_LINEAR = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]


def _lora(**options: Any) -> Callable[[], Any]:
    defaults: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 8,
        "task_type": "CAUSAL_LM",
        "target_modules": _LINEAR,
    }
    return lambda: LoraConfig(**(defaults | options))


def _other(name: str, **options: Any) -> Callable[[], Any]:
    return lambda: getattr(peft, name)(task_type="CAUSAL_LM", **options)


LORA: dict[str, Callable[[], Any]] = {
    "linear layers": _lora(),
    "all-linear": _lora(target_modules="all-linear"),
    "use_rslora": _lora(use_rslora=True),
    "use_dora": _lora(use_dora=True),
    "rank_pattern, alpha_pattern": _lora(rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3}),
    "exclude_modules": _lora(target_modules="all-linear", exclude_modules=["down_proj"]),
    "layers_to_transform": _lora(layers_to_transform=[1], layers_pattern="layers"),
    "embed_tokens": _lora(target_modules=[*_LINEAR, "embed_tokens"]),
    "lm_head": _lora(target_modules=[*_LINEAR, "lm_head"]),
    "embed_tokens, lm_head": _lora(target_modules=[*_LINEAR, "embed_tokens", "lm_head"]),
    "embed_tokens, use_dora": _lora(target_modules=[*_LINEAR, "embed_tokens"], use_dora=True),
    "embed_tokens, ensure_weight_tying": _lora(
        target_modules=[*_LINEAR, "embed_tokens"], ensure_weight_tying=True
    ),
    "modules_to_save: embed_tokens": _lora(modules_to_save=["embed_tokens"]),
    "modules_to_save: lm_head": _lora(modules_to_save=["lm_head"]),
    "modules_to_save: both": _lora(modules_to_save=["embed_tokens", "lm_head"]),
    "modules_to_save, ensure_weight_tying": _lora(
        modules_to_save=["embed_tokens"], ensure_weight_tying=True
    ),
    "modules_to_save: norm": _lora(modules_to_save=["norm"]),
    "grown vocabulary, modules_to_save": _lora(modules_to_save=["embed_tokens", "lm_head"]),
    "trainable_token_indices": _lora(trainable_token_indices=[65, 70]),
    "trainable_token_indices, ensure_weight_tying": _lora(
        trainable_token_indices=[65, 70], ensure_weight_tying=True
    ),
    "target_parameters": _lora(target_parameters=["mlp.gate_proj.weight"]),
    "layer_replication": _lora(layer_replication=[[0, 2], [1, 2]]),
    "bias: lora_only": _lora(bias="lora_only"),
    "lora_bias": _lora(lora_bias=True),
    "init: pissa": _lora(init_lora_weights="pissa"),
    "init: olora": _lora(init_lora_weights="olora"),
    "init: orthogonal": _lora(init_lora_weights="orthogonal"),
    "init: pissa_niter_4": _lora(init_lora_weights="pissa_niter_4"),
}
OTHERS: dict[str, Callable[[], Any]] = {
    "VeRA": _other("VeraConfig", r=4, target_modules=["q_proj", "o_proj"]),
    "LoHa": _other("LoHaConfig", r=4, target_modules=_LINEAR),
    "LoKr": _other("LoKrConfig", r=4, target_modules=_LINEAR),
    "IA3": _other(
        "IA3Config",
        target_modules=["k_proj", "v_proj", "down_proj"],
        feedforward_modules=["down_proj"],
    ),
    "OFT": _other("OFTConfig", r=4, oft_block_size=0, target_modules=["q_proj"]),
    "BOFT": _other("BOFTConfig", boft_block_size=4, target_modules=["q_proj"]),
    "LN tuning": _other("LNTuningConfig"),
    "prompt tuning": _other("PromptTuningConfig", num_virtual_tokens=3),
    "prefix tuning": _other("PrefixTuningConfig", num_virtual_tokens=3),
}
KINDS = LORA | OTHERS


def save(kind: str, base: Path, folder: Path) -> Tensor:
    """Save a random adapter; return PEFT's log-probabilities of `TEXT`, unmerged.

    The adapter is loaded again by PEFT: some kinds change the base model when they are created.
    """
    tokenizer = AutoTokenizer.from_pretrained(base)
    if kind.startswith("grown"):
        tokenizer.add_tokens(["<a>", "<b>", "<c>"])

    def read() -> Any:
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        if kind.startswith("grown"):
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        return model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(3)
        adapted = get_peft_model(read(), KINDS[kind]())
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    scale = 0.3 * (parameter.abs().mean() + 0.1)
                    parameter.add_(scale * torch.randn_like(parameter))
        adapted.save_pretrained(str(folder))
        tokenizer.save_pretrained(folder)
        return logprobs(PeftModel.from_pretrained(read(), str(folder)).eval())


def served(base: Path, adapter: Path) -> Tensor:
    """Return the log-probabilities of `TEXT` that the engine gives with the adapter."""
    spec = ModelSpec(str(base), adapter=str(adapter), device="cpu", dtype="float32")
    with HFRunner(spec) as engine:
        engine.load()
        request = ScoreRequest(TEXT[:1], (TEXT[1:],), logprobs=0)
        score = engine.submit_scores([request]).result()[0][0]
        return torch.tensor([token.chosen.logprob for token in score.tokens])


def merged(base: Path, adapter: Path, folder: Path) -> Tensor:
    """Merge the adapter; return the log-probabilities of `TEXT` of the merged model."""
    merge(
        MergeOptions(
            adapter=str(adapter), base=str(base), output=folder, dtype="float32", verify=False
        )
    )
    return logprobs(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


def logprobs(model: Any) -> Tensor:
    """Return the log-probabilities of `TEXT` after its first token."""
    ids = torch.tensor(TEXT)
    with torch.inference_mode():
        table = model(ids[None]).logits[0].log_softmax(-1)
    found: Tensor = table[:-1].gather(1, ids[1:, None]).squeeze(1).clone()
    return found
