"""Grammar-constrained decoding: allowed tokens, completeness and refused grammars."""

import json
import math
import random
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llmctl.engine.batching.sampling.grammar import GrammarCompiler, GrammarMatcher
from llmctl.engine.batching.sampling.logprobs import TokenBytes
from llmctl.engine.hf_runner import HFRunner
from llmctl.errors import RequestError
from llmctl.types import GenerationRequest, Grammar, Message, SamplingParams
from tests.server.servers import error_body, send_request
from tests.tiny import byte_tokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "mood": {"enum": ["good", "bad", None]},
    },
    "required": ["name", "mood"],
    "additionalProperties": False,
}
CORPUS = [
    json.dumps({"name": "Ada Lovelace", "tags": ["你好", "naïve café"], "age": 36, "ok": True})
]


def merged_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with merges, as GPT-2's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<end>"], show_progress=False
    )
    backend.train_from_iterator(CORPUS * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """Characters of ASCII, a few words and bytes for all the rest, as Llama 2's."""
    pieces = ["<unk>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "\u2581"]
    pieces += [chr(c) for c in range(0x21, 0x7F)]
    merges = [("n", "a"), ("m", "e"), ("na", "me"), ('"', ":"), ("\u2581", '"')]
    pieces += ["".join(merge) for merge in merges]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", unk_token="<unk>", bos_token="</s>"
    )


class RandomWriter:
    """Writes random text that a grammar allows, with the tokens of one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.size = len(tokenizer)
        self.eos: int = tokenizer.eos_token_id
        texts = TokenBytes(tokenizer)
        self.words = [texts.of(i) for i in range(self.size)]
        self.compiler = GrammarCompiler(tokenizer, self.size, [self.eos])

    def start(self, kind: Any, source: Any = "") -> GrammarMatcher:
        if kind == "choice":
            return self.compiler.compile(Grammar("choice", choices=tuple(source)))
        text = source if isinstance(source, str) else json.dumps(source)
        return self.compiler.compile(Grammar(kind, text))

    def allows(self, matcher: GrammarMatcher) -> list[int]:
        return allowed(matcher, self.size)

    def matches(self, matcher: GrammarMatcher, text: str) -> bool:
        """Whether the grammar allows `text`, in the shortest tokens possible, and then the end."""
        rest = text.encode()
        while rest:
            choice = [i for i in self.allows(matcher) if rest.startswith(self.words[i])]
            if not choice:
                return False
            token = min(choice, key=lambda i: len(self.words[i]))
            matcher.accept(token)
            rest = rest[len(self.words[token]) :]
        return self.eos in self.allows(matcher)

    def write(
        self, matcher: GrammarMatcher, seed: int, complete: Callable[[str], bool], calm: int = 60
    ) -> str:
        """Write random tokens to the end, after `calm` steps only tokens that close brackets.

        Checks at every step that the end is allowed exactly where the text is `complete`.
        """
        rng = random.Random(seed)
        text = b""
        for step in range(2000):
            matcher.prefetch_mask()
            choice = self.allows(matcher)
            assert (self.eos in choice) == _decoded(text, complete), text
            if step > calm or rng.random() < 0.1:
                choice = self._closing(choice)
            token = rng.choice(choice)
            matcher.accept(token)
            if token == self.eos:
                assert matcher.finished
                return text.decode()
            text += self.words[token]
            if matcher.finished:
                assert self.allows(matcher) == [self.eos]
        raise AssertionError(f"never ends: {text!r}")

    def _closing(self, choice: list[int]) -> list[int]:
        if self.eos in choice:
            return [self.eos]
        return [i for i in choice if self.words[i] in (b'"', b"]", b"}", b"@")] or choice


def allowed(matcher: GrammarMatcher, vocab: int) -> list[int]:
    logits = torch.zeros(vocab)
    matcher.apply(logits)
    found: list[int] = logits.isfinite().nonzero().flatten().tolist()
    return found


def _decoded(text: bytes, complete: Callable[[str], bool]) -> bool:
    try:
        return complete(text.decode())
    except UnicodeDecodeError:
        return False


def valid(schema: Any) -> Callable[[str], bool]:
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())

    def check(text: str) -> bool:
        try:
            value = json.loads(text)
        except ValueError:
            return False
        validator.validate(value)  # complete JSON must match the schema
        return True

    return check


@pytest.fixture(scope="module", params=[byte_tokenizer, merged_tokenizer, sentencepiece_tokenizer])
def writer(request: pytest.FixtureRequest) -> RandomWriter:
    return RandomWriter(request.param())


@pytest.fixture(scope="module")
def merged() -> RandomWriter:
    return RandomWriter(merged_tokenizer())


def only(**properties: Any) -> dict[str, Any]:
    """Return the schema of an object with exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


NODE = only(value={"type": "integer"}, next={"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]})
SCHEMAS: dict[str, Any] = {
    "any object": {"type": "object"},
    "nested": only(person=PERSON, friends={"type": "array", "items": PERSON, "maxItems": 3}),
    "optional": {**PERSON, "required": ["mood"]},
    "additional": {"type": "object", "additionalProperties": {"type": "boolean"}},
    "ref": {"$ref": "#/$defs/node", "$defs": {"node": NODE}},
    "enum": only(a={"enum": ["x", 1, None, {"b": [2]}, "你好"]}),
    "const": only(a={"const": 'she said: "早"\n'}),
    "anyOf": only(a={"anyOf": [{"type": "integer"}, {"type": "string"}, {"type": "null"}]}),
    "oneOf": only(
        a={"oneOf": [only(kind={"const": "cat"}), only(kind={"const": "dog"}, age={"minimum": 1})]}
    ),
    "allOf": {
        "allOf": [{"type": "object", "required": ["a"]}, {"properties": {"a": {"const": 1}}}]
    },
    "pattern": only(a={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,}$"}),
    "loose pattern": only(a={"type": "string", "pattern": "b+c", "maxLength": 20}),
    "chinese pattern": only(a={"type": "string", "pattern": "^[\u4e00-\u9fff]{2,4}$"}),
    "length": only(a={"type": "string", "minLength": 3, "maxLength": 5}),
    "date": only(a={"type": "string", "format": "date"}),
    "uuid": only(a={"type": "string", "format": "uuid"}),
    "email": only(a={"type": "string", "format": "email"}),
    "ipv4": only(a={"type": "string", "format": "ipv4"}),
    "integer": only(a={"type": "integer", "minimum": -3, "maximum": 1250}),
    "number": only(a={"type": "number", "exclusiveMinimum": 0, "maximum": 1.5}),
    "multiple": only(a={"type": "integer", "multipleOf": 7, "minimum": 0}),
    "items": only(a={"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4}),
    "tuple": only(a={"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "items": False}),
    "map": {
        "type": "object",
        "patternProperties": {"^x": {"type": "integer"}},
        "additionalProperties": False,
        "minProperties": 1,
    },
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_text_under_a_schema_is_valid(writer: RandomWriter, name: str) -> None:
    schema = SCHEMAS[name]
    for seed in range(3):
        writer.write(writer.start("json_schema", schema), seed, valid(schema))


def test_json_object_allows_any_object(writer: RandomWriter) -> None:
    texts = {
        writer.write(writer.start("json_object"), seed, valid({"type": "object"}))
        for seed in range(10)
    }
    assert len(texts) > 5


@pytest.mark.parametrize(
    "pattern",
    [
        "yes|no",
        "(yes|no){2}!?",
        r"\d{3}-[a-f]+",
        "[\u4e00-\u9fff]{2,5}。",
        r'"(\\.|[^"\\])*"',
        "a/b#c",
        "(?i)hello",
        "^[ab]+$",
        "",
    ],
)
def test_text_under_a_regex_matches_it_fully(writer: RandomWriter, pattern: str) -> None:
    for seed in range(3):
        writer.write(
            writer.start("regex", pattern), seed, lambda text: bool(re.fullmatch(pattern, text))
        )


def test_a_choice_is_written_exactly(writer: RandomWriter) -> None:
    choices = ["yes", "yes, please", "No.*", "a|b", "北京\n", "\\d"]
    texts = {
        writer.write(writer.start("choice", choices), seed, choices.__contains__)
        for seed in range(60)
    }
    assert texts == set(choices)


def test_characters_split_over_tokens_are_written_whole(writer: RandomWriter) -> None:
    text = json.dumps({"name": "王小明 👩‍👩‍👧", "mood": "good"}, ensure_ascii=False)
    assert writer.matches(writer.start("json_schema", PERSON), text)
    matcher = writer.start("regex", ".{1,3}")
    for byte in "王".encode()[:2]:
        matcher.accept(next(i for i in writer.allows(matcher) if writer.words[i] == bytes([byte])))
    assert all(writer.words[i][0] & 0xC0 == 0x80 for i in writer.allows(matcher))


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ('{"a":[1,2]}', True),
        ('{"a": [1, 2]}', True),
        (json.dumps({"a": [1, 2]}, indent=4), True),
        ('{  "a":[1,2]}', False),
        ('{"a":  [1,2]}', False),
        ('{\n\n"a":[1,2]}', False),
        ("{\n" + " " * 21 + '"a":[1,2]}', False),
        ('{"a":[1,2]\n \n}', False),
        ('{\t"a":[1,2]}', False),
        (' {"a":[1,2]}', False),
        ('{"a":[1,2]}\n', False),
    ],
)
def test_whitespace_is_at_most_one_space_or_one_indented_line(
    merged: RandomWriter, text: str, matches: bool
) -> None:
    assert merged.matches(merged.start("json_object"), text) == matches


def test_a_schema_cannot_relax_whitespace_or_checks(merged: RandomWriter) -> None:
    schema = {"x-guidance": {"whitespace_pattern": " +", "lenient": True}, "type": "object"}
    assert not merged.matches(merged.start("json_schema", schema), '{  "a": 1}')
    with pytest.raises(RequestError, match="not"):
        merged.start("json_schema", schema | {"not": {}})


def test_properties_follow_the_order_of_the_schema(merged: RandomWriter) -> None:
    assert merged.matches(merged.start("json_schema", PERSON), '{"name":"A","mood":"bad"}')
    assert not merged.matches(merged.start("json_schema", PERSON), '{"mood":"bad","name":"A"}')


def test_every_end_id_is_allowed_where_the_text_is_complete() -> None:
    tokenizer = merged_tokenizer()
    # The second end id is an ordinary token, which could be part of the text.
    quote = tokenizer.convert_tokens_to_ids("!")
    assert isinstance(quote, int)
    compiler = GrammarCompiler(tokenizer, len(tokenizer), [tokenizer.eos_token_id, quote])
    matcher = compiler.compile(Grammar("regex", "!?a!?"))
    start = allowed(matcher, len(tokenizer))
    assert tokenizer.convert_ids_to_tokens(start) == ["a"]
    matcher.accept(start[0])
    assert allowed(matcher, len(tokenizer)) == sorted([tokenizer.eos_token_id, quote])
    matcher.accept(quote)
    assert matcher.finished


def test_without_an_end_id_the_matcher_still_finishes() -> None:
    tokenizer = merged_tokenizer()
    matcher = GrammarCompiler(tokenizer, len(tokenizer), []).compile(Grammar("regex", "a"))
    (token,) = allowed(matcher, len(tokenizer))
    assert not matcher.finished
    matcher.accept(token)
    assert matcher.finished
    assert allowed(matcher, len(tokenizer)) == []


@pytest.mark.parametrize("logits", [600, 700])
def test_vocabulary_rows_without_a_token_are_forbidden(merged: RandomWriter, logits: int) -> None:
    compiler = GrammarCompiler(merged.tokenizer, 600, [merged.eos])
    matcher = compiler.compile(Grammar("regex", r"(?s).*"))
    found = allowed(matcher, logits)
    assert max(found) < merged.size
    assert len(found) > 200


def test_only_minus_infinity_is_written_to_the_logits(merged: RandomWriter) -> None:
    before = torch.randn(merged.size, dtype=torch.bfloat16)
    after = before.clone()
    merged.start("choice", ["a"]).apply(after)
    kept = after.isfinite()
    assert 0 < kept.sum() < 5
    assert torch.equal(after[kept], before[kept])
    assert (after[~kept] == -math.inf).all()


def test_special_tokens_are_not_text(merged: RandomWriter) -> None:
    assert merged.words[merged.eos] == b"<end>"
    matcher = merged.start("regex", "<end>")
    assert merged.eos not in merged.allows(matcher)
    assert merged.matches(matcher, "<end>")


def test_matchers_of_one_grammar_are_independent(merged: RandomWriter) -> None:
    one, other = merged.start("choice", ["ab", "cd"]), merged.start("choice", ["ab", "cd"])
    assert merged.matches(one, "ab")
    assert merged.matches(other, "cd")


def test_a_prefetched_mask_is_not_used_for_a_later_position(merged: RandomWriter) -> None:
    matcher = merged.start("regex", "ab")
    for letter in "ab":
        matcher.prefetch_mask()
        matcher.accept(merged.tokenizer.convert_tokens_to_ids(letter))
    matcher.prefetch_mask()
    assert merged.allows(matcher) == [merged.eos]


def test_many_threads_compile_and_write_at_once() -> None:
    writer = RandomWriter(merged_tokenizer())
    schemas = [{**PERSON, "title": f"schema {i % 5}"} for i in range(40)]

    def write(schema: Any) -> str:
        return writer.write(writer.start("json_schema", schema), 1, valid(schema))

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(write, schemas))) == 1


UNSUPPORTED: list[tuple[Any, str]] = [
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"not": {"type": "string"}}, "not"),
    ({"if": {"required": ["a"]}, "then": {"required": ["b"]}}, "if"),
    ({"oneOf": [{"minimum": 1}, {"maximum": 5}]}, "oneOf"),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    ({"type": "string", "format": "credit-card"}, "credit-card"),
    ({"type": "string", "pattern": "(?=a)"}, "look-around"),
    ({"type": "string", "pattern": "[a"}, "unclosed character class"),
    ({"type": "strong"}, "strong"),
    ({"$ref": "#/$defs/nobody"}, "nobody"),
    ({"$ref": "https://example.org/schema.json"}, "example.org"),
    ({"type": "integer", "minimum": 5, "maximum": 4}, "greater than maximum"),
    ({"properties": 5}, "properties"),
    ("{", "is not JSON"),
    ("true", "object"),
    ('{"const": "\\ud800"}', "escape"),
    ('{"items": ' * 500 + "{}" + "}" * 500, "recursion limit"),
]


@pytest.mark.parametrize(("schema", "reason"), UNSUPPORTED)
def test_a_schema_that_cannot_be_enforced_is_refused(
    merged: RandomWriter, schema: Any, reason: str
) -> None:
    with pytest.raises(RequestError, match="cannot enforce this response_format") as refused:
        merged.start("json_schema", schema)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.param == "response_format"


def test_the_responses_api_names_its_own_field_for_a_refused_schema(tiny: HFRunner) -> None:
    wanted = {"type": "json_schema", "name": "a", "schema": {"not": {}}}
    body = {"model": tiny.info().model_id, "input": "hi", "text": {"format": wanted}}
    error = error_body(send_request(tiny, "POST", "/v1/responses", json=body))
    assert error["param"] == "text.format"
    assert error["message"].startswith("cannot enforce this text.format: ")


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("[a", "unclosed character class"),
        ("(a", "unclosed group"),
        ("a\\", "escapes nothing"),
        (r"(a)\1", "backreferences are not supported"),
        ("(?=a)b", "look-around"),
        (r"\bfoo", "lookarounds not supported"),
        (r"[^\s\S]", "no text that fits"),
        ("\ud800", "surrogates"),
    ],
)
def test_a_regex_that_cannot_be_enforced_is_refused(
    merged: RandomWriter, pattern: str, reason: str
) -> None:
    with pytest.raises(RequestError, match=re.escape(reason)) as refused:
        merged.start("regex", pattern)
    assert refused.value.param == "regex"


def test_a_choice_that_is_not_unicode_is_refused(merged: RandomWriter) -> None:
    with pytest.raises(RequestError, match="not a Unicode scalar") as refused:
        merged.start("choice", ["a", "\udfff"])
    assert refused.value.param == "choice"


def test_text_that_the_vocabulary_lacks_bytes_for_is_an_error() -> None:
    backend = Tokenizer(models.BPE({"a": 0, "b": 1, "</s>": 2}, []))
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    compiler = GrammarCompiler(tokenizer, 3, [2])
    assert allowed(compiler.compile(Grammar("regex", "b|c")), 3) == [1]
    with pytest.raises(RequestError):
        compiler.compile(Grammar("regex", "c"))
    matcher = compiler.compile(Grammar("regex", "acb"))
    assert allowed(matcher, 3) == [0]
    matcher.accept(0)
    with pytest.raises(RequestError) as failed:
        matcher.accept(allowed(matcher, 3)[0])
    assert failed.value.param == "regex"


def test_a_grammar_that_grows_too_large_is_an_error(merged: RandomWriter) -> None:
    matcher = merged.start("regex", "(a{1,5000}){1,5000}")
    token = merged.tokenizer.convert_tokens_to_ids("a")

    def advance() -> None:
        for _ in range(500):
            merged.allows(matcher)
            matcher.accept(token)

    with pytest.raises(RequestError, match="too many"):
        advance()


@pytest.mark.slow
@pytest.mark.real_model
def test_the_real_tokenizer_writes_valid_json(smollm_tokenizer: Any) -> None:
    writer = RandomWriter(smollm_tokenizer)
    schema = SCHEMAS["nested"]
    for seed in range(3):
        writer.write(writer.start("json_schema", schema), seed, valid(schema))


@pytest.mark.slow
@pytest.mark.real_model
def test_the_real_model_describes_a_person(smollm: HFRunner) -> None:
    schema = only(
        name={"type": "string", "maxLength": 30},
        age={"type": "integer", "minimum": 0, "maximum": 120},
        job={"enum": ["mathematician", "cook"]},
    )
    prompt = "Describe Ada Lovelace, 36 years old, mathematician, as JSON with name, age and job."
    grammar = Grammar("json_schema", json.dumps(schema))
    sampling = SamplingParams(temperature=0, max_new_tokens=80, grammar=grammar)
    request = GenerationRequest((Message("user", prompt),), sampling=sampling)
    person = json.loads(smollm.generate(request).choices[0].text)
    jsonschema.validate(person, schema)
    assert person["name"] == "Ada Lovelace"
    assert person["job"] == "mathematician"


@pytest.fixture(scope="module")
def smollm_tokenizer() -> Any:
    from transformers import AutoTokenizer

    from llmctl.engine.models.resolve import resolve_model

    return AutoTokenizer.from_pretrained(resolve_model("smollm2-135m").path)
