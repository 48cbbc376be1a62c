import errno
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llmctl.data.dataset import (
    PairDataset,
    TokenDataset,
    TokenizedDataset,
    TokenizeOptions,
    build_dataset,
)
from llmctl.data.rows.row_errors import DataError
from llmctl.data.tokenized import cache
from llmctl.engine.chat.template import ChatTemplate
from llmctl.errors import ConfigError, LlmctlError, TemplateError
from llmctl.types import DatasetRef, Example, Message, SourceLocation
from tests.data.families import CHATML, GEMMA, QWEN3, TemplateFamily

SYSTEM = "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n"
ROOMY = TokenizeOptions(max_length=1000)


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMCTL_HOME", str(tmp_path))
    return tmp_path / "datasets"


def chat(line: int, *turns: str) -> Example:
    said = (Message("assistant" if i % 2 else "user", turn) for i, turn in enumerate(turns))
    return Example(SourceLocation("a.jsonl", line), "messages", tuple(said))


def text(line: int, words: str) -> Example:
    return Example(SourceLocation("a.jsonl", line), "text", text=words)


class Source:
    """Rows that count how often they are read."""

    def __init__(self, examples: Iterable[Example]) -> None:
        self.examples = list(examples)
        self.reads = 0

    def __call__(self) -> Iterator[Example]:
        self.reads += 1
        yield from self.examples


def ref(digest: str = "d") -> DatasetRef:
    return DatasetRef("a", "a.jsonl", digest, rows=0)


def prepare(
    *examples: Example,
    options: TokenizeOptions = ROOMY,
    family: TemplateFamily = CHATML,
    digest: str = "d",
) -> TokenizedDataset:
    return build_dataset(
        Source(examples), family.template(), family.stop_ids, options, dataset=ref(digest)
    )


def words(data: TokenDataset, family: TemplateFamily = CHATML) -> list[str]:
    return [str(family.tokenizer().decode(data[i].ids)) for i in range(len(data))]


def test_every_row_is_a_sequence_that_ends_with_its_end_of_turn_token() -> None:
    prepared = prepare(chat(1, "Hi", "Hello"), chat(2, "2+2?", "4"))
    assert words(prepared.train) == [
        SYSTEM + f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n{a}<|im_end|>"
        for q, a in (("Hi", "Hello"), ("2+2?", "4"))
    ]
    sample = prepared.train[1]
    assert sample.origin == SourceLocation("a.jsonl", 2)
    assert CHATML.tokenizer().decode(sample.ids[sample.loss_mask]) == "4<|im_end|>"
    report = prepared.report
    assert (report.rows, report.sequences, report.supervised_tokens) == (2, 2, len("Hello4") + 2)
    assert (
        report.tokens == sum(prepared.train.lengths) == len(prepared.train[0].ids) + len(sample.ids)
    )
    assert prepared.eval is None


def test_the_second_build_reads_the_cache() -> None:
    rows = Source([chat(1, "Hi", "Hello")])
    args = (rows, CHATML.template(), CHATML.stop_ids, ROOMY)
    first = build_dataset(*args, dataset=ref())
    again = build_dataset(*args, dataset=ref())
    assert rows.reads == 1
    assert (first.report.cached, again.report.cached) == (False, True)
    assert replace(again.report, cached=False) == first.report
    assert again.train[0].ids.tolist() == first.train[0].ids.tolist()


def test_sequences_name_their_own_file_even_if_another_file_has_equal_rows() -> None:
    first = prepare(chat(1, "Hi", "Hello"))
    copied = replace(chat(4, "Hi", "Hello"), origin=SourceLocation("b.jsonl", 4))
    second = build_dataset(
        Source([copied]),
        CHATML.template(),
        CHATML.stop_ids,
        ROOMY,
        dataset=replace(ref(), source="b.jsonl"),
    )
    assert second.report.key == first.report.key
    assert second.train[0].origin == SourceLocation("b.jsonl", 4)


def test_other_rows_options_stop_tokens_or_templates_miss_the_cache() -> None:
    rows = Source([chat(1, "Hi", "Hello")])
    template, tokenizer = CHATML.template(), CHATML.tokenizer()
    changed = ChatTemplate(tokenizer, str(tokenizer.chat_template).replace("helpful", "kind"))
    build_dataset(rows, template, CHATML.stop_ids, ROOMY, dataset=ref())
    for args, digest in (
        ((template, CHATML.stop_ids, ROOMY), "other rows"),
        ((template, CHATML.stop_ids, replace(ROOMY, max_length=999)), "d"),
        ((template, (*CHATML.stop_ids, 0), ROOMY), "d"),
        ((changed, CHATML.stop_ids, ROOMY), "d"),
        ((QWEN3.template(), QWEN3.stop_ids, ROOMY), "d"),
    ):
        before = rows.reads
        build_dataset(rows, *args, dataset=ref(digest))
        assert rows.reads == before + 1


