"""The values that cross rooms: frozen, and checked where they are made. Standard library only.

`None` means "not given" throughout; every other value, however falsy, is a value.
"""

from llmctl.types.conversation import Message, Role, Tool, ToolCall, check_text
from llmctl.types.data import DatasetRef, Example, Origin
from llmctl.types.generation import (
    Choice,
    FinishReason,
    GenerationChunk,
    GenerationRequest,
    GenerationResult,
    TokenLogprob,
    TokenProb,
    Usage,
    new_request_id,
)
from llmctl.types.memory import Estimate, MemoryPlan, QuantFit, WeightsPlan
from llmctl.types.model import (
    DEFAULT_ROWS,
    DType,
    EngineInfo,
    KVQuant,
    MemoryLimits,
    ModelSpec,
    Quant,
)
from llmctl.types.progress import Progress, ProgressCallback, ignore_progress
from llmctl.types.sampling import DEFAULT_SAMPLING, SAMPLING_RANGES, Grammar, SamplingParams
from llmctl.types.scoring import Score, ScoreRequest

__all__ = [
    "DEFAULT_ROWS",
    "DEFAULT_SAMPLING",
    "SAMPLING_RANGES",
    "Choice",
    "DType",
    "DatasetRef",
    "EngineInfo",
    "Estimate",
    "Example",
    "FinishReason",
    "GenerationChunk",
    "GenerationRequest",
    "GenerationResult",
    "Grammar",
    "KVQuant",
    "MemoryLimits",
    "MemoryPlan",
    "Message",
    "ModelSpec",
    "Origin",
    "Progress",
    "ProgressCallback",
    "Quant",
    "QuantFit",
    "Role",
    "SamplingParams",
    "Score",
    "ScoreRequest",
    "TokenLogprob",
    "TokenProb",
    "Tool",
    "ToolCall",
    "Usage",
    "WeightsPlan",
    "check_text",
    "ignore_progress",
    "new_request_id",
]
