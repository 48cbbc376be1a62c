"""Findings of each rule on a single row."""

import pytest

from llmctl.data.cleaning.pipeline.row_cleaner import RowCleaner
from llmctl.data.cleaning.rules.language import detect_language, dominant_script
from llmctl.data.cleaning.rules.lengths import LengthRule
from llmctl.data.cleaning.rules.repetition import repeated_line_share, repeated_ngram_share
from llmctl.data.cleaning.rules.rule import RowView
from llmctl.data.cleaning.settings import Length
from llmctl.errors import TemplateError
from llmctl.types import Example
from tests.data.cleaning.rows import chat, clean, row, settings

POEM = """春眠不觉晓，处处闻啼鸟。
夜来风雨声，花落知多少。
床前明月光，疑是地上霜。
举头望明月，低头思故乡。"""


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.",
        "As an AI language model, I do not have opinions.",
        "I cannot provide medical advice.",
        "Unfortunately, I am unable to open links.",
        "很抱歉，我无法回答这个问题。",
        "作为一个人工智能助手，我没有感情。",
        "对不起，我不能提供这样的信息。",
    ],
)
def test_a_refusal_is_reported_and_kept(answer: str) -> None:
    cleaned = clean(chat("Do it", answer))
    assert "refusal" in cleaned.findings
    assert cleaned.removed_by is None


@pytest.mark.parametrize(
    "answer",
    [
        "Unfortunately, the shop was closed, so we could not buy bread.",
        "I can help you with that! First, open the door.",
        "Sorry is a word people use when they cannot come.",
        "很抱歉听到这个消息。您可以先休息一下。",
        "作为一个国家，中国有着悠久的历史。",
        "我不会游泳，所以我去学了。",
        "An AI language model predicts the next word.",
    ],
)
def test_an_answer_that_resembles_a_refusal_is_not_reported(answer: str) -> None:
    assert "refusal" not in clean(chat("Do it", answer)).findings


@pytest.mark.parametrize(
    "text",
    [
        "Great tips. Click here to read more about our newsletter.",
        "```\nx = 1\n```\nCopy code",
        "本文介绍了方法。更多内容请关注我们的微信公众号。",
        "版权所有，未经授权不得转载",
    ],
)
def test_boilerplate_of_web_pages_is_reported(text: str) -> None:
    assert "boilerplate" in clean(row(text=text)).findings


def test_markers_of_a_chat_template_are_reported() -> None:
    found = clean(chat("Hi", "Hello<|im_end|>\n<|im_start|>user")).findings["template-markers"]
    assert found.kinds == ("<|im_end|>", "<|im_start|>")
    assert "template-markers" in clean(chat("Hi", "Hello\n### Response:\nagain")).findings
    assert "template-markers" not in clean(chat("### Response:\n", "a <b> [c] # d")).findings


@pytest.mark.parametrize("answer", ["<nooutput>", "[Insert answer here]", "TODO", " <no input> "])
def test_a_placeholder_answer_is_removed(answer: str) -> None:
    assert clean(chat("Do it", answer)).removed_by == "placeholder"


@pytest.mark.parametrize("answer", ["None", "无", "N/A", "No output", "0", "是"])
def test_a_short_answer_is_not_a_placeholder(answer: str) -> None:
    assert clean(chat("What is printed?", answer)).removed_by is None


def test_an_answer_equal_to_its_prompt_is_removed_unless_it_is_short() -> None:
    prompt = "Translate this sentence into French, please."
    assert clean(chat(prompt, prompt.upper())).removed_by == "answer-equals-prompt"
    assert clean(chat("Hello there", "Hello there!")).removed_by is None


def test_a_preference_pair_equal_after_repair_is_removed() -> None:
    of = row(prompt="Which?", chosen="This one.", rejected="This one. \n")
    assert clean(of).removed_by == "chosen-equals-rejected"
    of = row(prompt="Which?", chosen="This one.", rejected="This  one.")
    assert clean(of).removed_by == "chosen-equals-rejected"
    assert clean(row(prompt="Which?", chosen="This.", rejected="That.")).removed_by is None


def test_a_row_empty_after_repair_is_removed_with_its_original_value() -> None:
    of = chat("Say nothing", "\u200b\ufeff")
    cleaned = clean(of)
    assert cleaned.removed_by == "empty"
    assert cleaned.value is of.value
    assert clean(of, empty="report").removed_by is None