def test_a_damaged_cache_entry_is_rebuilt(store: Path) -> None:
    first = prepare(chat(1, "Hi", "Hello"))
    (ids,) = store.glob(f"{first.report.key}-*/ids.bin")
    whole = ids.read_bytes()
    ids.write_bytes(whole[:-4])
    assert not prepare(chat(1, "Hi", "Hello")).report.cached
    assert ids.read_bytes() == whole


def test_an_interrupted_build_leaves_nothing_behind(store: Path) -> None:
    def rows() -> Iterator[Example]:
        yield chat(1, "Hi", "Hello")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_dataset(rows, CHATML.template(), CHATML.stop_ids, ROOMY, dataset=ref())
    assert [p for p in store.glob("*") if not p.name.startswith(".")] == []
    assert list((store / ".aside").iterdir()) == []


def test_the_least_recently_used_entries_are_evicted_over_the_size_limit(store: Path) -> None:
    made = [prepare(chat(1, "Hi", "Hello"), digest=d).report.key for d in "abc"]
    keys = [entry.name for key in made for entry in store.glob(f"{key}-*")]
    assert cache.evict(limit_bytes=0) == []  # used a moment ago
    size = sum(file.stat().st_size for file in (store / keys[0]).iterdir())
    prepare(chat(1, "Hi", "Hello"), digest="a")  # used again
    assert cache.evict(limit_bytes=2 * size, days=0) == [keys[1]]
    assert {p.name for p in store.iterdir() if not p.name.startswith(".")} == {keys[0], keys[2]}


def test_a_full_disk_is_an_error_that_names_the_folder_and_leaves_nothing(store: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "ids.bin").write_bytes(b"some")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(LlmctlError, match="No space left") as caught:
        cache.get_or_build("key", build)
    assert str(store) in str(caught.value)
    assert "LLMCTL_HOME" in caught.value.hint
    assert list((store / ".aside").iterdir()) == []


def test_a_long_conversation_ends_after_its_last_complete_reply_that_fits() -> None:
    long = chat(1, "Hi", "Hello", "More", "x" * 200)
    prepared = prepare(long, options=TokenizeOptions(max_length=150))
    (kept,) = words(prepared.train)
    assert kept.endswith("assistant\nHello<|im_end|>")
    (loss,) = prepared.report.truncated
    assert (loss.kind, loss.count, loss.origins) == ("too-long", 1, (SourceLocation("a.jsonl", 1),))
    assert prepared.report.dropped == ()


def test_a_conversation_without_a_reply_that_fits_is_dropped_and_counted() -> None:
    rows = (chat(1, "Hi", "x" * 200), chat(2, "Hi", "Hello"))
    prepared = prepare(*rows, options=TokenizeOptions(max_length=150))
    assert len(prepared.train) == 1
    (loss,) = prepared.report.dropped
    assert loss.reason == "its first reply ends after 150 tokens"
    assert loss.origins == (SourceLocation("a.jsonl", 1),)
    assert prepared.report.dropped_rows == 1


def test_the_drop_policy_drops_rows_that_truncate_would_cut() -> None:
    rows = (chat(1, "Hi", "Hello", "More", "x" * 200), text(2, "y" * 200), chat(3, "Hi", "Hello"))
    prepared = prepare(*rows, options=TokenizeOptions(max_length=150, overlong="drop"))
    assert [prepared.train[i].origin.line for i in range(len(prepared.train))] == [3]
    assert prepared.report.dropped_rows == 2


def test_long_plain_text_is_split_so_that_each_token_is_in_the_loss_once() -> None:
    words_of_it = "".join(chr(97 + i % 26) for i in range(100))
    prepared = prepare(text(1, words_of_it), options=TokenizeOptions(max_length=8))
    taught = [
        token
        for i in range(len(prepared.train))
        for token in prepared.train[i].ids[prepared.train[i].loss_mask]
    ]
    assert CHATML.tokenizer().decode(taught) == words_of_it[1:] + "<|im_end|>"
    assert prepared.report.length_max == 8
    assert prepared.report.supervised_tokens == 100
    assert prepared.report.truncated_rows == 1


