"""What can be chosen of a training, and what it is where nobody chooses.

A field is at once a key of the YAML file and an option of `llmctl finetune`; its docstring is the
option's help. `None` means that the run works the value out, from the model, the data and the
machine, and says what it took.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from llmctl.config.model import DEFAULT_MODEL
from llmctl.errors import ConfigError
from llmctl.types import DType, EvalMode, Quant

TrainMethod = Literal["lora", "qlora", "dora", "rslora", "full", "dpo"]
LrScheduler = Literal["cosine", "linear", "constant"]
Optimizer = Literal["auto", "adamw", "adamw_8bit", "paged_adamw_8bit"]
AttentionBackend = Literal["auto", "sdpa", "flash", "eager"]

SETTING_ALIASES: Final = {"model_path": "model", "data_path": "data", "output_dir": "output"}
"""Other names that are understood, for those who come from other tools."""

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

    model: str = DEFAULT_MODEL
    """Model to teach: catalogue name, hub id (owner/name[@revision]), folder, or the folder of an
    adapter, which is then taught further."""
    data: Annotated[tuple[str, ...], MinLen(1)]
    """File, folder or hub id of the examples; may be repeated."""
    output: str
    """Folder for the adapter, the checkpoints and the record of the run."""
    method: TrainMethod = "lora"
    """How to teach: lora; qlora (LoRA on weights in 4 bits); dora; rslora; full (all weights); dpo
    (LoRA from pairs of a better and a worse answer)."""

    eval_data: tuple[str, ...] = ()
    """Examples to measure on, in place of a share of the data; may be repeated."""
    eval_fraction: _Share = 0.05
    """Share of the data that is held out to measure on, chosen by the hash of each row."""
    eval: tuple[str, ...] = ()
    """Exam to sit before and after the training, such as ceval or a file of your own (see `llmctl
    eval list`); may be repeated. The difference is shown and recorded."""
    eval_limit: _Count | None = None
    """Questions of each subject at most, in those exams."""
    eval_mode: EvalMode | None = None
    """How those exams are asked: ppl, logprob, logprob_norm or gen. [default: each exam's own]"""
    eval_dir: str | None = None
    """Folder to look for those exams in, before the store."""
    format: str | None = None
    """Format that every row has, such as alpaca or messages; recognised row by row if not given."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Columns that are named otherwise, as ours=theirs; may be repeated."""
    on_error: Literal["fail", "skip"] = "fail"
    """What happens to rows that cannot be used: fail names all, skip counts and leaves them."""
    max_length: Annotated[int, Ge(8)] | None = None
    """Tokens that a row has at most. [default: 2048, or the model's context if that is shorter]"""
    overlong: Literal["truncate", "drop"] = "truncate"
    """What becomes of longer rows: truncate ends them after the last whole reply that fits."""
    turns: Literal["all", "last"] = "all"
    """Which of the assistant's turns are learnt."""
    packing: bool = False
    """Put several short rows into one, which cannot see each other. Without it rows of similar
    length go together."""
    template_kwargs: Mapping[str, object] = field(default_factory=dict)
    """Variables of the chat template, as name=value; may be repeated."""

    rank: _Count = 16
    """Rank of the adapter's matrices; 64 and more for over 50,000 rows."""
    alpha: Annotated[float, Gt(0)] | None = None
    """Scale of the adapter: it counts alpha/rank times (rslora: alpha/sqrt(rank)).
    [default: twice the rank]"""
    dropout: _Share = 0.0
    """Share of the adapter's inputs that is left out at random."""
    target_modules: tuple[str, ...] = ()
    """Names of the layers that get an adapter; may be repeated. [default: all linear ones but the
    head]"""

    epochs: Annotated[float, Gt(0)] = 3.0
    """Times that all rows are seen."""
    max_steps: _Count | None = None
    """Steps at most, whatever the epochs say."""
    batch_size: _Count = 16
    """Rows that a step learns from, on all devices together. LoRA bears up to about 32 well."""
    micro_batch_size: _Count | None = None
    """Rows that one device holds at once; divides the batch. [default: what memory is good for]"""
    learning_rate: Annotated[float, Gt(0), Le(1)] | None = None
    """Highest learning rate. [default: 2e-4; 1e-4 from 30 B parameters on; 2e-5 for full; 5e-6 for
    dpo]"""
    scheduler: LrScheduler = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_ratio: _Share = 0.03
    """Share of the steps in which the learning rate rises."""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    """AdamW's weight decay."""
    max_grad_norm: Annotated[float, Ge(0)] = 0.3
    """Longer gradients are shortened to this; 0 leaves them."""
    adam_beta1: _Share = 0.9
    """Share of the old in AdamW's mean of the gradient."""
    adam_beta2: _Share = 0.999
    """Share of the old in AdamW's mean of the squared gradient."""
    optimizer: Optimizer = "auto"
    """auto is paged_adamw_8bit on CUDA, and adamw elsewhere."""
    neftune_alpha: Annotated[float, Gt(0)] | None = None
    """Noise on the embeddings (NEFTune, Jain et al. 2023); 5 is usual. [default: none]"""
    dpo_beta: Annotated[float, Gt(0)] = 0.1
    """How strongly dpo holds on to the model it began with."""
    seed: Annotated[int, Ge(0), Lt(2**32)] = 42
    """Same seed, same run."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    dtype: DType = "auto"
    """Number type to compute in. auto is what the machine multiplies fastest: bfloat16, else
    float16 on a GPU, float32 on a CPU."""
    quant: Quant | None = None
    """Bits of the frozen weights, through bitsandbytes: 4bit (NF4, double quantisation) or 8bit.
    [default: 4bit for qlora, else none]"""
    attention: AttentionBackend = "auto"
    """auto is flash attention where it is installed, else PyTorch's own (sdpa)."""
    gradient_checkpointing: bool | None = None
    """Compute activations twice in place of keeping them: less memory, a third more time. [default:
    on CUDA]"""
    chat_template: str | None = None
    """Jinja file used in place of the model's chat template."""
    trust_remote_code: bool = False
    """Run Python code that the model brings along."""
    allow_pickle: bool = False
    """Also read .bin weights, which can run code."""
    fsdp: str | None = None
    """PyTorch FSDP's options, such as "full_shard auto_wrap", as Transformers takes them."""
    fsdp_config: str | None = None
    """JSON file with more of FSDP's options."""
    deepspeed: str | None = None
    """DeepSpeed's JSON configuration file."""

    eval_every: _Count | None = None
    """Steps between two measurements on what is held out.
    [default: once an epoch, at least 4 times]"""
    patience: _Count | None = None
    """Stop after so many measurements without a better one. [default: never]"""
    save_every: _Count | None = None
    """Steps between two checkpoints. [default: as eval_every]"""
    keep_checkpoints: _Count = 2
    """Checkpoints that are kept; the best one is kept besides."""
    final: Literal["best", "last"] = "best"
    """Which weights are the result: those of the best measurement, or the last ones."""
    samples: Annotated[int, Ge(0)] = 3
    """Held-out questions that are answered at each measurement, before and after side by side."""
    sample_prompts: tuple[str, ...] = ()
    """Questions to answer in place of held-out ones; may be repeated."""
    sample_tokens: _Count = 64
    """Tokens of such an answer at most."""

    def __post_init__(self) -> None:
        quant = self.quant
        if self.method == "full" and quant not in (None, "none"):
            raise ConfigError(
                f"method full teaches the weights themselves, which --quant {quant} freezes",
                hint="use --method qlora, or leave out --quant",
            )
        if self.method == "qlora" and quant == "none":
            raise ConfigError(
                "qlora is LoRA on quantised weights, and quant is none",
                hint="--method lora, or leave out --quant",
            )
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ConfigError(
                f"a batch of {self.batch_size} rows cannot be shared out in micro-batches of "
                f"{self.micro_batch_size}",
                hint="--micro-batch-size "
                f"{largest_divisor(self.batch_size, self.micro_batch_size)}",
            )
        if self.fsdp and self.deepspeed:
            raise ConfigError("fsdp and deepspeed do the same work", hint="give one of them")
        if self.fsdp_config and not self.fsdp:
            raise ConfigError("fsdp_config is there, and fsdp is not", hint='--fsdp "full_shard"')

    @property
    def weights_quant(self) -> Quant:
        """How the frozen weights are held."""
        return self.quant or ("4bit" if self.method == "qlora" else "none")

    @property
    def lora_alpha(self) -> float:
        return 2.0 * self.rank if self.alpha is None else self.alpha


def largest_divisor(number: int, most: int) -> int:
    """Return the largest divisor of `number` that is no more than `most`."""
    return next(d for d in range(min(number, most), 0, -1) if number % d == 0)
