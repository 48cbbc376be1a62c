"""Grammar-constrained decoding with llguidance.

A grammar that cannot be enforced is refused: no keyword of JSON Schema is silently ignored.
"""

import copy
import json
import math
import re
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from torch import Tensor

from llmctl.engine.batching.sampling.call_grammar import CallGrammar
from llmctl.engine.batching.sampling.json_position import JsonPosition, JsonVocabulary
from llmctl.engine.batching.sampling.json_schema import NormalizedSchema, normalize
from llmctl.engine.batching.sampling.vocabulary import TokenVocabulary
from llmctl.errors import RequestError
from llmctl.types import CallLayout, Grammar

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

WHITESPACE = r" |\n {0,20}"
"""Whitespace that is allowed once wherever JSON allows any: compact, spaced and indented text are
possible, and a small model cannot write spaces without end."""

CACHED_GRAMMARS = 32
WORKERS = 2

# A state takes 1 to 2 kB; all sequences of one grammar share them.
_LIMITS = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)

_JSON_OPTIONS: "JsonCompileOptions" = {
    "whitespace_pattern": WHITESPACE,
    "item_separator": ",",
    "key_separator": ":",
    "coerce_one_of": False,
    "lenient": False,
}

_PARAMS = {
    "json_schema": "response_format",
    "json_object": "response_format",
    "regex": "regex",
    "choice": "choice",
}

_LOCATED_PARTS = 200
_MESSAGE_LENGTH = 600
"""Of the reason of a refusal: names in a schema can be of any length."""

_NO_TEXT = "this model's vocabulary has no text that fits"


class GrammarCompiler:
    """Compiles grammars for one tokenizer. Thread-safe.

    Args:
        tokenizer: of Transformers.
        vocab_size: rows of the model's output, which may be more than the tokenizer has.
        eos_ids: token ids that end a reply; may be empty.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, eos_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_ids = [i for i in eos_ids if i < vocab_size]
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="llmctl-grammar")
        # Built at the first request: it can take seconds.
        self._built: tuple[LLTokenizer, JsonVocabulary] | None = None
        # Guards _built: the first requests may come from several threads at once.
        self._lock = threading.Lock()
        self._compiled = lru_cache(CACHED_GRAMMARS)(self._build)

    def compile(self, grammar: Grammar) -> "GrammarMatcher":
        """Return a matcher in the start state, for a new sequence.

        Raises:
            RequestError: the grammar is invalid, cannot be enforced, or matches no text.
        """
        state, position = self._compiled(grammar)
        return self._matcher(grammar, state.deep_copy(), copy.copy(position))

    def _build(self, grammar: Grammar) -> tuple[LLMatcher, JsonPosition | None]:
        try:
            if grammar.calls is not None:
                return self._build_calls(grammar, grammar.calls)
            if grammar.kind in ("json_schema", "json_object"):
                return self._build_json(grammar)
            text = _llguidance_grammar(grammar)
        except ValueError as error:
            raise _unsupported(grammar, str(error)) from error
        return self._start(grammar, text), None

    def _build_json(self, grammar: Grammar) -> tuple[LLMatcher, JsonPosition]:
        source = grammar.source if grammar.kind == "json_schema" else '{"type": "object"}'
        normalized = normalize(source, open_objects=grammar.open_objects)
        try:
            start = self._start(grammar, _json_grammar(normalized.schema))
            return start, JsonPosition(unique_items=normalized.unique_items)
        except RequestError as error:
            place = self._place(normalized, grammar, str(error))
            if place is None:
                raise
            raise RequestError(f"{error} (at {place})", param=error.param) from error

    def _build_calls(
        self, grammar: Grammar, layout: CallLayout
    ) -> tuple[LLMatcher, JsonPosition | None]:
        """Build the grammar of calls in the model's own format."""
        whole = normalize(grammar.source)
        source = json.loads(grammar.source)

        def part(place: str) -> dict[str, Any]:
            text = json.dumps({"$ref": place, "$defs": source["$defs"]}, ensure_ascii=False)
            return {**normalize(text).schema, "x-guidance": _JSON_OPTIONS}

        added = self._tokenizer.added_tokens_decoder.items()
        special = {str(token): i for i, token in added if token.special}
        calls = source["items"] if source.get("type") == "array" else source
        calls = calls.get("anyOf", [calls])
        names = [call["properties"]["name"]["const"] for call in calls]
        tools = [source["$defs"][f"tool{number}"] for number in range(len(names))]
        builder = CallGrammar(layout, special, self._eos_ids, part)
        count = source.get("maxItems", 1)
        text = builder.build(tools, names, count, optional=grammar.optional)
        position = None
        if layout.parameters is None and not grammar.optional:
            position = JsonPosition(unique_items=whole.unique_items)
        return self._start(grammar, text), position

    def _place(self, normalized: NormalizedSchema, grammar: Grammar, message: str) -> str | None:
        """Return where the innermost part is that has the same error by itself."""
        for path, part in normalized.parts[:_LOCATED_PARTS]:
            try:
                self._start(grammar, _json_grammar(part))
            except RequestError as error:
                if str(error) == message:
                    return path
        return None

    def _start(self, grammar: Grammar, text: str) -> LLMatcher:
        tokenizer, _ = self._vocabulary()
        start = LLMatcher(tokenizer, text, log_level=0, limits=_LIMITS)
        if start.is_error():
            raise _unsupported(grammar, _error_message(start.get_error()))
        self._matcher(grammar, start, None).next_mask()
        return start

    def _matcher(
        self, grammar: Grammar, state: LLMatcher, position: JsonPosition | None
    ) -> "GrammarMatcher":
        _, words = self._vocabulary()
        return GrammarMatcher(
            grammar, state, position, words, self._vocab_size, self._eos_ids, self._pool
        )

    def _vocabulary(self) -> tuple[LLTokenizer, JsonVocabulary]:
        with self._lock:
            if self._built is None:
                words = TokenVocabulary(self._tokenizer, self._vocab_size, self._eos_ids)
                tokenizer = LLTokenizer(TokenizerWrapper(words))
                self._built = tokenizer, JsonVocabulary(words.tokens)
            return self._built


