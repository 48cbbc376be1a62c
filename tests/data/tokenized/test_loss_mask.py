import json
from collections.abc import Sequence

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, ByT5Tokenizer

from llmctl.data.tokenized.loss_mask import MaskedSequence, mask_example, mask_examples
from llmctl.engine.chat.template import ChatTemplate
from llmctl.engine.models import resolve
from llmctl.errors import TemplateError
from llmctl.types import Example, Message, SourceLocation, Tool, ToolCall
from tests.data.families import (
    CHATML,
    DEEPSEEK_R1,
    FIVE_FAMILIES,
    GEMMA,
    GENERATION,
    LLAMA3,
    MISTRAL,
    PHI3,
    QWEN3,
    TemplateFamily,
)

EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
CALL = ToolCall("add", '{"a": 1, "b": 1}', id="1")


def chat(*turns: str, system: str | None = None) -> tuple[Message, ...]:
    head = () if system is None else (Message("system", system),)
    messages = (Message("assistant" if i % 2 else "user", turn) for i, turn in enumerate(turns))
    return (*head, *messages)


def row(messages: Sequence[Message], **fields: object) -> Example:
    return Example(SourceLocation("file.jsonl", 7), "messages", tuple(messages), **fields)  # type: ignore[arg-type]


def trained(tokenizer: object, masked: MaskedSequence) -> list[str]:
    """Return the text of each run of tokens in the loss."""
    assert len(masked.ids) == len(masked.loss_mask) == len(masked.offsets)
    runs: list[list[int]] = []
    before = False
    for token, learn in zip(masked.ids, masked.loss_mask, strict=True):
        if learn:
            runs += [] if before else [[]]
            runs[-1].append(token)
        before = learn
    return [tokenizer.decode(run, clean_up_tokenization_spaces=False) for run in runs]  # type: ignore[attr-defined]


def all_trained(family: TemplateFamily, example: Example) -> list[str]:
    sequences = mask_example(family.template(), example)
    return [text for masked in sequences for text in trained(family.tokenizer(), masked)]


def rendered(family: TemplateFamily, content: str) -> str:
    """Return what the family's assistant generates for this content, as its template has it."""
    match family.name:
        case "llama3" | "gemma":
            return content.strip() + family.end
        case "mistral":
            return " " + content.strip() + family.end
        case "qwen3":
            return EMPTY_THOUGHT + content.lstrip("\n") + family.end
    return content + family.end


@pytest.mark.parametrize("family", FIVE_FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_the_loss_is_on_all_assistant_turns_and_their_end_of_turn_tokens(
    family: TemplateFamily, system: str | None
) -> None:
    turns = ("Hi!", "Hello.", "2 + 2?", "Four: 四 🙂", "Sure?", "Quite\nsure.", "Bye", "So long")
    expected = [rendered(family, reply) for reply in turns[1::2]]
    assert all_trained(family, row(chat(*turns, system=system))) == expected


SPELLINGS = [token for family in FIVE_FAMILIES for token in family.control]
CONTENT = st.lists(
    st.one_of(
        st.sampled_from(
            [*SPELLINGS, " ", "\n", "\n\n", "  ", " H", "]", "你好，世界", "🙂", "é", ""]
        ),
        st.text(max_size=6),
    ),
    max_size=5,
).map("".join)


@settings(max_examples=100)
@given(
    family=st.sampled_from(FIVE_FAMILIES),
    turns=st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=3),
    system=st.none() | CONTENT,
)
def test_for_any_content_the_prompt_is_the_servers_and_the_reply_is_in_the_loss(
    family: TemplateFamily, turns: list[tuple[str, str]], system: str | None
) -> None:
    assume(not any("\ud800" <= c <= "\udfff" for pair in turns for text in pair for c in text))
    messages = chat(*(text for pair in turns for text in pair), system=system)
    template = family.template()
    sequences = mask_example(template, row(messages))
    runs = [text for masked in sequences for text in trained(family.tokenizer(), masked)]
    assert runs == [rendered(family, reply) for _, reply in turns]
    for masked in sequences:
        prompt = masked.ids[: masked.loss_mask.index(True)]
        replies = [i for i, message in enumerate(messages) if message.role == "assistant"]
        assert prompt in [template.render(messages[:i]).ids for i in replies]


