# ruff: noqa: E501
"""A corpus of malformed files, each with its error message."""

import gzip
import json
from pathlib import Path

import pytest

from llmctl.data.io.reader import read_examples
from llmctl.data.rows.row_errors import RowError

GOOD = b'{"prompt": "Where is the key?", "completion": "Under the mat."}\n'


def turns(*pairs: tuple[str, str]) -> bytes:
    return json.dumps({"messages": [{"role": r, "content": c} for r, c in pairs]}).encode()


def row(**values: object) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode()


def calling(**call: object) -> bytes:
    return row(
        messages=[
            {"role": "user", "content": "Is it raining?"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "a", **call}]},
        ]
    )


WEATHER = [{"type": "function", "function": {"name": "weather"}}]
CALL = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
ASK = {"role": "user", "content": "Is it raining?"}

CORPUS: list[tuple[str, bytes, str]] = [
    # Invalid JSON.
    ("cut.jsonl", GOOD + b'{"prompt": "Wh', "2:column 12: the row ends inside the string that begins here (a closing quote; or is the row truncated?)"),
    ("half.jsonl", GOOD + b'{"prompt": "Why?",', "2:column 19: the row ends before it is complete (a closing bracket; or is the row truncated?)"),
    ("comma.jsonl", b'{"prompt": "a", "completion": "b"},\n', "1:column 35: a comma after the row's end (one object per line, no commas between)"),
    ("trailing.jsonl", b'{"prompt": "a", "completion": "b",}\n', "1:column 34: a trailing or repeated comma (remove it)"),
    ("two.jsonl", b'{"prompt": "a"} {"completion": "b"}\n', "1:column 17: a second object on the same line (one object per line)"),
    ("after.jsonl", b'{"prompt": "a", "completion": "b"} ok\n', "1:column 36: text after the row's end (one object per line and nothing else)"),
    ("single.jsonl", b"{'prompt': 'a', 'completion': 'b'}\n", "1:column 2: single quotes (double quotes: \"text\")"),
    ("bare.jsonl", b'{prompt: "a", completion: "b"}\n', '1:column 2: a key without double quotes: prompt ("prompt")'),
    ("none.jsonl", b'{"prompt": "a", "completion": None}\n', "1:column 31: None is Python, not JSON (null)"),
    ("true.jsonl", b'{"prompt": "a", "completion": True}\n', "1:column 31: True is Python, not JSON (true)"),
    ("word.jsonl", b'{"prompt": "a", "completion": yes}\n', '1:column 31: not a JSON value: yes} (strings need double quotes: "text")'),
    ("tab.jsonl", b'{"prompt": "a\tb", "completion": "c"}\n', r"1:column 14: an unescaped tab in a string (write \t)"),
    ("bell.jsonl", b'{"prompt": "a\x07b", "completion": "c"}\n', r"1:column 14: an unescaped control character U+0007 in a string (write \u0007)"),
    ("escape.jsonl", rb'{"prompt": "C:\dir", "completion": "c"}', r"1:column 15: \d is not a JSON escape (two backslashes for one backslash)"),
    ("hex.jsonl", rb'{"prompt": "\u12", "completion": "c"}', r"1:column 14: a \u escape without four hex digits (\u4e2d, or the character itself)"),
    ("quote.jsonl", b'{"prompt": "the "best" one", "completion": "c"}', r'1:column 18: a string ends here, followed by best" one", "complet… (a comma; or \" for a quote)'),
    ("colon.jsonl", b'{"prompt" "a"}', '1:column 11: no colon between key and value: "a"} ("key": value)'),
    ("between.jsonl", b'{"prompt": 1 "completion": 2}', '1:column 14: no comma before "completion": 2} (add a comma)'),
    ("nan.jsonl", b'{"prompt": "a", "completion": "b", "score": NaN}', "1:score: NaN is not valid JSON (null, or leave the field out)"),
    ("infinite.jsonl", b'{"prompt": "a", "completion": "b", "score": [1e999]}', "1:score[0]: an infinite number is not valid JSON (null, or leave the field out)"),
    ("twice.jsonl", b'{"prompt": "a", "completion": "b", "prompt": "c"}', "1:prompt: duplicate key 'prompt' (each key once)"),
    ("deep-twice.jsonl", b'{"messages": [{"role": "user", "role": "assistant"}]}', "1:messages[0].role: duplicate key 'role' (each key once)"),
    ("surrogate.jsonl", rb'{"prompt": "hm \ud83d", "completion": "b"}', "1:prompt: an unpaired surrogate at character 4 (both surrogates, or the character itself)"),
    ("nested.jsonl", b"[" * 100_000, "1: "),
    ("digits.jsonl", b'{"prompt": ' + b"9" * 5000 + b"}", "1: a number with thousands of digits (a shorter number)"),
    # Invalid text.
    ("latin.jsonl", GOOD + '{"prompt": "café"}'.encode("latin-1"), "2:column 16: the byte 0xe9 is not valid UTF-8 (save the file as UTF-8)"),
    ("gbk.jsonl", '{"prompt": "你好吗"}'.encode("gb18030"), "1:column 13: the byte 0xc4 is not valid UTF-8 (the text looks like GB18030: save the file as UTF-8)"),
    ("utf32.jsonl", GOOD.decode().encode("utf-32-le"), "1: the text has null bytes: it may be UTF-16 or UTF-32, or no text (save the file as UTF-8)"),
    ("latin.txt", "first\ncafé\n".encode("latin-1"), "2:column 4: the byte 0xe9 is not valid UTF-8 (save the file as UTF-8)"),
    ("packed.jsonl.gz", gzip.compress(GOOD * 500)[:-20], "the gzip data end or are corrupt here (is the file complete? the rows before are read)"),
    # Invalid arrays of rows.
    ("open.json", b"[" + GOOD, "2: the array is not closed (is the file truncated?)"),
    ("comma.json", b"[" + GOOD + b",]", "2: a comma before the closing bracket (remove it)"),
    ("between.json", b"[" + GOOD + GOOD + b"]", "2: no comma between two rows (add a comma)"),
    ("gap.json", b"[" + GOOD + b",,\n" + GOOD + b"]", "2: a comma without a row before it (remove it)"),
    ("tail.json", b"[" + GOOD + b"]\n[]", "3: text after the array's end (one array and nothing else)"),
    ("numbers.json", b"[1, 2]", "1: the row is a number (an object)"),
    ("texts.json", b'["a", "b"]', "1: the row is a string (an object)"),
    ("indented.json", b'[\n  {\n    "prompt": "a",\n    "completion": 7\n  }\n]', "4:completion: a number (a string)"),
    ("brace.json", b'[\n  {\n    "prompt": "a"\n,\n  {\n    "prompt": "b",\n    "completion": "c"\n  }\n]', "3:column 18: the row ends before it is complete (a closing bracket; or is the row truncated?)"),
    ("mesages.jsonl", row(mesages=[ASK, {"role": "assistant", "content": "No."}]), "1:mesages: unknown; did you mean 'messages'? (rename it, or --column messages=mesages)"),
    ("dialog.jsonl", row(id=7, dialog=[ASK, {"role": "assistant", "content": "No."}]), "1:dialog: unknown; did you mean 'messages'? (rename it, or --column messages=dialog)"),
    ("inside.json", b'{"data": [{"prompt": "a", "completion": "b"}]}', "1:data: this column holds the rows (save this list as the file)"),
    ("empty.jsonl", b"", "1: the file has no rows (at least one row)"),
    ("blank.json", b"[ ]", "1: the file has no rows (at least one row)"),
    ("false.parquet", b"PAR1 and nothing else", "1: not valid Parquet: Parquet ma"),
    # Invalid tables.
    ("cells.csv", b"prompt,completion\na,b,c\n", "2: 3 cells where the first row has 2 (quotes around a cell that contains ',' or a line end)"),
    ("quote.csv", b'prompt,completion\na,"b\nc,d\n', '2: a quote in this row is never closed; the 2 lines to the end of the file become one row (a closing quote; "" for a quote inside a cell)'),
    ("inner.csv", b'prompt,completion\na,"b"c\n', '2: text after a closing quote ("" for a quote inside a cell)'),
    ("header.csv", b"prompt,prompt\na,b\n", "1: two columns are named 'prompt' (each name once)"),
    ("nameless.csv", b"prompt,\na,b\n", "1: column 2 has no name (the first row names every column)"),
    ("void.csv", b'prompt,completion\n"a\nb",\n', "2:completion: empty (text)"),
    # Columns.
    ("typo.jsonl", row(instruction="a", ouput="b"), "1:output: missing; did you mean 'ouput'? (rename it, or --column output=ouput)"),
    ("case.jsonl", row(Text="a"), "1:Text: unknown; did you mean 'text'? (rename it, or --column text=Text)"),
    ("other.jsonl", row(instruction="a", reply="b"), "1:output: missing; the row has instruction, reply (name the column to use: --column output=YOURS)"),
    ("strange.jsonl", row(id=1, url="x"), "1: no known format has the columns id, url (messages | instruction + output | prompt + completion | chosen + rejected | text, or --column NAME=YOURS)"),
    ("headless.csv", b"Where is it?,Here\n1,2\n", "or --column NAME=YOURS, in the first row of the file)"),
    ("nothing.jsonl", b"{}", "1: the row is empty (messages | "),
    ("null.jsonl", row(prompt="a", completion=None), "1:completion: null (a string)"),
    # Types and empty fields.
    ("number.jsonl", row(instruction=3, output="b"), "1:instruction: a number (a string)"),
    ("input.jsonl", row(instruction="a", input=["b"], output="c"), "1:input: a list (a string)"),
    ("blank.jsonl", row(prompt="a", completion=" \n"), "1:completion: only white space (text)"),
    ("notext.jsonl", row(text=""), "1:text: empty (text)"),
    ("history.jsonl", row(instruction="a", output="b", history=[["c"]]), '1:history[0]: 1 items (a pair: ["question", "answer"])'),
    ("turns.jsonl", row(messages="hello"), "1:messages: a string (a list of turns)"),
    ("noturns.jsonl", row(messages=[]), "1:messages: no turns (at least a user's and an assistant's)"),
    ("turn.jsonl", row(messages=["hello"]), '1:messages[0]: a string (an object: {"role": "user", "content": "text"})'),
    # Turns.
    ("role.jsonl", turns(("usr", "a"), ("assistant", "b")), "1:messages[0].role: unknown role 'usr' (did you mean 'user'?)"),
    ("narrator.jsonl", turns(("narrator", "a")), "1:messages[0].role: unknown role 'narrator' (one of user, assistant, system, tool)"),
    ("norole.jsonl", row(messages=[{"rol": "user", "content": "a"}]), "1:messages[0].role: missing; did you mean 'rol'? (rename it)"),
    ("nocontent.jsonl", row(messages=[{"role": "user", "text": "a"}]), "1:messages[0].content: missing; the turn has role, text (text)"),
    ("from.jsonl", row(conversations=[{"from": "human", "valeu": "a"}]), "1:conversations[0].value: missing; did you mean 'valeu'? (rename it)"),
    ("hush.jsonl", turns(("user", ""), ("assistant", "b")), "1:messages[0].content: empty turn (text, or remove the turn)"),
    ("object.jsonl", row(messages=[{"role": "user", "content": {"a": 1}}]), "1:messages[0].content: an object (a string)"),
    ("image.jsonl", row(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), "1:messages[0].content[0].type: a part of type 'image_url' (text only)"),
    ("last.jsonl", turns(("user", "a"), ("assistant", "b"), ("user", "c")), "1:messages[2]: the last turn is the user's (end with the assistant's answer, or remove this turn)"),
    ("greeting.jsonl", turns(("assistant", "hello"), ("user", "a"), ("assistant", "b")), "1:messages[0]: the conversation begins with the assistant (begin with a user's turn)"),
    ("users.jsonl", turns(("user", "a"), ("user", "b"), ("assistant", "c")), "1:messages[1]: two user's turns in a row (an answer between them, or one joined turn)"),
    ("assistants.jsonl", turns(("user", "a"), ("assistant", "b"), ("assistant", "c")), "1:messages[2]: two assistant's turns in a row (a user's turn between them, or one joined turn)"),
    ("system.jsonl", turns(("user", "a"), ("system", "b"), ("assistant", "c")), "1:messages[1]: a system message after the first turn (one, as the first turn)"),
    ("weight.jsonl", row(messages=[ASK, {"role": "assistant", "content": "No.", "weight": 0}]), "1:messages: every turn has weight 0 (weight 1 on one of them)"),
    ("half-weight.jsonl", row(messages=[ASK, {"role": "assistant", "content": "No.", "weight": 0.5}]), "1:messages[1].weight: 0.5 (1 includes the turn in the loss, 0 excludes it)"),
    # Tools.
    ("result.jsonl", turns(("user", "a"), ("tool", "b"), ("assistant", "c")), "1:messages[1]: a tool result without a tool call (an assistant's turn with tool_calls)"),
    ("unanswered.jsonl", row(messages=[ASK, {"role": "assistant", "tool_calls": [CALL]}, ASK, {"role": "assistant", "content": "No."}]), "1:messages[2]: the tool calls before this turn have no results (a tool's turn for each call)"),
    ("arguments.jsonl", calling(function={"name": "weather", "arguments": "{city}"}), "1:messages[1].tool_calls[0].function.arguments: a string that is not JSON (a JSON object)"),
    ("listed.jsonl", calling(function={"name": "weather", "arguments": [1]}), "1:messages[1].tool_calls[0].function.arguments: a list (a JSON object)"),
    ("unnamed.jsonl", calling(function={"arguments": "{}"}), "1:messages[1].tool_calls[0].function.name: missing; the keys are arguments (the function's name)"),
    ("unknown.jsonl", row(tools=WEATHER, messages=[ASK, {"role": "assistant", "tool_calls": [{"function": {"name": "wether"}}]}]), "1:messages[1]: calls 'wether', which is not in the tools (did you mean 'weather'?)"),
    ("id.jsonl", row(messages=[ASK, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "No.", "tool_call_id": "b"}, {"role": "assistant", "content": "No."}]), "1:messages[2]: answers an unknown tool call 'b' (one of a)"),
    ("tools.jsonl", row(tools="weather", messages=[ASK, {"role": "assistant", "content": "No."}]), "1:tools: a string that is not JSON (a list of tools)"),
    ("function.jsonl", row(conversations=[{"from": "human", "value": "a"}, {"from": "function_call", "value": "weather()"}]), '1:conversations[1].value: a string that is not JSON ({"name": "...", "arguments": {...}})'),
    # Pairs.
    ("same.jsonl", row(prompt="a", chosen="b", rejected="b"), "1:rejected: the same as chosen (a worse answer)"),
    ("unasked.jsonl", row(chosen="b", rejected="c"), "1:prompt: there is no prompt (a prompt column, or whole conversations as chosen and rejected)"),
    ("apart.jsonl", row(chosen=[ASK, {"role": "assistant", "content": "No."}], rejected=[{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "No."}]), "1:rejected: its prompt differs from that of chosen (another answer to the same prompt)"),
]  # fmt: skip


