"""Settings of `llmctl finetune`.

Each field is a key of the YAML file and an option of the command; its docstring is the help of the
option. `None` means that the run computes the value from the model, the data and the machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from llmctl.config.model import DEFAULT_MODEL, spec_from_config
from llmctl.config.option import Option
from llmctl.errors import ConfigError
from llmctl.types import DType, EvalMode, ModelSpec, Quant

TrainMethod = Literal["lora", "qlora", "dora", "rslora", "full", "dpo"]
LrScheduler = Literal["cosine", "linear", "constant"]
Optimizer = Literal["auto", "adamw", "adamw_8bit", "paged_adamw_8bit"]
AttentionBackend = Literal["auto", "sdpa", "flash", "eager"]

_Count = Annotated[int, Ge(1)]
_Share = Annotated[float, Ge(0), Lt(1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """The settings of one training.

    The values come from the QLoRA paper's own scripts (Dettmers et al. 2023: all linear layers,
    NF4 with double quantisation, learning rate 2e-4, batch 16, warm-up 3 %, gradient norm 0.3,
    beta2 0.999) and from "LoRA Without Regret" (Schulman et al. 2025: the layers of the
    feed-forward part matter most, the learning rate hardly depends on the rank).
    """

    model: Annotated[str, Option(short="-m", aliases=("model_path",), variable="LLMCTL_MODEL")] = (
        DEFAULT_MODEL
    )
    """Model to fine-tune: catalogue name, hub id (owner/name[@revision]) or folder. The folder of
    an adapter continues that adapter."""
    data: Annotated[tuple[str, ...], MinLen(1), Option(short="-d", aliases=("data_path",))]
    """File, folder or hub id of the training data; may be repeated."""
    output: Annotated[str, Option(short="-o", aliases=("output_dir",))]
    """Folder for the adapter, the checkpoints and the run lock."""
    method: TrainMethod = "lora"
    """Method: lora; qlora (LoRA on 4-bit weights); dora; rslora; full (all weights); dpo (LoRA on
    pairs of a chosen and a rejected reply)."""

    eval_data: tuple[str, ...] = ()
    """Evaluation data, in place of a share of the training data; may be repeated."""
    eval_fraction: _Share = 0.05
    """Share of the data held out for evaluation, chosen by the hash of each row."""
    eval: tuple[str, ...] = ()
    """Benchmark to run before and after training, such as ceval or a file of your own (see `llmctl
    eval list`); may be repeated. The difference is shown and logged."""
    eval_limit: _Count | None = None
    """Maximum number of questions per subject in these benchmarks."""
    eval_mode: EvalMode | None = None
    """Mode of these benchmarks: ppl, logprob, logprob_norm or gen. [default: set by each benchmark]
    """
    eval_dir: str | None = None
    """Folder to search for these benchmarks before the store."""
    format: str | None = None
    """Format of all rows, such as alpaca or messages; detected for each row if not given."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Column names that differ from the format's, as ours=theirs; may be repeated."""
    on_error: Literal["fail", "skip"] = "fail"
    """Handling of invalid rows: fail lists them all, skip counts and skips them."""
    max_length: Annotated[int, Ge(8)] | None = None
    """Maximum tokens per row. [default: 2048, or the model's context if that is shorter]"""
    overlong: Literal["truncate", "drop"] = "truncate"
    """Handling of longer rows: truncate ends them after the last complete reply that fits."""
    turns: Literal["all", "last"] = "all"
    """Assistant turns to train on."""
    packing: bool = False
    """Pack several short rows into one; they do not attend to each other. Without packing, rows of
    similar length form a batch."""
    template_kwargs: Mapping[str, object] = field(default_factory=dict)
    """Variables of the chat template, as name=value; may be repeated."""

    rank: _Count = 16
    """Rank of the adapter's matrices; 64 and more for over 50,000 rows."""
    alpha: Annotated[float, Gt(0)] | None = None
    """Scaling of the adapter: alpha/rank (rslora: alpha/sqrt(rank)). [default: twice the rank]"""
    dropout: _Share = 0.0
    """Dropout of the adapter's inputs."""
    target_modules: tuple[str, ...] = ()
    """Names of the layers that get an adapter; may be repeated. [default: all linear layers except
    the output layer]"""

    epochs: Annotated[float, Gt(0)] = 3.0
    """Number of passes over the data."""
    max_steps: _Count | None = None
    """Maximum number of steps; limits the epochs."""
    batch_size: _Count = 16
    """Rows per step, on all devices together. LoRA works well up to about 32."""
    micro_batch_size: _Count | None = None
    """Rows per forward pass on one device; divides the batch size. [default: by row length and free
    memory]"""
    learning_rate: Annotated[float, Gt(0), Le(1)] | None = None
    """Peak learning rate. [default: 2e-4; 1e-4 from 30 B parameters on; 2e-5 for full; 5e-6 for
    dpo]"""
    scheduler: LrScheduler = "cosine"
    """Decay of the learning rate after the warm-up."""
    warmup_ratio: _Share = 0.03
    """Share of the steps for warm-up of the learning rate."""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    """AdamW's weight decay."""
    max_grad_norm: Annotated[float, Ge(0)] = 0.3
    """Gradient clipping by norm; 0 disables it."""
    adam_beta1: _Share = 0.9
    """AdamW's decay rate of the first moment."""
    adam_beta2: _Share = 0.999
    """AdamW's decay rate of the second moment."""
    optimizer: Optimizer = "auto"
    """auto is paged_adamw_8bit on CUDA, and adamw elsewhere."""
    neftune_alpha: Annotated[float, Gt(0)] | None = None
    """Noise on the embeddings (NEFTune, Jain et al. 2023); 5 is usual. [default: none]"""
    dpo_beta: Annotated[float, Gt(0)] = 0.1
    """Strength of dpo's penalty for moving away from the reference model."""
    seed: Annotated[int, Ge(0), Lt(2**32)] = 42
    """Random seed. Equal seeds give equal runs."""

    device: Annotated[str, Option(variable="LLMCTL_DEVICE")] = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    dtype: DType = "auto"
    """Type to compute in. auto is the type that is fastest on this machine: bfloat16, else float16
    on a GPU, float32 on a CPU."""
    quant: Annotated[Quant | None, Option(variable="LLMCTL_QUANT")] = None
    """Quantization of the frozen weights with bitsandbytes: 4bit (NF4, double quantization) or
    8bit. [default: 4bit for qlora, else none]"""
    attention: AttentionBackend = "auto"
    """Attention implementation. auto is flash attention if it is installed, else PyTorch's sdpa."""
    gradient_checkpointing: bool | None = None
    """Recompute activations in the backward pass: less memory, a third more time. [default: on
    CUDA]"""
    chat_template: str | None = None
    """Jinja file used in place of the model's chat template."""
    trust_remote_code: bool = False
    """Run Python code from the model's folder."""
    allow_pickle: bool = False
    """Also read .bin weights, which can run code."""
    fsdp: str | None = None
    """Options of PyTorch FSDP in Transformers' syntax, such as "full_shard auto_wrap"."""
    fsdp_config: str | None = None
    """JSON file with further FSDP options."""
    deepspeed: str | None = None
    """JSON configuration file of DeepSpeed."""

    eval_every: _Count | None = None
    """Steps between two evaluations. [default: once per epoch, at least 4 times]"""
    patience: _Count | None = None
    """Stop after this number of evaluations without improvement. [default: never]"""
    save_every: _Count | None = None
    """Steps between two checkpoints. [default: as eval_every]"""
    keep_checkpoints: _Count = 2
    """Number of newest checkpoints to keep, besides the best one."""
    final: Literal["best", "last"] = "best"
    """Weights of the result: those of the best evaluation, or of the last step."""
    samples: Annotated[int, Ge(0)] = 3
    """Number of held-out prompts to generate sample replies for at each evaluation."""
    sample_prompts: tuple[str, ...] = ()
    """Prompt for a sample reply, in place of held-out ones; may be repeated."""
    sample_tokens: _Count = 64
    """Maximum tokens of a sample reply."""

    def __post_init__(self) -> None:
        quant = self.quant
        if self.method == "full" and quant not in (None, "none"):
            raise ConfigError(
                f"method full trains the weights, which --quant {quant} freezes",
                hint="use --method qlora, or leave out --quant",
            )
        if self.method == "qlora" and quant == "none":
            raise ConfigError(
                "qlora is LoRA on quantized weights, and quant is none",
                hint="--method lora, or leave out --quant",
            )
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ConfigError(
                f"a batch of {self.batch_size} rows is not divisible by the micro-batch size "
                f"{self.micro_batch_size}",
                hint="--micro-batch-size "
                f"{largest_divisor(self.batch_size, self.micro_batch_size)}",
            )
        if self.fsdp and self.deepspeed:
            raise ConfigError("fsdp and deepspeed exclude each other", hint="use one of them")
        if self.fsdp_config and not self.fsdp:
            raise ConfigError("fsdp_config needs fsdp", hint='--fsdp "full_shard"')

    @property
    def weights_quant(self) -> Quant:
        """Quantization of the frozen weights."""
        return self.quant or ("4bit" if self.method == "qlora" else "none")

    def model_spec(self) -> ModelSpec:
        """Return the model to train."""
        return spec_from_config(self, quant=self.weights_quant)

    @property
    def lora_alpha(self) -> float:
        return 2.0 * self.rank if self.alpha is None else self.alpha


def largest_divisor(number: int, most: int) -> int:
    """Return the largest divisor of `number` that is at most `most`."""
    return next(d for d in range(min(number, most), 0, -1) if number % d == 0)
