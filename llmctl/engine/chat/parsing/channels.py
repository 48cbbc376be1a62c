"""Responses in several messages, each with a header that names its channel or recipient."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmctl.engine.chat.parsing.call_reader import CallReader
from llmctl.engine.chat.parsing.json_text import stream_value
from llmctl.engine.chat.parsing.response_output import ResponseOutput
from llmctl.engine.chat.parsing.text_source import (
    CutOffError,
    Steps,
    TextSource,
    UnexpectedTextError,
)
from llmctl.engine.chat.parsing.tool_names import NAME


@dataclass(frozen=True, slots=True)
class Channels:
    """Reader of a whole response `HEADER MESSAGE body END START HEADER MESSAGE body ...`.

    A header holds ` to=RECIPIENT` and `CHANNEL name`. The prompt ends with START of the first.

    gpt-oss: the channel `analysis` is reasoning, `final` and `commentary` are answer, and the
    recipient `functions.NAME` gets arguments as JSON. Muse: the recipient `self` is reasoning,
    `user` is answer, and any other gets a call in the format of `calls`.
    """

    start: str = "<|start|>assistant"
    message: str = "<|message|>"
    ends: tuple[str, ...] = ("<|end|>", "<|call|>", "<|return|>")
    channel: str = "<|channel|>"
    constrain: str = "<|constrain|>"
    answer: str = "<|channel|>final<|message|>"
    """Header of the answer, for grammars that begin after it; empty if there is none to use."""
    calls: CallReader | None = None

    @property
    def marks(self) -> tuple[str, ...]:
        """All marks: those that are special tokens must be decoded."""
        inner = () if self.calls is None else self.calls.marks
        own = (self.start, self.message, *self.ends, self.channel, self.constrain)
        return tuple(mark for mark in own if mark) + inner

    def read(self, source: TextSource, output: ResponseOutput, *, calls: bool) -> Steps[None]:
        """Read a response; what has no header is answer.

        Args:
            source: of the response.
            output: gets what is read.
            calls: whether tools were offered.
        """
        first = True
        while True:
            start = source.position
            begun = (yield from source.accept(self.start)) is not None or not first
            try:
                header = yield from source.until(self.message)
                channel, recipient = self._parsed(header)
            except UnexpectedTextError as error:
                begun = begun or bool(self.channel and source.rest.startswith(self.channel))
                if begun and isinstance(error, CutOffError):
                    return  # within a header
                source.rewind(start)
                source.release()
                yield from source.stream(self.ends, output.text)
            else:
                source.release()
                yield from self._body(source, output, channel, recipient, calls=calls)
            first = False
            yield from source.space()
            yield from source.accept(*self.ends)
            yield from source.space()
            if not (yield from source.peek()):
                return

    def _parsed(self, header: str) -> tuple[str, str]:
        """Return channel and recipient.

        Raises:
            UnexpectedTextError: it is no header.
        """
        where, _, channel = header.partition(self.channel) if self.channel else (header, "", "")
        words = f"{where} {channel}".split()
        recipient = next((word[3:] for word in words if word.startswith("to=")), "")
        name = channel.split()[0].split("<")[0] if channel.split() else ""
        if not name and not recipient:
            raise UnexpectedTextError
        return name, recipient.split("<")[0]

    def _body(
        self,
        source: TextSource,
        output: ResponseOutput,
        channel: str,
        recipient: str,
        *,
        calls: bool,
    ) -> Steps[None]:
        name = recipient.removeprefix("functions.")
        if recipient and self.calls is None and calls and NAME.fullmatch(name):
            yield from self._arguments(source, output, name)
        elif recipient not in ("", "self", "user") and self.calls is not None and calls:
            yield from self._call(source, output, self.calls)
        elif channel == "analysis" or recipient == "self":
            yield from trimmed(source, self.ends, output.reasoning)
        else:
            yield from source.stream(self.ends, output.text)

    def _arguments(self, source: TextSource, output: ResponseOutput, name: str) -> Steps[None]:
        output.begin_call(name)
        yield from source.space()
        whole = yield from stream_value(source, output.arguments)
        if (yield from source.stream(self.ends, output.arguments)) is None and not whole:
            output.abandon_call()
            return
        output.end_call()

    def _call(self, source: TextSource, output: ResponseOutput, calls: CallReader) -> Steps[None]:
        start, count = source.position, output.call_count
        try:
            opening = yield from source.expect(*calls.openings)
            yield from calls.read(source, output, opening)
        except UnexpectedTextError as error:
            output.abandon_call()
            if output.call_count > count and isinstance(error, CutOffError):
                source.take(len(source.rest))
            if output.call_count == count:
                source.rewind(start)
                yield from source.stream(self.ends, output.text)
        source.release()


def trimmed(source: TextSource, ends: Sequence[str], write: Callable[[str], None]) -> Steps[bool]:
    """Write the text up to one of the marks, which is left, without white space around it.

    Returns:
        Whether a mark was found.
    """
    held = ""
    begun = False

    def without_space(text: str) -> None:
        nonlocal held, begun
        text = held + text
        if not begun:
            text = text.lstrip()
            begun = bool(text)
        stripped = text.rstrip()
        held = text[len(stripped) :]
        if stripped:
            write(stripped)

    return (yield from source.stream(ends, without_space)) is not None
