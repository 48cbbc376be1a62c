"""Which tokens may come next, if the reply is to follow a grammar? llguidance decides.

What it cannot enforce it refuses: no keyword of JSON Schema is ignored in silence.
"""

import math
import re
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from tokenizers import Tokenizer
from torch import Tensor

from llmctl.engine.batching.sampling.logprobs import TokenBytes
from llmctl.errors import RequestError
from llmctl.types import Grammar

WHITESPACE = r" |\n {0,20}"
"""What may stand, once, where JSON has room for whitespace: compact, spaced or indented text is
all possible, and a small model cannot write spaces for ever."""

CACHED_GRAMMARS = 32
WORKERS = 2

# A state is one to two kB, and the rows of one grammar share them.
_LIMITS = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)

_PARAMS = {
    "json_schema": "response_format",
    "json_object": "response_format",
    "regex": "regex",
    "choice": "choice",
}

_NO_TEXT = "this model's vocabulary has no text that fits"


class GrammarCompiler:
    """Makes grammars ready for one tokenizer. Safe to share between threads."""

    def __init__(self, tokenizer: Any, vocab_size: int, eos_ids: Sequence[int]) -> None:
        """Keep what is needed; the library's tokenizer takes up to seconds, on first use.

        Args:
            tokenizer: of Transformers.
            vocab_size: rows of the model's output, which may be more than the tokenizer has.
            eos_ids: what ends a reply; may be empty.
        """
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_ids = [i for i in eos_ids if i < vocab_size]
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="llmctl-grammar")
        self._built: LLTokenizer | None = None
        # Guards _built: the first requests may come in several threads at once.
        self._lock = threading.Lock()
        self._compiled = lru_cache(CACHED_GRAMMARS)(self._build)

    def compile(self, grammar: Grammar) -> "GrammarMatcher":
        """Return the start state of a new row.

        Raises:
            RequestError: the grammar is wrong, has what cannot be enforced, or fits no text.
        """
        return self._matcher(grammar, self._compiled(grammar).deep_copy())

    def _build(self, grammar: Grammar) -> LLMatcher:
        try:
            text = _library_grammar(grammar)
        except ValueError as error:
            raise _refusal(grammar, str(error)) from error
        start = LLMatcher(self._library_tokenizer(), text, log_level=0, limits=_LIMITS)
        if start.is_error():
            raise _refusal(grammar, _reason(start.get_error()))
        self._matcher(grammar, start).next_mask()
        return start

    def _matcher(self, grammar: Grammar, state: LLMatcher) -> "GrammarMatcher":
        return GrammarMatcher(grammar, state, self._vocab_size, self._eos_ids, self._pool)

    def _library_tokenizer(self) -> LLTokenizer:
        with self._lock:
            if self._built is None:
                words = _Vocabulary(self._tokenizer, self._vocab_size, self._eos_ids)
                self._built = LLTokenizer(TokenizerWrapper(words))
            return self._built


class GrammarMatcher:
    """How far one row has come in its grammar. One thread at a time may use it."""

    def __init__(
        self,
        grammar: Grammar,
        state: LLMatcher,
        vocab_size: int,
        eos_ids: list[int],
        pool: ThreadPoolExecutor,
    ) -> None:
        self._grammar = grammar
        self._state = state
        self._vocab_size = vocab_size
        self._eos_ids = eos_ids
        self._pool = pool
        self._mask: Future[Tensor] | None = None
        self._finished = False

    @property
    def finished(self) -> bool:
        """Whether nothing but the end can follow.

        Where the end is still possible only, or found out late, the mask says so.
        """
        return self._finished

    def prepare(self) -> None:
        """Start to work out the next mask in another thread, while the model computes."""
        if self._mask is None:
            self._mask = self._pool.submit(self.next_mask)

    def apply(self, logits: Tensor) -> None:
        """Set what may not come next to minus infinity, in place.

        The ids that end a reply are allowed exactly where the text is complete. If there are none,
        nothing at all is allowed once the grammar is `finished`.

        Args:
            logits: (vocab,), of any float type and device.

        Raises:
            RequestError: following the grammar further takes too much work, or needs bytes that
                the vocabulary does not have.
        """
        forbidden = self.next_mask() if self._mask is None else self._mask.result()
        forbidden = forbidden.to(logits.device)
        logits[: len(forbidden)].masked_fill_(forbidden, -math.inf)
        logits[len(forbidden) :] = -math.inf

    def accept(self, token_id: int) -> None:
        """Go on by one token that was allowed.

        Raises:
            RequestError: as `apply`.
        """
        self._settle()
        self._mask = None
        if token_id in self._eos_ids:
            self._finished = True
        elif self._state.consume_token(token_id):
            self._finished = self._state.is_stopped()
        else:
            raise _refusal(self._grammar, _reason(self._state.get_error()))

    def forced_tokens(self) -> list[int]:
        """Return the tokens that must come next, without accepting them.

        They are what the tokenizer makes of the only text possible, so they can go through the
        model in one pass. Empty where there is a choice.
        """
        self._settle()
        return self._state.compute_ff_tokens()

    def next_mask(self) -> Tensor:
        """Work out which tokens are forbidden now: (vocab,) bool on the CPU."""
        bits = np.frombuffer(self._state.compute_bitmask(), dtype=np.uint8)
        if self._state.is_error():
            raise _refusal(self._grammar, _reason(self._state.get_error()))
        allowed = np.unpackbits(bits, count=self._vocab_size, bitorder="little")
        # The library knows one such id, and also allows it where it has lost its way.
        complete = self._state.is_accepting()
        allowed[self._eos_ids] = complete
        if not complete and not allowed.any():
            raise _refusal(self._grammar, _NO_TEXT)
        return torch.from_numpy(allowed == 0)

    def _settle(self) -> None:
        """Make sure that no other thread works on the state."""
        if self._mask is not None:
            if self._mask.cancel():
                self._mask = None
            else:
                wait([self._mask])


