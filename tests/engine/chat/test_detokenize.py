from llmctl.engine.chat.detokenize import incremental_decoder
from tests.tiny import byte_tokenizer

TOKENIZER = byte_tokenizer()
FAMILY = "👩‍👩‍👧 你好, naïve"


def token_ids(text: str) -> list[int]:
    ids: list[int] = TOKENIZER(text, add_special_tokens=False).input_ids
    return ids


def test_characters_of_single_byte_tokens_are_returned_whole() -> None:
    decoder = incremental_decoder(TOKENIZER)
    pieces = [decoder.push(i) for i in token_ids(FAMILY)]
    assert "".join(pieces) == FAMILY
    assert not any("\ufffd" in piece for piece in pieces)


def test_an_incomplete_character_at_the_end_is_dropped() -> None:
    decoder = incremental_decoder(TOKENIZER)
    pieces = [decoder.push(i) for i in token_ids("ok 👧")[:-1]]
    assert "".join(pieces) == "ok "


def test_control_tokens_are_skipped() -> None:
    decoder = incremental_decoder(TOKENIZER)
    ids = [*token_ids("a"), 256, *token_ids("b")]
    assert "".join(decoder.push(i) for i in ids) == "ab"


def test_a_tokenizer_without_a_rust_backend_decodes_the_same() -> None:
    class Slow:
        is_fast = False

        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            text = TOKENIZER.decode(ids, skip_special_tokens=skip_special_tokens)
            assert isinstance(text, str)
            return text

    decoder = incremental_decoder(Slow())
    pieces = [decoder.push(i) for i in token_ids(FAMILY)]
    assert "".join(pieces) == FAMILY
    assert not any("\ufffd" in piece for piece in pieces)
