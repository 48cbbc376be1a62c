"""What the rows of each format say."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from llmctl.data.io.reader import read_examples
from llmctl.data.rows.row_errors import RowError, RowErrorLog
from llmctl.errors import ConfigError
from llmctl.types import Example, Message, Tool, ToolCall

SAMPLES = Path(__file__).parents[1] / "samples"


def sample(name: str) -> list[Example]:
    log = RowErrorLog()
    examples = list(read_examples(SAMPLES / name, on_row_error=log))
    assert log.first == []
    return examples


def one(tmp_path: Path, value: Mapping[str, object], **options: object) -> Example:
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps(value))
    problems: list[RowError] = []
    examples = list(
        read_examples(path, on_row_error=problems.append, **options)  # type: ignore[arg-type]
    )
    assert problems == []
    return examples[0]


def said(example: Example) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in example.messages]


def test_alpaca_joins_instruction_and_input_and_keeps_system_and_history() -> None:
    plain, chinese, later = sample("alpaca.json")
    assert {example.format for example in (plain, chinese, later)} == {"alpaca"}
    asked = "Turn this sentence into a question.\nThe lighthouse keeper counts the ships at night."
    assert said(plain)[0] == ("user", asked)
    assert said(chinese)[0] == ("system", "你是一位耐心的语文老师。")
    assert [role for role, _ in said(later)] == ["user", "assistant"] * 3
    assert said(later)[3][1] == "No, only when the soil is dry to the touch."
    assert later.masked == ()


def test_sharegpt_turns_calls_and_observations_become_messages() -> None:
    ferry, ticket = sample("sharegpt.json")
    assert [role for role, _ in said(ferry)] == ["system", *["user", "assistant"] * 2]
    assert ticket.format == "sharegpt"
    asking = ticket.messages[1]
    # The call belongs to the text that the assistant says right before it.
    assert asking.content == "我来查一下。"
    assert asking.tool_calls == (ToolCall("ticket_price", '{"day": "明天"}'),)
    assert ticket.messages[2] == Message("tool", '{"price": 38}')
    assert ticket.tools[0].name == "ticket_price"


def test_messages_have_parts_reasoning_tools_calls_and_weights() -> None:
    egg, tea, bakery, knock = sample("messages.jsonl")
    assert said(egg) == [
        ("user", "How long do I boil an egg?"),
        ("assistant", "Seven minutes for a soft yolk."),
    ]
    assert tea.messages[1].content == "茶叶放多久会变味？"
    assert tea.messages[2].reasoning == "绿茶最容易变味，其他茶更久。"
    calls = bakery.messages[1].tool_calls
    assert [(call.id, call.parsed()) for call in calls] == [
        ("call_1", {"street": "Mill Lane"}),
        ("call_2", {"street": "Harbour Street"}),
    ]
    assert [message.tool_call_id for message in bakery.messages[2:4]] == ["call_1", "call_2"]
    assert isinstance(bakery.tools[0], Tool)
    assert knock.masked == (1,)


def test_prompt_and_completion_are_text_or_turns_of_which_the_last_is_learnt() -> None:
    birch, bird, far = sample("prompt-completion.jsonl")
    assert said(birch) == [("user", "Which tree has white bark?"), ("assistant", "The birch.")]
    assert said(bird)[1] == ("assistant", "夜莺会在夜里唱歌。")
    assert [role for role, _ in said(far)] == ["user", "assistant", "user", "assistant"]
    assert far.masked == (1,)


def test_a_table_holds_quotes_and_line_ends_and_knows_its_lines() -> None:
    tepid, rivers, sky = sample("prompt-completion.csv")
    assert said(tepid)[0][1] == 'Say it in one word: "not warm, not cold"'
    assert said(rivers) == [
        ("user", "List two rivers,\none per line."),
        ("assistant", "Rhine\nElbe"),
    ]
    assert [example.origin.line for example in (tepid, rivers, sky)] == [2, 3, 6]


def test_plain_text_is_a_row_per_line_or_a_column() -> None:
    lines = sample("text.txt")
    assert [example.text for example in lines] == [
        "The tide table hangs in the window of the harbour office.",
        "潮汐表挂在港务局的窗户上。",
        "Whoever moors here reads it first.",
    ]
    assert [example.origin.line for example in lines] == [1, 3, 4]
    assert [example.text is not None for example in sample("text.jsonl")] == [True, True]


def test_preference_pairs_are_known_in_every_shape() -> None:
    pairs = sample("preference.jsonl")
    assert {example.format for example in pairs} == {"preference"}
    assert [
        (said(example)[-2][1], example.messages[-1].content, example.rejected[-1].content)
        for example in pairs
    ] == [
        (
            "Explain tides to a child.",
            "The moon pulls the sea towards it, so the water rises and falls.",
            "Tides are tides.",
        ),
        ("翻译成英文。\n雪化了。", "The snow has melted.", "Snow changed."),
        ("盐放多了怎么办？", "加一个切开的土豆一起煮，再加一点水。", "倒掉。"),
        ("Shall I water the cactus?", "Once a month is enough.", "Every hour."),
        ("What do owls eat?", "Mostly mice.", "Bread."),
        ("Can I paint over rust?", "Brush it off first, then prime it.", "Sure."),
    ]
    assert [len(example.rejected) for example in pairs] == [1] * 6
    assert said(pairs[2])[0] == ("system", "你是一个厨房助手。")
    assert len(pairs[3].messages) == 2
    assert len(pairs[4].messages) == 4


def test_all_formats_can_stand_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    names = ("messages.jsonl", "prompt-completion.jsonl", "text.jsonl", "preference.jsonl")
    path.write_bytes(b"".join((SAMPLES / name).read_bytes() for name in names))
    log = RowErrorLog()
    formats = [example.format for example in read_examples(path, on_row_error=log)]
    assert log.total == 0
    assert (
        formats == ["messages"] * 4 + ["prompt-completion"] * 3 + ["text"] * 2 + ["preference"] * 6
    )


OPENAI = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
SHAREGPT = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]


@pytest.mark.parametrize(
    ("value", "format"),
    [
        ({"conversations": OPENAI}, "messages"),
        ({"messages": SHAREGPT}, "sharegpt"),
        ({"messages": json.dumps(OPENAI)}, "messages"),
        ({"instruction": "a", "context": "", "response": "b"}, "alpaca"),
        ({"instruction": "a", "output": "b", "text": "a b"}, "alpaca"),
        ({"input": "a", "output": "b"}, "prompt-completion"),
        ({"query": "a", "response": "b", "system": ""}, "prompt-completion"),
        ({"prompt": "a", "completion": OPENAI[1]}, "prompt-completion"),
    ],
)
def test_what_people_call_things_is_understood(
    tmp_path: Path, value: Mapping[str, object], format: str
) -> None:
    example = one(tmp_path, value)
    assert example.format == format
    assert said(example) == [("user", "a"), ("assistant", "b")]


def test_an_answer_that_is_json_stays_text(tmp_path: Path) -> None:
    answer = '{"city": "Bremen", "days": [1, 2]}'
    example = one(tmp_path, {"prompt": "As JSON, please.", "completion": answer})
    assert example.messages[1].content == answer
    answer = '[{"role": "user", "content": "An example of a chat."}]'
    example = one(tmp_path, {"instruction": "As JSON, please.", "output": answer})
    assert example.messages[1].content == answer


def test_a_system_prompt_column_comes_first_but_not_twice(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    example = one(tmp_path, {"messages": turns, "system": "Be brief."})
    assert said(example)[0] == ("system", "Be brief.")


def test_columns_can_be_named_by_option(tmp_path: Path) -> None:
    row = {"ask": "a", "reply": "b", "completion": "not this"}
    example = one(tmp_path, row, columns={"prompt": "ask", "completion": "reply"})
    assert said(example) == [("user", "a"), ("assistant", "b")]


def test_a_row_that_has_our_name_already_needs_no_mapping(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    path.write_text('{"prompt": "a", "reply": "b"}\n{"prompt": "a", "completion": "b"}\n')
    log = RowErrorLog()
    examples = list(read_examples(path, columns={"completion": "reply"}, on_row_error=log))
    assert log.first == []
    assert [said(example) for example in examples] == [[("user", "a"), ("assistant", "b")]] * 2


def test_a_problem_names_the_column_as_the_file_does(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text('{"ask": "a", "reply": 3}')
    log = RowErrorLog()
    columns = {"prompt": "ask", "completion": "reply"}
    assert list(read_examples(path, columns=columns, on_row_error=log)) == []
    assert str(log.first[0]) == f"{path}:1:reply: a number (text)"


def test_a_column_that_no_row_has_is_told(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}')
    log = RowErrorLog()
    assert len(list(read_examples(path, columns={"system": "sytem"}, on_row_error=log))) == 1
    assert str(log.first[0]) == (
        f"{path}:1:sytem: no row has this column (check the name after --column)"
    )


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"columns": {"ouput": "reply"}}, "did you mean output?"),
        ({"format": "sharegtp"}, "did you mean sharegpt?"),
    ],
)
def test_an_option_that_names_what_does_not_exist_says_what_does(
    options: dict[str, object], hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        list(read_examples(SAMPLES / "text.txt", on_row_error=RowErrorLog(), **options))  # type: ignore[arg-type]
    assert caught.value.hint == hint


def test_a_format_that_is_given_must_be_that_of_every_row() -> None:
    log = RowErrorLog()
    assert list(read_examples(SAMPLES / "text.jsonl", format="alpaca", on_row_error=log)) == []
    assert log.kinds == {"missing-column": 4}
