"""Detection of personal data, and text that only resembles it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.data.cleaning.rules.personal_data import find_personal_data, is_chinese_id, passes_luhn
from tests.data.cleaning.rows import chat, clean, row


@pytest.mark.parametrize(
    ("text", "kind", "found"),
    [
        ("写信到 li.ming@qq.com，谢谢", "e-mail", "li.ming@qq.com"),
        ("电话13912345670。", "phone", "13912345670"),
        ("手机：+86 139-1234-5670", "phone", "+86 139-1234-5670"),
        ("座机 010-62784321 转", "phone", "010-62784321"),
        ("call (415) 867-5309 now", "phone", "(415) 867-5309"),
        ("+44 20 7946 0958", "phone", "+44 20 7946 0958"),
        ("身份证号11010519491231002X，", "chinese id", "11010519491231002X"),
        ("card 4539 1488 0343 6467", "bank card", "4539 1488 0343 6467"),
        ("from 47.95.164.112:8080", "ip address", "47.95.164.112"),
        ("at 2a00:1450:4001:81b::200e", "ip address", "2a00:1450:4001:81b::200e"),
        ("key sk-proj-ab12CD34ef56GH78ij90KLmn.", "api key", "sk-proj-ab12CD34ef56GH78ij90KLmn"),
        ("AWS AKIAQ2JD83KSLQ0WEUA9", "api key", "AKIAQ2JD83KSLQ0WEUA9"),
        (
            "bot 110201543:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsawQ",
            "api key",
            "110201543:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsawQ",
        ),
    ],
)
def test_personal_data_is_found_with_its_kind(text: str, kind: str, found: str) -> None:
    assert [(each.kind, text[each.start : each.end]) for each in find_personal_data(text)] == [
        (kind, found)
    ]


PEM = (
    "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,6F\n\n"
    "MIIE+/=\n-----END RSA PRIVATE KEY-----"
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("call 13912345670,13812340987 now", ["13912345670", "13812340987"]),
        ("13912345670/13812340987/15912345670", ["13912345670", "13812340987", "15912345670"]),
        ("139-1234-5670,138 1234 0987", ["139-1234-5670", "138 1234 0987"]),
        ("010-62784321/010-62784322", ["010-62784321", "010-62784322"]),
        ("13912345670,11010519491231002X", ["13912345670", "11010519491231002X"]),
        ("11010519491231002X,11010519491231002X", ["11010519491231002X"] * 2),
        ("phone=13912345670&手机=13812340987", ["13912345670", "13812340987"]),
        ("http://x.cn/?m=13912345670", ["13912345670"]),
        ("http://47.98.12.33:8080/x", ["47.98.12.33"]),
        ("IP:47.98.12.33, host=47.98.12.34", ["47.98.12.33", "47.98.12.34"]),
        (f"a {PEM} b {PEM}", [PEM, PEM]),
    ],
)
def test_personal_data_is_found_in_lists_assignments_and_urls(text: str, found: list[str]) -> None:
    assert [text[each.start : each.end] for each in find_personal_data(text)] == found


@pytest.mark.parametrize(
    "text",
    [
        "user@example.com, you@yourcompany.com",
        "git clone git@github.com:owner/name.git",
        "logo@2x.png",
        "13800138000.5 = 1,3800138000",
        "price: $13912345670, total=13912345670, order_id=13912345670",
        "3478086417*4=13912345670, 1,13912345670, 13912345670,5, a/13912345670",
        "opencv-python==4.5.5.64, lib>=4.5.5.64, dist/4.5.5.64/lib",
        "pi is 3.14159265358979323846",
        "in 2023-10-12 10:12:13, ISBN 9787111213826",
        "order 110105194912310021",  # the check digit is wrong
        "card 4539 1488 0343 6468",
        "test card 4242 4242 4242 4242",
        "call 415-555-0123 or 1-800-273-8255",
        "10.0.0.1, 192.168.1.1, 127.0.0.1, 8.8.8.8",
        "version 47.95.164.112, section 1.2.3.4",
        "12:34:56:78 and fe80::1",
        "AKIAIOSFODNN7EXAMPLE sk-something-long-words-here-again",
        "sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        "9.11 > 9.9 and 123456789012345678901234567890",
    ],
)
def test_text_that_resembles_personal_data_is_not_found(text: str) -> None:
    assert find_personal_data(text) == []


def test_checksums_follow_the_standards() -> None:
    assert is_chinese_id("11010519491231002X")
    assert not is_chinese_id("110105194912310020")
    assert not is_chinese_id("11010519491331002X")  # no thirteenth month
    assert passes_luhn("4539148803436467")
    assert not passes_luhn("4539148803436476")


def test_personal_data_is_reported_and_kept_by_default() -> None:
    of = chat("Who?", "Write to li.ming@qq.com or wang@163.com, 电话13912345670")
    cleaned = clean(of)
    assert cleaned.value is of.value
    assert cleaned.findings["personal-data"].detail == "2 e-mail, 1 phone"


def test_redaction_inserts_placeholders_of_the_kind() -> None:
    tags = ["a ", {"by": '{"to": "wang@163.com", "n": 13912345670}'}]
    further: dict[str, Any] = {"source": "li.ming@qq.com ", "tags": tags, "id": 13912345670}
    of = chat("我的电话是13912345670", "好的，li.ming@qq.com", **further)
    cleaned = clean(of, **{"personal-data": "change"})
    assert [m.content for m in cleaned.after.messages] == ["我的电话是<PHONE>", "好的，<EMAIL>"]
    # Columns outside the format; most of their numbers are ids.
    assert cleaned.value["source"] == "<EMAIL> "
    assert cleaned.value["tags"] == ["a ", {"by": '{"to": "<EMAIL>", "n": 13912345670}'}]
    assert cleaned.value["id"] == 13912345670
    assert cleaned.findings["personal-data"].detail == "1 phone, 3 e-mail"


def test_redacted_tool_arguments_stay_valid_json() -> None:
    call = {"name": "dial", "arguments": {"phone": 13912345670, "to": ["li.ming@qq.com"], "n": 3}}
    result = json.dumps({"owner": {"phone": 13912345670}})
    of = row(
        messages=[
            {"role": "user", "content": "Call Li"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "1",
                        "type": "function",
                        "function": {**call, "arguments": json.dumps(call["arguments"])},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "1", "content": result},
            {"role": "assistant", "content": "Done."},
        ]
    )
    cleaned = clean(of, **{"personal-data": "change"})
    arguments = cleaned.after.messages[1].tool_calls[0].parsed()
    assert arguments == {"phone": "<PHONE>", "to": ["<EMAIL>"], "n": 3}
    assert json.loads(cleaned.after.messages[2].content) == {"owner": {"phone": "<PHONE>"}}


@given(st.text(alphabet="0123456789 -.@+()ab中:Xx", max_size=60))
def test_redacted_text_has_no_findings(text: str) -> None:
    of = chat("Say it", f"x{text}")
    once = clean(of, **{"personal-data": "change"})
    assert (
        "personal-data"
        not in clean(
            chat("Say it", once.after.messages[-1].content), **{"personal-data": "report"}
        ).findings
    )
