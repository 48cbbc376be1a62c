"""Plan, events and report of a training."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from llmctl.types.evaluation import PairedComparison


@dataclass(frozen=True, slots=True)
class TrainSetting:
    """One resolved setting."""

    name: str
    value: object
    origin: str
    """Its source: `option`, `finetune.yaml:12`, `default`, or the reason for a computed value."""


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """The plan of a training: resolved settings, sizes and predicted memory."""

    settings: tuple[TrainSetting, ...]
    model_id: str
    device: str
    dtype: str
    parameters: int
    trainable: int
    """Trainable parameters."""
    rows: int
    """Training sequences."""
    eval_rows: int
    tokens: int
    """In one epoch."""
    supervised_share: float
    """Targets of the loss as a share of all tokens, evaluation data included."""
    steps: int
    steps_per_epoch: int
    micro_batch_size: int
    accumulation: int
    """Micro-batches of one device per step."""
    memory: Mapping[str, int] = field(default_factory=dict)
    """Bytes of the predicted peak by part."""
    free_bytes: int = 0
    notes: tuple[str, ...] = ()

    @property
    def peak_bytes(self) -> int:
        """Predicted peak memory."""
        return sum(self.memory.values())


@dataclass(frozen=True, slots=True)
class TrainStep:
    """A completed optimizer step."""

    step: int
    steps: int
    epoch: float
    loss: float
    """Mean over the targets of the step, in nats."""
    learning_rate: float
    grad_norm: float
    tokens_per_s: float
    """Without padding, over the last few steps."""
    memory_bytes: int
    """Peak so far: of the GPU, or of the process."""
    eta_s: float


@dataclass(frozen=True, slots=True)
class SampleReply:
    """The reply to a sample prompt at one step."""

    prompt: str
    reply: str
    complete: bool
    """It ended with an end-of-sequence token."""


@dataclass(frozen=True, slots=True)
class TrainEval:
    """An evaluation on the evaluation set."""

    step: int
    loss: float
    best: bool
    """Better than all earlier evaluations."""
    samples: tuple[SampleReply, ...] = ()


@dataclass(frozen=True, slots=True)
class TrainNote:
    """A message for the user, in one sentence."""

    text: str


TrainEvent = TrainPlan | TrainStep | TrainEval | TrainNote
TrainListener = Callable[[TrainEvent], None]


@dataclass(frozen=True, slots=True)
class TrainReport:
    """Result of a training."""

    output: str
    """Absolute folder of the adapter, or of the model after full fine-tuning."""
    run_id: str | None
    steps: int
    seconds: float
    """Duration of the run, with the earlier commands that it resumed."""
    losses: tuple[tuple[int, float], ...]
    """Step and training loss."""
    eval_losses: tuple[tuple[int, float], ...]
    """Step and evaluation loss; step 0 is the model before training."""
    best_step: int | None
    """Step of the best evaluation; `None` without evaluations."""
    tokens_per_s: float
    predicted_bytes: int
    peak_bytes: int
    before: tuple[SampleReply, ...] = ()
    after: tuple[SampleReply, ...] = ()
    stopped_early: bool = False
    notes: tuple[str, ...] = ()
    exams: tuple[PairedComparison, ...] = ()
    """Comparison before and after training for each benchmark of `--eval`."""
