"""Strict JSON bodies: RFC 8259 without Python's extensions, without duplicate keys."""

import asyncio
import json
import math
from collections.abc import Callable
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

MAX_OBJECTS = 2**16
"""Of one body. Validating more would block the event loop for too long."""

LARGE_BODY_BYTES = 2**18
"""From this size on a body is parsed in a thread, so that the event loop keeps running."""


def parse_json(body: bytes, max_objects: float = MAX_OBJECTS) -> Any:
    """Parse JSON without duplicate keys, NaN, infinities or text that is not Unicode.

    Raises:
        json.JSONDecodeError: the body is anything else, or has more than `max_objects` objects.
            It is the only exception that FastAPI reports as bad JSON.
    """
    objects = 0

    def count_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal objects
        objects += 1
        if objects > max_objects:
            raise ValueError(f"it holds more than {max_objects} objects")
        return object_from_pairs(pairs)

    try:
        text = body.decode()
        value = json.loads(
            text,
            object_pairs_hook=count_object,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
        if "\\u" in text:
            # An escaped half of a surrogate pair parses, but cannot be encoded later.
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise json.JSONDecodeError(str(error), "", 0) from error
    return value


def object_from_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of its members.

    Raises:
        ValueError: two members have the same key.
    """
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"duplicate key {name!r}")
            seen.add(name)
    return result


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits} is too large")
    return value


class StrictJSONRequest(Request):
    max_objects: float = MAX_OBJECTS

    async def json(self) -> Any:
        body = await self.body()
        if len(body) < LARGE_BODY_BYTES:
            return parse_json(body, self.max_objects)
        return await asyncio.to_thread(parse_json, body, self.max_objects)


class StrictJSONRoute(APIRoute):
    """Route whose JSON body is parsed with `parse_json`."""

    max_objects: float = MAX_OBJECTS

    def get_route_handler(self) -> Callable[[Request], Any]:
        handler = super().get_route_handler()

        async def strict_handler(request: Request) -> Response:
            strict = StrictJSONRequest(request.scope, request.receive)
            strict.max_objects = self.max_objects
            response: Response = await handler(strict)
            return response

        return strict_handler
