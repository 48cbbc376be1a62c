"""How is the model reached from inside OpenCompass? Over HTTP, with patience, never silently."""

import http.client
import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

KEY_VARIABLE = "LLMCTL_OC_KEY"
"""Holds the server's key for a run, whose files must not hold it."""
TIMEOUT_S = 1800.0
TRIES = 3
LOOPBACK = ("127.0.0.1", "localhost", "::1")


TOO_LONG = "context_length_exceeded"


class ServerRequestError(Exception):
    """A question that got no answer, and why."""

    def __init__(self, message: str, code: object = None, status: int | None = None) -> None:
        super().__init__(message)
        self.unknown_route = status == 404 and code is None
        """The server has no such route; an unknown model has a code."""
        self.too_long = code == TOO_LONG
        """The prompt does not fit the model's context; it may with fewer examples."""


class ServerClient:
    """A server with OpenAI's API. May be used from many threads."""

    def __init__(self, base_url: str, model: str, key: str) -> None:
        self._base_url = base_url.rstrip("/")
        self.model = model
        self._key = key
        host = urllib.parse.urlsplit(base_url).hostname
        # A proxy is for the world outside.
        proxies = [urllib.request.ProxyHandler({})] if host in LOOPBACK else []
        self._open = urllib.request.build_opener(*proxies).open
        self._gone = threading.Event()

    def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Post and return the whole answer. Raises `ServerRequestError`."""
        for tries_left in range(TRIES - 1, -1, -1):
            try:
                with self._post(path, body) as answer:
                    found: dict[str, Any] = json.load(answer)
                self._gone.clear()
                return found
            except urllib.error.HTTPError as error:
                if not tries_left or (error.code != 429 and error.code < 500):
                    raise _refused(error) from error
                time.sleep(_patience(error, tries_left))
            except (OSError, ValueError, http.client.HTTPException) as error:
                # One thread finds out that a server is gone; the others need not wait again.
                if not tries_left or self._gone.is_set():
                    self._gone.set()
                    raise ServerRequestError(f"the server does not answer: {error}") from error
                time.sleep(2.0 ** (TRIES - 1 - tries_left) / 2)
        raise AssertionError

    def lines(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Post and yield the answer's lines as they come. Raises `ServerRequestError`."""
        try:
            with self._post(path, body) as answer:
                for line in answer:
                    yield json.loads(line)
        except urllib.error.HTTPError as error:
            raise _refused(error) from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ServerRequestError(f"the server does not answer: {error}") from error

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(
            self._base_url + path, json.dumps(body).encode(), headers, method="POST"
        )
        return self._open(request, timeout=TIMEOUT_S)


def _patience(error: urllib.error.HTTPError, tries_left: int) -> float:
    try:
        return min(float(error.headers.get("Retry-After", "")), 60.0)
    except ValueError:
        return 2.0 ** (TRIES - 1 - tries_left) / 2


def _refused(error: urllib.error.HTTPError) -> ServerRequestError:
    text = error.read().decode(errors="replace")
    try:
        told = json.loads(text)["error"]
        return ServerRequestError(f"{error.code}: {told['message']}", told.get("code"), error.code)
    except (ValueError, KeyError, TypeError, AttributeError):
        return ServerRequestError(
            f"{error.code}: {text.strip()[:200] or error.reason}", status=error.code
        )


TextLogprob = tuple[float, int]
"""Summed log-likelihood of a text's tokens but the first, and how many tokens it has."""


def score_shared_prefix(
    server: ServerClient, groups: list[list[str]]
) -> Iterator[tuple[int, list[TextLogprob] | ServerRequestError, int]]:
    """Score groups of texts in one request: index, a score for each text, tokens computed."""
    head = _shared([text for group in groups for text in group])
    wire = []
    for group in groups:
        stem = _shared(group)
        wire.append({"stem": stem[len(head) :], "endings": [text[len(stem) :] for text in group]})
    answered = 0
    body = {"model": server.model, "head": head, "groups": wire}
    try:
        for line in _loglikelihood_lines(server, body):
            if "error" in line:
                told = line["error"]
                yield line["index"], ServerRequestError(told["message"], told.get("code")), 0
            else:
                scores = [(score["logprob"], score["tokens"]) for score in line["scores"]]
                yield line["index"], scores, line["computed"]
            answered += 1
        missing = ServerRequestError("the server ended its answer before this question")
    except ServerRequestError as error:
        missing = error
    for index in range(answered, len(groups)):
        yield index, missing, 0


def _loglikelihood_lines(server: ServerClient, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    try:
        yield from server.lines("/loglikelihoods", body)
    except ServerRequestError as error:
        if not error.unknown_route:
            raise
        yield from server.lines("/score", body)  # the route's name in older versions of llmctl


def _shared(texts: list[str]) -> str:
    """Return what all texts begin with."""
    first, last = min(texts), max(texts)
    pairs = enumerate(zip(first, last, strict=False))
    return first[: next((at for at, (a, b) in pairs if a != b), len(min(first, last, key=len)))]


def score_by_echo(
    server: ServerClient, groups: list[list[str]], workers: int
) -> Iterator[tuple[int, list[TextLogprob] | ServerRequestError, int]]:
    """Do the same at any server whose completions echo the prompt with its log-likelihoods."""

    def score(group: list[str]) -> list[TextLogprob] | ServerRequestError:
        try:
            told = [echo_logprobs(server, text) for text in group]
            return [(sum(logprobs), len(logprobs) + 1) for logprobs in told]
        except ServerRequestError as error:
            return error

    with ThreadPoolExecutor(workers) as pool:
        for index, scores in enumerate(pool.map(score, groups)):
            computed = (
                0 if isinstance(scores, ServerRequestError) else sum(count for _, count in scores)
            )
            yield index, scores, computed


def echo_logprobs(server: ServerClient, text: str) -> list[float]:
    """Return the log-likelihoods of a text's tokens but the first, by its echo.

    Raises `ServerRequestError`, also where the echo says nothing.
    """
    body = {"prompt": text, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    answer = server.ask("/completions", {"model": server.model, **body})
    try:
        logprobs = answer["choices"][0]["logprobs"]["token_logprobs"]
        count = answer["usage"]["prompt_tokens"]
        told = [float(value) for value in logprobs[1:count]]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ServerRequestError("the server echoes no log-likelihoods") from error
    if len(told) != count - 1 or not any(told):
        raise ServerRequestError(
            f"the server echoed {len(told)} log-likelihoods for {count} tokens"
        )
    return told
