"""Output of one choice: emitted text, finish reasons, stop strings and log-probabilities."""

from typing import Any

from llmctl.engine.batching.sequence import OutputState
from llmctl.engine.chat.detokenize import incremental_decoder
from llmctl.types import GenerationChunk, SamplingParams, TokenLogprob, TokenProb
from tests.tiny import byte_tokenizer

TOKENIZER = byte_tokenizer()
EOS = 257


def generate(text: str, *, eos: bool = True, limit: int = 1000, **params: Any) -> Any:
    """Feed `text` to an output byte by byte; return its chunks and the output."""
    chunks: list[GenerationChunk] = []
    decoder = incremental_decoder(TOKENIZER)
    output = OutputState(0, [1], SamplingParams(**params), limit, {EOS}, decoder, chunks.append)
    ids = TOKENIZER(text, add_special_tokens=False).input_ids + ([EOS] if eos else [])
    for token_id in ids:
        if output.finish_reason is None:
            entry = TokenProb(token_id, str(TOKENIZER.decode([token_id])), b"", -1.0)
            output.accept(
                token_id, TokenLogprob(entry) if params.get("logprobs") is not None else None
            )
    return chunks, output


def text_of(chunks: list[GenerationChunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def test_the_end_token_gives_the_reason_stop_and_counts_as_a_token() -> None:
    chunks, output = generate("hi")
    assert text_of(chunks) == "hi"
    assert chunks[-1].finish_reason == "stop"
    assert len(output.token_ids) == 3


def test_the_token_limit_gives_the_reason_length_and_emits_the_held_back_text() -> None:
    chunks, _ = generate("the EN", eos=False, limit=6, stop=("END",))
    assert text_of(chunks) == "the EN"
    assert chunks[-1].finish_reason == "length"


def test_a_stop_string_split_over_tokens_is_not_emitted() -> None:
    chunks, output = generate("1, 2, 3, 4", stop=(", 3",))
    assert text_of(chunks) == "1, 2"
    assert chunks[-1].finish_reason == "stop"
    assert len(output.token_ids) == len("1, 2, 3")


def test_a_stop_string_of_multi_byte_characters_cuts_exactly() -> None:
    chunks, _ = generate("你好。世界", stop=("。",))
    assert text_of(chunks) == "你好"


def test_logprobs_come_with_their_text_and_end_at_the_stop_string() -> None:
    chunks, _ = generate("abSTOP", stop=("STOP",), logprobs=0)
    tokens = [entry.chosen.token for chunk in chunks for entry in chunk.logprobs]
    assert tokens == ["a", "b"]


def test_logprobs_of_all_tokens_are_emitted_at_the_token_limit() -> None:
    chunks, _ = generate("abST", eos=False, limit=4, stop=("STOP",), logprobs=0)
    tokens = [entry.chosen.token for chunk in chunks for entry in chunk.logprobs]
    assert tokens == ["a", "b", "S", "T"]