def test_an_unclosed_code_block_is_reported() -> None:
    assert "code-fences" in clean(chat("Code?", "```py\nx = 1")).findings
    assert "code-fences" not in clean(chat("Code?", "```py\nx = 1\n```")).findings


def test_a_repetitive_answer_is_removed() -> None:
    assert clean(chat("Talk", "I like to eat apples and pears. " * 40)).removed_by == "repetition"
    assert clean(chat("说", "我喜欢吃苹果和梨。" * 30)).removed_by == "repetition"


@pytest.mark.parametrize(
    "answer",
    [
        POEM * 1,
        "\n".join(f"{n}. Item number {n} of the list, worth {n * 7} points" for n in range(60)),
        "| a | b |\n|---|---|\n" + "\n".join(f"| {n} | {n * n} |" for n in range(80)),
        "```\n" + "print('the same line of code again and again')\n" * 50 + "```",
        "Row, row, row your boat, gently down the stream. " * 2
        + "Merrily, merrily, life is a dream.",
        ", ".join(map(str, range(200))),
    ],
)
def test_lists_tables_poems_and_code_are_not_repetition(answer: str) -> None:
    assert clean(chat("Write", answer)).removed_by is None


def test_shares_of_repetition() -> None:
    once = " ".join(f"word{n}" for n in range(50))
    assert repeated_ngram_share(once, 50) == 0
    assert repeated_ngram_share(f"{once} {once}", 50) == pytest.approx(0.5)
    assert repeated_line_share("line one\n" * 3 + "line two\n" * 3) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("This is a sentence in English about the weather.", "en"),
        ("今天天气很好，我们去公园散步。", "zh"),
        ("用 Python 写一个函数 def add(a, b): return a + b，返回两个数的和，并解释代码", "zh"),
        ("これは日本語の文章で、漢字も含まれています。", "ja"),
        ("한국어로 쓴 문장입니다.", "ko"),
        ("Je voudrais un café avec du lait, s'il vous plaît, et un croissant.", "fr"),
        ("Сегодня очень хорошая погода, пойдёмте гулять.", "ru"),
        ("42", "?"),
        ("ok", "?"),
        ("😀😀", "?"),
    ],
)
def test_languages_are_detected(text: str, code: str) -> None:
    assert detect_language(text, 0.8) == code


def test_rows_in_other_languages_are_removed_and_uncertain_ones_kept() -> None:
    keep = {"language": {"keep": "zh,en"}}
    french = "Je voudrais un café avec du lait, s'il vous plaît, et un croissant."
    assert clean(chat("Order", french), **keep).removed_by == "language"
    assert clean(chat("Order", "好的，一杯咖啡。"), **keep).removed_by is None
    assert clean(chat("Order", "OK"), **keep).removed_by is None


def test_the_script_is_detected_without_a_model() -> None:
    assert dominant_script("中文")[0] == "zh"
    assert dominant_script("a" * 30) == ("latin", 30)


class WordCounter:
    """Counts words instead of tokens."""

    def __init__(self) -> None:
        self.calls = 0

    def row(self, example: Example) -> int:
        self.calls += 1
        if any("refuse" in message.content for message in example.messages):
            raise TemplateError("the chat template refuses this conversation")
        return sum(len(message.content.split()) for message in example.messages)

    def text(self, text: str) -> int:
        self.calls += 1
        return len(text.split())


def test_rows_outside_the_bounds_are_removed() -> None:
    counter = WordCounter()
    bounds = settings(length={"max-tokens": 300, "min-answer-tokens": 2})
    cleaner = RowCleaner(bounds, counter=counter)

    def verdict(question: str, answer: str) -> str:
        cleaned = cleaner.clean(chat(question, answer))
        assert not isinstance(cleaned, tuple)
        return cleaned.findings["length"].detail if "length" in cleaned.findings else ""

    assert verdict("a question", "word " * 400) == "the row has 402 tokens, more than 300"
    assert verdict("a question", "one") == "the answer has 1 tokens, fewer than 2"
    assert "refuses" in verdict("refuse " * 100, "yes indeed")
    assert verdict("a question", "two words") == ""


def test_tokens_are_not_counted_when_bytes_suffice() -> None:
    counter = WordCounter()
    rule = LengthRule(Length.model_validate({"max-tokens": 1000, "min-tokens": 1}), counter)
    cleaned = clean(chat("a question", "x" * 500))
    assert rule.check(RowView(cleaned.after)) is None
    assert counter.calls == 0
