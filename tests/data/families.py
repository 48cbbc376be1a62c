"""Chat template families: the template, and a byte-level tokenizer with its control tokens."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llmctl.engine.chat.template import ChatTemplate

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class TemplateFamily:
    """The differences between families."""

    name: str
    control: tuple[str, ...]
    end: str
    """The token that ends an assistant's turn."""
    bos: str | None = None
    eos: str | None = None
    """If different from `end`."""
    added_words: tuple[str, ...] = ()
    """Single tokens that are not control tokens, such as `<think>`."""
    strips_right: bool = False
    """Control tokens include the white space after them, as in Phi-3."""

    @cache  # noqa: B019  instances are constants
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token per byte, but pairs of spaces and newlines are one, and ` H`, and `] `."""
        merges = [("Ċ", "Ċ"), ("Ġ", "Ġ"), ("Ġ", "H"), ("]", "Ġ")]
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {c: i for i, c in enumerate([*alphabet, *(a + b for a, b in merges)])}
        backend = Tokenizer(models.BPE(vocabulary, merges))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens(
            [AddedToken(t, special=True, rstrip=self.strips_right) for t in self.control]
        )
        backend.add_tokens([AddedToken(t, special=False) for t in self.added_words])
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            bos_token=self.bos,
            eos_token=self.eos or self.end,
            pad_token=self.eos or self.end,
            chat_template=(TEMPLATES / f"{self.name}.jinja").read_text(encoding="utf-8"),
        )

    @cache  # noqa: B019  instances are constants
    def template(self) -> ChatTemplate:
        return ChatTemplate.of(self.tokenizer())

    @property
    def stop_ids(self) -> tuple[int, ...]:
        vocabulary = self.tokenizer().get_vocab()
        return tuple(sorted({vocabulary[self.end], vocabulary[self.eos or self.end]}))


CHATML = TemplateFamily("chatml", ("<|im_start|>", "<|im_end|>", "<|endoftext|>"), "<|im_end|>")
LLAMA3 = TemplateFamily(
    "llama3",
    ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "<|eot_id|>",
    bos="<|begin_of_text|>",
)
GEMMA = TemplateFamily(
    "gemma",
    ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
    "<end_of_turn>",
    bos="<bos>",
    eos="<eos>",
    added_words=("\n\n",),
)
MISTRAL = TemplateFamily("mistral", ("<s>", "</s>", "[INST]", "[/INST]"), "</s>", bos="<s>")
QWEN3 = TemplateFamily(
    "qwen3",
    ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    "<|im_end|>",
    added_words=("<think>", "</think>", "<tool_call>", "</tool_call>"),
)
FIVE_FAMILIES = (CHATML, LLAMA3, GEMMA, MISTRAL, QWEN3)

GENERATION = TemplateFamily("chatml_generation", CHATML.control, "<|im_end|>")
PHI3 = TemplateFamily(
    "phi3",
    ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
    "<|end|>",
    eos="<|endoftext|>",
    strips_right=True,
)
DEEPSEEK_R1 = TemplateFamily(
    "deepseek_r1",
    ("<|User|>", "<|Assistant|>", "<|begin_of_sentence|>", "<|end_of_sentence|>"),
    "<|end_of_sentence|>",
    bos="<|begin_of_sentence|>",
    added_words=("<think>", "</think>"),
)
