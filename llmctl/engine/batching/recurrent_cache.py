"""The cache of a sequence in a model with recurrent layers."""

from collections.abc import Sequence

from llmctl.engine.batching.bucket_size import bucket_floor
from llmctl.engine.batching.kv_cache import (
    MAX_SAVED_STATES,
    KVCache,
    KVShape,
    States,
    common_prefix_length,
)

_MAX_SINGLE_STEPS = 16
"""Most tokens that are computed one by one rather than the whole prompt again."""


class RecurrentCache(KVCache):
    """Keys, values and the states of recurrent layers, which hold all tokens up to the last one.

    A state cannot be cut, so copies are saved at a few lengths: the ends of prompts, and where
    other prompts differ from this one.

    Attributes:
        state: one tensor (1, ...) per state of the model; `None` before the first token. A step
            replaces it, and may change the tensors in place.
    """

    def __init__(self, shape: KVShape, adapter: str | None) -> None:
        super().__init__(shape, adapter)
        self.state: States | None = None
        self._saved: dict[int, States] = {}
        self._wanted: set[int] = set()
        self._is_valid = True

    @property
    def cost(self) -> int:
        return self.capacity + self._shape.state_tokens

    @property
    def can_truncate(self) -> bool:
        return False

    def invalidate(self) -> None:
        """Mark the state as changed by a step that has not ended."""
        self._is_valid = False

    def reusable_length(self, token_ids: Sequence[int]) -> int:
        """Return the longest common prefix for which there is a state."""
        shared = common_prefix_length(self.token_ids, token_ids)
        if shared == self.length and self._is_valid:
            length = shared
        else:
            length = max((saved for saved in self._saved if saved <= shared), default=0)
        # The rest of the tokens would be computed one by one.
        slow = self._shape.whole_prompts and len(token_ids) - length > _MAX_SINGLE_STEPS
        return 0 if slow else length

    def copy_prefix(self, source: KVCache, length: int) -> None:
        assert isinstance(source, RecurrentCache)
        super().copy_prefix(source, length)
        self.state = source.state_at(length)
        self._is_valid = True

    def state_at(self, length: int) -> States | None:
        """Return a copy of the state after `length` tokens, a value of `reusable_length`."""
        state = self._saved.get(length, self.state) if length else None
        return None if state is None else tuple(part.clone() for part in state)

    def truncate(self, length: int) -> None:
        """Cut to `length` tokens, or to the last saved state before them."""
        if length >= self.length and self._is_valid:
            return
        length = max((saved for saved in self._saved if saved <= length), default=0)
        self.state = self.state_at(length)
        self._is_valid = True
        self._saved = {n: state for n, state in self._saved.items() if n <= length}
        super().truncate(length)

    def keep_state(self, length: int) -> None:
        if length > self.length:
            self._wanted.add(length)
        elif length == self.length and length:
            self._save()

    def step_limit(self, budget: int, pending: int) -> int:
        """Return the tokens up to the next state to save, rounded down to a bucket."""
        ends = (length - self.length for length in self._wanted if length > self.length)
        if self._shape.whole_prompts:
            return 1 if self.length else min((pending, *ends))
        return bucket_floor(min((budget, pending, *ends)))

    def append(self, token_ids: Sequence[int]) -> None:
        super().append(token_ids)
        self._is_valid = True
        if self.length in self._wanted:
            self._wanted.discard(self.length)
            self._save()

    def _save(self) -> None:
        state = self.state_at(self.length)
        if state is not None:
            self._saved.pop(self.length, None)
            self._saved[self.length] = state
        while len(self._saved) > MAX_SAVED_STATES:
            del self._saved[next(iter(self._saved))]

    def detach(self) -> None:
        if self.state is not None:
            self.state = tuple(part.clone() for part in self.state)
