"""Telegram bot with `llmctl serve`: streamed answers, one conversation per chat, many users.

    pip install python-telegram-bot openai
    llmctl serve --overflow truncate-oldest &
    TELEGRAM_TOKEN=… python examples/telegram_bot.py

`/reset` clears the conversation, `/stop` stops a running answer. Further variables: `LLMCTL_URL`,
`LLMCTL_API_KEY`, `LLMCTL_MODEL`, `SYSTEM_PROMPT`, `TELEGRAM_API` (URL of another Bot API server).
"""

import asyncio
import contextlib
import os
import time
from collections import defaultdict
from dataclasses import dataclass, field

import httpx
from openai import APIConnectionError, APIError, AsyncOpenAI, RateLimitError
from telegram import Message, Update
from telegram.error import BadRequest, RetryAfter, TelegramError
from telegram.ext import Application, CommandHandler, ContextTypes, MessageHandler, filters

URL = os.environ.get("LLMCTL_URL", "http://127.0.0.1:8000/v1")
KEY = os.environ.get("LLMCTL_API_KEY", "not needed")
SYSTEM_PROMPT = os.environ.get("SYSTEM_PROMPT", "You are a friendly assistant. Be brief.")
TELEGRAM_API = os.environ.get("TELEGRAM_API", "https://api.telegram.org")

MAX_MESSAGE_LENGTH = 4000
"""In characters. Telegram's limit is 4096."""
EDIT_INTERVAL_S = 1.2
"""Telegram allows about one edit per second in a chat."""
ATTEMPTS = 6
"""Requests to an unreachable or busy server. The wait between them doubles, from one second on."""


@dataclass
class Chat:
    """Messages of one chat, and the task that generates an answer."""

    turns: list[dict[str, str]] = field(default_factory=list)
    answering: asyncio.Task[None] | None = None


class Bot:
    def __init__(self, client: AsyncOpenAI) -> None:
        self._client = client
        self._chats: dict[int, Chat] = defaultdict(Chat)
        self._model = os.environ.get("LLMCTL_MODEL")

    async def start(self, update: Update, _: ContextTypes.DEFAULT_TYPE) -> None:
        await update.message.reply_text(
            "Send me a message. /stop stops an answer, /reset clears the conversation."
        )

    async def reset(self, update: Update, _: ContextTypes.DEFAULT_TYPE) -> None:
        await self._stop(update.effective_chat.id)
        del self._chats[update.effective_chat.id]
        await update.message.reply_text("Conversation cleared.")

    async def stop(self, update: Update, _: ContextTypes.DEFAULT_TYPE) -> None:
        if not await self._stop(update.effective_chat.id):
            await update.message.reply_text("No answer is running.")

    async def on_message(self, update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
        """Answer a message in a task of its own, so that `/stop` can be handled meanwhile."""
        chat = self._chats[update.effective_chat.id]
        await self._stop(update.effective_chat.id)  # a new question stops the previous answer
        chat.turns.append({"role": "user", "content": update.message.text})
        chat.answering = context.application.create_task(self._answer(chat, update.message))

    async def _stop(self, chat_id: int) -> bool:
        task = self._chats[chat_id].answering
        if task is None or task.done():
            return False
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return True

    async def _answer(self, chat: Chat, question: Message) -> None:
        output = _GrowingMessage(await question.reply_text("…"))
        text, note = "", ""
        try:
            async for piece in self._pieces(chat.turns):
                text += piece
                await output.show(text)
        except asyncio.CancelledError:
            note = " ⏹"  # the partial answer is kept
        except (APIError, httpx.HTTPError) as error:
            note = f"\n\n⚠️ {error or type(error).__name__}"
        finally:
            if text:
                chat.turns.append({"role": "assistant", "content": text})
            elif chat.turns and chat.turns[-1]["role"] == "user":
                chat.turns.pop()  # the next request must not end with two questions
            await output.show(text + note or "(empty answer)", last=True)

    async def _pieces(self, turns: list[dict[str, str]]):
        """Yield the answer in pieces. Retries while the server is unreachable or busy."""
        for attempt in range(ATTEMPTS):
            started = False
            try:
                if self._model is None:
                    self._model = (await self._client.models.list()).data[0].id
                stream = await self._client.chat.completions.create(
                    model=self._model,
                    messages=[{"role": "system", "content": SYSTEM_PROMPT}, *turns],
                    stream=True,
                )
                async with stream:
                    async for chunk in stream:
                        if chunk.choices and (piece := chunk.choices[0].delta.content):
                            started = True
                            yield piece
                return
            except (APIConnectionError, RateLimitError, httpx.HTTPError):
                # The server may be restarting. A partial answer cannot be resumed: it is kept.
                if started or attempt == ATTEMPTS - 1:
                    raise
                await asyncio.sleep(2**attempt)


class _GrowingMessage:
    """An answer that is edited while it grows, split into several messages if it is long."""

    def __init__(self, message: Message) -> None:
        self._message = message
        self._start = 0
        self._shown = ""
        self._next_edit = 0.0

    async def show(self, text: str, *, last: bool = False) -> None:
        if not last and time.monotonic() < self._next_edit:
            return
        while len(text) - self._start > MAX_MESSAGE_LENGTH:
            end = self._start + MAX_MESSAGE_LENGTH
            await self._edit(text[self._start : end])
            self._message = await self._message.reply_text("…")
            self._start, self._shown = end, ""
        await self._edit(text[self._start :])

    async def _edit(self, text: str) -> None:
        if not text.strip() or text == self._shown:
            return
        for _ in range(3):
            try:
                await self._message.edit_text(text)
                break
            except RetryAfter as error:
                wait = error.retry_after
                await asyncio.sleep(wait if isinstance(wait, int | float) else wait.total_seconds())
            except BadRequest:
                break  # the message was deleted, or has this text already
            except TelegramError:
                await asyncio.sleep(1)
        self._shown = text
        self._next_edit = time.monotonic() + EDIT_INTERVAL_S


def main() -> None:
    bot = Bot(AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0))
    application = (
        Application.builder()
        .token(os.environ["TELEGRAM_TOKEN"])
        .base_url(f"{TELEGRAM_API}/bot")
        .concurrent_updates(True)
        .build()
    )
    application.add_handler(CommandHandler("start", bot.start))
    application.add_handler(CommandHandler("reset", bot.reset))
    application.add_handler(CommandHandler("stop", bot.stop))
    application.add_handler(MessageHandler(filters.TEXT & ~filters.COMMAND, bot.on_message))
    application.run_polling()


if __name__ == "__main__":
    main()
