"""Which answer does a reply give? Twice: as OpenCompass reads it, and with more care.

The strict rules have the very results of OpenCompass 0.5.4, its mistakes included ("The answer is
B" is T to `first_capital`), because its published scores were made with them. The robust rule looks
for a statement of the answer and would rather find none than guess.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from llmctl.types import EvalSample


@dataclass(frozen=True, slots=True)
class ExtractedAnswer:
    """What was read in a reply."""

    strict: str
    """Empty where the strict rule found nothing."""
    correct: bool
    robust: str
    robust_correct: bool
    rule: str
    """Which robust rule fired; `none` or `ambiguous` where none did."""


def extract_answer(question: EvalSample, reply: str) -> ExtractedAnswer:
    """Read a reply by the question's own strict rule, and with more care."""
    kind, gold = question.extraction, question.gold
    if kind == "last_number":
        strict = last_number(reply)
        found, rule = robust_number(reply)
        return ExtractedAnswer(
            strict, _same_number(strict, gold), found, _same_number(found, gold), rule
        )
    if kind in ("first_capital", "first_option"):
        letters = "".join(question.labels)
        strict = first_capital(reply) if kind == "first_capital" else first_option(reply, letters)
        found, rule = robust_option(reply, letters, question.options)
        return ExtractedAnswer(strict, strict == gold, found, found == gold, rule)
    return _free(question, reply)


def _free(question: EvalSample, reply: str) -> ExtractedAnswer:
    """Judge a reply to a question of a person's own."""
    text, gold, kind = strip_reasoning(reply).strip(), question.gold, question.extraction
    if kind == "numeric":
        found, rule = robust_number(text)
        right = _same_number(found, gold)
        return ExtractedAnswer(found, right, found, right, rule)
    if kind == "contains":
        right = _plain(gold) in _plain(text)
    elif kind == "regex":
        right = re.search(gold, text, re.DOTALL) is not None
    else:
        right = _plain(text) == _plain(gold)
    return ExtractedAnswer(text, right, text, right, kind)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .。!！")


def first_capital(text: str) -> str:
    """Return the first capital letter, of whatever word."""
    return next((character for character in text if character.isupper()), "")


def last_number(text: str) -> str:
    """Return the last number before a further question; `NULL` of none. Knows no thousands."""
    numbers = re.findall(r"-?\d+\.\d+|-?\d+", text.split("Question:")[0])
    return numbers[-1] if numbers else "NULL"


_OPTION_RULES: Final = (
    r"答案是?\s*([L])",
    r"答案是?\s*：\s*([L])",
    r"答案是?\s*:\s*([L])",
    r"答案选项应?该?是\s*([L])",
    r"答案选项应?该?为\s*([L])",
    r"答案应该?是\s*([L])",
    r"答案应该?选\s*([L])",
    r"答案选项为?\s*：\s*([L])",
    r"答案选项为?\s+\(?\*?\*?([L])\*?\*?\)?",
    r"答案选项是?\s*:\s*([L])",
    r"答案为\s*([L])",
    r"答案选\s*([L])",
    r"选择?\s*([L])",
    # Two rules, grown together by a comma that is missing in the original.
    r"故选?\s*([L])只有选?项?\s?([L])\s?是?对",
    r"只有选?项?\s?([L])\s?是?错",
    r"只有选?项?\s?([L])\s?不?正确",
    r"只有选?项?\s?([L])\s?错误",
    r"说法不?对选?项?的?是\s?([L])",
    r"说法不?正确选?项?的?是\s?([L])",
    r"说法错误选?项?的?是\s?([L])",
    r"([L])\s?是正确的",
    r"([L])\s?是正确答案",
    r"选项\s?([L])\s?正确",
    r"所以答\s?([L])",
    r"所以\s?([L][.。$]?$)",
    r"所有\s?([L][.。$]?$)",
    r"[\s，：:,]([L])[。，,\.]?$",
    r"[\s，,：:][故即]([L])[。\.]?$",
    r"[\s，,：:]因此([L])[。\.]?$",
    r"[是为。]\s?([L])[。\.]?$",
    r"因此\s?([L])[。\.]?$",
    r"显然\s?([L])[。\.]?$",
    r"答案是\s?(\S+)(?:。|$)",
    r"答案应该是\s?(\S+)(?:。|$)",
    r"答案为\s?(\S+)(?:。|$)",
    r"(?i)ANSWER\s*:\s*([L])",
    r"[Tt]he answer is:?\s+\(?([L])\)?",
    r"[Tt]he answer is:?\s+\(?\*?\*?([L])\*?\*?\)?",
    r"[Tt]he answer is option:?\s+\(?([L])\)?",
    r"[Tt]he correct answer is:?\s+\(?([L])\)?",
    r"[Tt]he correct answer is option:?\s+\(?([L])\)?",
    r"[Tt]he correct answer is:?.*?boxed{([L])}",
    r"[Tt]he correct option is:?.*?boxed{([L])}",
    r"[Tt]he correct answer option is:?.*?boxed{([L])}",
    r"[Tt]he answer to the question is:?\s+\(?([L])\)?",
    r"^选项\s?([L])",
    r"^([L])\s?选?项",
    r"(\s|^)[L][\s。，,：:\.$]",
    r"1.\s?(.*?)$",
    r"1.\s?([L])[.。$]?$",
    r"([L]):",
    r"([L])",
)


