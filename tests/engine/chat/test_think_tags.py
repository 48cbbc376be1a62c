import pytest
from openai.types.chat import ChatCompletionChunk

from llmctl.engine.chat.formats.format_parser import reasoning_parser
from llmctl.engine.chat.formats.reasoning_families import THINK
from llmctl.engine.openai.wire import ChunkConverter
from llmctl.engine.stream import ResultAccumulator
from llmctl.errors import EngineStoppedError

CASES = [
    ("<think>\nhm </think>\n\nyes", "hm", "yes"),
    (" <think>never ended", "never ended", ""),
    ("<think>cut off</thi", "cut off</thi", ""),
    ("<thin ice>", "", "<thin ice>"),
    ("so <think>x</think>", "", "so <think>x</think>"),
    ("<think></think>yes", "", "yes"),
]


def pieces(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize(("text", "reasoning", "answer"), CASES)
def test_the_split_does_not_depend_on_how_the_text_is_cut(
    text: str, reasoning: str, answer: str, size: int
) -> None:
    parser = reasoning_parser(THINK)
    deltas = [delta for piece in pieces(text, size) for delta in parser.feed(piece)]
    deltas += parser.end()
    assert "".join(delta.reasoning for delta in deltas) == reasoning
    assert "".join(delta.text for delta in deltas) == answer


def server_chunk(index: int, finish_reason: str | None = None, **delta: str) -> ChatCompletionChunk:
    return ChatCompletionChunk.model_validate(
        {
            "id": "1",
            "created": 0,
            "model": "m",
            "object": "chat.completion.chunk",
            "choices": [{"index": index, "delta": delta, "finish_reason": finish_reason}],
        }
    )


def test_reasoning_of_each_choice_is_separated_in_both_forms_that_servers_send() -> None:
    converter, accumulator = ChunkConverter(), ResultAccumulator()
    chunks = [
        server_chunk(0, content="<think>first</th"),
        server_chunk(1, reasoning_content="second"),
        server_chunk(0, content="ink>one"),
        server_chunk(1, content="two"),
        server_chunk(0, finish_reason="stop"),
        server_chunk(1, finish_reason="length"),
    ]
    for chunk in chunks:
        for converted in converter.feed(chunk):
            accumulator.add(converted)
    for converted in converter.end("url"):
        accumulator.add(converted)
    choices = accumulator.result().choices
    assert [(c.reasoning, c.text) for c in choices] == [("first", "one"), ("second", "two")]
    assert [c.finish_reason for c in choices] == ["stop", "length"]


def test_text_held_back_is_kept_when_the_server_disconnects() -> None:
    converter = ChunkConverter()
    assert [c.reasoning for c in converter.feed(server_chunk(0, content="<think>hm</th"))] == ["hm"]
    with pytest.raises(EngineStoppedError, match="disconnected before"):
        list(converter.end("url"))
    assert [(c.text, c.reasoning) for c in converter.flush()] == [("", "</th")]
