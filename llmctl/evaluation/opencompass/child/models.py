"""OpenCompass model classes that use the server; its configuration names them as strings."""

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
EXAMPLE_ROLES = ["user", "assistant"]


class TextModel(BaseModel):  # type: ignore[misc]
    """A model of raw text for log-likelihoods, which `SharedPrefixPPLInferencer` requests."""

    def __init__(
        self, path: str, base_url: str, identity: str, cache: str, workers: int, shared: bool
    ) -> None:
        super().__init__(path=path)
        self.server = ServerClient(base_url, path, os.environ.get(KEY_VARIABLE, ""))
        self.identity = identity
        self.cache = ResponseCache(Path(cache))
        self.workers = workers
        self.shared = shared
        """The server scores texts with a shared prefix in one request."""


class ChatModel(BaseAPIModel):  # type: ignore[misc]
    """A chat model; up to `workers` requests are in flight at once."""

    def __init__(
        self,
        path: str,
        base_url: str,
        identity: str,
        cache: str,
        workers: int,
        meta_template: dict[str, Any],
    ) -> None:
        super().__init__(path=path, meta_template=meta_template)
        self._server = ServerClient(base_url, path, os.environ.get(KEY_VARIABLE, ""))
        self._identity = identity
        self._cache = ResponseCache(Path(cache))
        self._workers = workers
        self.responses: list[dict[str, Any]] = []
        """Responses of the last `generate`, in order, with what a prediction does not hold."""

    def generate(
        self, inputs: Sequence[Any], max_out_len: int, stopping_criteria: Sequence[str] = ()
    ) -> list[str]:
        """Answer all prompts; a request that fails gives an empty reply with an error."""
        event_log.emit("questions", count=len(inputs))

        def answer(prompt: Any) -> dict[str, Any]:
            body: dict[str, Any] = {"messages": chat_messages(prompt), "temperature": 0}
            body["max_tokens"] = max_out_len
            if stopping_criteria:
                body["stop"] = list(stopping_criteria)
            key = cache_key("chat", self._identity, body)
            response: dict[str, Any] | None = self._cache.get(key)
            if response is None:
                try:
                    response = self._request(body)
                    self._cache.put(key, response)
                except ServerRequestError as error:
                    response = {"reply": "", "error": str(error), "too_long": error.too_long}
            event_log.emit("question")
            return response

        with ThreadPoolExecutor(max(1, min(self._workers, len(inputs)))) as pool:
            self.responses = list(pool.map(answer, inputs))
        return [response["reply"] for response in self.responses]

    def _request(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the response; drop an example each time the prompt is too long.

        Raises:
            ServerRequestError: the request failed, also without examples.
        """
        messages, dropped = list(body["messages"]), 0
        while True:
            request = {"model": self._server.model, **body, "messages": messages}
            try:
                response = self._server.post("/chat/completions", request)
                return {**_parse_chat(response), "dropped": dropped}
            except ServerRequestError as error:
                if not error.too_long or [m["role"] for m in messages[-3:-1]] != EXAMPLE_ROLES:
                    raise
                # As in OpenCompass, the last example is dropped first.
                del messages[-3:-1]
                dropped += 1


def _parse_chat(response: dict[str, Any]) -> dict[str, Any]:
    try:
        choice, usage = response["choices"][0], response.get("usage") or {}
        return {
            "reply": choice["message"].get("content") or "",
            "finish_reason": choice.get("finish_reason") or "",
            "tokens": usage.get("prompt_tokens", 0) + usage.get("completion_tokens", 0),
            "cached_tokens": (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        }
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ServerRequestError(f"the response is not a chat completion: {error}") from error


def chat_messages(prompt: Any) -> list[dict[str, str]]:
    """Return a prompt of OpenCompass as messages of OpenAI's API."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [
        {
            "role": item["role"] if "content" in item else ROLES[item["role"]],
            "content": item["content"] if "content" in item else item["prompt"],
        }
        for item in prompt
    ]
