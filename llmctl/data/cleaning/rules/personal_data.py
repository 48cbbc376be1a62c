"""Detection and redaction of personal data and secrets in texts.

The patterns are strict, and numbers must pass their checksum: a false positive damages a dataset
more than a missed number.
"""

import ipaddress
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from itertools import islice

from llmctl.data.cleaning.rules.phone_numbers import LEFT, RIGHT, find_phone_numbers

PLACEHOLDERS = {
    "private key": "<PRIVATE_KEY>",
    "api key": "<API_KEY>",
    "e-mail": "<EMAIL>",
    "chinese id": "<ID_NUMBER>",
    "bank card": "<BANK_CARD>",
    "phone": "<PHONE>",
    "ip address": "<IP_ADDRESS>",
}
"""Kind -> placeholder, in the order of the search."""


@dataclass(frozen=True, slots=True)
class PersonalDataSpan:
    """Personal data at `text[start:end]`."""

    kind: str
    start: int
    end: int


def find_personal_data(text: str) -> list[PersonalDataSpan]:
    """Return the spans of personal data, in order of the text, without overlaps.

    Addresses and numbers for examples (RFC 2606, public resolvers, test cards) are not personal
    data.
    """
    found: list[PersonalDataSpan] = []
    taken = bytearray()
    numbers = _BETWEEN.sub(";", text) if _MANY_DIGITS.search(text) else ""
    for kind, search in _SEARCHES.items():
        for start, end in search(numbers if kind in _NUMBERS else text):
            taken = taken or bytearray(len(text))
            if not any(taken[start:end]):
                taken[start:end] = b"\1" * (end - start)
                found.append(PersonalDataSpan(kind, start, end))
    return sorted(found, key=lambda each: each.start)


def redact(text: str, found: Iterable[PersonalDataSpan]) -> str:
    """Replace the spans of `find_personal_data` by placeholders that name their kinds.

    The placeholder of a number in JSON is a string, so that the JSON stays valid.
    """
    pieces = []
    position = 0
    for each in found:
        placeholder = PLACEHOLDERS[each.kind]
        if _is_json_number(text, each):
            placeholder = f'"{placeholder}"'
        pieces += [text[position : each.start], placeholder]
        position = each.end
    return "".join([*pieces, text[position:]])


def _is_json_number(text: str, span: PersonalDataSpan) -> bool:
    """Whether a span is a number, outside a string, of an object or a list in JSON."""
    if not (
        _JSON_BEFORE.search(text, max(0, span.start - 20), span.start)
        and _JSON_AFTER.match(text, span.end)
    ):
        return False
    decoder = json.JSONDecoder()
    for opener in islice(re.finditer(r"[{\[]", text[: span.start]), _MAX_OPENERS):
        try:
            _, end = decoder.raw_decode(text, opener.start())
        except (ValueError, RecursionError):
            continue
        if end >= span.end:
            strings = _JSON_STRING.finditer(text, opener.start(), end)
            return not any(each.start() < span.start < each.end() for each in strings)
    return False


_JSON_BEFORE = re.compile(r"[\[:,]\s*\Z")
_JSON_AFTER = re.compile(r"\s*[,\]}]")
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"')
_MAX_OPENERS = 50
"""Brackets at which JSON may begin that are tried."""

