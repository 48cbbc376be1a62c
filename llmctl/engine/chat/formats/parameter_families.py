"""The families that write one element per parameter."""

from llmctl.engine.chat.formats.element_calls import ElementCalls
from llmctl.engine.chat.formats.format_types import ToolCallFormat
from llmctl.engine.chat.formats.parameter_calls import ParameterCalls


def _xml(call: str, end: str, **changes: object) -> ParameterCalls:
    marks = {
        "name_end": (">",),
        "key": "<parameter=",
        "key_end": ">",
        "value_end": "</parameter>",
    }
    return ParameterCalls(call=call, end=end, **(marks | changes))  # type: ignore[arg-type]


def _keyed(mark: str) -> ParameterCalls:
    return ParameterCalls(
        call=mark,
        name_end=("<arg_key>",),
        key="<arg_key>",
        key_end="</arg_key>",
        value="<arg_value>",
        value_end="</arg_value>",
        end=mark.replace("<", "</"),
    )


_DSML = "｜DSML｜"


def _dsml(section: str) -> ParameterCalls:
    return ParameterCalls(
        call=f'<{_DSML}invoke name="',
        name_end=('">',),
        key=f'<{_DSML}parameter name="',
        key_end=">",
        value_end=f"</{_DSML}parameter>",
        end=f"</{_DSML}invoke>",
        section=f"<{_DSML}{section}>",
        section_end=f"</{_DSML}{section}>",
    )


def _hunyuan(tag: str) -> ParameterCalls:
    return ParameterCalls(
        call=f"<tool_call{tag}>",
        name_end=(f"<tool_sep{tag}>",),
        key=f"<arg_key{tag}>",
        key_end=f"</arg_key{tag}>",
        value=f"<arg_value{tag}>",
        value_end=f"</arg_value{tag}>",
        end=f"</tool_call{tag}>",
        section=f"<tool_calls{tag}>",
        section_end=f"</tool_calls{tag}>",
    )


_DSML_EXAMPLE = (
    f'<{_DSML}SECTION>\n<{_DSML}invoke name="add">\n<{_DSML}parameter name="a" string="false">1'
    f'</{_DSML}parameter>\n<{_DSML}parameter name="b" string="true">x</{_DSML}parameter>\n'
    f"</{_DSML}invoke>\n</{_DSML}SECTION>"
)

