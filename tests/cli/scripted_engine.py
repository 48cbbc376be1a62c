"""An engine that answers by a script, behind a real server: whatever a terminal test needs."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace

from llmctl.engine.chat.response_delta import ResponseDelta
from llmctl.engine.stream import GenerationStream
from llmctl.errors import LlmctlError
from llmctl.types import EngineInfo, GenerationChunk, GenerationRequest, Usage
from tests.fakes import FakeEngine

Step = str | ResponseDelta | LlmctlError | threading.Event
"""What comes next: text or reasoning, a failure, or nothing until the event is set."""


class ScriptedEngine(FakeEngine):
    """Answers the last question by the script, and what is not in it with the question itself."""

    def __init__(self, script: Mapping[str, Sequence[Step]]) -> None:
        super().__init__()
        self.script = dict(script)

    def info(self) -> EngineInfo:
        return replace(super().info(), context_length=4096)

    def _answer(self, request: GenerationRequest, stream: GenerationStream) -> None:
        question = request.messages[-1].content
        steps = self.script.get(question, [question])
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