_KEYS = {
    "sk-": r"sk-(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{20,}",
    "AKIA": r"AKIA[0-9A-Z]{16}",
    "ASIA": r"ASIA[0-9A-Z]{16}",
    "ghp_": r"ghp_[A-Za-z0-9]{36,}",
    "gho_": r"gho_[A-Za-z0-9]{36,}",
    "ghu_": r"ghu_[A-Za-z0-9]{36,}",
    "ghs_": r"ghs_[A-Za-z0-9]{36,}",
    "ghr_": r"ghr_[A-Za-z0-9]{36,}",
    "github_pat_": r"github_pat_[A-Za-z0-9_]{40,}",
    "glpat-": r"glpat-[A-Za-z0-9_-]{20,}",
    "xox": r"xox[abeoprs]-[A-Za-z0-9-]{20,}",
    "AIza": r"AIza[A-Za-z0-9_-]{35}",
    "hf_": r"hf_[A-Za-z0-9]{34}",
    "npm_": r"npm_[A-Za-z0-9]{36}",
    "pypi-": r"pypi-AgEIcHlwaS5vcmc[A-Za-z0-9_-]{50,}",
    "_live_": r"[sr]k_live_[A-Za-z0-9]{20,}",
    "LTAI": r"LTAI[A-Za-z0-9]{12,24}",
    "AKID": r"AKID[A-Za-z0-9]{32}",
    "eyJ": r"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{20,}",
    ":AA": r"\d{8,10}:AA[A-Za-z0-9_-]{33}",
}
"""A substring of every key of an issuer -> the pattern of the whole key."""
_KEY_SHAPES = {
    clue: re.compile(rf"(?<![A-Za-z0-9_-])(?:{shape})(?![A-Za-z0-9_-])")
    for clue, shape in _KEYS.items()
}
_EXAMPLE_KEY = re.compile(r"example|your|x{4}|\*{3}|1234567|abcdef", re.IGNORECASE)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?P<kind>[A-Z ]*PRIVATE KEY)-----(?:[^-]++|-(?!----))++-----END (?P=kind)-----"
)
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+@/-])[A-Za-z0-9](?:[A-Za-z0-9._%+-]{0,62}[A-Za-z0-9_])?"
    r"@((?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+([A-Za-z]{2,24}))"
    r"(?![A-Za-z0-9@_-])"
)
_EXAMPLE_DOMAIN = re.compile(
    r"(?:^|\.)(?:(?:your-?|my-?|the)?(?:example|domain|company|companyname|email|website|test|xyz"
    r"|abc|school|business|organization)\.(?:com|org|net|edu|co)|test|example|invalid|local)$",
    re.IGNORECASE,
)
_FILE_ENDINGS = frozenset(("png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js", "json", "html"))

_CHINESE_ID = re.compile(rf"{LEFT}[1-9]\d{{16}}[\dXx]{RIGHT}", re.ASCII)
_CARD = re.compile(
    rf"{LEFT}(?:\d{{15,19}}|\d{{4}}(?P<gap>[ -])\d{{4}}(?P=gap)\d{{4}}(?P=gap)\d{{4}}"
    rf"|3[47]\d\d(?P<amex>[ -])\d{{6}}(?P=amex)\d{{5}}){RIGHT}",
    re.ASCII,
)
_CARD_ISSUER = re.compile(
    r"(?:4\d{15}|5[1-5]\d{14}|2(?:2[2-9]|[3-6]\d|7[01])\d{13}|3[47]\d{13}|35\d{14}|62\d{14,17}"
    r"|6(?:011|5\d\d)\d{12})"
)
_TEST_CARDS = frozenset({"4111111111111111", "4242424242424242", "4012888888881881"})
_TEST_CARDS |= {"4000056655665556", "5555555555554444", "5105105105105100", "5200828282828210"}
_TEST_CARDS |= {"378282246310005", "371449635398431", "6011111111111117", "3530111333300000"}
# Excludes paths and versions such as opencv-python==4.5.5.64.
_IPV4 = re.compile(
    r"(?<![A-Za-z0-9_.-])(?<![=<>~!]=)(?:(?<!/)|(?<=//))"
    r"(?:\d{1,3}\.){3}\d{1,3}(?![A-Za-z0-9_-]|\.\d)",
    re.ASCII,
)
_TWO_DOTS = re.compile(r"\d\.\d{1,3}\.\d", re.ASCII)
_IPV6 = re.compile(
    r"(?<![A-Za-z0-9_:.])(?:[0-9A-Fa-f]{1,4}:){2,7}"
    r"(?::|[0-9A-Fa-f]{1,4}|(?::[0-9A-Fa-f]{1,4}){1,5})(?![A-Za-z0-9_:])"
)
_VERSION = re.compile(
    r"(?:\bv|versions?|release|firmware|build|driver|chrome|edg|firefox|safari|opera|版本|§§?|art"
    r"|articles?|section|sect?|clause|chapter|chap|paragraph|para|no|nr|figure|fig|table|tab"
    r"|appendix|annex|oid|ziffer|abschnitt|absatz|nummer|titre|alinéa|第|条|章|节|款)[\W_]{0,3}$",
    re.IGNORECASE,
)
_NETWORK = re.compile(
    r"(?:\b(?:ips?|ipv4|hosts?|hostname|servers?|addr|address(?:es)?|ping|ssh|telnet|curl|wget|dns"
    r"|gateway|peer|client|remote|proxy|login|from|subnet|netmask|router)\b|://|@|地址|服务器|主机"
    r"|网关)(?:\W{1,3}\w{1,8})?\W{0,4}$",
    re.IGNORECASE,
)
_NETWORK_AFTER = re.compile(r":\d{2,5}\b|/(?:[89]|[12]\d|3[0-2])\b")
# Public resolvers, used as examples in manuals.
_RESOLVERS = frozenset({"8.8.8.8", "8.8.4.4", "9.9.9.9", "114.114.114.114", "223.5.5.5"})
_RESOLVERS |= {"223.6.6.6", "119.29.29.29", "180.76.76.76", "208.67.222.222", "208.67.220.220"}

