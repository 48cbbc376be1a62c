"""All repairs of the texts of a row, applied together, with the findings of each."""

from collections.abc import Callable, Mapping

from llmctl.data.cleaning.rules import personal_data, text_repair
from llmctl.data.cleaning.rules.rule import Finding
from llmctl.data.cleaning.settings import RuleAction

_ROUNDS = 8
"""A text that still changes after this many rounds is left as it was."""
_SHOWN = 24
"""Maximum number of displayed characters of a change."""


class Repairs:
    """Repairs the texts of one row; `findings` and `changed_by` hold the results afterwards.

    Repairs are idempotent: repairing a repaired text changes nothing.
    """

    def __init__(self, actions: Mapping[str, RuleAction]) -> None:
        self._actions = {name: actions[name] for name in _STEPS if actions[name] != "off"}
        self._personal = actions["personal-data"]
        self._first: dict[str, tuple[str, str]] = {}
        self._kinds: list[str] = []
        self.changed_by: set[str] = set()

    def text(self, text: str, *, is_answer: bool) -> str:
        """Repair the text of a person or a model."""
        text = self._repaired(text, is_answer)
        redacted = self._redacted(text)
        while redacted != text:
            text = self._repaired(redacted, is_answer)
            redacted = self._redacted(text)
        return text

    def data(self, text: str) -> str:
        """Redact the arguments or the result of a tool; other repairs might alter their meaning."""
        while (redacted := self._redacted(text)) != text:
            text = redacted
        return text

    def findings(self) -> dict[str, Finding]:
        """Return the findings by the names of the rules, in their order."""
        found = {
            name: Finding(_difference(*self._first[name])) for name in _STEPS if name in self._first
        }
        if self._kinds:
            counts = {kind: self._kinds.count(kind) for kind in dict.fromkeys(self._kinds)}
            detail = ", ".join(f"{count} {kind}" for kind, count in counts.items())
            found["personal-data"] = Finding(detail, tuple(self._kinds))
        return found

    def _repaired(self, text: str, is_answer: bool) -> str:
        start = text
        for _ in range(_ROUNDS):
            before = text
            for name, action in self._actions.items():
                new = _STEPS[name](text, is_answer)
                if new != text:
                    self._first.setdefault(name, (text, new))
                    if action == "change":
                        self.changed_by.add(name)
                        text = new
            if text == before:
                return text
        return start

    def _redacted(self, text: str) -> str:
        if self._personal == "off" or not (found := personal_data.find_personal_data(text)):
            return text
        self._kinds += [each.kind for each in found]
        if self._personal != "change":
            return text
        self.changed_by.add("personal-data")
        return personal_data.redact(text, found)


_STEPS: dict[str, Callable[[str, bool], str]] = {
    "unicode": lambda text, _: text_repair.repair_unicode(text),
    "control-characters": lambda text, _: text_repair.remove_controls(text),
    "whitespace": lambda text, is_answer: text_repair.tidy_whitespace(text, ends=is_answer),
}


def _difference(before: str, after: str) -> str:
    """Return the changed span, from its first to its last changed character, or its beginning."""
    start = 0
    shorter = min(len(before), len(after))
    while start < shorter and before[start] == after[start]:
        start += 1
    end = 0
    while end < shorter - start and before[-1 - end] == after[-1 - end]:
        end += 1
    old, new = before[start : len(before) - end], after[start : len(after) - end]
    return f"{_shortened(old)} -> {_shortened(new)}"


def _shortened(text: str) -> str:
    # `ascii` makes invisible characters visible, such as zero-width spaces.
    shown = text[:_SHOWN] + ("..." if len(text) > _SHOWN else "")
    return repr(shown) if shown.isprintable() else ascii(shown)
