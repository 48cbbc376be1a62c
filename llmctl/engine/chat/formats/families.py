"""The families whose formats of calls are known."""

from llmctl.engine.chat.formats.format_types import ToolCallFormat
from llmctl.engine.chat.formats.gemma_calls import GemmaCalls
from llmctl.engine.chat.formats.json_calls import JsonCalls
from llmctl.engine.chat.formats.message_families import GPT_OSS, MUSE
from llmctl.engine.chat.formats.named_calls import (
    DeepSeekCalls,
    MistralCalls,
    NamedCalls,
    RecipientCalls,
)
from llmctl.engine.chat.formats.parameter_families import PARAMETER_FORMATS
from llmctl.engine.chat.formats.pythonic_calls import PythonicCalls

_OBJECT = '{"name": "add", "arguments": {"a": 1, "b": "x"}}'
_ARGS = '{"a": 1, "b": "x"}'


TOOL_CALL_FORMATS = (
    *PARAMETER_FORMATS,
    ToolCallFormat(
        "muse",
        "Muse",
        MUSE,
        ' to=add<|message|><atem:function_calls>\n<atem:invoke name="add">\n'
        '<atem:parameter name="a">1</atem:parameter>\n'
        '<atem:parameter name="b">x</atem:parameter>\n</atem:invoke>\n'
        "</atem:function_calls><|eot|>",
        "template of Muse Glimmer",
        signatures=(("<atem:function_calls>",),),
    ),
    ToolCallFormat(
        "deepseek_v3",
        "DeepSeek V3, R1, V3.1 and distillations with tools",
        DeepSeekCalls(),
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n"
        + _ARGS
        + "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "templates of deepseek-ai/DeepSeek-V3-0324 and DeepSeek-V3.1",
        signatures=(("<｜tool▁calls▁begin｜>",),),
        aliases=("deepseek_v31", "deepseek_r1"),
    ),
    ToolCallFormat(
        "kimi_k2",
        "Kimi K2",
        NamedCalls(
            call="<|tool_call_begin|>",
            name_end="<|tool_call_argument_begin|>",
            close="<|tool_call_end|>",
            section="<|tool_calls_section_begin|>",
            section_end="<|tool_calls_section_end|>",
            name_has_index=True,
        ),
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.add:0"
        "<|tool_call_argument_begin|>" + _ARGS + "<|tool_call_end|><|tool_calls_section_end|>",
        "template of moonshotai/Kimi-K2-Instruct",
        signatures=(("<|tool_calls_section_begin|>",),),
    ),
    ToolCallFormat(
        "solar_open",
        "Solar Open",
        NamedCalls(
            call="<|tool_call:begin|>",
            id_end="<|tool_call:name|>",
            name_end="<|tool_call:args|>",
            close="<|tool_call:end|>",
            section="<|tool_calls|>",
            section_end="<|calls|>",
        ),
        "<|tool_calls|><|tool_call:begin|>call_1<|tool_call:name|>add<|tool_call:args|>"
        + _ARGS
        + "<|tool_call:end|><|calls|>",
        "template of upstage/Solar-Open-100B",
        signatures=(("<|tool_call:begin|>",),),
    ),
    ToolCallFormat(
        "gpt_oss",
        "gpt-oss",
        GPT_OSS,
        " to=functions.add<|channel|>commentary json<|message|>" + _ARGS + "<|call|>",
        "OpenAI's harmony response format",
        signatures=(("<|channel|>commentary",), ("<|channel|>", "<|message|>", "functions.")),
        aliases=("openai", "harmony"),
    ),
    ToolCallFormat(
        "gemma4",
        "Gemma 4",
        GemmaCalls(),
        '<|tool_call>call:add{a:1,b:<|"|>x<|"|>}<tool_call|>',
        "template of google/gemma-4-31B-it",
        signatures=(("<|tool_call>call:",),),
    ),
    ToolCallFormat(
        "mistral",
        "Mistral, Ministral, Devstral, Magistral",
        MistralCalls(),
        "[TOOL_CALLS]add[ARGS]" + _ARGS,
        "templates of mistralai/Mistral-Nemo-Instruct-2407 and Ministral-3-14B-Reasoning-2512",
        signatures=(("[TOOL_CALLS]",), ("[AVAILABLE_TOOLS]",)),
        tokens=("[TOOL_CALLS]",),
    ),
    ToolCallFormat(
        "command",
        "Command R7B, Command A, Cohere 2 MoE",
        JsonCalls(openings=("<|START_ACTION|>",), closings=("<|END_ACTION|>",)),
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "add", "parameters": '
        + _ARGS
        + "}\n]<|END_ACTION|>",
        "template of CohereForAI/c4ai-command-r7b-12-2024",
        signatures=(("<|START_ACTION|>",),),
        aliases=("cohere_command3", "cohere_command4"),
    ),
    ToolCallFormat(
        "command_r",
        "Command R, Command R+",
        JsonCalls(
            openings=("Action:\n```json\n", "Action: ```json\n"), closings=("```",), line_start=True
        ),
        'Action:\n```json\n[\n    {\n        "tool_name": "add",\n        "parameters": '
        + _ARGS
        + "\n    }\n]\n```",
        "template of CohereForAI/c4ai-command-r-plus",
        signatures=(("Action:", "```json", "tool_name"),),
    ),
    ToolCallFormat(
        "lfm2",
        "LFM2, LFM2.5",
        PythonicCalls(openings=("<|tool_call_start|>",), closings=("<|tool_call_end|>",)),
        "<|tool_call_start|>[add(a=1, b='x')]<|tool_call_end|>",
        "model card of LiquidAI/LFM2-8B-A1B",
        signatures=(("<|tool_call_start|>",), ("<|tool_list_start|>",)),
        tokens=("<|tool_call_start|>",),
    ),
    ToolCallFormat(
        "olmo3",
        "OLMo 3",
        PythonicCalls(openings=("<function_calls>",), closings=("</function_calls>",)),
        "<function_calls>\nadd(a=1, b='x')\n</function_calls>",
        "template of allenai/Olmo-3-7B-Instruct",
        signatures=(("<function_calls>",),),
    ),
    ToolCallFormat(
        "llama4",
        "Llama 4",
        PythonicCalls(openings=("<|python_start|>",), closings=("<|python_end|>",), bare=True),
        "<|python_start|>[add(a=1, b='x')]<|python_end|>",
        "template of meta-llama/Llama-4-Scout-17B-16E-Instruct",
        signatures=(("<|python_start|>",),),
        aliases=("llama4_pythonic", "llama4_json"),
        tokens=("<|python_start|>",),
    ),
    ToolCallFormat(
        "apertus",
        "Apertus",
        JsonCalls(openings=("<|tools_prefix|>",), closings=("<|tools_suffix|>",), name_is_key=True),
        '<|tools_prefix|>[{"add": ' + _ARGS + "}]<|tools_suffix|>",
        "template of swiss-ai/Apertus-8B-Instruct-2509",
        signatures=(("<|tools_prefix|>",),),
    ),
    ToolCallFormat(
        "nemotron",
        "Nemotron Nano v2",
        JsonCalls(openings=("<TOOLCALL>",), closings=("</TOOLCALL>",)),
        f"<TOOLCALL>[{_OBJECT}]</TOOLCALL>",
        "template of nvidia/NVIDIA-Nemotron-Nano-9B-v2",
        signatures=(("<TOOLCALL>",),),
        aliases=("nemotron_json",),
    ),
    ToolCallFormat(
        "tool_calls",
        "Apriel, MiniMax M1, Jamba, Hunyuan A13B",
        JsonCalls(openings=("<tool_calls>",), closings=("</tool_calls>",)),
        f"<tool_calls>[{_OBJECT}]</tool_calls>",
        "templates of MiniMaxAI/MiniMax-M1-40k and ai21labs/AI21-Jamba-Mini-1.6",
        signatures=(("<tool_calls>",),),
        aliases=("apriel", "minimax", "jamba", "hunyuan_a13b"),
    ),
    ToolCallFormat(
        "gigachat",
        "GigaChat 3",
        JsonCalls(openings=("<|message_sep|>\n\nfunction call<|role_sep|>\n", "<|function_call|>")),
        f"<|function_call|>{_OBJECT}",
        "templates of ai-sage/GigaChat3-10B-A1.8B and GigaChat3.1-10B-A1.8B",
        signatures=(("<|function_call|>",), ("function call<|role_sep|>",)),
        aliases=("gigachat3",),
    ),
    ToolCallFormat(
        "phi4_mini",
        "Phi-4-mini",
        JsonCalls(openings=("<|tool_call|>", "functools"), closings=("<|/tool_call|>",)),
        f"<|tool_call|>[{_OBJECT}]<|/tool_call|>",
        "model card of microsoft/Phi-4-mini-instruct",
        signatures=(("<|/tool_call|>",), ("<|tool|>", "<|/tool|>")),
        aliases=("phi4_mini_json",),
    ),
    ToolCallFormat(
        "granite",
        "Granite 3",
        JsonCalls(openings=("<|tool_call|>", "<tool_call>"), bare=True),
        f"<|tool_call|>[{_OBJECT}]",
        "template of ibm-granite/granite-3.3-2b-instruct",
        signatures=(("<|tool_call|>",),),
        tokens=("<|tool_call|>",),
    ),
    ToolCallFormat(
        "functools",
        "Firefunction",
        JsonCalls(openings=("functools",)),
        f" functools[{_OBJECT}]",
        "template of fireworks-ai/llama-3-firefunction-v2",
        signatures=(("functools[",),),
        aliases=("firefunction",),
    ),
    ToolCallFormat(
        "internlm",
        "InternLM 2.5, InternLM 3",
        JsonCalls(openings=("<|action_start|><|plugin|>",), closings=("<|action_end|>",)),
        '<|action_start|><|plugin|>\n{"name": "add", "parameters": ' + _ARGS + "}<|action_end|>",
        "model card of internlm/internlm2_5-7b-chat",
        signatures=(("<|action_start|>",), ("<|plugin|>",)),
        tokens=("<|plugin|>",),
    ),
    ToolCallFormat(
        "functionary",
        "Functionary 3.2",
        RecipientCalls(),
        "add\n" + _ARGS,
        "template of meetkai/functionary-medium-v3.2",
        signatures=((">>>", "all\\n"), (">>>", "${recipient}")),
    ),
    ToolCallFormat(
        "functionary_v31",
        "Functionary 3.1",
        NamedCalls(call="<function=", name_end=">", close="</function>"),
        "<function=add>" + _ARGS + "</function>",
        "template of meetkai/functionary-medium-v3.1",
        signatures=(("<function=",),),
    ),
    ToolCallFormat(
        "hermes",
        "Qwen2.5, Qwen3, QwQ, Hermes, Granite 4, MiMo, ERNIE 4.5, SmolLM3, Bielik, Reka",
        JsonCalls(openings=("<tool_call>",), closings=("</tool_call>",), line_start=True),
        f"<tool_call>\n{_OBJECT}\n</tool_call>",
        "template of NousResearch/Hermes-3-Llama-3.1-8B",
        signatures=(("<tool_call>",),),
        tokens=("<tool_call>",),
        aliases=("ernie45", "granite4"),
    ),
    ToolCallFormat(
        "llama3_json",
        "Llama 3.1 to 3.3",
        JsonCalls(openings=("<|python_tag|>",), bare=True),
        '{"name": "add", "parameters": ' + _ARGS + "}",
        "template of meta-llama/Llama-3.1-8B-Instruct",
        start='{"name": "',
        signatures=(('"parameters": dictionary of argument name',),),
        tokens=("<|python_tag|>",),
        aliases=("llama",),
    ),
    ToolCallFormat(
        "pythonic",
        "Llama 3.2 with a pythonic prompt, ToolACE",
        PythonicCalls(bare=True),
        "[add(a=1, b='x')]",
        "model card of meta-llama/Llama-3.2-3B-Instruct",
        start="[probe_of_tools(",
        signatures=(("[func_name1(",),),
    ),
    ToolCallFormat(
        "json",
        "any other, and models whose template has no tools",
        JsonCalls(
            openings=("<tool_call>",), closings=("</tool_call>",), bare=True, line_start=True
        ),
        f"<tool_call>\n{_OBJECT}\n</tool_call>",
        "the prompt that llmctl writes",
        start="[{",
        aliases=("xlam",),
    ),
)
"""In the order in which they are tried: of two that share a mark, the stricter one first."""

GENERIC = TOOL_CALL_FORMATS[-1]
"""For models whose template has no tools, or has them in a format that is not known."""