class GrammarMatcher:
    """Position of one sequence in its grammar. Not thread-safe."""

    def __init__(
        self,
        grammar: Grammar,
        state: LLMatcher,
        position: JsonPosition | None,
        words: JsonVocabulary,
        vocab_size: int,
        eos_ids: list[int],
        pool: ThreadPoolExecutor,
    ) -> None:
        self._grammar = grammar
        self._state = state
        self._words = words
        self._json = position
        self._vocab_size = vocab_size
        self._eos_ids = eos_ids
        self._pool = pool
        self._mask: Future[Tensor] | None = None
        self._finished = False

    @property
    def finished(self) -> bool:
        """Whether only the end can follow.

        Where the text may end but need not, the mask allows the end tokens beside others.
        """
        return self._finished

    def prefetch_mask(self) -> None:
        """Start to compute the next mask in another thread, while the model runs."""
        if self._mask is None:
            self._mask = self._pool.submit(self.next_mask)

    def apply(self, logits: Tensor) -> None:
        """Set the logits of tokens that may not come next to minus infinity, in place.

        The ids that end a reply are allowed exactly where the text is complete. If there are none,
        no token is allowed once the grammar is `finished`.

        Args:
            logits: (vocab,), of any float type and device.

        Raises:
            RequestError: the grammar became too large, or needs bytes that the vocabulary does
                not have.
        """
        forbidden = self.next_mask() if self._mask is None else self._mask.result()
        forbidden = forbidden.to(logits.device)
        logits[: len(forbidden)].masked_fill_(forbidden, -math.inf)
        logits[len(forbidden) :] = -math.inf

    def accept(self, token_id: int) -> None:
        """Advance by one token that was allowed.

        Raises:
            RequestError: as `apply`.
        """
        self._wait_for_mask()
        self._mask = None
        if token_id in self._eos_ids:
            self._finished = True
        elif self._state.consume_token(token_id):
            self._finished = self._state.is_stopped()
            if self._json is not None:
                self._json.feed(self._words.words[token_id])
        else:
            raise _unsupported(self._grammar, _error_message(self._state.get_error()))

    def next_mask(self) -> Tensor:
        """Return which tokens are forbidden now: (vocab,) bool on the CPU."""
        bits = np.frombuffer(self._state.compute_bitmask(), dtype=np.uint8)
        if self._state.is_error():
            raise _unsupported(self._grammar, _error_message(self._state.get_error()))
        allowed = np.unpackbits(bits, count=self._vocab_size, bitorder="little")
        # llguidance knows only one such id, and allows it also after an internal error.
        complete = self._state.is_accepting()
        allowed[self._eos_ids] = complete
        if not complete and not allowed.any():
            raise _unsupported(self._grammar, _NO_TEXT)
        if self._json is not None:
            self._json.restrict(allowed, self._words)
        return torch.from_numpy(allowed == 0)

    def _wait_for_mask(self) -> None:
        """Make sure that no other thread uses the state."""
        if self._mask is not None:
            if self._mask.cancel():
                self._mask = None
            else:
                wait([self._mask])


def _llguidance_grammar(grammar: Grammar) -> str:
    """Return a regular expression or choice in the format of llguidance.

    Raises:
        ValueError: the text is not Unicode, or the regular expression ends within an escape.
    """
    if grammar.kind == "choice":
        return LLMatcher.grammar_from_regex("|".join(map(_literal, grammar.choices)))
    if (len(grammar.source) - len(grammar.source.rstrip("\\"))) % 2:
        # llguidance would drop it.
        raise ValueError("it ends in a backslash that escapes nothing")
    return LLMatcher.grammar_from_regex(grammar.source)


def _json_grammar(schema: dict[str, Any]) -> str:
    return LLMatcher.grammar_from_json_schema(
        json.dumps(schema, ensure_ascii=False),
        # They override a schema's own "x-guidance", which could turn the checks off.
        overrides=_JSON_OPTIONS,
    )


def _literal(text: str) -> str:
    """Return a regular expression that matches only this text."""
    return "".join(c if c.isalnum() else f"\\x{{{ord(c):x}}}" for c in text)


def _error_message(error: str) -> str:
    """Return the line of an error of llguidance that names the cause."""
    first, *rest = error.splitlines()
    if first == "NoExtensionBias":
        return _NO_TEXT
    for line in rest:
        if line.startswith("error: "):  # of a regular expression, after a drawing of the position
            return line.removeprefix("error: ")
    return re.sub(r"^at \d+\(\d+\): ", "", first)


def _unsupported(grammar: Grammar, reason: str) -> RequestError:
    param = grammar.param or _PARAMS[grammar.kind]
    which = "these" if param == "tools" else "this"
    if len(reason) > _MESSAGE_LENGTH:
        reason = f"{reason[:_MESSAGE_LENGTH]}..."
    return RequestError(f"cannot enforce {which} {param}: {reason}", param=param)
