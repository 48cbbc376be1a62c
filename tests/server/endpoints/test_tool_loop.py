"""An agent's loop in every format: calls, results, a further call, an answer."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from llmctl.config import ServeConfig
from llmctl.engine.chat.response_parser import ResponseParserFactory
from llmctl.engine.chat.template import ChatTemplate, RenderOptions
from llmctl.engine.stream import GenerationStream
from llmctl.server.app import create_app
from llmctl.types import GenerationRequest, Message, ToolCall
from tests.fakes import FakeEngine
from tests.tiny import byte_tokenizer
from tests.tool_templates import TEMPLATES

TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"a": {"type": kind}}},
        },
    }
    for name, kind in (("find", "string"), ("count", "integer"))
]
# Formats, or templates in them, with one call per response.
ONE_CALL = {"gpt_oss"}


def call(name: str, value: object, number: int) -> ToolCall:
    return ToolCall(name, json.dumps({"a": value}), f"abcdefgh{number}")


class ScriptedModel(FakeEngine):
    """Writes what a chat template prints for the turns of a script, and parses it as the engine.

    Every prompt must begin with the prompt before and what was written after it.
    """

    def __init__(self, template: str, script: Sequence[Message]) -> None:
        super().__init__()
        tokenizer = byte_tokenizer(template)
        self._template = ChatTemplate.of(tokenizer)
        self._parsers = ResponseParserFactory(tokenizer, self._template)
        self._script = script
        self._written = ""

    def submit(self, request: GenerationRequest) -> GenerationStream:
        prompt = self._text(request.messages, request)
        assert prompt.startswith(self._written)
        turn = self._script[sum(m.role == "assistant" for m in request.messages)]
        # Ids are the client's from the second turn on; those of the script are new.
        whole = self._text((*request.messages, turn), request, add_generation_prompt=False)
        assert whole.startswith(prompt)
        written = whole[len(prompt) :].removesuffix("\n").removesuffix("<|im_end|>")
        self._written = prompt + written
        parser = self._parsers.format(request, prompt).new_parser()
        assert parser is not None
        deltas = [delta for char in written for delta in parser.feed(char)]
        self.pieces = (*deltas, *parser.end())
        return super().submit(request)

    def _text(
        self,
        messages: Sequence[Message],
        request: GenerationRequest,
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        options = RenderOptions(tools=request.tools, add_generation_prompt=add_generation_prompt)
        return self._template.escaper.unescape(self._template.render_text(messages, options))


async def reply(client: AsyncOpenAI, messages: list[Any], *, stream: bool) -> dict[str, Any]:
    """Return the assistant's message, as a client builds it."""
    options: dict[str, Any] = {"model": "fake-model", "messages": messages, "tools": TOOLS}
    if not stream:
        completion = await client.chat.completions.create(**options)
        message: dict[str, Any] = completion.choices[0].message.model_dump(exclude_none=True)
        return message
    content, calls = "", dict[int, dict[str, Any]]()
    async for chunk in await client.chat.completions.create(stream=True, **options):
        delta = chunk.choices[0].delta
        content += delta.content or ""
        for part in delta.tool_calls or ():
            if part.index not in calls:
                assert part.id
                function = {"name": part.function.name, "arguments": ""}
                calls[part.index] = {"id": part.id, "type": "function", "function": function}
            calls[part.index]["function"]["arguments"] += part.function.arguments or ""
    built: dict[str, Any] = {"role": "assistant", "content": content}
    return built | ({"tool_calls": list(calls.values())} if calls else {})


@pytest.mark.parametrize(
    ("name", "stream"),
    [*((name, True) for name in sorted(TEMPLATES)), ("hermes", False), ("gpt_oss", False)],
)
def test_three_calls_their_results_and_an_answer(name: str, stream: bool) -> None:
    first: tuple[ToolCall, ...] = (call("find", 'the "sea"', 1), call("count", 3, 2))
    if name in ONE_CALL:
        first = first[:1]
    script = (
        Message("assistant", "", tool_calls=first),
        Message("assistant", "", tool_calls=(call("count", 7, 3),)),
        Message("assistant", "Ten."),
    )
    engine = ScriptedModel(TEMPLATES[name], script)
    app = create_app(engine, ServeConfig(log_requests=False))

    async def loop() -> list[Any]:
        messages: list[Any] = [{"role": "user", "content": "How many?"}]
        # The client names another package of the same interface in its types.
        http: Any = httpx.AsyncClient(transport=httpx.ASGITransport(app))
        async with (
            http,
            AsyncOpenAI(base_url="http://localhost/v1", api_key="-", http_client=http) as client,
        ):
            while True:
                message = await reply(client, messages, stream=stream)
                messages.append(message)
                if not message.get("tool_calls"):
                    return messages
                messages += [
                    {"role": "tool", "tool_call_id": c["id"], "content": "found"}
                    for c in message["tool_calls"]
                ]

    turns = [m for m in asyncio.run(loop()) if m["role"] == "assistant"]
    made = [
        (c["function"]["name"], json.loads(c["function"]["arguments"]))
        for turn in turns
        for c in turn.get("tool_calls", ())
    ]
    expected = [*first, *script[1].tool_calls]
    assert made == [(c.name, json.loads(c.arguments)) for c in expected]
    assert turns[-1]["content"] == "Ten."
    assert len(turns) == 3
