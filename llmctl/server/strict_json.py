"""What counts as a JSON body? RFC 8259 to the letter, and nothing Python adds to it."""

import json
import math
from collections.abc import Callable
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute


def parse(body: bytes) -> Any:
    """Parse JSON without duplicate keys, NaN, infinities or text that is not Unicode.

    Raises:
        json.JSONDecodeError: it is anything else; the one error FastAPI reports as bad JSON.
    """
    try:
        text = body.decode()
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
        if "\\u" in text:
            # An escaped half of a surrogate pair parses, and breaks whoever encodes it later.
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise json.JSONDecodeError(str(error), "", 0) from error
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return result


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits} is too large")
    return value


class StrictJSONRequest(Request):
    async def json(self) -> Any:
        return parse(await self.body())


class StrictJSONRoute(APIRoute):
    """A route whose JSON body goes through `parse`."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            response: Response = await handle(StrictJSONRequest(request.scope, request.receive))
            return response

        return strictly