def first_option(text: str, letters: str) -> str:
    """Return the option of the first of OpenCompass' rules that finds one, in their order."""
    text = text.strip()
    for rule in _OPTION_RULES:
        found = re.search(rule.replace("[L]", f"[{letters}]"), text, re.DOTALL)
        if found:
            held = found[1] or found[0]
            for letter in letters:
                if letter in held:
                    return letter
    return ""


_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)|\A[^<]*</think>", re.DOTALL)
_STATED: Final = (
    ("boxed", r"\\boxed\{\s*(?:\\text\{)?\s*\(?([L])\)?\s*\}"),
    (
        "the answer is",
        r"(?:correct |right |best |final )?(?:answer|option|choice)(?: to the question)?"
        r"(?:\s*(?:is|would be|should be|:|：|=))+\s*(?:option|choice)?\s*[:：]?\s*"
        r"[*_(（\[\"'“]*([L])(?![A-Za-z])",
    ),
    (
        "答案",
        r"(?:正确)?(?:答案|选项)(?:应该|应当|应|选项)?\s*(?:是|为|选|：|:)*\s*(?:选项)?\s*"
        r"[*_(（\[\"“]*([L])(?![A-Za-z])",
    ),
    ("故选", r"(?:故|应|应该|因此|所以)\s*(?:选择|选)\s*[:：]?\s*[*_(（]*([L])(?![A-Za-z])"),
    ("是对的", r"(?:只有)?(?:选项)?\s*([L])\s*(?:选项)?\s*(?:是正确|是对|正确)"),
)
_ALONE = re.compile(r"^[\s*_(（\[\"'“]*([A-Z])[\s*_)）\]\"'”.:：,，。、]*(?:$|\n|\s)")


def strip_reasoning(text: str) -> str:
    """Return what follows a model's thoughts between `<think>` and `</think>`."""
    return _THOUGHT.sub("", text)


def robust_option(text: str, letters: str, options: tuple[str, ...]) -> tuple[str, str]:
    """Return the option that a reply states, and how; the last statement counts.

    A reply that states none, but holds the words of one option alone, gives that one.
    """
    text = strip_reasoning(text).strip()
    if (
        (alone := _ALONE.match(text))
        and alone[1] in letters
        and (
            # "A dog barks" begins with an article, not with an answer.
            alone[1] != "A" or not re.match(r"^[\s*_(（\[\"'“]*A [a-z]", text)
        )
    ):
        return alone[1], "letter"
    for rule, pattern in _STATED:
        found = re.findall(pattern.replace("[L]", f"[{letters}]"), text, re.IGNORECASE)
        stated = [letter.upper() for letter in found if letter.upper() in letters]
        if stated:
            return stated[-1], rule
    held = [
        letter
        for letter, option in zip(letters, options, strict=False)
        if _plain(option) and _plain(option) in _plain(text)
    ]
    if len(held) == 1:
        return held[0], "option's text"
    lone = set(re.findall(rf"(?<![A-Za-z])([{letters}])(?![A-Za-z'’])", text)) - (
        {"A"} if re.search(r"\bA (?!or\b|and\b|is\b)[a-z]", text) else set()
    )
    if len(lone) == 1:
        return lone.pop(), "only letter"
    return "", "ambiguous" if held or lone else "none"


_NUMBER = r"-?\$?\s?\d[\d,]*(?:\.\d+)?|-?\.\d+"


def robust_number(text: str) -> tuple[str, str]:
    """Return the number that a reply ends on, and how it was found; commas part thousands."""
    text = re.split(r"\n\s*(?:Question|Q)\s*:", strip_reasoning(text))[0]
    for rule, pattern in (
        ("boxed", rf"\\boxed\{{\s*({_NUMBER})"),
        ("####", rf"####\s*({_NUMBER})"),
        ("the answer is", rf"(?:answer|答案)\s*(?:is|are|=|:|：|是|为)+\s*[*_]*({_NUMBER})"),
        ("last number", rf"({_NUMBER})"),
    ):
        if found := re.findall(pattern, text, re.IGNORECASE):
            return re.sub(r"[^\d.-]", "", found[-1]).rstrip("."), rule
    return "", "none"


def _same_number(given: str, gold: str) -> bool:
    try:
        return abs(Fraction(given) - Fraction(gold.replace(",", "").strip())) < Fraction(1, 10**6)
    except (ValueError, ZeroDivisionError):
        return False
