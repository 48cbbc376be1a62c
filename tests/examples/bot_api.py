"""Fake of Telegram's Bot API over HTTP."""

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


class BotAPI:
    """Holds the messages. `texts` returns the current text of the bot's messages in a chat."""

    def __init__(self) -> None:
        self.url = ""
        self.edits: list[tuple[float, int, str]] = []
        """Time, chat and text of every edit."""
        self.limit_next_edits = 0
        self._updates: list[dict[str, Any]] = []
        self._ids = itertools.count(1)
        self._messages: dict[int, tuple[int, str]] = {}

    def send(self, chat: int, text: str) -> None:
        """Send a message as a user."""
        message = self._message(chat, next(self._ids), text) | {
            "from": {"id": chat, "is_bot": False, "first_name": "Ann"}
        }
        if text.startswith("/"):
            message["entities"] = [{"type": "bot_command", "offset": 0, "length": len(text)}]
        self._updates.append({"update_id": next(self._ids), "message": message})

    def texts(self, chat: int) -> list[str]:
        return [text for owner, text in self._messages.values() if owner == chat]

    @staticmethod
    def _message(chat: int, number: int, text: str) -> dict[str, Any]:
        return {
            "message_id": number,
            "date": int(time.time()),
            "chat": {"id": chat, "type": "private", "first_name": "Ann"},
            "text": text,
        }

    async def answer(self, request: Request) -> JSONResponse:
        method = request.path_params["method"]
        body = (await request.body()).decode()
        fields = {name: values[0] for name, values in parse_qs(body).items()}
        if request.headers.get("content-type", "").startswith("application/json"):
            fields = json.loads(body)
        match method:
            case "getMe":
                result: Any = {"id": 1, "is_bot": True, "first_name": "Bot", "username": "a_bot"}
            case "getUpdates":
                result = await self._new_updates(int(fields.get("offset", 0)))
            case "sendMessage":
                number, chat = next(self._ids), int(fields["chat_id"])
                self._messages[number] = (chat, fields["text"])
                result = self._message(chat, number, fields["text"])
            case "editMessageText":
                if self.limit_next_edits:
                    self.limit_next_edits -= 1
                    refusal = {"retry_after": 1}
                    return JSONResponse(
                        {
                            "ok": False,
                            "error_code": 429,
                            "description": "Too Many Requests: retry after 1",
                            "parameters": refusal,
                        },
                        429,
                    )
                number, chat = int(fields["message_id"]), int(fields["chat_id"])
                self._messages[number] = (chat, fields["text"])
                self.edits.append((time.monotonic(), chat, fields["text"]))
                result = self._message(chat, number, fields["text"])
            case _:
                result = True
        return JSONResponse({"ok": True, "result": result})

    async def _new_updates(self, offset: int) -> list[dict[str, Any]]:
        for _ in range(20):
            updates = [update for update in self._updates if update["update_id"] >= offset]
            if updates:
                return updates
            await asyncio.sleep(0.05)
        return []


@contextmanager
def bot_api() -> Iterator[BotAPI]:
    """Run the fake on a free port."""
    api = BotAPI()
    app = Starlette(routes=[Route("/bot{token}/{method}", api.answer, methods=["GET", "POST"])])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    api.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield api
    finally:
        server.should_exit = server.force_exit = True
        thread.join()
