"""Repairs of texts, and texts that must stay unchanged."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmctl.data.cleaning.pipeline.repairs import Repairs
from llmctl.data.cleaning.rules.code_blocks import split_code_blocks
from llmctl.data.cleaning.rules.text_repair import remove_controls, repair_unicode, tidy_whitespace

ALL_ON = {
    "unicode": "change",
    "control-characters": "change",
    "whitespace": "change",
    "personal-data": "change",
}
ODD = "\u200b\u200d\u200c\ufeff\u00a0\u3000\x07\x1b[`~# \t\r\n\u2028"
ODD += "Ã©â€œ＃“，。a中e\u0301@.1380\ufffc😀\u0600"
texts = st.one_of(st.text(), st.text(alphabet=ODD, max_size=60))


def repaired(text: str, *, is_answer: bool = True) -> str:
    return Repairs(ALL_ON).text(text, is_answer=is_answer)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("damaged", "whole"),
    [
        ("schÃ¶n", "schön"),
        ("Itâ€™s fine", "It’s fine"),
        ("ä½\u00a0å¥½ï¼Œä¸–ç•Œ", "你好，世界"),
        ("e\u0301te\u0301", "été"),
        ("the ﬁrst eﬀect", "the first effect"),
    ],
)
def test_wrongly_decoded_text_is_repaired(damaged: str, whole: str) -> None:
    assert repair_unicode(damaged) == whole


@pytest.mark.parametrize(
    "text",
    [
        "他说：“你好！”，然后（慢慢地）走了……《红楼梦》——全角ＡＢＣ１２３",
        "‘single’ “double” – dash — and … dots",
        "ＡＢＣ，ｄｅｆ；１２３。",
        "naïve café, Ærø, ÀÉÎ, Straße, São Paulo",
        "10 °C ± 2, ½ cup, x² ≤ y",
        "Привет, мир! Γειά σου",
        "&lt;div&gt; is written &amp;lt;div&amp;gt; in HTML",
        "日本語の「かぎ括弧」と　全角スペース",
    ],
)
def test_correct_text_is_unchanged(text: str) -> None:
    assert repaired(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "👨‍👩‍👧‍👦 ❤️‍🔥 👍🏽",
        "می‌خواهم",
        "क्‍ष",
        "ภาษา\u200bไทย",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "\u200fשלום\u200e",
    ],
)
def test_invisible_characters_required_by_a_script_or_an_emoji_are_kept(text: str) -> None:
    assert remove_controls(text) == text


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("zero\u200bwidth\u200d and \u200cnon", "zerowidth and non"),
        ("\ufeffstart", "start"),
        ("bell\x07 null\x00", "bell null"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("page\x0cbreak", "page\nbreak"),
        ("soft\u00adhyphen", "softhyphen"),
        ("left\u200eto\u202eright", "lefttoright"),
        ("hidden\U000e0068\U000e0069 tags", "hidden tags"),
        ("你\u200b好\u2060吗", "你好吗"),
    ],
)
def test_needless_invisible_characters_are_removed(text: str, seen: str) -> None:
    assert remove_controls(text) == seen


@pytest.mark.parametrize(
    ("text", "tidy"),
    [
        ("one \ntwo\t\n", "one\ntwo"),
        ("one  \ntwo", "one  \ntwo"),  # Markdown's line break
        ("one\r\ntwo\rthree\u2028four", "one\ntwo\nthree\nfour"),
        ("one\n\n\n\n\n\ntwo", "one\n\n\ntwo"),
        ("\n  \n  indented", "  indented"),
        ("　　第一段\n　　第二段", "　　第一段\n　　第二段"),
        ("hard\u00a0space", "hard space"),
        (
            "Qu'est-ce\u00a0? 10\u00a0000 «\u00a0oui\u00a0»",
            "Qu'est-ce\u00a0? 10\u00a0000 «\u00a0oui\u00a0»",
        ),
        (
            "def f():\n    return 1\n\n\ndef g():\n\tpass",
            "def f():\n    return 1\n\n\ndef g():\n\tpass",
        ),
        (" leading space of a completion", " leading space of a completion"),
    ],
)
def test_white_space_is_tidied_and_indentation_kept(text: str, tidy: str) -> None:
    assert tidy_whitespace(text, ends=True) == tidy


def test_white_space_around_a_prompt_is_kept() -> None:
    assert tidy_whitespace("\n### Response:\n", ends=False) == "\n### Response:\n"


@given(texts, st.booleans())
@example("``\u200b`\n a \n```", True)
@example("a@b.de\u0338", True)
@example("1380013800\u200b0", True)
@example("\u00a0\u00a0\n", False)
def test_repairs_are_idempotent(text: str, is_answer: bool) -> None:
    once = repaired(text, is_answer=is_answer)
    assert repaired(once, is_answer=is_answer) == once


@given(texts, st.text(alphabet=ODD.replace("`", "").replace("\r", ""), max_size=40), texts)
def test_code_blocks_are_unchanged(before: str, code: str, after: str) -> None:
    block = f"```python\n{code}\n```"
    before, after = (text.replace("`", "").replace("~", "") for text in (before, after))
    text = f"{before}\n{block}\n{after}"
    repairs = Repairs(ALL_ON | {"personal-data": "report"})  # type: ignore[arg-type]
    if "\r\n" not in text:  # line ends belong to the file, not to the code
        assert block in repairs.text(text, is_answer=True)


@given(texts)
def test_joined_segments_are_the_text(text: str) -> None:
    assert "".join(block.text for block in split_code_blocks(text)) == text


def test_fences_are_matched_as_in_commonmark() -> None:
    text = "a\n~~~~\n```\n~~~\nb\n~~~~\nc ```inline``` d\n"
    text += "- list\n    ```js\n    x\n    ```\n```py\nopen"
    code = [block for block in split_code_blocks(text) if block.is_code]
    assert [block.text.split("\n")[0].strip() for block in code] == ["~~~~", "```js", "```py"]
    assert [block.closed for block in code] == [True, True, False]
