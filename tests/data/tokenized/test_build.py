"""Tokenisation of examples: truncation, held-out rows, pairs, and the report."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from llmctl.data.rows.row_errors import DataError
from llmctl.data.tokenized.build import TokenizeOptions, TokenizeReport, tokenize_examples
from llmctl.data.tokenized.storage import PairDataset, TokenDataset
from llmctl.engine.chat.template import ChatTemplate
from llmctl.errors import ConfigError, TemplateError
from llmctl.types import Example, Message, SourceLocation
from tests.data.families import CHATML, GEMMA, QWEN3, TemplateFamily

SYSTEM = "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n"
NO_LIMIT = TokenizeOptions(max_length=1000)


@dataclass
class Tokenizer:
    """Tokenises examples into folders of its own."""

    home: Path
    folder: Path = Path()

    def __call__(
        self,
        *examples: Example,
        options: TokenizeOptions = NO_LIMIT,
        family: TemplateFamily = CHATML,
        template: ChatTemplate | None = None,
        stop_ids: Sequence[int] | None = None,
    ) -> TokenizeReport:
        self.folder = self.home / str(len(list(self.home.iterdir())))
        self.folder.mkdir()
        return tokenize_examples(
            examples,
            family.template() if template is None else template,
            frozenset(stop_ids or family.stop_ids),
            options,
            self.folder,
        )

    @property
    def train(self) -> TokenDataset:
        return TokenDataset(self.folder, held_out=False)

    @property
    def eval(self) -> TokenDataset:
        return TokenDataset(self.folder, held_out=True)

    @property
    def texts(self) -> list[str]:
        data = self.train
        return [str(CHATML.tokenizer().decode(data[i].ids)) for i in range(len(data))]

    @property
    def lines(self) -> list[int]:
        return lines(self.train)


@pytest.fixture
def tokenized(tmp_path: Path) -> Tokenizer:
    return Tokenizer(tmp_path)


def chat(line: int, *turns: str) -> Example:
    messages = (Message("assistant" if i % 2 else "user", turn) for i, turn in enumerate(turns))
    return Example(SourceLocation("a.jsonl", line), "messages", tuple(messages))


def text(line: int, words: str) -> Example:
    return Example(SourceLocation("a.jsonl", line), "text", text=words)


def lines(data: TokenDataset) -> list[int]:
    return [data[i].origin.line for i in range(len(data))]


def test_every_row_is_a_sequence_that_ends_with_its_end_of_turn_token(
    tokenized: Tokenizer,
) -> None:
    report = tokenized(chat(1, "Hi", "Hello"), chat(2, "2+2?", "4"))
    assert tokenized.texts == [
        SYSTEM + f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n{a}<|im_end|>"
        for q, a in (("Hi", "Hello"), ("2+2?", "4"))
    ]
    sequence = tokenized.train[1]
    assert sequence.origin == SourceLocation("a.jsonl", 2)
    assert CHATML.tokenizer().decode(sequence.ids[sequence.loss_mask]) == "4<|im_end|>"
    assert (report.rows, report.sequences, report.eval_sequences) == (2, 2, 0)
    assert report.supervised_tokens == len("Hello4") + 2
    assert report.tokens == sum(tokenized.train.lengths)


def test_a_long_conversation_ends_after_its_last_complete_reply_that_fits(
    tokenized: Tokenizer,
) -> None:
    long = chat(1, "Hi", "Hello", "More", "x" * 200)
    report = tokenized(long, options=TokenizeOptions(max_length=150))
    (kept,) = tokenized.texts
    assert kept.endswith("assistant\nHello<|im_end|>")
    (rows,) = report.truncated
    assert (rows.kind, rows.count) == ("too-long", 1)
    assert rows.origins == (SourceLocation("a.jsonl", 1),)
    assert report.dropped == ()


def test_a_conversation_without_a_reply_that_fits_is_dropped_and_counted(
    tokenized: Tokenizer,
) -> None:
    rows = (chat(1, "Hi", "x" * 200), chat(2, "Hi", "Hello"))
    report = tokenized(*rows, options=TokenizeOptions(max_length=150))
    assert tokenized.lines == [2]
    (dropped,) = report.dropped
    assert dropped.reason == "its first reply ends after 150 tokens"
    assert dropped.origins == (SourceLocation("a.jsonl", 1),)
    assert [rows.count for rows in report.dropped] == [1]


def test_the_drop_policy_drops_rows_that_truncate_would_cut(tokenized: Tokenizer) -> None:
    rows = (chat(1, "Hi", "Hello", "More", "x" * 200), text(2, "y" * 200), chat(3, "Hi", "Hello"))
    report = tokenized(*rows, options=TokenizeOptions(max_length=150, overlong="drop"))
    assert tokenized.lines == [3]
    assert sum(rows.count for rows in report.dropped) == 2


def test_long_plain_text_is_split_so_that_each_token_is_in_the_loss_once(
    tokenized: Tokenizer,
) -> None:
    words = "".join(chr(97 + i % 26) for i in range(100))
    report = tokenized(text(1, words), options=TokenizeOptions(max_length=8))
    data = tokenized.train
    trained = [token for i in range(len(data)) for token in data[i].ids[data[i].loss_mask]]
    assert CHATML.tokenizer().decode(trained) == words[1:] + "<|im_end|>"
    assert report.length_max == 8
    assert report.supervised_tokens == 100
    assert [rows.count for rows in report.truncated] == [1]


def test_replies_that_do_not_end_with_a_stop_token_are_an_error(tokenized: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"a\.jsonl:1: .*'<\|im_end\|>' \(token 261\)") as caught:
        tokenized(chat(1, "Hi", "Hello"), stop_ids=(262,))
    assert "--chat-template" in caught.value.hint


def test_dropped_rows_are_counted_by_reason(tokenized: Tokenizer) -> None:
    two_questions = Example(
        SourceLocation("a.jsonl", 2),
        "messages",
        (Message("user", "Hi"), Message("user", "Hello?"), Message("assistant", "Yes")),
    )
    report = tokenized(chat(1, "Hi", "Hello"), two_questions, chat(3, "Hi"), family=GEMMA)
    kinds = {rows.kind: [origin.line for origin in rows.origins] for rows in report.dropped}
    assert kinds == {"refused": [2], "nothing-to-learn": [3]}


def test_no_sequences_left_is_an_error_with_the_reasons(tokenized: Tokenizer) -> None:
    with pytest.raises(DataError, match="1 rows: its first reply ends after 20 tokens") as caught:
        tokenized(chat(1, "Hi", "Hello"), options=TokenizeOptions(max_length=20))
    assert "max_length" in caught.value.hint


def test_a_model_without_a_template_takes_plain_text_but_no_conversations(
    tokenized: Tokenizer,
) -> None:
    bare = ChatTemplate(CHATML.tokenizer(), None)
    assert tokenized(text(1, "abc"), template=bare).sequences == 1
    with pytest.raises(TemplateError, match="no chat template"):
        tokenized(chat(1, "a", "b"), template=bare)


def test_rows_are_held_out_by_their_prompt_and_stay_there_when_rows_are_added(
    tokenized: Tokenizer,
) -> None:
    options = replace(NO_LIMIT, eval_fraction=0.3)
    rows = [chat(i, f"Question {i // 2}", f"Answer {i}") for i in range(80)]
    tokenized(*rows, options=options)
    train, held_out = {*lines(tokenized.train)}, {*lines(tokenized.eval)}
    assert train | held_out == set(range(80))
    assert 8 <= len(held_out) <= 40
    assert not {line // 2 for line in train} & {line // 2 for line in held_out}
    tokenized(*rows, *(chat(i, f"New {i}", "A") for i in range(80, 99)), options=options)
    assert train <= {*lines(tokenized.train)}
    assert held_out <= {*lines(tokenized.eval)}


def test_pairs_keep_both_sides_together_and_other_rows_are_dropped(tokenized: Tokenizer) -> None:
    pair = replace(chat(1, "2+2?", "4"), rejected=(Message("assistant", "five"),))
    options = replace(NO_LIMIT, pairs=True)
    report = tokenized(pair, chat(2, "Hi", "Hello"), options=options)
    pairs = PairDataset(tokenized.train)
    assert len(pairs) == 1
    trained = [CHATML.tokenizer().decode(side.ids[side.loss_mask]) for side in pairs[0]]
    assert trained == ["4<|im_end|>", "five<|im_end|>"]
    assert [rows.kind for rows in report.dropped] == ["no-pair"]
    assert pairs.lengths.tolist() == [max(len(side.ids) for side in pairs[0])]
    assert tokenized(pair).sequences == 1


def test_a_row_with_several_sequences_is_noted(tokenized: Tokenizer) -> None:
    report = tokenized(chat(1, "Hi", "Hello", "2+2?", "4"), family=QWEN3)
    assert (report.rows, report.sequences) == (1, 2)
    assert "1 rows make 2 sequences" in report.notes[0]


def test_a_dataset_in_another_process_reads_the_same_files(tokenized: Tokenizer) -> None:
    tokenized(chat(1, "Hi", "Hello"), chat(2, "2+2?", "4"))
    pickled = pickle.dumps(tokenized.train)
    assert len(pickled) < 1000  # the path of the files, not their content
    copy: TokenDataset = pickle.loads(pickled)
    assert np.array_equal(copy[1].ids, tokenized.train[1].ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 1}, "max_length is 1"),
        ({"max_length": 9, "eval_fraction": 1.0}, r"eval_fraction is 1\.0"),
        ({"max_length": 9, "overlong": "cut"}, "unknown overlong 'cut'"),
        ({"max_length": 9, "turns": "first"}, "unknown turns 'first'"),
    ],
)
def test_an_invalid_option_is_an_error_with_its_value(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        TokenizeOptions(**options)  # type: ignore[arg-type]
