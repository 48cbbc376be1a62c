"""Extraction of answers from replies: OpenCompass' strict rules and a robust alternative.

The strict rules reproduce the results of OpenCompass 0.5.4, including its mistakes (`first_capital`
reads "The answer is B" as T), because published scores use them. The robust rules are in `robust`.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from llmctl.evaluation.scoring.robust import (
    robust_number,
    robust_option,
    robust_option_set,
    strip_reasoning,
)
from llmctl.types import EvalSample


@dataclass(frozen=True, slots=True)
class ExtractedAnswer:
    """The answer of a reply by both extractions."""

    strict: str
    """Empty if the strict rule found no answer."""
    correct: bool
    """By the strict rule."""
    robust: str
    robust_correct: bool
    rule: str
    """Name of the robust rule that matched; `none` or `ambiguous` without an answer."""


def extract_answer(sample: EvalSample, reply: str) -> ExtractedAnswer:
    """Extract the answer of a reply by the sample's strict rule and by the robust rules."""
    rule, gold = sample.extraction, sample.gold
    if rule == "last_number":
        strict = last_number(reply)
        robust, matched = robust_number(reply)
        return ExtractedAnswer(
            strict, _equal_numbers(strict, gold), robust, _equal_numbers(robust, gold), matched
        )
    if rule in ("first_capital", "first_option"):
        letters = "".join(sample.labels)
        strict = first_capital(reply) if rule == "first_capital" else first_option(reply, letters)
        robust, matched = robust_option(reply, letters, sample.options)
        return ExtractedAnswer(strict, strict == gold, robust, robust == gold, matched)
    if rule == "option_set":
        stated, matched = robust_option_set(reply, "".join(sample.labels))
        return ExtractedAnswer(stated, stated == gold, stated, stated == gold, matched)
    return _match_free_form(sample, reply)


def _match_free_form(sample: EvalSample, reply: str) -> ExtractedAnswer:
    """Compare a reply with the reference answer of a custom benchmark."""
    text, gold, method = strip_reasoning(reply).strip(), sample.gold, sample.extraction
    if method == "numeric":
        number, rule = robust_number(text)
        correct = _equal_numbers(number, gold)
        return ExtractedAnswer(number, correct, number, correct, rule)
    if method == "contains":
        correct = _normalize(gold) in _normalize(text)
    elif method == "regex":
        correct = re.search(gold, text, re.DOTALL) is not None
    else:
        correct = _normalize(text) == _normalize(gold)
    return ExtractedAnswer(text, correct, text, correct, method)


def _normalize(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .。!！")


def first_capital(text: str) -> str:
    """Return the first capital letter of the text, in any word."""
    return next((character for character in text if character.isupper()), "")


def last_number(text: str) -> str:
    """Return the last number before a further question, or `NULL`; a comma ends a number."""
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
    # Two rules that a missing comma joins in the original.
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
    """Return the option that the first matching rule of OpenCompass finds."""
    text = text.strip()
    for rule in _OPTION_RULES:
        match = re.search(rule.replace("[L]", f"[{letters}]"), text, re.DOTALL)
        if match:
            group = match[1] or match[0]
            for letter in letters:
                if letter in group:
                    return letter
    return ""


def _equal_numbers(number: str, gold: str) -> bool:
    try:
        return abs(Fraction(number) - Fraction(gold.replace(",", "").strip())) < Fraction(1, 10**6)
    except (ValueError, ZeroDivisionError):
        return False