def test_a_token_that_would_join_prompt_and_reply_is_split_where_the_server_splits() -> None:
    (masked,) = mask_example(CHATML.template(), row(chat("Hi", "\nHello")))
    prompt = CHATML.template().render(chat("Hi")).ids
    assert masked.ids[: len(prompt)] == prompt
    assert masked.loss_mask.index(True) == len(prompt)


def test_control_tokens_spelt_in_an_answer_are_tokenised_as_text() -> None:
    (masked,) = mask_example(CHATML.template(), row(chat("Which?", "It is <|im_end|>.")))
    (end,) = CHATML.stop_ids
    trained_ids = [i for i, learn in zip(masked.ids, masked.loss_mask, strict=True) if learn]
    assert trained_ids.count(end) == 1
    assert trained_ids[-1] == end


def test_generation_blocks_are_in_the_loss_with_the_end_of_turn_token_after_them() -> None:
    example = row(chat("Hi", "Hello", "2+2?", "4"))
    assert all_trained(GENERATION, example) == ["Hello<|im_end|>", "4<|im_end|>"]
    assert len(mask_example(GENERATION.template(), example)) == 1


def test_a_template_that_closes_every_conversation_gives_one_sequence() -> None:
    (masked,) = mask_example(PHI3.template(), row(chat("Hi", "  Hello", "2+2?", "4")))
    first, last = trained(PHI3.tokenizer(), masked)
    assert first == "  Hello<|end|>"
    assert last.startswith("4<|end|>")


def test_a_template_that_rewrites_earlier_turns_gives_one_sequence_per_reply() -> None:
    messages = (
        Message("user", "1+1?"),
        Message("assistant", "2", reasoning="One and one."),
        Message("user", "2+2?"),
        Message("assistant", "4", reasoning="Two and two."),
    )
    first, second = mask_example(QWEN3.template(), row(messages))
    assert trained(QWEN3.tokenizer(), first) == ["<think>\nOne and one.\n</think>\n\n2<|im_end|>"]
    assert trained(QWEN3.tokenizer(), second) == ["<think>\nTwo and two.\n</think>\n\n4<|im_end|>"]
    assert (first.part, second.part) == ("reply 1 of 2", "reply 2 of 2")
    assert "One and one." not in second.text


def test_disabled_thinking_is_part_of_the_prompt() -> None:
    (masked,) = mask_example(
        QWEN3.template(), row(chat("Hi", "Hello")), template_kwargs={"enable_thinking": False}
    )
    assert trained(QWEN3.tokenizer(), masked) == ["Hello<|im_end|>"]
    assert masked.text.endswith(EMPTY_THOUGHT + "Hello<|im_end|>\n")


@pytest.mark.parametrize("family", [QWEN3, LLAMA3], ids=lambda family: family.name)
def test_tool_calls_are_in_the_loss_and_tool_results_are_not(family: TemplateFamily) -> None:
    thought = "Add." if family is QWEN3 else None
    messages = (
        Message("user", "1+1?"),
        Message("assistant", "", tool_calls=(CALL,), reasoning=thought),
        Message("tool", "the sum is 2", tool_call_id="1"),
        Message("assistant", "It is 2.", reasoning=thought),
    )
    (masked,) = mask_example(family.template(), row(messages, tools=(Tool("add"),)))
    call, answer = trained(family.tokenizer(), masked)
    assert json.dumps(CALL.parsed()) in call
    assert call.endswith(family.end)
    assert answer.endswith("It is 2." + family.end)
    assert "the sum is 2" in masked.text
    if family is QWEN3:  # Llama 3's shows tools only on request
        assert '"name": "add"' in masked.text
        assert masked.note is None


def test_a_reply_whose_tool_call_the_template_omits_is_excluded_from_the_loss() -> None:
    messages = (*chat("1+1?"), Message("assistant", "", tool_calls=(CALL,)))
    (masked,) = mask_example(CHATML.template(), row(messages))
    assert not any(masked.loss_mask)
    assert masked.note is not None
    assert "omits tool calls" in masked.note


def test_a_system_message_that_moves_with_the_last_question_is_placed_as_in_serving() -> None:
    messages = chat("Hi", "Hello", "2+2?", "4", system="Be kind")
    first, second = mask_example(MISTRAL.template(), row(messages))
    assert first.text == "<s>[INST] Be kind\n\nHi[/INST] Hello</s>"
    assert second.text == "<s>[INST] Hi[/INST] Hello</s>[INST] Be kind\n\n2+2?[/INST] 4</s>"


