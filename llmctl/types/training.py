"""What a training tells while it runs, and what it leaves behind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from llmctl.types.evaluation import PairedComparison


@dataclass(frozen=True, slots=True)
class TrainSetting:
    """One setting as the run will use it."""

    name: str
    value: object
    origin: str
    """Where it was chosen: `option`, `finetune.yaml:12`, `default`, or why it was worked out so."""


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """What a training is about to do."""

    settings: tuple[TrainSetting, ...]
    model_id: str
    device: str
    dtype: str
    parameters: int
    trainable: int
    """Parameters that learn."""
    rows: int
    """Sequences that are learnt from."""
    eval_rows: int
    tokens: int
    """In one epoch."""
    supervised_share: float
    """Of the tokens, held-out ones among them: those that the loss falls on."""
    steps: int
    steps_per_epoch: int
    micro_batch_size: int
    accumulation: int
    """Micro-batches of one device that make a step."""
    memory: Mapping[str, int] = field(default_factory=dict)
    """Bytes that the peak is made of, by part."""
    free_bytes: int = 0
    notes: tuple[str, ...] = ()

    @property
    def peak_bytes(self) -> int:
        """Memory that the run is predicted to need at most."""
        return sum(self.memory.values())


@dataclass(frozen=True, slots=True)
class TrainStep:
    """One step of the optimizer is done."""

    step: int
    steps: int
    epoch: float
    loss: float
    """Mean over the supervised tokens of the step, in nats."""
    learning_rate: float
    grad_norm: float
    tokens_per_s: float
    """Without padding, over the last few steps."""
    memory_bytes: int
    """Peak so far: of the card, or of the process."""
    eta_s: float


@dataclass(frozen=True, slots=True)
class SampleReply:
    """How the model answered one question at one time."""

    prompt: str
    reply: str
    complete: bool
    """It ended by itself."""


@dataclass(frozen=True, slots=True)
class TrainEval:
    """A measurement on what is held out."""

    step: int
    loss: float
    best: bool
    """Better than every one before."""
    samples: tuple[SampleReply, ...] = ()


@dataclass(frozen=True, slots=True)
class TrainNote:
    """Something a person should know, in a sentence."""

    text: str


TrainEvent = TrainPlan | TrainStep | TrainEval | TrainNote
TrainListener = Callable[[TrainEvent], None]


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a training left behind."""

    output: str
    """Absolute folder of the adapter, or of the model where all weights were taught."""
    run_id: str | None
    steps: int
    seconds: float
    """Of this command; a run that was resumed took longer."""
    losses: tuple[tuple[int, float], ...]
    """Step and training loss."""
    eval_losses: tuple[tuple[int, float], ...]
    """Step and loss on what is held out; step 0 is the model before."""
    best_step: int | None
    """The step whose weights were kept, where something was measured."""
    tokens_per_s: float
    predicted_bytes: int
    peak_bytes: int
    before: tuple[SampleReply, ...] = ()
    after: tuple[SampleReply, ...] = ()
    stopped_early: bool = False
    notes: tuple[str, ...] = ()
    exams: tuple[PairedComparison, ...] = ()
    """Each exam of `--eval`, before against after."""