def test_replies_that_do_not_end_with_a_stop_token_are_an_error() -> None:
    with pytest.raises(ConfigError, match=r"a\.jsonl:1: .*'<\|im_end\|>' \(token 261\)") as caught:
        build_dataset(
            Source([chat(1, "Hi", "Hello")]), CHATML.template(), (262,), ROOMY, dataset=ref()
        )
    assert "--chat-template" in caught.value.hint


def test_dropped_rows_are_counted_by_reason() -> None:
    asks_twice = Example(
        SourceLocation("a.jsonl", 2),
        "messages",
        (Message("user", "Hi"), Message("user", "Hello?"), Message("assistant", "Yes")),
    )
    prepared = prepare(chat(1, "Hi", "Hello"), asks_twice, chat(3, "Hi"), family=GEMMA)
    kinds = {
        loss.kind: [origin.line for origin in loss.origins] for loss in prepared.report.dropped
    }
    assert kinds == {"refused": [2], "nothing-to-learn": [3]}


def test_no_sequences_left_is_an_error_with_the_reasons() -> None:
    with pytest.raises(DataError, match="1 rows: its first reply ends after 20 tokens") as caught:
        prepare(chat(1, "Hi", "Hello"), options=TokenizeOptions(max_length=20))
    assert "max_length" in caught.value.hint


def test_a_model_without_a_template_takes_plain_text_but_no_conversations() -> None:
    bare = ChatTemplate(CHATML.tokenizer(), None)
    build_dataset(Source([text(1, "abc")]), bare, CHATML.stop_ids, ROOMY, dataset=ref())
    with pytest.raises(TemplateError, match="no chat template"):
        build_dataset(Source([chat(1, "a", "b")]), bare, CHATML.stop_ids, ROOMY, dataset=ref("e"))


def test_rows_are_held_out_by_their_prompt_and_stay_there_when_rows_are_added() -> None:
    options = replace(ROOMY, eval_fraction=0.3)
    rows = [chat(i, f"Question {i // 2}", f"Answer {i}") for i in range(80)]

    def sides(prepared: TokenizedDataset) -> tuple[set[int], set[int]]:
        assert prepared.eval is not None
        data = (prepared.train, prepared.eval)
        train, held = ({d[i].origin.line for i in range(len(d))} for d in data)
        return train, held

    train, held = sides(prepare(*rows, options=options))
    assert train | held == set(range(80))
    assert 8 <= len(held) <= 40
    assert not {line // 2 for line in train} & {line // 2 for line in held}
    more_train, more_held = sides(
        prepare(
            *rows, *(chat(i, f"New {i}", "A") for i in range(80, 99)), options=options, digest="e"
        )
    )
    assert train <= more_train
    assert held <= more_held


def test_pairs_keep_both_sides_together_and_other_rows_are_dropped() -> None:
    pair = replace(chat(1, "2+2?", "4"), rejected=(Message("assistant", "five"),))
    options = replace(ROOMY, pairs=True)
    prepared = prepare(pair, chat(2, "Hi", "Hello"), options=options)
    pairs = PairDataset(prepared.train)
    assert len(pairs) == 1
    taught = [CHATML.tokenizer().decode(side.ids[side.loss_mask]) for side in pairs[0]]
    assert taught == ["4<|im_end|>", "five<|im_end|>"]
    assert [loss.kind for loss in prepared.report.dropped] == ["no-pair"]
    assert pairs.lengths.tolist() == [max(len(side.ids) for side in pairs[0])]
    as_chat = prepare(pair)
    assert len(as_chat.train) == 1


def test_a_row_with_several_sequences_is_noted() -> None:
    prepared = prepare(chat(1, "Hi", "Hello", "2+2?", "4"), family=QWEN3)
    assert len(prepared.train) == 2
    assert prepared.report.rows == 1
    assert "1 rows make 2 sequences" in prepared.report.notes[0]


def test_a_dataset_in_another_process_reads_the_same_files() -> None:
    prepared = prepare(chat(1, "Hi", "Hello"), chat(2, "2+2?", "4"))
    packed = pickle.dumps(prepared.train)
    assert len(packed) < 1000  # the way to the files, not what is in them
    copy: TokenDataset = pickle.loads(packed)
    assert np.array_equal(copy[1].ids, prepared.train[1].ids)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"max_length": 1}, "max_length is 1"),
        ({"max_length": 9, "eval_fraction": 1.0}, r"eval_fraction is 1\.0"),
        ({"max_length": 9, "overlong": "cut"}, "unknown overlong 'cut'"),
        ({"max_length": 9, "turns": "first"}, "unknown turns 'first'"),
    ],
)
def test_an_invalid_option_is_an_error_with_its_value(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        TokenizeOptions(**wrong)  # type: ignore[arg-type]
