from hypothesis import given
from hypothesis import strategies as st

from llmctl.engine.chat.detokenize import StopStringScanner, incremental_decoder
from tests.tiny import byte_tokenizer

TOKENIZER = byte_tokenizer()
FAMILY = "👩‍👩‍👧 你好, naïve"


def token_ids(text: str) -> list[int]:
    ids: list[int] = TOKENIZER(text, add_special_tokens=False).input_ids
    return ids


def shown(stops: tuple[str, ...], pieces: list[str]) -> str:
    scanner = StopStringScanner(stops)
    text = "".join(scanner.feed(piece) for piece in pieces)
    return text if scanner.stopped else text + scanner.flush()


def reference(stops: tuple[str, ...], text: str) -> str:
    """Character by character: the stop that completes first ends the text where it began."""
    for end in range(1, len(text) + 1):
        begins = [end - len(s) for s in stops if text[:end].endswith(s)]
        if begins:
            return text[: min(begins)]
    return text


@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3).map(tuple),
    pieces=st.lists(st.text("abc", max_size=4), max_size=8),
)
def test_stop_strings_cut_the_same_however_the_text_is_split(
    stops: tuple[str, ...], pieces: list[str]
) -> None:
    assert shown(stops, pieces) == reference(stops, "".join(pieces))


def test_no_part_of_a_possible_stop_string_is_shown_early() -> None:
    scanner = StopStringScanner(["\nUser:"])
    assert scanner.feed("Hello\nUs") == "Hello"
    assert scanner.feed("ually") == "\nUsually"
    assert scanner.feed("\nUser") == ""
    assert scanner.feed(": hi") == ""
    assert scanner.stopped


def test_what_was_held_back_is_shown_when_the_text_ends() -> None:
    scanner = StopStringScanner(["END"])
    assert scanner.feed("the EN") == "the "
    assert scanner.flush() == "EN"


def test_characters_come_whole_from_single_byte_tokens() -> None:
    decoder = incremental_decoder(TOKENIZER)
    pieces = [decoder.push(i) for i in token_ids(FAMILY)]
    assert "".join(pieces) == FAMILY
    assert not any("\ufffd" in piece for piece in pieces)


def test_half_a_character_at_the_end_is_never_returned() -> None:
    decoder = incremental_decoder(TOKENIZER)
    pieces = [decoder.push(i) for i in token_ids("ok 👧")[:-1]]
    assert "".join(pieces) == "ok "


def test_control_tokens_are_not_text() -> None:
    decoder = incremental_decoder(TOKENIZER)
    ids = [*token_ids("a"), 256, *token_ids("b")]
    assert "".join(decoder.push(i) for i in ids) == "ab"


def test_tokenizers_without_a_fast_backend_decode_the_same() -> None:
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