def errors_of(path: Path) -> list[RowError]:
    found: list[RowError] = []
    for _ in read_examples(str(path), on_row_error=found.append):
        pass
    return found


@pytest.mark.parametrize(
    ("name", "content", "expected"), CORPUS, ids=[name for name, _, _ in CORPUS]
)
def test_the_error_of_a_malformed_file_has_line_field_and_fix(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    messages = [str(error) for error in errors_of(path)]
    assert messages
    message = messages[0].removeprefix(f"{path}:")
    is_complete = expected.endswith(")")
    assert message.endswith(expected) if is_complete else expected in message, messages


def test_the_corpus_has_distinct_names_and_at_least_50_files() -> None:
    assert len({name for name, _, _ in CORPUS}) == len(CORPUS) >= 50


def test_all_errors_of_a_file_are_reported_and_valid_rows_are_kept(
    tmp_path: Path,
) -> None:
    path = tmp_path / "many.jsonl"
    path.write_bytes(
        GOOD
        + b'{"prompt": \n'
        + turns(("usr", "a"), ("assistant", ""))
        + b"\n\n"
        + row(text=3)
        + b"\n"
        + GOOD
    )
    found: list[RowError] = []
    examples = list(read_examples(str(path), on_row_error=found.append))
    assert [example.origin.line for example in examples] == [1, 6]
    assert [(error.origin.line, error.kind) for error in found] == [
        (2, "half-row"),
        (3, "unknown-role"),
        (3, "empty"),
        (5, "wrong-type"),
    ]


def test_a_missing_brace_in_an_indented_array_loses_one_row(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(5)]
    lines = json.dumps(rows, indent=2).split("\n")
    assert lines[8] == "  },"
    path = tmp_path / "brace.json"
    path.write_text("\n".join(lines[:8] + lines[9:]))
    found: list[RowError] = []
    examples = list(read_examples(str(path), on_row_error=found.append))
    prompts = [example.messages[0].content for example in examples]
    assert prompts == ["question 0", "question 2", "question 3", "question 4"]
    assert [error.kind for error in found] == ["half-row", "json"]


def test_an_error_in_an_indented_row_has_the_line_of_its_field(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    whole = {"messages": [{"role": "user", "content": "a"}, {"role": "asistant", "content": "b"}]}
    text = json.dumps([whole], indent=1)
    path.write_text(text)
    line = 1 + text.split("\n").index('    "role": "asistant",')
    assert str(errors_of(path)[0]).startswith(f"{path}:{line}:messages[1].role: ")
