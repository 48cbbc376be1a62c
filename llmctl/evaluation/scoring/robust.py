"""Robust extraction of the answer that a reply states, or of none rather than a guess."""

import re
from collections.abc import Iterator
from typing import Final

_REASONING = re.compile(r"<think>.*?(?:</think>|\Z)|\A[^<]*</think>", re.DOTALL)
_NEXT_QUESTION = re.compile(r"\n\s*(?:Question|Q|问题)\s*[:：]")
_FULL_WIDTH = {
    0xFF01 + offset: 0x21 + offset
    for offset in range(0x5E)
    # Punctuation stays: it ends a Chinese clause.
    if chr(0x21 + offset).isalnum() or chr(0x21 + offset) in "()-.%/="
}
_FULL_WIDTH |= {ord("−"): ord("-"), ord("﹣"): ord("-")}


def strip_reasoning(text: str) -> str:
    """Return the text without the reasoning between `<think>` and `</think>`."""
    return _REASONING.sub("", text)


def _prepared(text: str) -> str:
    """Return the answer proper, with ASCII letters and digits and without markup."""
    text = _NEXT_QUESTION.split(strip_reasoning(text))[0].translate(_FULL_WIDTH)
    return re.sub(r"\*\*|__|\\text\{([^}]*)\}", r"\1", text).strip()


_OPEN = r"[(\[\"'“「]{0,4}"
_AFTER_LETTER = (
    r"(?=[)\]\"'”」]*(?:\s*(?:$|[.。,，:：;；!！?？\n、)]|[\u4e00-\u9fff])"
    r"|\s+(?:because|since|as|for|which|and not|rather|\(|-|–|—)))"
)
_SEVERAL = r"(?!\s*(?:or|and|/|,|或|和|、|与)\s*(?:option\s*)?[A-Z](?![A-Za-z]))"
_LETTER = rf"{_OPEN}(?P<letter>[L]){_AFTER_LETTER}{_SEVERAL}"
"""A letter of an option: not an article, and not the first of several."""
_SET = (
    rf"{_OPEN}(?P<letter>[L](?:[)\]\"'”」]*\s*(?:[,，、;；/&+和与及]\s*)?(?:(?i:and)\b\s*)?"
    rf"(?:(?i:options?)\s+)?{_OPEN}[L]){{0,25}})(?![A-Za-z'’])"
)
"""Up to 26 letters."""
_BEFORE_ANSWER: Final = (
    r"(?i:answers?|options?|choices?)(?i: to the question)?\s*"
    r"(?:(?i:is|are|would be|should be)|:|：|=)\s*(?i:definitely|clearly|therefore)?\s*"
    r"(?i:options?|choices?)?\s*[:：]?\s*",
    r"(?i:choose|select|pick|go with|opt for)\s*(?i:options?|choices?)?\s*",
    r"(?:答案|选项)(?:应该|应当|应)?(?:是|为|选|：|:|\s)+(?:选项)?\s*",
    r"(?:应该选|应当选|应选|故选|选择|选)(?:项)?\s*[:：]?\s*",
)
_RIGHT = r"(?:是正确|是对的|正确|(?i:is (?:the )?(?:correct|right)(?! if| when)))"
_ALL_RIGHT = (
    rf"(?:都|均)?(?:{_RIGHT}|(?i:are (?:both |all )?(?:the )?(?:correct|right)(?! if| when)))"
)
_AFTER_OPTION = r"[)\]]*\s*(?:选项|项)?\s*"
_BEFORE_RIGHT = r"(?:只有)?(?:选项|(?i:option)\s*)?"
_BOXED = r"\\boxed\{\s*\(?(?P<letter>[L])\)?\s*\}"
_ALONE = r"^[\s(\[\"'“]*(?P<letter>[L])[\s)\]\"'”.。,，:：、]*$"
_LABELLED = r"^\s*\(?(?P<letter>[L])[).．:：、]\s*\S"
_RULED_OUT: Final = (
    r"(?:选项)?(?P<letter>[L])\s*(?:选项|项)?\s*(?:是)?(?:错误|不正确|不对|错)",
    r"(?i:option\s*)?(?P<letter>[L])\s+(?i:is|are)\s*(?i:n't| not)?\s*"
    r"(?i:wrong|incorrect|false|not)",
    r"(?:排除|不是|(?i:rule out|eliminate|not|n't))\s*(?:(?i:options?)|选项)?\s*(?P<letter>[L])",
    *(rf"(?:不|非|否|(?i:not|n't)\s*){cue}(?:(?i:options?)\s*)?{_SET}" for cue in _BEFORE_ANSWER),
)
_SINGLE = r"(?<![A-Za-z'’])(?P<letter>[L])(?![A-Za-z'’])"
_STATED_TEXT = re.compile(
    r"(?:answer|option|choice)\s*(?:is|:|：|=)\s*|(?:答案|选项)(?:应该)?(?:是|为|：|:)+\s*|\A[=\s]*",
    re.IGNORECASE,
)
_STATEMENTS: Final = (
    *(cue + _LETTER for cue in _BEFORE_ANSWER),
    rf"{_BEFORE_RIGHT}{_OPEN}(?P<letter>[L]){_AFTER_OPTION}{_RIGHT}",
)
_SET_STATEMENTS: Final = (
    rf"\\boxed\{{\s*{_SET}\s*\}}",
    *(cue + _SET + _AFTER_LETTER for cue in _BEFORE_ANSWER),
    rf"^[\s*]*{_SET}[)\]\"'”.。\s*]*$",
)
_SET_CALLED_RIGHT = _SET + _AFTER_OPTION + _ALL_RIGHT
_LISTED: Final = _LABELLED.replace(r"\S", r"(?![A-Z]\b)\S")