Spans = Iterator[tuple[int, int]]


def _private_keys(text: str) -> Spans:
    if "PRIVATE KEY-----" in text:
        yield from (match.span() for match in _PRIVATE_KEY.finditer(text))


def _api_keys(text: str) -> Spans:
    for clue, shape in _KEY_SHAPES.items():
        if clue in text:
            for match in shape.finditer(text):
                if len(set(match.group())) >= 10 and not _EXAMPLE_KEY.search(match.group()):
                    yield match.span()


def _emails(text: str) -> Spans:
    if "@" not in text:
        return
    for match in _EMAIL.finditer(text):
        domain, ending = match.group(1), match.group(2)
        is_git = match.group().startswith("git@")  # git@github.com:owner/name
        if not (is_git or ending.lower() in _FILE_ENDINGS or _EXAMPLE_DOMAIN.search(domain)):
            yield match.span()


def _chinese_ids(text: str) -> Spans:
    for match in _CHINESE_ID.finditer(text):
        if is_chinese_id(match.group()):
            yield match.span()


def is_chinese_id(number: str) -> bool:
    """Check region, date of birth and check digit (GB 11643-1999: ISO 7064 MOD 11-2)."""
    if not 11 <= int(number[:2]) <= 83:
        return False
    try:
        born = date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    total = sum(int(digit) * 2 ** (17 - place) for place, digit in enumerate(number[:17]))
    return 1900 <= born.year <= 2100 and "10X98765432"[total % 11] == number[17].upper()


def _cards(text: str) -> Spans:
    for match in _CARD.finditer(text):
        digits = re.sub(r"\D", "", match.group())
        if _CARD_ISSUER.fullmatch(digits) and digits not in _TEST_CARDS and passes_luhn(digits):
            yield match.span()


def passes_luhn(digits: str) -> bool:
    """Check the last digit of a card's number (ISO/IEC 7812-1, annex B)."""
    if len(set(digits)) <= 2:
        return False
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0


def _addresses(text: str) -> Spans:
    for match in _IPV4.finditer(text) if _TWO_DOTS.search(text) else ():
        before = text[max(0, match.start() - 12) : match.start()]
        octets = [int(part) for part in match.group().split(".")]
        # 1.2.3.4 is a section or a version, and an address only in examples. 22.1.1.3 may be both.
        like_address = max(octets) >= 100 and sorted(octets)[1] > 9
        like_address |= max(octets) > 20 and _is_network(text, match)
        if like_address and match.group() not in _RESOLVERS and not _VERSION.search(before):
            yield from _if_public(match)
    if text.count(":") >= 3:
        for match in _IPV6.finditer(text):
            if "2001:4860:4860:" not in match.group() and "2606:4700:4700:" not in match.group():
                yield from _if_public(match)


def _is_network(text: str, match: re.Match[str]) -> bool:
    """Whether a port, a prefix length or a word of networks is next to an address."""
    before = text[max(0, match.start() - 24) : match.start()]
    return bool(_NETWORK_AFTER.match(text, match.end()) or _NETWORK.search(before))


def _if_public(match: re.Match[str]) -> Spans:
    try:
        address = ipaddress.ip_address(match.group())
    except ValueError:
        return
    if address.is_global and not address.is_multicast:
        yield match.span()


_MANY_DIGITS = re.compile(r"\d[\d .()+-]{6}", re.ASCII)
# A comma or slash between two complete numbers.
_BETWEEN = re.compile(
    r"[,/](?:(?<=[\dXx]{11}.)|(?<=[ -]\d{4}[ -]\d{4}.)|(?<=-\d{7}.)|(?<=-\d{8}.))"
    r"(?=(?:\+\d{1,3}[ -]?)?(?:\d{11}|\d{3,4}[ -]\d{4}[ -]\d{4}|0\d{2,3}-\d{7}))",
    re.ASCII,
)

_SEARCHES: dict[str, Callable[[str], Spans]] = {
    "private key": _private_keys,
    "api key": _api_keys,
    "e-mail": _emails,
    "chinese id": _chinese_ids,
    "bank card": _cards,
    "phone": find_phone_numbers,
    "ip address": _addresses,
}
_NUMBERS = frozenset(("chinese id", "bank card", "phone"))
"""The kinds that are searched only in texts with many digits."""
