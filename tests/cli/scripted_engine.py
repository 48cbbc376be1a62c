"""A fake engine that replies by a script, for terminal tests with a real server."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace

from llmctl.engine.chat.response_delta import ResponseDelta
from llmctl.engine.stream import GenerationStream
from llmctl.errors import LlmctlError
from llmctl.types import EngineInfo, GenerationChunk, GenerationRequest, Usage
from tests.fakes import FakeEngine

Step = str | ResponseDelta | LlmctlError | threading.Event
"""Next part of a reply: text, reasoning, an error, or a pause until the event is set."""


class ScriptedEngine(FakeEngine):
    """Replies to a message by the script; echoes a message that is not in it."""

    def __init__(self, script: Mapping[str, Sequence[Step]]) -> None:
        super().__init__()
        self.script = dict(script)

    def info(self) -> EngineInfo:
        return replace(super().info(), context_length=4096)

    def _answer(self, request: GenerationRequest, stream: GenerationStream) -> None:
        message = request.messages[-1].content
        steps = self.script.get(message, [message])
        for step in steps:
            if isinstance(step, LlmctlError):
                stream.fail(step)
                return
            if isinstance(step, threading.Event):
                while not step.wait(0.01):
                    if stream.cancelled or self.closed:
                        stream.finish()
                        return
                continue
            part = ResponseDelta(step) if isinstance(step, str) else step
            stream.put(GenerationChunk(part.text, reasoning=part.reasoning))
        usage = Usage(sum(len(m.content) for m in request.messages), len(steps), cached_tokens=2)
        cut = len(steps) == request.sampling.max_new_tokens
        stream.put(GenerationChunk("", finish_reason="length" if cut else "stop", usage=usage))
        stream.finish()
