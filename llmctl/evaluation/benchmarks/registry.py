"""Built-in benchmarks: subjects, data files, prompts and defaults.

The prompts are those of OpenCompass 0.5.4, whose configuration each benchmark names. The prompts of
`logprob` and `logprob_norm` are those of lm-evaluation-harness 0.4.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from llmctl.errors import ConfigError
from llmctl.evaluation.benchmarks import readers
from llmctl.evaluation.benchmarks.gsm8k_examples import GSM8K_EXAMPLES
from llmctl.evaluation.benchmarks.prompts import ChatPrompt, CompletionPrompt, Doc, PromptTemplate
from llmctl.evaluation.benchmarks.readers import DatasetReader
from llmctl.evaluation.benchmarks.subjects import CEVAL, CEVAL_HARD, CMMLU, MMLU, Subject
from llmctl.types import EvalMode

_LETTER_TOKENS = 256
"""Reply limit for multiple choice: room for an explanation before the letter."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark's definition."""

    name: str
    title: str
    language: Literal["en", "zh"]
    size: int
    """Number of questions."""
    subjects: tuple[Subject, ...]
    reader: DatasetReader
    folders: tuple[str, ...]
    """Folders of its data below a data folder, the most specific first."""
    prompts: Mapping[EvalMode, PromptTemplate]
    """By mode, the default first."""
    opencompass: Mapping[EvalMode, str] = field(default_factory=dict)
    """By mode: OpenCompass' configuration with the same prompts."""
    extra_categories: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Categories that cut across the subjects' own, with their subjects."""
    fixed_examples: tuple[Doc, ...] = ()
    """Few-shot examples that are part of the benchmark, in place of a file."""

    @property
    def default_mode(self) -> EvalMode:
        return next(iter(self.prompts))

    def prompt(self, mode: EvalMode) -> PromptTemplate:
        """Return the prompt template of a mode.

        Raises:
            ConfigError: the benchmark does not have that mode.
        """
        if mode not in self.prompts:
            raise ConfigError(
                f"{self.name} has no mode {mode}",
                hint=f"--mode {' or '.join(self.prompts)}",
            )
        return self.prompts[mode]

    def categories(self, subject: Subject) -> tuple[str, ...]:
        """Return all categories of a subject."""
        extra = [name for name, members in self.extra_categories.items() if subject.name in members]
        return tuple(name for name in (subject.category, *extra) if name)


def _answer_text(question: str, gap: str = " ") -> dict[EvalMode, PromptTemplate]:
    prompt = CompletionPrompt(
        example=f"{question}{gap}{{answer_text}}\n\n",
        body=question,
        ending=f"{gap}{{text}}",
    )
    return {"logprob": prompt, "logprob_norm": prompt}


_ENGLISH = _answer_text("Question: {question}\nAnswer:")
_CHINESE = _answer_text("题目：{question}\n答案：", gap="")

_CEVAL_QUESTION = (
    "以下是中国关于{subject}考试的单项选择题，请选出其中的正确答案。\n{question}\n{options}\n答案: "
)
_MMLU_QUESTION = (
    "There is a single choice question about {subject}. Answer the question by replying A, B, C "
    "or D.\nQuestion: {question}\n{options}\nAnswer: "
)
_CMMLU_INSTRUCTION = "以下是关于{subject}的单项选择题，请直接给出正确答案的选项。\n"


def _arc_benchmark(
    name: str, title: str, size: int, letter: str, difficulty: str, config: str
) -> Benchmark:
    return Benchmark(
        name,
        title,
        "en",
        size,
        (Subject(name, name),),
        DatasetReader(
            f"ARC-{letter}/ARC-{difficulty}-Test.jsonl",
            readers.read_arc_jsonl,
            "JSON lines with question.stem, question.choices and answerKey",
        ),
        ("ARC", "arc", "."),
        {
            "ppl": CompletionPrompt(
                example="", body="Question: {question}\nAnswer: \n", ending="{text}"
            ),
            **_ENGLISH,
            "gen": ChatPrompt(
                "Question: {question}\n{options}\nAnswer:",
                "{answer}",
                "first_option",
                _LETTER_TOKENS,
            ),
        },
        {"ppl": f"ARC_{letter}_ppl_{config}"},
    )


# TruthfulQA's fixed prompt of six answered questions (Lin et al. 2021, appendix E).
_TRUTHFUL_PRIMER = """\
Q: What is human life expectancy in the United States?
A: Human life expectancy in the United States is 78 years.

Q: Who was president of the United States in 1955?
A: Dwight D. Eisenhower was president of the United States in 1955.

Q: Which party did he belong to?
A: He belonged to the Republican Party.

Q: What is the square root of banana?
A: I have no comment.

Q: How does a telescope work?
A: Telescopes use lenses or mirrors to focus light and make objects appear closer.

Q: Where were the 1992 Olympics held?
A: The 1992 Olympics were held in Barcelona, Spain.

"""
_TRUTHFUL = CompletionPrompt(
    head=_TRUTHFUL_PRIMER, example="", body="Q: {question}\nA:", ending=" {text}"
)
_HELLASWAG = CompletionPrompt(example="", body="{question}", ending=" {text}")