class _Vocabulary:
    """A tokenizer as llguidance wants to see it: the bytes of each token, and how text is cut."""

    bos_token_id = None

    def __init__(self, tokenizer: Any, size: int, eos_ids: Sequence[int]) -> None:
        texts = TokenBytes(tokenizer)
        self.tokens = [texts.of(i) for i in range(size)]
        self.eos_token_id = eos_ids[0] if eos_ids else None
        added = tokenizer.added_tokens_decoder.items()
        special = {i for i, token in added if token.special}
        self.special_token_ids = sorted(special.union(eos_ids, tokenizer.all_special_ids))
        self._cutter: Tokenizer | None = None
        if tokenizer.is_fast:
            # A copy: others change the padding and truncation of theirs while we use it.
            self._cutter = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
            self._cutter.no_padding()
            self._cutter.no_truncation()
            self._cutter.encode_special_tokens = True

    def __call__(self, text: str) -> list[int]:
        """Cut text as the model was taught; it is a piece from the middle of a reply."""
        if self._cutter is not None:
            ids: list[int] = self._cutter.encode(text, add_special_tokens=False).ids
            if b"".join(self.tokens[i] for i in ids if i < len(self.tokens)) == text.encode():
                return ids
        # SentencePiece puts a space before the text, and some vocabularies lack some bytes.
        return self._longest_first(text.encode())

    def _longest_first(self, text: bytes) -> list[int]:
        """Cut off the longest token again and again, as far as there is one."""
        ids: list[int] = []
        while text:
            sizes = range(min(len(text), self._longest), 0, -1)
            size = next((n for n in sizes if text[:n] in self._ids), None)
            if size is None:
                break
            ids.append(self._ids[text[:size]])
            text = text[size:]
        return ids

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        special = set(self.special_token_ids)
        return {word: i for i, word in enumerate(self.tokens) if word and i not in special}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._ids))


def _library_grammar(grammar: Grammar) -> str:
    """Write a grammar as llguidance reads it.

    Raises:
        ValueError: it is no JSON object, no Unicode, or ends in half an escape.
    """
    match grammar.kind:
        case "json_object":
            return _json_grammar('{"type": "object"}')
        case "json_schema":
            return _json_grammar(grammar.source)
        case "choice":
            return LLMatcher.grammar_from_regex("|".join(map(_literal, grammar.choices)))
        case "regex":
            if (len(grammar.source) - len(grammar.source.rstrip("\\"))) % 2:
                # The library would drop it.
                raise ValueError("it ends in a backslash that escapes nothing")
            return LLMatcher.grammar_from_regex(grammar.source)


def _json_grammar(schema: str) -> str:
    return LLMatcher.grammar_from_json_schema(
        schema,
        # They win over a schema's own "x-guidance", which could switch the refusals off.
        overrides={
            "whitespace_pattern": WHITESPACE,
            "item_separator": ",",
            "key_separator": ":",
            "coerce_one_of": False,
            "lenient": False,
        },
    )


def _literal(text: str) -> str:
    """Write text as a regular expression that fits only it."""
    return "".join(c if c.isalnum() else f"\\x{{{ord(c):x}}}" for c in text)


def _reason(error: str) -> str:
    """Find in an error of llguidance the line that says what is wrong."""
    first, *rest = error.splitlines()
    if first == "NoExtensionBias":
        return _NO_TEXT
    for line in rest:
        if line.startswith("error: "):  # of a regular expression, after a drawing
            return line.removeprefix("error: ")
    return re.sub(r"^at \d+\(\d+\): ", "", first)


def _refusal(grammar: Grammar, reason: str) -> RequestError:
    param = grammar.param or _PARAMS[grammar.kind]
    which = "these" if param == "tools" else "this"
    return RequestError(f"cannot enforce {which} {param}: {reason}", param=param)
