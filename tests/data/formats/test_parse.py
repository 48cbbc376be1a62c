"""Parsing of rows of every format."""

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
    errors: list[RowError] = []
    examples = list(
        read_examples(path, on_row_error=errors.append, **options)  # type: ignore[arg-type]
    )
    assert errors == []
    return examples[0]


def contents(example: Example) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in example.messages]


def test_alpaca_joins_instruction_and_input_and_keeps_system_and_history() -> None:
    plain, chinese, later = sample("alpaca.json")
    assert {example.format for example in (plain, chinese, later)} == {"alpaca"}
    question = (
        "Turn this sentence into a question.\nThe lighthouse keeper counts the ships at night."
    )
    assert contents(plain)[0] == ("user", question)
    assert contents(chinese)[0] == ("system", "你是一位耐心的语文老师。")
    assert [role for role, _ in contents(later)] == ["user", "assistant"] * 3
    assert contents(later)[3][1] == "No, only when the soil is dry to the touch."
    assert later.masked == ()


def test_sharegpt_turns_calls_and_observations_become_messages() -> None:
    ferry, ticket = sample("sharegpt.json")
    assert [role for role, _ in contents(ferry)] == ["system", *["user", "assistant"] * 2]
    assert ticket.format == "sharegpt"
    turn = ticket.messages[1]
    # The call belongs to the assistant's text right before it.
    assert turn.content == "我来查一下。"
    assert turn.tool_calls == (ToolCall("ticket_price", '{"day": "明天"}'),)
    assert ticket.messages[2] == Message("tool", '{"price": 38}')
    assert ticket.tools[0].name == "ticket_price"


def test_messages_have_content_parts_reasoning_tools_calls_and_weights() -> None:
    egg, tea, bakery, knock = sample("messages.jsonl")
    assert contents(egg) == [
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


def test_calls_and_the_text_before_them_have_one_weight(tmp_path: Path) -> None:
    def conversation(**weights: object) -> dict[str, object]:
        call = {"from": "function_call", "value": '{"name": "look", "arguments": {}}'}
        turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "I look."}, call]
        for index, (name, weight) in enumerate(weights.items(), 1):
            turns[index][name] = weight  # type: ignore[assignment]
        turns += [{"from": "observation", "value": "1"}, {"from": "gpt", "value": "One."}]
        return {"conversations": turns, "tools": [{"name": "look", "parameters": {}}]}

    assert one(tmp_path, conversation()).masked == ()
    assert one(tmp_path, conversation(loss=False, weight=0)).masked == (1,)
    path = tmp_path / "one.jsonl"
    for weights, calls in (({"loss": True, "weight": 0}, 0), ({"weight": 0}, 1)):
        path.write_text(json.dumps(conversation(**weights)))
        errors: list[RowError] = []
        assert list(read_examples(path, on_row_error=errors.append)) == []
        assert f"weight {calls} on calls" in errors[0].what


def test_nulls_that_arrow_adds_are_no_arguments_and_no_properties(tmp_path: Path) -> None:
    properties: dict[str, object] = {"city": {"type": "string", "default": None}, "unit": None}
    properties["day"] = {"type": ["string", "null"], "default": None}
    tools = [{"name": "look", "parameters": {"type": "object", "properties": properties}}]
    function = {"name": "look", "arguments": {"city": "Paris", "unit": None}}
    asked: dict[str, object] = {"role": "user", "content": "?", "tool_calls": None}
    answer = {"role": "assistant", "content": None, "tool_calls": [{"function": function}]}
    padded = one(tmp_path, {"messages": [asked, answer], "tools": tools})
    assert padded.messages[1].tool_calls[0].parsed() == {"city": "Paris"}
    assert padded.tools[0].parameters == {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "day": {"type": ["string", "null"], "default": None},
        },
    }
    del asked["tool_calls"]
    exact = one(tmp_path, {"messages": [asked, answer], "tools": tools})
    assert exact.messages[1].tool_calls[0].parsed() == {"city": "Paris", "unit": None}


