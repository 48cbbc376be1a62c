"""The families whose reasoning is known."""

from llmctl.engine.chat.formats.format_types import ReasoningFormat
from llmctl.engine.chat.formats.message_families import GPT_OSS, MUSE

THINK = ReasoningFormat(
    "think",
    "DeepSeek, Qwen3, GLM, MiniMax M2, Nemotron, SmolLM3 and many more",
    "<think>",
    "</think>",
    aliases=("deepseek_r1", "qwen3", "glm45", "minimax_m2", "hunyuan_a13b", "nemotron_v3"),
)
REASONING_FORMATS = (
    ReasoningFormat(
        "gpt_oss",
        "gpt-oss",
        "<|channel|>analysis<|message|>",
        "<|end|>",
        channels=GPT_OSS,
        aliases=("openai_gptoss", "harmony"),
    ),
    ReasoningFormat("muse", "Muse", " to=self<|message|>", "<|eom|>", channels=MUSE),
    ReasoningFormat("seed_oss", "Seed-OSS", "<seed:think>", "</seed:think>"),
    ReasoningFormat("minimax_m3", "MiniMax M3", "<mm:think>", "</mm:think>"),
    ReasoningFormat("hunyuan", "Hunyuan 3", "<think:opensource>", "</think:opensource>"),
    ReasoningFormat(
        "command",
        "Command R7B, Command A, Cohere 2 MoE",
        "<|START_THINKING|>",
        "<|END_THINKING|>",
        frames=("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
        aliases=("cohere_command3",),
    ),
    ReasoningFormat("gemma4", "Gemma 4", "<|channel>thought\n", "<channel|>"),
    ReasoningFormat(
        "kimi_k3",
        "Kimi K3",
        "<|open|>think<|sep|>",
        "<|close|>think<|sep|>",
        frames=("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>"),
    ),
    ReasoningFormat(
        "solar_open",
        "Solar Open",
        "<|think|>",
        "<|end|>",
        frames=("<|begin|>assistant", "<|content|>", "<|end|>"),
    ),
    ReasoningFormat("mistral", "Magistral, Ministral 3", "[THINK]", "[/THINK]"),
    ReasoningFormat(
        "apriel", "Apriel 1.5, 1.6", "Here are my reasoning steps:\n", "[BEGIN FINAL RESPONSE]"
    ),
    ReasoningFormat("apertus", "Apertus", "<|inner_prefix|>", "<|inner_suffix|>"),
    THINK,
)
"""In the order in which they are tried."""
