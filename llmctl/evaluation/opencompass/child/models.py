"""Our model classes for OpenCompass, named by string in its configuration."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from opencompass.models.base import BaseModel
from opencompass.models.base_api import BaseAPIModel

from .http import KEY_VARIABLE, ServerClient, ServerRequestError
from .response_cache import ResponseCache, cache_key, event_log

ROLES = {"HUMAN": "user", "BOT": "assistant", "SYSTEM": "system"}
EXAMPLE = ["user", "assistant"]


class TextModel(BaseModel):  # type: ignore[misc]
    """Raw text, for likelihoods; `SharedPrefixPPLInferencer` asks for them through `server`."""

    def __init__(
        self, path: str, base_url: str, identity: str, journal: str, workers: int, shared: bool
    ) -> None:
        super().__init__(path=path)
        self.server = ServerClient(base_url, path, os.environ.get(KEY_VARIABLE, ""))
        self.identity = identity
        self.journal = ResponseCache(Path(journal))
        self.workers = workers
        self.shared = shared
        """Whether the server scores texts that begin alike in one request."""


class ChatModel(BaseAPIModel):  # type: ignore[misc]
    """A chat endpoint: all questions it is given are in flight at once, up to `workers`."""

    def __init__(
        self,
        path: str,
        base_url: str,
        identity: str,
        journal: str,
        workers: int,
        meta_template: dict[str, Any],
    ) -> None:
        super().__init__(path=path, meta_template=meta_template)
        self._server = ServerClient(base_url, path, os.environ.get(KEY_VARIABLE, ""))
        self._identity = identity
        self._journal = ResponseCache(Path(journal))
        self._workers = workers
        self.notes: list[dict[str, Any]] = []
        """Of the questions of the last `generate`, in order: what a prediction does not say."""

    def generate(
        self, inputs: Sequence[Any], max_out_len: int, stopping_criteria: Sequence[str] = ()
    ) -> list[str]:
        """Answer every question; one that fails is answered by nothing, and noted."""
        event_log.tell("questions", count=len(inputs))

        def answer(prompt: Any) -> dict[str, Any]:
            body: dict[str, Any] = {"messages": _messages(prompt), "temperature": 0}
            body["max_tokens"] = max_out_len
            if stopping_criteria:
                body["stop"] = list(stopping_criteria)
            key = cache_key("chat", self._identity, body)
            noted: dict[str, Any] | None = self._journal.get(key)
            if noted is None:
                try:
                    noted = self._asked(body)
                    self._journal.put(key, noted)
                except ServerRequestError as error:
                    noted = {"reply": "", "error": str(error), "too_long": error.too_long}
            event_log.tell("question")
            return noted

        with ThreadPoolExecutor(max(1, min(self._workers, len(inputs)))) as pool:
            self.notes = list(pool.map(answer, inputs))
        return [note["reply"] for note in self.notes]

    def _asked(self, body: dict[str, Any]) -> dict[str, Any]:
        """Ask with one example less each time the prompt is too long.

        Raises `ServerRequestError`.
        """
        messages, dropped = list(body["messages"]), 0
        while True:
            asked = {"model": self._server.model, **body, "messages": messages}
            try:
                return {**_note(self._server.ask("/chat/completions", asked)), "dropped": dropped}
            except ServerRequestError as error:
                if not error.too_long or [m["role"] for m in messages[-3:-1]] != EXAMPLE:
                    raise
                # The last one goes first, as in OpenCompass.
                del messages[-3:-1]
                dropped += 1


def _note(answer: dict[str, Any]) -> dict[str, Any]:
    try:
        choice, usage = answer["choices"][0], answer.get("usage") or {}
        return {
            "reply": choice["message"].get("content") or "",
            "finish_reason": choice.get("finish_reason") or "",
            "tokens": usage.get("prompt_tokens", 0) + usage.get("completion_tokens", 0),
            "cached_tokens": (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        }
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ServerRequestError(
            f"the server answered with something else than a chat: {error}"
        ) from error


def _messages(prompt: Any) -> list[dict[str, str]]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [
        {
            "role": item["role"] if "content" in item else ROLES[item["role"]],
            "content": item["content"] if "content" in item else item["prompt"],
        }
        for item in prompt
    ]