def test_prompt_and_completion_are_text_or_turns_with_the_loss_on_the_completion() -> None:
    birch, bird, far = sample("prompt-completion.jsonl")
    assert contents(birch) == [("user", "Which tree has white bark?"), ("assistant", "The birch.")]
    assert contents(bird)[1] == ("assistant", "夜莺会在夜里唱歌。")
    assert [role for role, _ in contents(far)] == ["user", "assistant", "user", "assistant"]
    assert far.masked == (1,)


def test_csv_cells_contain_quotes_and_line_ends_and_rows_have_line_numbers() -> None:
    tepid, rivers, sky = sample("prompt-completion.csv")
    assert contents(tepid)[0][1] == 'Say it in one word: "not warm, not cold"'
    assert contents(rivers) == [
        ("user", "List two rivers,\none per line."),
        ("assistant", "Rhine\nElbe"),
    ]
    assert [example.origin.line for example in (tepid, rivers, sky)] == [2, 3, 6]


def test_plain_text_is_one_row_per_line_or_a_text_column() -> None:
    lines = sample("text.txt")
    assert [example.text for example in lines] == [
        "The tide table hangs in the window of the harbour office.",
        "潮汐表挂在港务局的窗户上。",
        "Whoever moors here reads it first.",
    ]
    assert [example.origin.line for example in lines] == [1, 3, 4]
    assert [example.text is not None for example in sample("text.jsonl")] == [True, True]


def test_preference_pairs_are_parsed_in_every_shape() -> None:
    pairs = sample("preference.jsonl")
    assert {example.format for example in pairs} == {"preference"}
    assert [
        (contents(example)[-2][1], example.messages[-1].content, example.rejected[-1].content)
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
    assert contents(pairs[2])[0] == ("system", "你是一个厨房助手。")
    assert len(pairs[3].messages) == 2
    assert len(pairs[4].messages) == 4


def test_one_file_can_mix_all_formats(tmp_path: Path) -> None:
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
def test_column_and_key_aliases_are_recognised(
    tmp_path: Path, value: Mapping[str, object], format: str
) -> None:
    example = one(tmp_path, value)
    assert example.format == format
    assert contents(example) == [("user", "a"), ("assistant", "b")]


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
    assert contents(example)[0] == ("system", "Be brief.")


def test_columns_can_be_mapped_by_option(tmp_path: Path) -> None:
    row = {"ask": "a", "reply": "b", "completion": "not this"}
    example = one(tmp_path, row, columns={"prompt": "ask", "completion": "reply"})
    assert contents(example) == [("user", "a"), ("assistant", "b")]


def test_a_mapping_leaves_rows_with_the_canonical_column_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    path.write_text('{"prompt": "a", "reply": "b"}\n{"prompt": "a", "completion": "b"}\n')
    log = RowErrorLog()
    examples = list(read_examples(path, columns={"completion": "reply"}, on_row_error=log))
    assert log.first == []
    assert [contents(example) for example in examples] == [[("user", "a"), ("assistant", "b")]] * 2


def test_an_error_has_the_column_name_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text('{"ask": "a", "reply": 3}')
    log = RowErrorLog()
    columns = {"prompt": "ask", "completion": "reply"}
    assert list(read_examples(path, columns=columns, on_row_error=log)) == []
    assert str(log.first[0]) == f"{path}:1:reply: a number (a string)"


def test_a_mapped_column_that_no_row_has_is_an_error(tmp_path: Path) -> None:
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
def test_an_unknown_column_or_format_is_an_error_with_a_suggestion(
    options: dict[str, object], hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        list(read_examples(SAMPLES / "text.txt", on_row_error=RowErrorLog(), **options))  # type: ignore[arg-type]
    assert caught.value.hint == hint


def test_every_row_must_have_the_given_format() -> None:
    log = RowErrorLog()
    assert list(read_examples(SAMPLES / "text.jsonl", format="alpaca", on_row_error=log)) == []
    assert log.kinds == {"missing-column": 4}
