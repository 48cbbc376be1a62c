"""Tokenizers of GGUF files: splits, added tokens, end tokens, templates, the fast reader."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter, TokenType
from tokenizers import Tokenizer, models
from tokenizers.pre_tokenizers import ByteLevel

from llmctl.engine.loading.gguf.pre_tokenizers import PRE_TOKENIZERS, find_name
from llmctl.engine.loading.gguf.reader import FastGGUFReader
from llmctl.engine.loading.gguf.tokenizer import end_token_ids, read_tokenizer
from llmctl.engine.models.resolve import resolve_model
from llmctl.errors import ModelLoadError

SPLITS: dict[str, Any] = json.loads(Path(__file__).with_name("gguf_splits.json").read_text())
ADDED = ["<s>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "<|eot_id|>", "   ", "<turn>"]
CONTROL, USER = TokenType.CONTROL, TokenType.USER_DEFINED


def write_vocabulary(
    path: Path,
    tokens: Sequence[str],
    types: Sequence[int],
    *,
    model: str = "gpt2",
    pre: str | None = "gpt-2",
    more: Callable[[GGUFWriter], None] = lambda _: None,
) -> Path:
    """Write a GGUF file with a tokenizer and no weights."""
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(list(tokens))
    writer.add_token_types([int(kind) for kind in types])
    writer.add_token_scores([-float(number) for number in range(len(tokens))])
    if model == "gpt2":
        writer.add_token_merges(["h e", "he l", "l o"])
    more(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_bytes(
    path: Path, more: Callable[[GGUFWriter], None] = lambda _: None, **options: Any
) -> Path:
    """Write a byte-level vocabulary: 256 bytes, 4 tokens of merges, 5 added tokens."""
    tokens = [*sorted(ByteLevel.alphabet()), "he", "hel", "lo", "hello", *ADDED]
    types = [*[TokenType.NORMAL] * 260, CONTROL, CONTROL, CONTROL, USER, USER]
    return write_vocabulary(path, tokens, types, more=more, **options)


def test_every_pre_tokenizer_has_an_expected_split() -> None:
    kinds = {PRE_TOKENIZERS[name] for name in SPLITS["pieces"]}
    assert kinds == set(PRE_TOKENIZERS.values())
    assert len(PRE_TOKENIZERS) > 80


@pytest.mark.parametrize("name", SPLITS["pieces"])
def test_a_text_is_split_as_llama_cpp_splits_it(name: str) -> None:
    kind = PRE_TOKENIZERS[name]
    backend = Tokenizer(models.BPE())
    kind.apply(backend)
    text = SPLITS["text"]
    pieces = [text[a:b] for _, (a, b) in backend.pre_tokenizer.pre_tokenize_str(text)]
    assert pieces == SPLITS["pieces"][name]
    found = find_name(kind.splits, ignore_merges=kind.ignore_merges)
    assert found is not None
    assert PRE_TOKENIZERS[found].splits == kind.splits


def test_a_token_that_no_merge_gives_is_found_where_merges_are_ignored(tmp_path: Path) -> None:
    by_pre = {
        pre: read_tokenizer(write_bytes(tmp_path / f"{pre}.gguf", pre=pre)).tokenize("hello")
        for pre in ("dbrx", "llama-bpe")
    }
    assert by_pre == {"dbrx": ["hel", "lo"], "llama-bpe": ["hello"]}


def test_an_unknown_pre_tokenizer_is_refused_with_its_name(tmp_path: Path) -> None:
    file = write_bytes(tmp_path / "x.gguf", pre="qwen9")
    with pytest.raises(ModelLoadError, match=r"x\.gguf: tokenizer\.ggml\.pre is 'qwen9'") as caught:
        read_tokenizer(file)
    assert "--pre-tokenizer" in caught.value.hint


def test_added_tokens_keep_their_ids_and_are_found_whole(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(write_bytes(tmp_path / "x.gguf"))
    assert len(tokenizer) == 265
    text = "".join(ADDED)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert ids == [260, 261, 262, 263, 264]
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == "   <turn>"


def test_a_file_says_which_tokens_begin_a_text_and_end_a_generation(tmp_path: Path) -> None:
    def more(writer: GGUFWriter) -> None:
        writer.add_bos_token_id(260)
        writer.add_eos_token_id(261)
        writer.add_eot_token_id(264)
        writer.add_eom_token_id(7)
        writer.add_add_bos_token(True)
        writer.add_add_eos_token(True)

    file = write_bytes(tmp_path / "x.gguf", more)
    tokenizer = read_tokenizer(file)
    assert (tokenizer.bos_token, tokenizer.eos_token) == (ADDED[0], ADDED[1])
    ids = tokenizer("hel").input_ids
    assert (ids[0], ids[-1], len(ids)) == (260, 261, 3)
    # 262 has no key, but a text that ends a turn.
    assert end_token_ids(file) == {261, 264, 7, 262}


def test_all_chat_templates_are_read_by_name(tmp_path: Path) -> None:
    templates = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]
    several = write_bytes(tmp_path / "a.gguf", lambda writer: writer.add_chat_template(templates))
    assert read_tokenizer(several).chat_template == {"default": "A", "tool_use": "B"}
    one = write_bytes(tmp_path / "b.gguf", lambda writer: writer.add_chat_template("A"))
    assert read_tokenizer(one).chat_template == "A"


@pytest.mark.parametrize(
    ("add", "expected"), [(None, ["\u2581\u2581", "a"]), (False, ["\u2581", "a"])]
)
def test_the_space_before_a_sentencepiece_text_is_a_setting(
    tmp_path: Path, add: bool | None, expected: list[str]
) -> None:
    def more(writer: GGUFWriter) -> None:
        if add is not None:
            writer.add_add_space_prefix(add)

    tokens = ["<unk>", "<s>", "</s>", "\u2581", "a", "\u2581\u2581"]
    types = [TokenType.UNKNOWN, CONTROL, CONTROL, *[TokenType.NORMAL] * 3]
    file = write_vocabulary(tmp_path / "x.gguf", tokens, types, model="llama", pre=None, more=more)
    tokenizer = read_tokenizer(file)
    assert tokenizer.tokenize(" a") == expected
    # The special tokens of a file without their ids are those of SentencePiece.
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


def test_runs_of_spaces_of_a_sentencepiece_vocabulary_keep_their_ids(tmp_path: Path) -> None:
    tokens = ["<unk>", "<s>", "</s>", "a", "\u2581", "  ", "    ", "\n"]
    types = [TokenType.UNKNOWN, CONTROL, CONTROL, *[TokenType.NORMAL] * 2, USER, USER, USER]
    file = write_vocabulary(
        *(tmp_path / "x.gguf", tokens, types),
        model="llama",
        pre=None,
        more=lambda writer: writer.add_add_space_prefix(False),
    )
    tokenizer = read_tokenizer(file)
    assert len(tokenizer) == len(tokens)
    assert tokenizer("a      a\n a", add_special_tokens=False).input_ids == [3, 6, 5, 3, 7, 4, 3]
    assert tokenizer.decode([3, 6, 5, 3]) == "a      a"


def test_the_fast_reader_reads_the_same_fields(tmp_path: Path) -> None:
    file = write_bytes(tmp_path / "x.gguf", lambda writer: writer.add_chat_template("A"))
    fast, original = FastGGUFReader(file).fields, GGUFReader(file).fields
    assert list(fast) == list(original)
    for name, field in original.items():
        assert fast[name].contents() == field.contents()
        assert (fast[name].data, fast[name].types) == (field.data, field.types)
        assert all(np.array_equal(a, b) for a, b in zip(fast[name].parts, field.parts, strict=True))


@pytest.mark.parametrize("given", ["m-00002-of-00003.gguf", "."])
def test_parts_of_a_file_are_refused_with_the_command_that_joins_them(
    tmp_path: Path, given: str
) -> None:
    for number in (1, 2, 3):
        (tmp_path / f"m-0000{number}-of-00003.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelLoadError, match="one of 3 parts") as caught:
        resolve_model(str(tmp_path / given))
    assert "--merge m-00001-of-00003.gguf m.gguf" in caught.value.hint
