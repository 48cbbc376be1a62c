from hypothesis import given
from hypothesis import strategies as st

from llmctl.engine.chat.stop_strings import StopStringScanner


def scan(stops: tuple[str, ...], pieces: list[str]) -> str:
    scanner = StopStringScanner(stops)
    text = "".join(scanner.feed(piece) for piece in pieces)
    return text if scanner.stopped else text + scanner.flush()


def reference(stops: tuple[str, ...], text: str) -> str:
    """Scan character by character: the stop string that completes first ends the text."""
    for end in range(1, len(text) + 1):
        begins = [end - len(s) for s in stops if text[:end].endswith(s)]
        if begins:
            return text[: min(begins)]
    return text


@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3).map(tuple),
    pieces=st.lists(st.text("abc", max_size=4), max_size=8),
)
def test_the_cut_does_not_depend_on_how_the_text_is_split(
    stops: tuple[str, ...], pieces: list[str]
) -> None:
    assert scan(stops, pieces) == reference(stops, "".join(pieces))


def test_the_beginning_of_a_stop_string_is_held_back() -> None:
    scanner = StopStringScanner(["\nUser:"])
    assert scanner.feed("Hello\nUs") == "Hello"
    assert scanner.feed("ually") == "\nUsually"
    assert scanner.feed("\nUser") == ""
    assert scanner.feed(": hi") == ""
    assert scanner.stopped


def test_flush_returns_the_text_held_back() -> None:
    scanner = StopStringScanner(["END"])
    assert scanner.feed("the EN") == "the "
    assert scanner.flush() == "EN"
