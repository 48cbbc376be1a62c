r"""The pre-tokenizers that `tokenizer.ggml.pre` of a GGUF file names.

A pre-tokenizer of byte-level BPE is a sequence of regular expressions in Oniguruma's syntax. Each
one splits every piece of the text into its matches and what is between them. The names are those
of llama.cpp 0.5 (`llama-vocab.cpp`). The expressions split as llama.cpp does, or as the models'
own `tokenizer.json` where llama.cpp differs from it: it does not tell capital from small letters
in kimi-k2, youtu and tiny_aya, and does not split before digits in afmoe and tiny_aya.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """How a text is split before byte-level BPE is applied to each piece."""

    splits: tuple[str, ...]
    """Regular expressions, applied one after the other."""
    ignore_merges: bool = False
    """Whether a piece that is a token of its own is not built from merges."""
    add_bos: bool = False
    """Whether a text begins with the BOS token, unless `tokenizer.ggml.add_bos_token` is there."""

    def apply(self, backend: Any) -> None:
        """Make `backend`, a byte-level BPE `tokenizers.Tokenizer`, split texts in this way."""
        from tokenizers import Regex, pre_tokenizers

        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                *(pre_tokenizers.Split(Regex(split), behavior="isolated") for split in self.splits),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        backend.model.ignore_merges = self.ignore_merges


GPT2_SPLIT: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGIT_SPLIT: Final = r"\p{N}"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _cased(suffix: str, digits: str, signs_end: str = r"[\r\n/]*", but: str = "") -> str:
    """Return a split that separates words where a capital letter follows a small one."""
    start, upper, lower = r"[^\r\n\p{L}\p{N}]?", _UPPER[:-1] + but + "]", _LOWER[:-1] + but + "]"
    return (
        rf"{start}{upper}*{lower}+{suffix}|{start}{upper}+{lower}*{suffix}|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+{signs_end}|{_SPACE}"
    )


_LLAMA3 = rf"{_SUFFIX}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACE}"
_QWEN2 = rf"{_SUFFIX}|{_WORD}|\p{{N}}|{_SIGNS}|{_SPACE}"
_GPT4O = _cased(f"{_SUFFIX}?", r"\p{N}{1,3}")
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
# Ideographs, Hiragana and Katakana; the other range is up to U+D7FF.
_CJK = r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+"
_CJK_WIDE = r"[\x{4E00}-\x{9FA5}\x{0800}-\x{4E00}\x{AC00}-\x{D7FF}]+"
_ASCII_SIGN = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
_DEEPSEEK_WORD = rf"{_ASCII_SIGN}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
_DEEPSEEK3 = rf"{_DEEPSEEK_WORD}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACE}"
# The cased letters of DeepSeek-LLM: without Georgian and small Armenian ones and newer blocks.
_DEEPSEEK_CASED = (
    r"[\p{Lu}\p{Ll}\p{Lt}&&[^\x{560}-\x{588}\x{10C7}-\x{10FF}\x{1C80}-\x{1C8A}\x{2D00}-\x{2D2D}"
    r"\x{A790}-\x{A7FF}\x{AB30}-\x{AB68}\x{10570}-\x{105BC}\x{10D50}-\x{10D85}\x{16E40}-\x{16EFF}"
    r"\x{1D400}-\x{1DF2F}]]"
)
_AFMOE_SCRIPTS = (
    r"[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{F900}-\x{FAFF}\x{3040}-\x{309F}\x{30A0}-\x{30FF}"
    r"\x{FF65}-\x{FF9F}\x{2F00}-\x{2FDF}\x{0E40}-\x{0E7F}\x{0E80}-\x{0EFF}\x{1780}-\x{17FF}"
    r"\x{1000}-\x{109F}\x{AA60}-\x{AA7F}\x{A9E0}-\x{A9FF}\x{AC00}-\x{D7AF}\x{1100}-\x{11FF}]+"
)
_THREES_FROM_THE_RIGHT = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"

_FALCON_SIGNS = r"[\p{P}$+<=>^~|`]+"
_DIGITS_AND_GPT2 = PreTokenizer((DIGIT_SPLIT, GPT2_SPLIT))
_GPT2 = PreTokenizer((GPT2_SPLIT,))
_DEEPSEEK_V3 = PreTokenizer((r"\p{N}{1,3}", _CJK, _DEEPSEEK3))
_WHITESPACE_RUNS = "".join(rf"|\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4, "1,2"))

_NAMES: Final[dict[PreTokenizer, str]] = {
    _GPT2: "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert "
    "jina-v1-en jina-v2-code roberta-bpe mpt olmo jais trillion granite-docling exaone4",
    _DIGITS_AND_GPT2: "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
    PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True): "llama-bpe llama3 llama-v3 falcon3 "
    "falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
    PreTokenizer((_LLAMA3,), ignore_merges=True): "glm4 glm5",
    PreTokenizer((_LLAMA3,)): "dbrx smaug-bpe chatglm-bpe",
    PreTokenizer((_QWEN2,)): "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan grok-2 "
    "solar-open",
    PreTokenizer(
        (
            rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
            rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACE}",
        )
    ): "qwen35",
    PreTokenizer((_GPT4O,)): "gpt-4o llama4 kanana2 talkie minimax-m2",
    PreTokenizer((_GPT4O,), ignore_merges=True): "granite-embed-multi-97m",
    PreTokenizer((_cased("", r"\p{N}"),), ignore_merges=True, add_bos=True): "tekken",
    PreTokenizer((r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O)): "tiny_aya cohere2moe",
    PreTokenizer(
        (r"\p{Han}+|" + _cased(f"{_SUFFIX}?", r"\p{N}{1,3}", r"[\r\n]*", but=r"&&[^\p{Han}]"),)
    ): "kimi-k2",
    _DEEPSEEK_V3: "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
    PreTokenizer(
        (
            r"[\r\n]",
            rf"\s?{_DEEPSEEK_CASED}+",
            r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+",
            r"\s+$",
            _CJK_WIDE,
            r"\p{N}+",
        )
    ): "deepseek-llm",
    PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_WIDE, DIGIT_SPLIT)): "deepseek-coder",
    PreTokenizer(
        (
            r"\p{N}{1,3}",
            _CJK,
            rf"{_DEEPSEEK_WORD}| ?[\p{{P}}\p{{S}}]+|[\r\n]|\s+(?!\S)|\s+",
            DIGIT_SPLIT,
        )
    ): "spark2_5",
    PreTokenizer(
        (
            r"[\x{AC00}-\x{D7A3}\x{3131}-\x{318E}]+|[！…“”‘’—：；，\x{3001}-\x{303F}"
            r"\x{FE30}-\x{FE4F}]+|[\x{3105}-\x{312F}]+|" + _CJK,
            _cased(f"{_SUFFIX}?", DIGIT_SPLIT),
        ),
        ignore_merges=True,
    ): "youtu",
    PreTokenizer((_FALCON_SIGNS, GPT2_SPLIT, "[0-9][0-9][0-9]")): "falcon",
    PreTokenizer((r"[\p{P}$+<=>^~|]+", GPT2_SPLIT, r"\p{N}+", "[0-9][0-9][0-9]")): "default",
    PreTokenizer((_BLOOM,)): "bloom poro-chat gpt3-finnish",
    PreTokenizer((_BLOOM, DIGIT_SPLIT)): "viking",
    PreTokenizer(
        (
            r"<sentinel:[0-9]+>",
            r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            DIGIT_SPLIT,
            r"[\p{P}!-/:-@\[-`{-~]",
            GPT2_SPLIT,
        ),
        add_bos=True,
    ): "chameleon",
    PreTokenizer((r"\p{N}+", r"(?=(\d{3})+(?!\d))")): "superbpe",
    PreTokenizer(
        (rf"'(?i:[sdmt]|ll|ve|re)|{_WORD}|\p{{N}}|{_SIGNS}|\s*[\r\n]|\s+(?!\S)|\s+",)
    ): "bailingmoe bailingmoe2 llada-moe",
    PreTokenizer(
        (rf"{_SUFFIX}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACE}",)
    ): "seed-coder",
    PreTokenizer((rf"{_WORD}|\p{{N}}|{_SIGNS}|{_SPACE}",)): "ufakzeka",
    PreTokenizer((_THREES_FROM_THE_RIGHT, _AFMOE_SCRIPTS, _DEEPSEEK3)): "afmoe",
    PreTokenizer((r"[^\n]+|\n+", _QWEN2)): "laguna",
    PreTokenizer(
        (
            rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        )
    ): "exaone-moe",
    PreTokenizer(
        (r"\p{N}{1,3}", rf"{_SUFFIX}|{_WORD}|\p{{N}}+|{_SIGNS}|{_SPACE}"), ignore_merges=True
    ): "minicpm5",
    PreTokenizer(
        (rf"{_SUFFIX}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|\s*[\r\n]+{_WHITESPACE_RUNS}|\s",)
    ): "jais-2",
}

PRE_TOKENIZERS: Final = {name: kind for kind, names in _NAMES.items() for name in names.split()}
"""Values of `tokenizer.ggml.pre` -> pre-tokenizers."""


def find_name(splits: Sequence[str], *, ignore_merges: bool) -> str | None:
    """Return the value of `tokenizer.ggml.pre` of a pre-tokenizer, or `None` if it has none."""
    for kind, names in _NAMES.items():
        if kind.splits == tuple(splits) and kind.ignore_merges == ignore_merges:
            return names.split()[0]
    return None
