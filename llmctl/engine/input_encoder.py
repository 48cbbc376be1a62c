"""Texts and token ids as inputs of the model: tokenizing, and the checks of ids and lengths."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmctl.errors import ContextLengthError, RequestError
from llmctl.types import check_unicode


@dataclass(frozen=True, slots=True)
class InputEncoder:
    """Encodes raw inputs, which have no chat template."""

    tokenizer: Any
    """Of Transformers."""
    vocab_size: int
    context_length: int
    """In tokens."""

    def tokenize(self, text: str | Sequence[int], *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a text, or the given ids. Raises `RequestError` for invalid ones."""
        if not isinstance(text, str):
            self.check_ids(text, "prompt")
            return list(text)
        check_unicode(text, param="prompt")
        ids: list[int] = self.tokenizer(
            text, add_special_tokens=add_special_tokens, verbose=False
        ).input_ids
        return ids

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of ids. Raises `RequestError` for invalid ones."""
        self.check_ids(ids, "tokens")
        text: str = self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        return text

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        """Raise `RequestError` for an id outside the vocabulary; `param` is the field with it."""
        size = self.vocab_size
        if (wrong := next((i for i in ids if not 0 <= i < size), None)) is not None:
            raise RequestError(f"token id {wrong} is outside the vocabulary of {size}", param=param)

    def tokens_left(self, prompt_tokens: int, param: str) -> int:
        """Return the tokens left for a reply. Raises `ContextLengthError` if there are none."""
        limit = self.context_length
        if prompt_tokens >= limit:
            raise ContextLengthError(
                f"This model's maximum context length is {limit} tokens. However, your {param} "
                f"resulted in {prompt_tokens} tokens. Please reduce the length of the {param}.",
                param=param,
            )
        return limit - prompt_tokens

    def encode_pair(
        self, context: str | tuple[int, ...], continuation: str | tuple[int, ...]
    ) -> tuple[list[int], int]:
        """Return the ids of both together, and how many of them are the continuation.

        Raises:
            RequestError: the continuation adds no token, or an input is invalid.
            ContextLengthError: both are longer than the context.
        """
        context_ids = self.tokenize(context)
        if isinstance(context, str) and isinstance(continuation, str):
            ids = self.tokenize(context + continuation)
        else:
            ids = context_ids + self.tokenize(continuation)
        # Without a BOS and a context, nothing predicts the first token.
        context_length = max(len(context_ids), 1)
        if len(ids) <= context_length:
            message = f"nothing to score: {continuation!r} adds no token to its context"
            raise RequestError(message, param="continuations")
        self.tokens_left(len(ids) - 1, "prompt")
        return ids, len(ids) - context_length