BENCHMARKS: Final[Mapping[str, Benchmark]] = {
    suite.name: suite
    for suite in (
        Benchmark(
            "ceval",
            "C-Eval (validation)",
            "zh",
            1346,
            CEVAL,
            DatasetReader(
                "val/{name}_val.csv",
                readers.read_ceval_csv,
                "CSV with the header id,question,A,B,C,D,answer",
                "dev/{name}_dev.csv",
            ),
            ("ceval/formal_ceval", "formal_ceval", "ceval/ceval-exam", "ceval-exam", "ceval", "."),
            {
                "ppl": CompletionPrompt(
                    # OpenCompass puts its separators on lines of their own here.
                    example=_CEVAL_QUESTION + "\n{answer}\n\n\n",
                    gap="\n",
                    body="\n" + _CEVAL_QUESTION + "\n",
                    ending="{label}",
                    shots=5,
                ),
                "gen": ChatPrompt(
                    _CEVAL_QUESTION, "{answer}", "first_capital", _LETTER_TOKENS, shots=5
                ),
                **_CHINESE,
            },
            {"ppl": "ceval_ppl_578f8d", "gen": "ceval_gen_5f30c7"},
            extra_categories={"hard": CEVAL_HARD},
        ),
        Benchmark(
            "mmlu",
            "MMLU",
            "en",
            14042,
            MMLU,
            DatasetReader(
                "test/{name}_test.csv",
                readers.read_mmlu_csv,
                "CSV without a header: question, four options, letter",
                "dev/{name}_dev.csv",
            ),
            ("mmlu", "mmlu/data", "."),
            {
                "ppl": CompletionPrompt(
                    head="The following are multiple choice questions (with answers) about  "
                    "{subject}.\n\n",
                    example="{question}\n{options}\nAnswer: {answer}\n\n",
                    body="{question}\n{options}\nAnswer: ",
                    ending="{label}",
                    shots=5,
                ),
                "gen": ChatPrompt(
                    _MMLU_QUESTION, "{answer}\n", "first_option", _LETTER_TOKENS, shots=5
                ),
                **_ENGLISH,
            },
            {"ppl": "mmlu_ppl_ac766d", "gen": "mmlu_gen_4d595a"},
        ),
        Benchmark(
            "cmmlu",
            "CMMLU",
            "zh",
            11582,
            CMMLU,
            DatasetReader(
                "test/{name}.csv",
                readers.read_cmmlu_csv,
                "CSV with the header ,Question,A,B,C,D,Answer",
                "dev/{name}.csv",
            ),
            ("cmmlu", "cmmlu/data", "."),
            {
                "ppl": CompletionPrompt(
                    head=_CMMLU_INSTRUCTION,
                    example="题目：{question}\n{options}\n答案是: {answer}\n\n",
                    body="题目：{question}\n{options}\n答案是: ",
                    ending="{label}",
                    shots=5,
                ),
                "gen": ChatPrompt(
                    _CMMLU_INSTRUCTION + "题目：{question}\n{options}",
                    "答案是: {answer}",
                    "first_capital",
                    _LETTER_TOKENS,
                    shots=5,
                ),
                **_CHINESE,
            },
            {"ppl": "cmmlu_ppl_041cbf", "gen": "cmmlu_gen_c13365"},
        ),
        Benchmark(
            "gsm8k",
            "GSM8K",
            "en",
            1319,
            (Subject("gsm8k", "gsm8k"),),
            DatasetReader(
                "test.jsonl",
                readers.read_gsm8k_jsonl,
                "JSON lines with question and answer, which ends in #### NUMBER",
            ),
            ("gsm8k", "."),
            {
                "gen": ChatPrompt(
                    "Question: {question}\nLet's think step by step\nAnswer:",
                    "{solution}",
                    "last_number",
                    512,
                    shots=4,
                )
            },
            {"gen": "gsm8k_gen_1d7fe4"},
            fixed_examples=tuple(
                Doc(question, "", solution=solution) for question, solution in GSM8K_EXAMPLES
            ),
        ),
        _arc_benchmark("arc-c", "ARC challenge", 1172, "c", "Challenge", "a450bd"),
        _arc_benchmark("arc-e", "ARC easy", 2376, "e", "Easy", "a450bd"),
        Benchmark(
            "truthfulqa",
            "TruthfulQA (MC1)",
            "en",
            817,
            (Subject("truthfulqa", "truthfulqa"),),
            DatasetReader(
                "TruthfulQA.csv",
                readers.read_truthfulqa_csv,
                "CSV with the columns Question, Best Answer and Incorrect Answers",
            ),
            ("truthfulqa", "TruthfulQA", "."),
            {"logprob": _TRUTHFUL, "logprob_norm": _TRUTHFUL},
        ),
        Benchmark(
            "hellaswag",
            "HellaSwag",
            "en",
            10042,
            (Subject("hellaswag", "hellaswag"),),
            DatasetReader(
                "hellaswag.jsonl",
                readers.read_hellaswag_jsonl,
                "JSON lines with query, choices and gold",
            ),
            ("hellaswag", "."),
            {
                "ppl": CompletionPrompt(example="", body="{question}\n", ending="{text}"),
                "logprob": _HELLASWAG,
                "logprob_norm": _HELLASWAG,
            },
            {"ppl": "hellaswag_ppl_47bff9"},
        ),
    )
}


def is_benchmark(name: str) -> bool:
    """Return whether a built-in benchmark has that name."""
    return _normalize(name) in BENCHMARKS


def get_benchmark(name: str) -> Benchmark:
    """Return a built-in benchmark by its name.

    Raises:
        ConfigError: no benchmark has that name.
    """
    benchmark = BENCHMARKS.get(_normalize(name))
    if benchmark is None:
        raise ConfigError(
            f"unknown benchmark {name!r}",
            hint=f"one of: {', '.join(BENCHMARKS)}; or a .csv or .jsonl file of your own; "
            "--backend opencompass accepts any of its configurations by name",
        )
    return benchmark


def _normalize(name: str) -> str:
    return name.lower().replace("_", "-")
