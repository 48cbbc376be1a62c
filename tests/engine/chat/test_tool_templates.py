"""Templates in the styles of several families: where they take tools, calls and ids."""

from typing import Any

import pytest

from llmctl.engine.chat.template import ChatTemplate, RenderOptions
from llmctl.errors import TemplateError
from llmctl.types import Message, Tool, ToolCall
from tests.tiny import CHATML, byte_tokenizer

ADD = Tool("add", "adds", {"type": "object", "properties": {"a<|im_end|>": {"type": "integer"}}})
TURNS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
IN_VARIABLE = "{% if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}" + TURNS
IN_MESSAGE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% if m.role == 'system' and 'tools' in m %}<tools>{{ m['tools'] }}</tools>{% endif %}"
    "{% endfor %}"
)
# The word alone shows nothing.
COMMENT = "{# tools and tool_calls #}" + TURNS
WITH_CALLS = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ c.id }}:{{ c.function.name }}:{{ c.function.arguments }}{% endfor %}"
    "{{ m.tool_call_id or '' }}{% endfor %}"
)
ITEMS = WITH_CALLS.replace(
    "{{ c.function.arguments }}",
    "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}",
)
NINE = "{% for m in messages %}{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}" + (
    "{{ raise_exception('ids have nine characters') }}{% endif %}{% endfor %}{% endfor %}"
)


def template(source: Any) -> ChatTemplate:
    tokenizer = byte_tokenizer(None)
    tokenizer.chat_template = source
    return ChatTemplate.of(tokenizer)


def conversation(arguments: str, call_id: str = "call_1") -> tuple[Message, ...]:
    call = ToolCall("add", arguments, call_id)
    return (
        Message("user", "?"),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "3", tool_call_id=call_id),
    )


@pytest.mark.parametrize(
    ("source", "supported"),
    [(IN_VARIABLE, True), (IN_MESSAGE, True), (COMMENT, False), (CHATML, False)],
    ids=["variable", "system message", "comment", "none"],
)
def test_support_of_tools_is_found_by_rendering(source: str, supported: bool) -> None:
    made = template(source)
    assert made.supports_tools == supported
    if supported:
        text = made.render([Message("user", "?")], RenderOptions(tools=[ADD])).text
        assert '"name": "add"' in text
        assert text.endswith("[user]?")


def test_the_template_named_tool_use_is_used_with_tools_and_calls() -> None:
    made = template({"default": "plain " + TURNS, "tool_use": IN_VARIABLE + WITH_CALLS})
    user = [Message("user", "?")]
    assert made.render(user).text.startswith("plain")
    assert '"name": "add"' in made.render(user, RenderOptions(tools=[ADD])).text
    assert "call_1:add" in made.render(conversation("{}")).text


def test_control_tokens_in_names_of_properties_are_plain_text() -> None:
    made = template(IN_VARIABLE)
    tokens = made.render([Message("user", "?")], RenderOptions(tools=[ADD]))
    assert "a<|im_end|>" in made.escaper.unescape(tokens.text)
    assert 257 not in tokens.ids


def test_a_dictionary_printed_by_the_template_has_no_placeholders() -> None:
    made = template(WITH_CALLS)
    text = made.escaper.unescape(made.render(conversation('{"a": "x<|im_end|>y"}')).text)
    assert "{'a': 'x<|im_end|>y'}" in text


@pytest.mark.parametrize("source", [WITH_CALLS, ITEMS])
@pytest.mark.parametrize("arguments", ['{"a": 1', "null", "[1]", "", "not JSON"])
def test_arguments_that_are_not_an_object_are_rendered(source: str, arguments: str) -> None:
    text = template(source).render(conversation(arguments)).text
    assert "add" in text
    assert arguments in text


def test_a_template_gets_call_ids_of_the_length_that_it_requires() -> None:
    made = template(NINE + WITH_CALLS)
    text = made.render(conversation("{}", "call_0123456789abcdef")).text
    first, last = text.split(":add:")[0][-9:], text[-9:]
    assert first == last
    assert first.isalnum()
    assert "abcdefghi:add" in made.render(conversation("{}", "abcdefghi")).text
    assert "call_1:add" in template(WITH_CALLS).render(conversation("{}")).text


def test_an_error_of_the_template_is_still_an_error() -> None:
    made = template("{{ raise_exception('never') }}")
    with pytest.raises(TemplateError, match="never"):
        made.render(conversation("not JSON"))
