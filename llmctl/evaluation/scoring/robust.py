"""Robust extraction of the answer that a reply states, or of none rather than a guess."""

import re
from collections.abc import Callable, Iterator
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


# A letter of an option: not an article, and not the first of several.
_OPEN = r"[(\[\"'“「]*"
_AFTER_LETTER = (
    r"(?=[)\]\"'”」]*(?:\s*(?:$|[.。,，:：;；!！?？\n、)]|[\u4e00-\u9fff])"
    r"|\s+(?:because|since|as|for|which|and not|rather|\(|-|–|—)))"
)
_SEVERAL = r"(?!\s*(?:or|and|/|,|或|和|、|与)\s*(?:option\s*)?[A-Z](?![A-Za-z]))"
_LETTER = rf"{_OPEN}(?P<letter>[L]){_AFTER_LETTER}{_SEVERAL}"
_NOT = r"(?<!not )(?<!n't )(?<!不)(?<!非)(?<!否)"
_CONCLUSIONS: Final = (
    rf"(?:answer|option|choice)(?: to the question)?\s*(?:is|would be|should be|:|：|=)\s*"
    rf"(?:definitely|clearly|therefore)?\s*(?:option|choice)?\s*[:：]?\s*{_LETTER}",
    rf"(?:choose|select|pick|go with|opt for)\s*(?:option|choice)?\s*{_LETTER}",
    rf"(?:答案|选项)(?:应该|应当|应)?(?:是|为|选|：|:|\s)+(?:选项)?\s*{_LETTER}",
    rf"{_NOT}(?:应该选|应当选|应选|故选|选择|选)(?:项)?\s*[:：]?\s*{_LETTER}",
    rf"(?:只有)?(?:选项|option\s*)?{_OPEN}(?P<letter>[L])[)\]]*\s*(?:选项|项)?\s*"
    r"(?:是正确|是对的|正确|is (?:the )?(?:correct|right))",
)
_BOXED = r"\\boxed\{\s*\(?(?P<letter>[L])\)?\s*\}"
_ALONE = r"^[\s(\[\"'“]*(?P<letter>[L])[\s)\]\"'”.。,，:：、]*$"
_LABELLED = r"^\s*\(?(?P<letter>[L])[).．:：、]\s*\S"
_RULED_OUT: Final = (
    r"(?:选项)?(?P<letter>[L])\s*(?:选项|项)?\s*(?:是)?(?:错误|不正确|不对|错)",
    r"(?:option\s*)?(?P<letter>[L])\s+(?:is|are)\s*(?:n't| not)?\s*(?:wrong|incorrect|false|not)",
    r"(?:不选|排除|不是|rule out|eliminate|is not|isn't|not)\s*(?:option|选项)?\s*(?P<letter>[L])",
)
_SINGLE = r"(?<![A-Za-z'’])(?P<letter>[L])(?![A-Za-z'’])"
_STATED_TEXT = re.compile(
    r"(?:answer|option|choice)\s*(?:is|:|：|=)\s*|(?:答案|选项)(?:应该)?(?:是|为|：|:)+\s*|\A[=\s]*",
    re.IGNORECASE,
)


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
    rules: tuple[tuple[str, Callable[[], str]], ...] = (
        ("boxed", lambda: _last(_BOXED, text, letters)),
        ("statement", lambda: _statement(text, letters)),
        ("letter", lambda: _alone(text, letters)),
        ("option's text", lambda: _option_text(text, letters, options)),
        ("only letter", lambda: _only_letter(text, letters)),
    )
    for name, rule in rules:
        if found := rule():
            return found, name
    return "", "ambiguous" if set(re.findall(f"[{letters}]", text)) else "none"


_SET = (
    r"[(\[\"'“「]*(?P<set>[L](?:[)\]\"'”」]*\s*(?:,|，|、|;|；|/|&|\+|(?i:and)\b|和|与|及)?"
    r"\s*(?:(?i:and)\b\s*)?(?i:options?\s+)?[(\[\"'“「]*[L])*)(?![A-Za-z'’])"
)
_SET_STATEMENTS: Final = (
    rf"\\boxed\{{\s*{_SET}\s*\}}",
    rf"(?i:answers?|options?|choices?)(?i: to the question)?\s*(?i:is|are|should be|:|：|=)\s*"
    rf"(?i:options?|choices?)?\s*[:：]?\s*{_SET}{_AFTER_LETTER}",
    rf"(?i:choose|select|pick)\s*(?i:options?|choices?)?\s*{_SET}{_AFTER_LETTER}",
    rf"(?:答案|选项)(?:应该|应当|应)?(?:是|为|选|：|:|\s)+(?:选项)?\s*{_SET}{_AFTER_LETTER}",
    rf"{_NOT}(?:应该选|应当选|应选|故选|选择|选)(?:项)?\s*[:：]?\s*{_SET}{_AFTER_LETTER}",
    rf"(?m:^)[\s*]*{_SET}[)\]\"'”.。\s*]*(?m:$)",
)
_LISTED: Final = _LABELLED.replace(r"\S", r"(?![A-Z]\b)\S")
_CALLED_RIGHT: Final = (
    rf"{_SET}[)\]]*\s*(?:选项|项)?\s*(?:都|均)?(?:是正确|是对的|正确|"
    r"(?:is|are)(?: both| all)? (?:the )?(?:correct|right)(?! if| when))"
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
    statements = [
        (match.start("set"), match["set"])
        for pattern in _SET_STATEMENTS
        for match in re.finditer(pattern.replace("[L]", f"[{letters}]"), text)
    ]
    if statements:
        return _sorted_letters(max(statements)[1], letters), "statement"
    called_right = re.finditer(_CALLED_RIGHT.replace("[L]", f"[{letters}]"), text)
    if found := _sorted_letters(" ".join(match["set"] for match in called_right), letters):
        return found, "called right"
    lines = [line for line in text.split("\n") if line.strip()]
    labels = [re.match(_LISTED.replace("[L]", f"[{letters}]"), line) for line in lines]
    listed = "".join(match["letter"] for match in labels if match)
    # All options in a row repeat the question.
    if 0 < len(listed) == len(lines) < len(letters):
        return _sorted_letters(listed, letters), "listed"
    return "", "none"


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


def _statement(text: str, letters: str) -> str:
    """Return the letter of the last statement that is not negated."""
    ruled_out = {place for rule in _RULED_OUT for place, _ in _letters(rule, text, letters)}
    return max(
        (
            (place, letter)
            for rule in _CONCLUSIONS
            for place, letter in _letters(rule, text, letters)
            if place not in ruled_out
        ),
        default=(0, ""),
    )[1]


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
    out = {letter for rule in _RULED_OUT for _, letter in _letters(rule, text, letters)}
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
