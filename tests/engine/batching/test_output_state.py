from typing import Any

from llmctl.engine.batching.output_state import OutputState
from llmctl.engine.chat.detokenize import incremental_decoder
from llmctl.types import GenerationChunk, SamplingParams, TokenLogprob, TokenProb
from tests.tiny import byte_tokenizer

TOKENIZER = byte_tokenizer()
EOS = 257


def written(text: str, *, eos: bool = True, limit: int = 1000, **params: Any) -> Any:
    """Let a row take `text` byte by byte; return its chunks and the row."""
    chunks: list[GenerationChunk] = []
    decoder = incremental_decoder(TOKENIZER)
    row = OutputState(0, [1], SamplingParams(**params), limit, {EOS}, decoder, chunks.append)
    ids = TOKENIZER(text, add_special_tokens=False).input_ids + ([EOS] if eos else [])
    for token_id in ids:
        if row.finish_reason is None:
            entry = TokenProb(token_id, str(TOKENIZER.decode([token_id])), b"", -1.0)
            row.accept(
                token_id, TokenLogprob(entry) if params.get("logprobs") is not None else None
            )
    return chunks, row


def text_of(chunks: list[GenerationChunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def test_end_of_sequence_ends_with_stop_and_counts_as_a_token() -> None:
    chunks, row = written("hi")
    assert text_of(chunks) == "hi"
    assert chunks[-1].finish_reason == "stop"
    assert len(row.output_ids) == 3


def test_the_token_limit_ends_with_length_and_shows_what_was_held_back() -> None:
    chunks, _ = written("the EN", eos=False, limit=6, stop=("END",))
    assert text_of(chunks) == "the EN"
    assert chunks[-1].finish_reason == "length"


def test_a_stop_string_split_over_tokens_is_never_shown() -> None:
    chunks, row = written("1, 2, 3, 4", stop=(", 3",))
    assert text_of(chunks) == "1, 2"
    assert chunks[-1].finish_reason == "stop"
    assert len(row.output_ids) == len("1, 2, 3")


def test_a_stop_string_inside_a_multi_byte_character_sequence_is_exact() -> None:
    chunks, _ = written("你好。世界", stop=("。",))
    assert text_of(chunks) == "你好"


def test_logprobs_travel_with_their_text_and_end_where_a_stop_cuts() -> None:
    chunks, _ = written("abSTOP", stop=("STOP",), logprobs=0)
    tokens = [entry.chosen.token for chunk in chunks for entry in chunk.logprobs]
    assert tokens == ["a", "b"]


def test_logprobs_of_every_token_arrive_when_the_limit_ends_the_reply() -> None:
    chunks, _ = written("abST", eos=False, limit=4, stop=("STOP",), logprobs=0)
    tokens = [entry.chosen.token for chunk in chunks for entry in chunk.logprobs]
    assert tokens == ["a", "b", "S", "T"]