def test_a_generation_prompt_that_differs_from_the_rendered_reply_is_noted() -> None:
    (masked,) = mask_example(DEEPSEEK_R1.template(), row(chat("Hi", "Hello")))
    assert trained(DEEPSEEK_R1.tokenizer(), masked) == ["Hello<|end_of_sentence|>"]
    assert masked.note is not None
    assert r"'<think>\n'" in masked.note


def test_turns_with_weight_0_and_an_opening_greeting_are_context() -> None:
    masked_turn = row(chat("Hi", "Hello", "2+2?", "4"), masked=(1,))
    assert all_trained(CHATML, masked_turn) == ["4<|im_end|>"]
    greeting = row((Message("assistant", "Welcome!"), *chat("Hi", "Hello")))
    assert all_trained(CHATML, greeting) == ["Hello<|im_end|>"]


def test_the_loss_can_be_limited_to_the_last_turn() -> None:
    example = row(chat("Hi", "Hello", "2+2?", "4"))
    for family in FIVE_FAMILIES:
        (masked,) = mask_example(family.template(), example, turns="last")
        assert trained(family.tokenizer(), masked) == [rendered(family, "4")]


def test_a_preference_pair_gives_two_sequences_with_the_same_prompt() -> None:
    example = row(chat("Hi", "Hello", "2+2?", "4"), rejected=(Message("assistant", "5"),))
    for family in FIVE_FAMILIES:
        chosen, rejected = mask_example(family.template(), example)
        assert (chosen.part, rejected.part) == ("chosen", "rejected")
        assert trained(family.tokenizer(), chosen) == [rendered(family, "4")]
        assert trained(family.tokenizer(), rejected) == [rendered(family, "5")]
        prompt = chosen.ids[: chosen.loss_mask.index(True)]
        assert rejected.ids[: rejected.loss_mask.index(True)] == prompt


def test_all_of_plain_text_is_in_the_loss_with_one_bos_and_one_eos_token() -> None:
    tokenizer = LLAMA3.tokenizer.__wrapped__(LLAMA3)  # not the shared one
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)]
    )
    template = ChatTemplate.of(tokenizer)
    for text in ("One.", "<|begin_of_text|>One.", "One.<|eot_id|>"):
        (masked,) = mask_example(template, Example(SourceLocation("f", 1), "text", text=text))
        assert tokenizer.decode(masked.ids) == "<|begin_of_text|>One.<|eot_id|>"
        assert masked.ids.count(bos) == masked.ids.count(eos) == 1
        assert all(masked.loss_mask)


def test_a_slow_tokenizer_gives_the_same_mask() -> None:
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>\n{% endfor %}"
    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    template = ChatTemplate(
        tokenizer, source + "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    (masked,) = mask_example(template, row(chat("Hi", "Hello", "2+2?", "4")))
    assert trained(tokenizer, masked) == ["Hello</s>", "4</s>"]


def test_a_batch_gives_the_masks_of_single_rows_and_the_errors_of_refused_ones() -> None:
    refused = row((Message("user", "Hi"), Message("user", "Hello?"), Message("assistant", "Yes")))
    examples = [row(chat("Hi", f"Hello {i}")) for i in range(300)]
    examples[5:5] = [refused, Example(SourceLocation("f", 2), "text", text="plain")]
    results = list(mask_examples(GEMMA.template(), examples))
    assert [example for example, _ in results] == examples
    assert isinstance(results[5][1], TemplateError)
    for example, masked in (results[0], results[6], results[301]):
        assert masked == mask_example(GEMMA.template(), example)


def test_the_error_of_a_refused_conversation_has_the_templates_reason() -> None:
    twice = (Message("user", "Hi"), Message("user", "Hello?"), Message("assistant", "Yes"))
    with pytest.raises(TemplateError, match="roles must alternate"):
        mask_example(MISTRAL.template(), row(twice))


@pytest.mark.real_model
def test_with_the_real_tokenizer_the_prompt_tokens_are_the_servers() -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve.resolve_model("smollm2-135m").path)
    template = ChatTemplate.of(tokenizer)
    messages = chat("What's new?", "\n  Nothing: 没有🙂 <|im_end|>", "Really?", " Yes.\n\n")
    (masked,) = mask_example(template, row(messages))
    assert trained(tokenizer, masked) == [m.content + "<|im_end|>" for m in messages[1::2]]
    assert masked.ids[: masked.loss_mask.index(True)] == template.render(messages[:1]).ids