def robust_option(text: str, letters: str, options: tuple[str, ...]) -> tuple[str, str]:
    """Return the option that a reply states, and the rule; the last statement counts.

    Args:
        text: the reply, in English or Chinese.
        letters: of the options, capitals.
        options: their texts, if known.

    Returns:
        The letter and the name of the rule; an empty text and `none` or `ambiguous` otherwise.
    """
    text = _prepared(text)
    return (
        _named("boxed", _last(_BOXED, text, letters))
        or _named("statement", _statement(text, letters))
        or _named("letter", _alone(text, letters))
        or _named("option's text", _option_text(text, letters, options))
        or _named("only letter", _only_letter(text, letters))
        or ("", "ambiguous" if set(re.findall(f"[{letters}]", text)) else "none")
    )


def robust_option_set(text: str, letters: str) -> tuple[str, str]:
    """Return all options that a reply states, as sorted letters; the last statement counts.

    Args:
        text: the reply to a question with any number of right options, in English or Chinese.
        letters: of the options, capitals.

    Returns:
        The letters and the name of the rule; an empty text and `none` otherwise.
    """
    text = _prepared(text)
    return (
        _named("statement", _set_statement(text, letters))
        or _named("called right", _called_right(text, letters))
        or _named("listed", _listed(text, letters))
        or ("", "none")
    )


def _named(rule: str, found: str) -> tuple[str, str] | None:
    return (found, rule) if found else None


def _set_statement(text: str, letters: str) -> str:
    """Return the letters of the last statement that is not negated."""
    ruled_out = _ruled_out(text, letters)
    found = (match for pattern in _SET_STATEMENTS for match in _sets(pattern, text, letters))
    stated = [(m.start("letter"), m["letter"]) for m in found if m.start("letter") not in ruled_out]
    return _sorted_letters(max(stated, default=(0, ""))[1], letters)


def _called_right(text: str, letters: str) -> str:
    found = _sets(_SET_CALLED_RIGHT, text, letters)
    return _sorted_letters(" ".join(match["letter"] for match in found), letters)


def _listed(text: str, letters: str) -> str:
    """Return the labels of a reply whose lines are some of the options."""
    lines = [line for line in text.split("\n") if line.strip()]
    labels = [re.match(_LISTED.replace("[L]", f"[{letters}]"), line) for line in lines]
    listed = "".join(match["letter"] for match in labels if match)
    # All options in a row repeat the question.
    return _sorted_letters(listed, letters) if 0 < len(listed) == len(lines) < len(letters) else ""


def _sets(pattern: str, text: str, letters: str) -> Iterator[re.Match[str]]:
    return re.finditer(pattern.replace("[L]", f"[{letters}]"), text, re.M)


def _sorted_letters(stated: str, letters: str) -> str:
    stated = re.sub(r"(?i:and|options?)", "", stated)
    return "".join(sorted(set(re.findall(f"[{letters}]", stated))))


def _letters(pattern: str, text: str, letters: str) -> Iterator[tuple[int, str]]:
    """Yield place and letter of each match; a small letter counts where it cannot be a word."""
    both = letters + letters.lower()
    for match in re.finditer(pattern.replace("[L]", f"[{both}]"), text, re.IGNORECASE | re.M):
        letter = match["letter"]
        if letter.isupper() or not re.match(r"\s+\w", text[match.end("letter") :], re.ASCII):
            yield match.start("letter"), letter.upper()


def _last(pattern: str, text: str, letters: str) -> str:
    return max(_letters(pattern, text, letters), default=(0, ""))[1]


