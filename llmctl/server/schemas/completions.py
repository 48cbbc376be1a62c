"""Requests and responses of `/v1/completions`, `/tokenize` and `/detokenize`."""

from typing import Annotated, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from llmctl.server.schemas.base import (
    CompletionUsage,
    SamplingFields,
    StreamOptions,
    StrictModel,
    Unsupported,
    list_length,
    requires_true,
)
from llmctl.types import FinishReason

MAX_PROMPTS = 2048
"""OpenAI's limit on the texts of one embedding request; LangChain sends a thousand."""


def _prompt_tag(value: object) -> str | None:
    if isinstance(value, str):
        return "text"
    if not isinstance(value, list):
        return None
    first = value[0] if value else ""
    return "texts" if isinstance(first, str) else "lists" if isinstance(first, list) else "tokens"


_TokenId = Annotated[int, Field(ge=0)]
# No limit of length: the context bounds it, and so many numbers are validated quickly.
_TokenIds = Annotated[list[_TokenId], list_length(1, None)]
Prompt = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[str], list_length(1, MAX_PROMPTS), Tag("texts")]
    | Annotated[_TokenIds, Tag("tokens")]
    | Annotated[list[_TokenIds], list_length(1, MAX_PROMPTS), Tag("lists")],
    Discriminator(
        _prompt_tag,
        custom_error_type="string_or_array",
        custom_error_message="neither string nor array",
    ),
]
"""A text, several texts, the token ids of one prompt, or those of several."""


def split_prompts(prompt: Prompt) -> list[str | tuple[int, ...]]:
    """Return the prompts of a field in any of its four forms."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [tuple(i for i in prompt if isinstance(i, int))]
    return [p if isinstance(p, str) else tuple(p) for p in prompt if not isinstance(p, int)]


class CompletionRequest(SamplingFields):
    model: str
    prompt: Prompt
    stream: bool | None = None
    stream_options: Annotated[StreamOptions | None, requires_true("stream")] = None
    max_tokens: Annotated[int, Field(ge=0, le=2**31)] | None = None
    """16 by default, as in OpenAI's API; 0 with `echo` returns the prompt alone."""
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: Unsupported = None
    user: str | None = None


class CompletionLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None]
    """`null` for the first token of a prompt, which has no context."""
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]
    """Where each token begins, in characters of the choice's text."""


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    """Unix time in seconds."""
    model: str
    choices: list[CompletionChoice]
    usage: CompletionUsage | None = None
    system_fingerprint: None = None


class TokenizeRequest(StrictModel):
    model: str | None = None
    prompt: str
    add_special_tokens: bool = True
    """Add the tokens that the tokenizer puts around raw text, such as a BOS."""


class TokenizeResponse(BaseModel):
    tokens: list[int]
    count: int
    max_model_len: int


class DetokenizeRequest(StrictModel):
    model: str | None = None
    tokens: Annotated[list[_TokenId], list_length(most=None)]


class DetokenizeResponse(BaseModel):
    prompt: str
