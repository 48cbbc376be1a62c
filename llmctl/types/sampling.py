"""How the next token is chosen, and what a reply must look like."""

from dataclasses import dataclass, fields, replace
from typing import Literal, Self

from llmctl.errors import RequestError


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a reply must look like, token by token."""

    kind: Literal["json_schema", "json_object", "regex", "choice"]
    source: str = ""
    """The JSON schema as JSON text, or the regular expression."""
    choices: tuple[str, ...] = ()
    param: str = ""
    """The field of a request that asked for it, where that is not the usual one of its kind."""

    def __post_init__(self) -> None:
        if self.kind == "choice" and (not self.choices or "" in self.choices):
            raise RequestError("a choice needs at least one text, none empty", param="choice")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen, and when to end.

    Fields that are `None` are filled by `over`: the request's own, then the server's or command's
    options, then the model's `generation_config`, then `DEFAULT_SAMPLING`.
    """

    max_new_tokens: int | None = None
    """Upper bound per choice; `None` is all the context has room for."""
    temperature: float | None = None
    """0 is greedy."""
    top_p: float | None = None
    """Share of the likelihood to choose from; the likeliest token is always in it."""
    top_k: int | None = None
    """0 looks at the whole vocabulary."""
    min_p: float | None = None
    repetition_penalty: float | None = None
    """Over prompt and reply, 1 is none (Keskar et al. 2019, CTRL)."""
    presence_penalty: float | None = None
    """Over the reply only, as OpenAI defines it."""
    frequency_penalty: float | None = None
    """Over the reply only, as OpenAI defines it."""
    logit_bias: tuple[tuple[int, float], ...] | None = None
    stop: tuple[str, ...] | None = None
    """Text that ends the reply; it is never part of the reply."""
    stop_token_ids: tuple[int, ...] | None = None
    ignore_eos: bool | None = None
    seed: int | None = None
    n: int | None = None
    """Choices per request."""
    logprobs: int | None = None
    """`None` is none; k >= 0 is the chosen token's log-probability and the k likeliest."""
    min_new_tokens: int | None = None
    """The reply does not end by itself before it has so many tokens."""
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in SAMPLING_RANGES.items():
            value = getattr(self, name)
            # Written so that NaN fails too.
            if value is not None and not low <= value <= high:
                raise RequestError(
                    f"{name} is {value}; it must be between {low} and {high}", param=name
                )
        if self.stop is not None and "" in self.stop:
            raise RequestError("a stop string is empty", param="stop")

    def with_defaults(self, lower: "SamplingParams") -> Self:
        """Return these parameters with every `None` taken from `lower`."""
        given = {f.name: v for f in fields(self) if (v := getattr(lower, f.name)) is not None}
        missing = {name: v for name, v in given.items() if getattr(self, name) is None}
        return replace(self, **missing)


SAMPLING_RANGES: dict[str, tuple[float, float]] = {
    "max_new_tokens": (1, 2**31),
    "min_new_tokens": (0, 2**31),
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, 2**31),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 10.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "seed": (-(2**63), 2**63 - 1),
    "n": (1, 128),
    "logprobs": (0, 20),
}
"""Inclusive bounds, OpenAI's where OpenAI has the field. `--help` and the server read them too."""
DEFAULT_SAMPLING = SamplingParams(
    temperature=0.7,
    top_p=1.0,
    top_k=0,
    min_p=0.0,
    repetition_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    n=1,
)
"""What applies where neither the request, the command nor the model says anything."""
