"""Cleaning of a single row: repairs of its texts, then the rules that need no other row."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llmctl.data.cleaning.pipeline.repairs import Repairs
from llmctl.data.cleaning.pipeline.row_texts import map_texts
from llmctl.data.cleaning.rules import quality
from llmctl.data.cleaning.rules.language import LanguageRule
from llmctl.data.cleaning.rules.lengths import LengthRule, TokenCounter
from llmctl.data.cleaning.rules.repetition import RepetitionRule
from llmctl.data.cleaning.rules.rule import Finding, RowRule, RowView
from llmctl.data.cleaning.settings import CleanSettings
from llmctl.data.formats.parse import parse_row
from llmctl.data.io.reader import RawRow
from llmctl.data.rows.row_errors import RowError
from llmctl.errors import ConfigError
from llmctl.types import Example


@dataclass(frozen=True, slots=True)
class CleanedRow:
    """A row after the rules on single rows."""

    before: Example
    after: Example
    """The same object where no text was changed."""
    value: Mapping[str, object]
    """The row with every column, after the repairs."""
    findings: Mapping[str, Finding]
    """By the name of the rule, in the order of the rules."""
    changed_by: frozenset[str]
    removed_by: str | None
    """The first rule that removes it."""


class RowCleaner:
    """Applies the active rules to rows. Cleaning a cleaned row changes nothing.

    Args:
        columns: standard column names -> names in the file, where they differ.
        format: the format of every row; `None` detects it.
        counter: required if the rule `length` is on.

    Raises:
        ConfigError: the rule `length` is on without a counter.
    """

    def __init__(
        self,
        settings: CleanSettings,
        *,
        columns: Mapping[str, str] | None = None,
        format: str | None = None,
        counter: TokenCounter | None = None,
    ) -> None:
        self._columns = columns or {}
        self._format = format
        rules = settings.rules()
        self._actions = {name: rule.action for name, rule in rules.items()}
        self._rules = {name: new(rules[name]) for name, new in _RULES.items() if rules[name].is_on}
        if settings.length.is_on:
            if counter is None:
                raise ConfigError("the rule length needs a model to count the tokens")
            self._rules["length"] = LengthRule(settings.length, counter)

    def clean(self, row: RawRow) -> CleanedRow | tuple[RowError, ...]:
        """Clean one row, or return the errors if it cannot be read."""
        before = parse_row(row, columns=self._columns, format=self._format)
        if not isinstance(before, Example):
            return before
        repairs = Repairs(self._actions)
        value = map_texts(row.value, before, self._columns, repairs)
        findings = repairs.findings()
        after: Example | tuple[RowError, ...] = before
        if value is not row.value:
            after = parse_row(
                RawRow(row.origin, b"", value), columns=self._columns, format=self._format
            )
        if not isinstance(after, Example):
            return self._emptied(row, before, after, repairs)
        view = RowView(after)
        findings |= {
            name: finding
            for name, rule in self._rules.items()
            if (finding := rule.check(view)) is not None
        }
        findings = {name: findings[name] for name in self._actions if name in findings}
        removed_by = next((name for name in findings if self._actions[name] == "remove"), None)
        return CleanedRow(before, after, value, findings, frozenset(repairs.changed_by), removed_by)

    def _emptied(
        self, row: RawRow, before: Example, problems: tuple[RowError, ...], repairs: Repairs
    ) -> CleanedRow:
        """Return the result for a row that is not valid any more after the repairs."""
        findings = repairs.findings()
        name = "chosen-equals-rejected" if problems[0].kind == "pair" else "empty"
        if self._actions[name] != "off":
            where = problems[0].field
            what = f"{where}: {problems[0].what}" if where else problems[0].what
            findings[name] = Finding(what)
        removed_by = name if self._actions[name] == "remove" else None
        return CleanedRow(before, before, row.value, findings, frozenset(), removed_by)


_RULES: dict[str, Callable[[Any], RowRule]] = {
    "placeholder": lambda _: quality.PlaceholderRule(),
    "answer-equals-prompt": quality.AnswerEqualsPromptRule,
    "chosen-equals-rejected": lambda _: quality.ChosenEqualsRejectedRule(),
    "language": LanguageRule,
    "repetition": RepetitionRule,
    "broken-characters": lambda _: quality.BrokenCharactersRule(),
    "code-fences": lambda _: quality.CodeFencesRule(),
    "refusal": lambda _: quality.RefusalRule(),
    "boilerplate": lambda _: quality.BoilerplateRule(),
    "template-markers": lambda _: quality.TemplateMarkersRule(),
}
