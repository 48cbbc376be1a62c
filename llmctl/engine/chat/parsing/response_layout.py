"""Responses of one message: reasoning, then answer with calls in it."""

from dataclasses import dataclass

from llmctl.engine.chat.parsing.call_reader import CallReader
from llmctl.engine.chat.parsing.channels import trimmed
from llmctl.engine.chat.parsing.response_output import ResponseOutput
from llmctl.engine.chat.parsing.text_source import (
    CutOffError,
    Steps,
    TextSource,
    UnexpectedTextError,
)
from llmctl.engine.chat.stop_strings import partial_match_length

_FENCE = "```"


@dataclass(frozen=True, slots=True)
class ReasoningMarks:
    """The marks around the reasoning at the start of a response."""

    open: str
    close: str


def read_response(
    source: TextSource,
    output: ResponseOutput,
    *,
    reasoning: ReasoningMarks | None = None,
    opened: bool = False,
    calls: CallReader | None = None,
    frames: tuple[str, ...] = (),
    indent: str = "",
) -> Steps[None]:
    """Read a response.

    Args:
        source: of the response.
        output: gets what is read.
        reasoning: marks that count at the start of the response.
        opened: whether the prompt ends with the opening mark.
        calls: reader of calls, if tools were offered.
        frames: marks around the answer that are not part of it.
        indent: white space that the response begins with.
    """
    if indent and not opened:
        yield from source.accept(indent)
    after_mark = False
    if reasoning is not None:
        after_mark = yield from _read_reasoning(source, output, reasoning, opened=opened)
    answer = _Answer(source, output, calls, frames, after_mark=after_mark)
    yield from answer.read()


def _read_reasoning(
    source: TextSource, output: ResponseOutput, marks: ReasoningMarks, *, opened: bool
) -> Steps[bool]:
    """Read the reasoning; return whether there was a mark."""
    if not opened:
        start = source.position
        yield from source.space()
        opening = yield from source.accept(marks.open, marks.close)
        if opening is None:
            source.rewind(start)
        source.release()
        if opening != marks.open:
            return opening is not None
    if (yield from trimmed(source, [marks.close], output.reasoning)):
        source.take(len(marks.close))
    return True


class _Answer:
    """Reads answer and calls. White space around a call or a mark belongs to it.

    A mark within code, or within a line where the format wants it to be first, is answer.
    """

    def __init__(
        self,
        source: TextSource,
        output: ResponseOutput,
        calls: CallReader | None,
        frames: tuple[str, ...],
        *,
        after_mark: bool,
    ) -> None:
        self._source = source
        self._output = output
        self._calls = calls
        self._frames = frames
        self._openings = () if calls is None else calls.openings
        self._marks = (*self._openings, *frames)
        self._after_mark = after_mark
        self._line = ""
        """The part of the current line that is written."""
        self._in_fence = False

    def read(self) -> Steps[None]:
        source = self._source
        if self._calls is not None and self._calls.bare:
            start = source.position
            yield from source.space()
            while (yield from source.accept(*self._frames)):
                self._after_mark = True
                yield from source.space()
            if not (yield from self._read_calls("")):
                source.rewind(start)
                source.release()
        while True:
            found = self._next_mark(source.rest)
            if found is not None:
                at, mark = found
                if self._is_prefix_of_longer(at, mark) and (yield from source.more()):
                    continue
                yield from self._read_mark(at, mark)
                continue
            rest = source.rest
            held = partial_match_length(rest, self._marks + self._closings)
            certain = rest[: len(rest) - held]
            # White space before a mark belongs to it.
            self._write(source.take(len(certain.rstrip() if self._marks else certain)))
            if not (yield from source.more()):
                rest = source.take(len(source.rest))
                if not any(mark.startswith(rest.strip()) for mark in self._closings):
                    self._write(rest)
                return

    def _read_mark(self, at: int, mark: str) -> Steps[None]:
        source = self._source
        before = source.rest[:at]
        self._write(source.take(len(before.rstrip())))
        space = source.take(at - len(before.rstrip()))
        source.take(len(mark))
        if mark in self._frames:
            self._after_mark = True
        elif not (yield from self._read_calls(mark)):
            self._write(space + mark)

    def _read_calls(self, opening: str) -> Steps[bool]:
        """Read calls after a mark; return whether there were any, else nothing is read."""
        assert self._calls is not None
        source, output = self._source, self._output
        start, count = source.position, output.call_count
        try:
            yield from self._calls.read(source, output, opening)
        except UnexpectedTextError as error:
            if output.call_count == count:
                source.rewind(start)
                source.release()
                return False
            # Cut off by the token limit, or broken within the arguments.
            output.abandon_call()
            if isinstance(error, CutOffError):
                source.take(len(source.rest))
        source.release()
        self._after_mark, self._line = True, ""
        return True

    def _next_mark(self, text: str) -> tuple[int, str] | None:
        """Return place and text of the next mark that counts."""
        found: list[tuple[int, int, str]] = []
        for mark in self._marks:
            at = text.find(mark)
            while at >= 0 and mark in self._openings and not self._may_call(text, at):
                at = text.find(mark, at + 1)
            if at >= 0:
                found.append((at, -len(mark), mark))
        if not found:
            return None
        at, _, mark = min(found)
        return at, mark

    def _is_prefix_of_longer(self, at: int, mark: str) -> bool:
        """Whether the text that has come may turn out to be a longer mark."""
        rest = self._source.rest[at:]
        return any(len(m) > len(mark) and m.startswith(rest) for m in self._marks)

    @property
    def _closings(self) -> tuple[str, ...]:
        """Marks of which a part may stand after a call, where the response is cut off."""
        if self._calls is None or not self._output.call_count or not self._after_mark:
            return ()
        return self._calls.marks

    def _may_call(self, text: str, at: int) -> bool:
        """Whether a mark at this place is outside of code, and where the format wants it."""
        assert self._calls is not None
        lines = (self._line + text[:at]).split("\n")
        fences = sum(line.lstrip().startswith(_FENCE) for line in lines[:-1])
        # A fence that opens on the line of `_line` was counted when its end was written.
        if self._in_fence ^ bool(fences % 2):
            return False
        line = lines[-1]
        return not line.strip() if self._calls.line_start else line.count("`") % 2 == 0

    def _write(self, text: str) -> None:
        if self._after_mark:
            text = text.lstrip()
            self._after_mark = not text
        if not text:
            return
        *whole, self._line = (self._line + text).split("\n")
        for line in whole:
            self._in_fence ^= line.lstrip().startswith(_FENCE)
        self._output.text(text)
