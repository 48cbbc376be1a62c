"""Adapters of every kind that PEFT writes for causal language models, with their numbers."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import (
    BdLoraConfig,
    CordaConfig,
    KasaConfig,
    LoraGAConfig,
    MontecloraConfig,
    VeloraConfig,
)
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
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
        "lora_alpha": 6,
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
    "use_dora, use_rslora": _lora(use_dora=True, use_rslora=True),
    "lora_dropout": _lora(lora_dropout=0.3),
    "fan_in_fan_out": _lora(fan_in_fan_out=True),
    "target_modules: pattern": _lora(target_modules=r".*layers\.1\..*(q_proj|up_proj)"),
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
    "embed_tokens, save_embedding_layers=False": _lora(target_modules=[*_LINEAR, "embed_tokens"]),
    "trainable_token_indices, save_embedding_layers=False": _lora(trainable_token_indices=[65, 70]),
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
    "bias: all": _lora(bias="all"),
    "lora_bias": _lora(lora_bias=True),
    "use_bdlora": _lora(
        use_bdlora=BdLoraConfig(
            target_modules_bd_a=["o_proj", "down_proj"],
            target_modules_bd_b=["q_proj", "v_proj", "up_proj"],
            nblocks=2,
        )
    ),
    "velora_config": _lora(velora_config=VeloraConfig(num_groups=2, scale=1.0)),
    "monteclora_config": _lora(monteclora_config=MontecloraConfig()),
    "kasa_config": _lora(kasa_config=KasaConfig()),
    "use_qalora, on weights that are not quantised": _lora(use_qalora=True),
    "alora_invocation_tokens": _lora(alora_invocation_tokens=[72]),
    "init: False": _lora(init_lora_weights=False),
    "init: gaussian": _lora(init_lora_weights="gaussian"),
    "init: eva": _lora(init_lora_weights="eva"),
    "init: mica": _lora(init_lora_weights="mica"),
    "init: pissa": _lora(init_lora_weights="pissa"),
    "init: olora": _lora(init_lora_weights="olora"),
    "init: orthogonal": _lora(init_lora_weights="orthogonal"),
    "init: pissa_niter_4": _lora(init_lora_weights="pissa_niter_4"),
    "init: corda": _lora(init_lora_weights="corda", corda_config=CordaConfig()),
    "init: lora_ga": _lora(init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig()),
}
EXPERTS: dict[str, Callable[[], Any]] = {
    "target_parameters": _lora(
        target_modules=["q_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    ),
    "target_parameters, rank_pattern": _lora(
        target_modules=["q_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        rank_pattern={"experts.down_proj": 2},
    ),
    "all-linear": _lora(target_modules="all-linear"),
    "target_parameters, embed_tokens": _lora(
        target_modules=["embed_tokens"], target_parameters=["mlp.experts.down_proj"]
    ),
}
"""Kinds for mixtures of experts, whose experts are one parameter."""
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
KINDS = LORA | {f"experts: {kind}": config for kind, config in EXPERTS.items()} | OTHERS
REFUSED: dict[str, str] = {
    "init: pissa_niter_4": "from random numbers",
    "init: corda": "from data",
    "init: lora_ga": "from gradients",
    "alora_invocation_tokens": "activated LoRA",
}
"""Kinds of LoRA that no engine can load as they were in training, or that need an engine of their
own, with a part of the message."""


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
        model, config = read(), KINDS[kind]()
        _prepare(model, config)
        adapted = get_peft_model(model, config)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    scale = 0.3 * (parameter.abs().mean() + 0.1)
                    parameter.add_(scale * torch.randn_like(parameter))
        own = "auto" if "save_embedding_layers=False" not in kind else False
        adapted.save_pretrained(str(folder), save_embedding_layers=own)
        tokenizer.save_pretrained(folder)
        if kind in REFUSED:
            return logprobs(adapted.eval())
        return logprobs(PeftModel.from_pretrained(read(), str(folder)).eval())


def _prepare(model: Any, config: Any) -> None:
    """Compute what an initialisation from data needs."""
    init = getattr(config, "init_lora_weights", None)
    ids = torch.tensor([TEXT])
    if init == "corda":
        preprocess_corda(model, config, run_model=lambda: model(ids))
    elif init == "lora_ga":
        preprocess_loraga(model, config, lambda: model(ids, labels=ids).loss.backward())


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


def exported(base: Path, adapter: Path, folder: Path) -> Tensor:
    """Write the merged model as GGUF; return the log-probabilities of `TEXT` from that file."""
    report = merge(
        MergeOptions(
            adapter=str(adapter),
            base=str(base),
            output=folder,
            dtype="float32",
            verify=False,
            gguf=True,
        )
    )
    assert report.gguf is not None
    return logprobs(
        AutoModelForCausalLM.from_pretrained(folder, gguf_file=report.gguf, dtype=torch.float32)
    )


def logprobs(model: Any) -> Tensor:
    """Return the log-probabilities of `TEXT` after its first token."""
    ids = torch.tensor(TEXT)
    with torch.inference_mode():
        table = model(ids[None]).logits[0].log_softmax(-1)
    found: Tensor = table[:-1].gather(1, ids[1:, None]).squeeze(1).clone()
    return found