def _ruled_out(text: str, letters: str) -> dict[int, str]:
    """Return place and letters of the options that a reply calls wrong or does not choose."""
    found = (pair for rule in _RULED_OUT for pair in _letters(rule, text, letters))
    return {place: _sorted_letters(stated, letters) for place, stated in found}


def _statement(text: str, letters: str) -> str:
    """Return the letter of the last statement that is not negated."""
    ruled_out = _ruled_out(text, letters)
    found = (pair for rule in _STATEMENTS for pair in _letters(rule, text, letters))
    return max((pair for pair in found if pair[0] not in ruled_out), default=(0, ""))[1]


def _alone(text: str, letters: str) -> str:
    """Return a letter that is the first or the last line, or that labels the first line."""
    lines = [line for line in text.splitlines() if line.strip()]
    for line in (*lines[:1], *lines[-1:]):
        if found := _last(_ALONE, line, letters):
            return found
    return _last(_LABELLED, lines[0], letters) if lines else ""


def _option_text(text: str, letters: str, options: tuple[str, ...]) -> str:
    """Return the option whose text is stated as the answer, or the only one that occurs."""
    folded = text.casefold()
    known = [
        (letter, re.escape(option.strip().casefold()))
        for letter, option in zip(letters, options, strict=False)
        if option.strip()
    ]
    known.sort(key=lambda pair: -len(pair[1]))
    for statement in list(_STATED_TEXT.finditer(text))[::-1]:
        for letter, option in known:
            if re.match(
                rf"(?:the |an? )?{option}(?!\w)[\s.。!！]*(?:$|\n)", folded[statement.end() :]
            ):
                return letter
    found: set[str] = set()
    rest = folded
    for letter, option in known:  # the longer first: it may contain a shorter one
        edges = (r"(?<!\w)", r"(?!\w)") if option.isascii() else ("", "")
        rest, count = re.subn(f"{edges[0]}{option}{edges[1]}", " ", rest)
        if count:
            found.add(letter)
    return found.pop() if len(found) == 1 else ""


def _only_letter(text: str, letters: str) -> str:
    """Return the only option that occurs as a letter of its own and is not ruled out."""
    capitals = {
        (match.start(), match["letter"])
        for match in re.finditer(_SINGLE.replace("[L]", f"[{letters}]"), text)
        # An article, not an answer.
        if match["letter"] != "A"
        or not re.match(r"\s+(?!or\b|and\b|is\b)[a-z]", text[match.end() :])
    }
    out = set("".join(_ruled_out(text, letters).values()))
    # "Vitamin C", "D is a letter": a word that a letter belongs to, or a sentence about it.
    stated = {
        letter
        for place, letter in capitals
        if not re.match(r"\s+(?:is|are|was)\b", text[place + 1 :])
    } - out
    return stated.pop() if len(stated) == 1 and len({x for _, x in capitals} - out) == 1 else ""


_NUMBER = (
    r"(?<![\w.,/–-])(?P<sign>-?)\s?[$€£¥]?\s?(?P<sign2>-?)"
    r"(?P<number>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?P<fraction>/\d+)?"
    r"(?![\d,./–-]*\d)"
)
_NUMBER_AFTER_OPERATOR = re.compile(_NUMBER.replace(r"(?<![\w.,/–-])", r"(?<![A-Za-z\d.,/–-])"))


def robust_number(text: str) -> tuple[str, str]:
    """Return the number that a reply states or ends with, and the rule; commas are removed.

    A range, a date or a decimal comma is not a number.
    """
    text = _prepared(text)
    for rule, start in (
        ("boxed", r"\\boxed\{\s*"),
        ("####", r"####\s*"),
        ("the answer is", r"(?:answer|答案)\s*(?:is|are|=|:|：|是|为)+\s*"),
    ):
        if starts := list(re.finditer(start, text, re.IGNORECASE)):
            end = starts[-1].end()
            match = re.compile(_NUMBER.replace(r"(?<![\w.,/–-])", "")).match(text, end)
            if match:
                return _digits(match), rule
            if rule != "the answer is" or re.match(r"\S*\d", text[end:]):
                return "", "ambiguous"
    matches = list(_NUMBER_AFTER_OPERATOR.finditer(text))
    last_digit = max((m.end() for m in re.finditer(r"\d", text)), default=0)
    if not matches or matches[-1].end() < last_digit:
        return "", "ambiguous" if last_digit else "none"
    return _digits(matches[-1]), "last number"


def _digits(match: re.Match[str]) -> str:
    sign = "-" if match["sign"] or match["sign2"] else ""
    return sign + match["number"].replace(",", "") + (match["fraction"] or "")
