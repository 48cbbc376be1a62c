"""Small rules on the quality of answers."""

import re

from llmctl.data.cleaning.dedup.shingles import units
from llmctl.data.cleaning.rules import phrases
from llmctl.data.cleaning.rules.code_blocks import has_open_block
from llmctl.data.cleaning.rules.rule import Finding, RowView
from llmctl.data.cleaning.settings import AnswerEqualsPrompt
from llmctl.types import Message


class PlaceholderRule:
    def check(self, row: RowView) -> Finding | None:
        for answer in row.answers:
            if phrases.PLACEHOLDER.fullmatch(answer.strip()):
                return Finding(f"an answer is only {answer.strip()[:40]!r}")
        return None


class AnswerEqualsPromptRule:
    def __init__(self, settings: AnswerEqualsPrompt) -> None:
        self._settings = settings

    def check(self, row: RowView) -> Finding | None:
        if row.last_answer is None or len(row.last_answer.content) > 2 * len(row.last_question):
            return None
        answer = units(row.last_answer.content)
        if len(answer) < self._settings.min_units or answer != units(row.last_question):
            return None
        return Finding("the answer repeats the prompt")


class ChosenEqualsRejectedRule:
    def check(self, row: RowView) -> Finding | None:
        rejected = row.example.rejected
        chosen = row.example.messages[-len(rejected) :]
        if not rejected or any(map(_differ, chosen, rejected)) or len(chosen) != len(rejected):
            return None
        return Finding("the chosen answer equals the rejected one")


def _differ(one: Message, other: Message) -> bool:
    def key(message: Message) -> tuple[object, ...]:
        calls = tuple((call.name, call.arguments) for call in message.tool_calls)
        return message.role, " ".join(message.content.split()), calls

    return key(one) != key(other)


class BrokenCharactersRule:
    def check(self, row: RowView) -> Finding | None:
        count = sum(text.count("\ufffd") for text in row.texts)
        return Finding(f"{count} replacement characters U+FFFD") if count else None


class CodeFencesRule:
    def check(self, row: RowView) -> Finding | None:
        if any(has_open_block(answer) for answer in row.answers):
            return Finding("a code block has no closing fence")
        return None


class RefusalRule:
    def check(self, row: RowView) -> Finding | None:
        if row.example.text is not None:
            return None
        for answer in row.answers:
            if found := phrases.REFUSAL.match(answer):
                return Finding(f"an answer begins {_shortened(found.group())}")
        return None


class BoilerplateRule:
    def check(self, row: RowView) -> Finding | None:
        found = [match for answer in row.answers for match in phrases.find_boilerplate(answer)]
        if not found:
            return None
        return Finding(
            _shortened(found[0]), tuple(" ".join(each.lower().split()) for each in found)
        )


class TemplateMarkersRule:
    def check(self, row: RowView) -> Finding | None:
        found = [
            match.group()
            for text in row.texts
            if "<" in text or "[" in text
            for match in phrases.TEMPLATE_MARKER.finditer(text)
        ]
        for answer in row.answers:
            if "#" in answer:
                found += [match.group() for match in phrases.PROMPT_HEADING.finditer(answer)]
        return Finding(_shortened(found[0]), tuple(found)) if found else None


def _shortened(text: str) -> str:
    line = re.sub(r"\s+", " ", text.strip())
    return repr(line if len(line) <= 60 else line[:57] + "...")
