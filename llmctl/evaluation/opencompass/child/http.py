"""HTTP client of the OpenAI-compatible server, with retries, for several threads."""

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
"""Environment variable with the server's key, which must not be in the files of a run."""
TIMEOUT_S = 1800.0
ATTEMPTS = 3
LOOPBACK = ("127.0.0.1", "localhost", "::1")
TOO_LONG = "context_length_exceeded"


class ServerRequestError(Exception):
    """A request that failed."""

    def __init__(self, message: str, code: object = None, status: int | None = None) -> None:
        super().__init__(message)
        self.unknown_route = status == 404 and code is None
        """The server has no such route; an unknown model has a code."""
        self.too_long = code == TOO_LONG
        """The prompt exceeds the context length; it may fit with fewer examples."""


class ServerClient:
    """Client of one model of a server with OpenAI's API."""

    def __init__(self, base_url: str, model: str, key: str) -> None:
        self._base_url = base_url.rstrip("/")
        self.model = model
        self._key = key
        host = urllib.parse.urlsplit(base_url).hostname
        # A proxy cannot reach the loopback address of this machine.
        proxies = [urllib.request.ProxyHandler({})] if host in LOOPBACK else []
        self._open = urllib.request.build_opener(*proxies).open
        self._unreachable = threading.Event()

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the JSON response. Raises `ServerRequestError`."""
        for attempts_left in range(ATTEMPTS - 1, -1, -1):
            try:
                with self._request(path, body) as response:
                    content: dict[str, Any] = json.load(response)
                self._unreachable.clear()
                return content
            except urllib.error.HTTPError as error:
                if not attempts_left or (error.code != 429 and error.code < 500):
                    raise _refused(error) from error
                time.sleep(_retry_after(error, attempts_left))
            except (OSError, ValueError, http.client.HTTPException) as error:
                # If one thread found the server unreachable, the others do not retry.
                if not attempts_left or self._unreachable.is_set():
                    self._unreachable.set()
                    raise ServerRequestError(f"the server does not answer: {error}") from error
                time.sleep(2.0 ** (ATTEMPTS - 1 - attempts_left) / 2)
        raise AssertionError

    def post_for_lines(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the JSON lines of the response as they arrive. Raises `ServerRequestError`."""
        try:
            with self._request(path, body) as response:
                for line in response:
                    yield json.loads(line)
        except urllib.error.HTTPError as error:
            raise _refused(error) from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ServerRequestError(f"the server does not answer: {error}") from error

    def _request(self, path: str, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(
            self._base_url + path, json.dumps(body).encode(), headers, method="POST"
        )
        return self._open(request, timeout=TIMEOUT_S)


def _retry_after(error: urllib.error.HTTPError, attempts_left: int) -> float:
    """Return the seconds to wait before the next attempt."""
    try:
        return min(float(error.headers.get("Retry-After", "")), 60.0)
    except ValueError:
        return 2.0 ** (ATTEMPTS - 1 - attempts_left) / 2


def _refused(error: urllib.error.HTTPError) -> ServerRequestError:
    text = error.read().decode(errors="replace")
    try:
        details = json.loads(text)["error"]
        return ServerRequestError(
            f"{error.code}: {details['message']}", details.get("code"), error.code
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return ServerRequestError(
            f"{error.code}: {text.strip()[:200] or error.reason}", status=error.code
        )


TextLogprob = tuple[float, int]
"""Summed log-likelihood of a text's tokens except the first, and its number of tokens."""
GroupScores = tuple[int, list[TextLogprob] | ServerRequestError, int]
"""Index of the group, a score for each text or the error, and the tokens computed."""


def score_shared_prefix(server: ServerClient, groups: list[list[str]]) -> Iterator[GroupScores]:
    """Score groups of texts in one request to `llmctl serve`, which shares their prefixes."""
    head = shared_prefix([text for group in groups for text in group])
    wire = []
    for group in groups:
        stem = shared_prefix(group)
        endings = [text[len(stem) :] for text in group]
        wire.append({"stem": stem[len(head) :], "endings": endings})
    answered = 0
    body = {"model": server.model, "head": head, "groups": wire}
    try:
        for line in _loglikelihood_lines(server, body):
            if "error" in line:
                details = line["error"]
                error = ServerRequestError(details["message"], details.get("code"))
                yield line["index"], error, 0
            else:
                scores = [(score["logprob"], score["tokens"]) for score in line["scores"]]
                yield line["index"], scores, line["computed"]
            answered += 1
        missing = ServerRequestError("the server ended its response before this sample")
    except ServerRequestError as error:
        missing = error
    for index in range(answered, len(groups)):
        yield index, missing, 0


def _loglikelihood_lines(server: ServerClient, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    try:
        yield from server.post_for_lines("/loglikelihoods", body)
    except ServerRequestError as error:
        if not error.unknown_route:
            raise
        yield from server.post_for_lines(
            "/score", body
        )  # the route's name in older versions of llmctl


def shared_prefix(texts: list[str]) -> str:
    """Return the longest prefix of all texts."""
    first, last = min(texts), max(texts)
    pairs = enumerate(zip(first, last, strict=False))
    return first[: next((at for at, (a, b) in pairs if a != b), len(min(first, last, key=len)))]


def score_by_echo(
    server: ServerClient, groups: list[list[str]], workers: int
) -> Iterator[GroupScores]:
    """Score groups of texts at a server whose completions echo the prompt's log-likelihoods."""

    def score(group: list[str]) -> list[TextLogprob] | ServerRequestError:
        try:
            logprobs = [echo_logprobs(server, text) for text in group]
            return [(sum(values), len(values) + 1) for values in logprobs]
        except ServerRequestError as error:
            return error

    with ThreadPoolExecutor(workers) as pool:
        for index, scores in enumerate(pool.map(score, groups)):
            if isinstance(scores, ServerRequestError):
                yield index, scores, 0
            else:
                yield index, scores, sum(count for _, count in scores)


def echo_logprobs(server: ServerClient, text: str) -> list[float]:
    """Return the log-likelihoods of a text's tokens except the first.

    Raises:
        ServerRequestError: the request failed, or the server does not echo log-likelihoods.
    """
    body = {"prompt": text, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    response = server.post("/completions", {"model": server.model, **body})
    try:
        logprobs = response["choices"][0]["logprobs"]["token_logprobs"]
        count = response["usage"]["prompt_tokens"]
        values = [float(value) for value in logprobs[1:count]]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ServerRequestError("the server echoes no log-likelihoods") from error
    if len(values) != count - 1 or not any(values):
        raise ServerRequestError(
            f"the server echoed {len(values)} log-likelihoods for {count} tokens"
        )
    return values
