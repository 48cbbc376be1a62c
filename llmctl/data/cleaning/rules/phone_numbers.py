"""Detection of phone numbers in texts, validated by the numbering plans of `phonenumbers`.

Without a word such as "phone" before it, a number must have its country code, or the usual form of
Chinese or American numbers. An amount is not a phone number.
"""

import re
from collections.abc import Iterator

# Excludes parts of longer numbers, names, paths, sums and decimals. After an equals sign the number
# may be the value of a name, but not the result of a sum.
LEFT = r"(?<![A-Za-z0-9_.+/#$¥€£-])(?<!\d[,:])(?<![\s\d=<>!~+*/()\[\]-]=)"
RIGHT = r"(?![A-Za-z0-9_%]|[./:,=-]\d)"
_CHINESE_PHONE = re.compile(
    rf"{LEFT}(?:(?:(?:\+|00)86[ -]?)?1[3-9]\d(?P<gap>[ -]?)\d{{4}}(?P=gap)\d{{4}}"
    rf"|(?:\+86[ -]?)?(?:0\d{{2,3}}-|\(0\d{{2,3}}\) ?)[2-8]\d{{6,7}}){RIGHT}",
    re.ASCII,
)
_AMERICAN_PHONE = re.compile(
    rf"{LEFT}(?:1[-. ])?(?:\([2-9]\d\d\) ?[2-9]\d\d-\d{{4}}"
    rf"|[2-9]\d\d(?P<gap>[-.])[2-9]\d\d(?P=gap)\d{{4}}){RIGHT}",
    re.ASCII,
)
_INTERNATIONAL_PREFIX = re.compile(rf"{LEFT}(?:\+|00(?=[1-9]))(?=\(?\d)", re.ASCII)
_PHONE_CUE = re.compile(
    r"(?<![a-z])(?:tel(?:e(?:phone|fon[eo]?|fono)|\.|efax)?|t[ée]l(?:[ée]phone|[ée]fono|\.)?|ph\.?"
    r"|phone(?: number)?|mobiles?|mobil|cell|fax|handy|whatsapp|sms|hotline|тел\.?"
    r"|(?:call|ring|phone|text)(?: (?:me|us|him|her|them))?(?: (?:at|on|under))?"
    r"|电话(?:号码)?|手机(?:号码?)?|座机|传真|致电|拨打|電話(?:番号)?|전화)"
    r"(?: ?(?:is|ist|est|是|为))?[ :：.]{0,3}(?=[0(\d])",
    re.IGNORECASE,
)
_NATIONAL = re.compile(r"\(?\d(?:[ .\-/()]{0,2}\d){6,13}(?![\d%]|[.,:]\d)", re.ASCII)
_DATE = re.compile(r"(?:19|20)\d\d[-./]\d\d?[-./]\d\d?|\d\d?[-./]\d\d?[-./](?:19|20)\d\d", re.ASCII)
# fmt: off
_REGIONS = (
    "US", "CN", "GB", "DE", "FR", "IT", "ES", "NL", "BE", "CH", "AT", "PL", "SE", "NO", "DK", "PT",
    "RU", "TR", "JP", "KR", "TW", "HK", "SG", "IN", "AU", "NZ", "BR", "MX", "ZA",
)
# fmt: on
"""Regions whose national numbers are recognised after a word such as "phone"."""
_UNIT = re.compile(
    r"\s{0,2}(?:[€$£¥%°]|(?:euros?|eur|usd|dollars?|pounds?|yuan|rmb|cny|yen|rupees?|francs?|people"
    r"|persons|times|units|items|rows|tokens|steps|bytes|[kmg]i?b|km|kg|m²|years|users|votes"
    r"|points)\b|[元円块万亿人次个名条件])",
    re.IGNORECASE,
)
_NO_PHONE = re.compile(r"(?:id|total|sum|amount|price|cost|count)=$", re.IGNORECASE)
_HOTLINE = re.compile(r"1?8(?:00|33|44|55|66|77|88)\d{7}$")


def find_phone_numbers(text: str) -> Iterator[tuple[int, int]]:
    """Yield the spans of phone numbers in a text; spans may overlap, the better one comes first."""
    for match in _INTERNATIONAL_PREFIX.finditer(text):
        yield from _international(text, match)
    for match in _CHINESE_PHONE.finditer(text):
        digits = _digits(match.group())
        is_example = len(set(digits[-8:])) <= 2 or digits.endswith(("12345678", "23456789"))
        if not is_example and not _is_figure(text, *match.span()):
            yield match.span()
    for match in _AMERICAN_PHONE.finditer(text):
        yield from _if_phone(text, *match.span(), ("US",))
    for match in _PHONE_CUE.finditer(text):
        number = _NATIONAL.match(text, match.end())
        if number is not None and not _DATE.match(number.group()):
            yield from _if_phone(text, *number.span(), _REGIONS)


def _international(text: str, prefix: re.Match[str]) -> Iterator[tuple[int, int]]:
    """Yield the span of a valid number that begins with `+` or `00`."""
    from phonenumbers import PhoneNumberMatcher

    # E.164 allows 15 digits; the rest of the window is separators.
    number = "+" + text[prefix.end() : prefix.start() + 40]
    match = next(iter(PhoneNumberMatcher(number, None)), None)
    if match is not None and match.start == 0:
        end = prefix.end() - 1 + match.end
        if not _is_public(match.raw_string) and not _is_figure(text, prefix.start(), end):
            yield prefix.start(), end


def _if_phone(
    text: str, start: int, end: int, regions: tuple[str, ...]
) -> Iterator[tuple[int, int]]:
    """Yield the span if it is a valid number of one of the regions."""
    import phonenumbers

    number = text[start:end]
    if _is_public(number) or _is_figure(text, start, end):
        return
    for region in regions:
        try:
            parsed = phonenumbers.parse(number, region)
        except phonenumbers.NumberParseException:
            return  # no region helps: too short or too long
        if phonenumbers.is_valid_number_for_region(parsed, region):
            yield start, end
            return


def _digits(number: str) -> str:
    return re.sub(r"\D", "", number)


def _is_public(number: str) -> bool:
    """Whether a number is for fiction (exchange 555), a hotline (800 and similar) or an example."""
    digits = _digits(number)
    return bool(
        digits[-7:-4] == "555" or _HOTLINE.match(digits) or digits.endswith(("4567890", "2345678"))
    )


def _is_figure(text: str, start: int, end: int) -> bool:
    """Whether the words around a number make it an amount, or the value of an id."""
    before = text[max(0, start - 8) : start]
    return bool(_NO_PHONE.search(before) or _UNIT.match(text, end))