PARAMETER_FORMATS = (
    ToolCallFormat(
        "qwen3_coder",
        "Qwen3-Coder, Qwen3.5, Nemotron 3, Step 3.5",
        _xml(
            "<function=",
            "</function>",
            section="<tool_call>",
            section_end="</tool_call>",
            newlines=True,
        ),
        "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n"
        "<parameter=b>\nx\n</parameter>\n</function>\n</tool_call>",
        "template of Qwen/Qwen3-Coder-30B-A3B-Instruct",
        signatures=(("<tool_call>", "<function=", "<parameter="),),
        aliases=("qwen3_xml", "nemotron_v3", "step3p5"),
    ),
    ToolCallFormat(
        "seed_oss",
        "Seed-OSS",
        _xml(
            "<function=", "</function>", section="<seed:tool_call>", section_end="</seed:tool_call>"
        ),
        "<seed:tool_call>\n<function=add>\n<parameter=a>1</parameter>\n"
        "<parameter=b>x</parameter>\n</function>\n</seed:tool_call>",
        "template of ByteDance-Seed/Seed-OSS-36B-Instruct",
        signatures=(("<seed:tool_call>",),),
    ),
    ToolCallFormat(
        "minicpm5",
        "MiniCPM 5",
        _xml(
            '<function name="',
            "</function>",
            name_end=('">',),
            key='<param name="',
            key_end='">',
            value_end="</param>",
            character_data=True,
        ),
        '<function name="add"><param name="a">1</param><param name="b">x</param></function>',
        "template of openbmb/MiniCPM5-1B",
        signatures=(('<function name="', '<param name="'),),
    ),
    ToolCallFormat(
        "minimax_m3",
        "MiniMax M3",
        ElementCalls(),
        ']<]minimax[>[<tool_call>\n]<]minimax[>[<invoke name="add">]<]minimax[>[<a>1'
        "]<]minimax[>[</a>]<]minimax[>[<b>x]<]minimax[>[</b>]<]minimax[>[</invoke>\n"
        "]<]minimax[>[</tool_call>",
        "template of MiniMaxAI/MiniMax-M3",
        signatures=(("]<]minimax[>[",),),
    ),
    ToolCallFormat(
        "minimax_m2",
        "MiniMax M2",
        _xml(
            '<invoke name="',
            "</invoke>",
            name_end=('">',),
            key='<parameter name="',
            key_end='">',
            section="<minimax:tool_call>",
            section_end="</minimax:tool_call>",
        ),
        '<minimax:tool_call>\n<invoke name="add">\n<parameter name="a">1</parameter>\n'
        '<parameter name="b">x</parameter>\n</invoke>\n</minimax:tool_call>',
        "template of MiniMaxAI/MiniMax-M2",
        signatures=(("<minimax:tool_call>",),),
    ),
    ToolCallFormat(
        "deepseek_v32",
        "DeepSeek V3.2",
        _dsml("function_calls"),
        _DSML_EXAMPLE.replace("SECTION", "function_calls"),
        "template of deepseek-ai/DeepSeek-V3.2",
        signatures=((f"<{_DSML}function_calls>",), (_DSML, "function_calls")),
    ),
    ToolCallFormat(
        "deepseek_v4",
        "DeepSeek V4",
        _dsml("tool_calls"),
        _DSML_EXAMPLE.replace("SECTION", "tool_calls"),
        "template of deepseek-ai/DeepSeek-V4",
        signatures=((f"<{_DSML}tool_calls>",), (_DSML,)),
    ),
    ToolCallFormat(
        "kimi_k3",
        "Kimi K3",
        ParameterCalls(
            call='<|open|>call tool="',
            name_end=("<|sep|>",),
            key='<|open|>argument key="',
            key_end="<|sep|>",
            value_end="<|close|>argument<|sep|>",
            end="<|close|>call<|sep|>",
            section="<|open|>tools<|sep|>",
            section_end="<|close|>tools<|sep|>",
        ),
        '<|open|>tools<|sep|><|open|>call tool="add" index="1"<|sep|>'
        '<|open|>argument key="a" type="number"<|sep|>1<|close|>argument<|sep|>'
        '<|open|>argument key="b" type="string"<|sep|>x<|close|>argument<|sep|>'
        "<|close|>call<|sep|><|close|>tools<|sep|>",
        "template of moonshotai/Kimi-K3",
        signatures=(("<|open|>tools<|sep|>",), ("<|open|>", "<|sep|>", "call tool=")),
    ),
    ToolCallFormat(
        "hunyuan",
        "Hunyuan 3",
        _hunyuan(":opensource"),
        "<tool_calls:opensource>\n<tool_call:opensource>add<tool_sep:opensource>\n"
        "<arg_key:opensource>a</arg_key:opensource>\n<arg_value:opensource>1"
        "</arg_value:opensource>\n<arg_key:opensource>b</arg_key:opensource>\n"
        "<arg_value:opensource>x</arg_value:opensource>\n</tool_call:opensource>\n"
        "</tool_calls:opensource>",
        "template of tencent/Hy3",
        signatures=(("<tool_calls:opensource>",),),
    ),
    ToolCallFormat(
        "glm45",
        "GLM-4.5 to 4.7, Ling 3, Laguna, Spark 2.5",
        _keyed("<tool_call>"),
        "<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n"
        "<arg_key>b</arg_key>\n<arg_value>x</arg_value>\n</tool_call>",
        "template of zai-org/GLM-4.6",
        signatures=(("<tool_call>", "<arg_key>"),),
        aliases=("glm47",),
    ),
)
"""In the order in which they are tried."""
