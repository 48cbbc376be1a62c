"""Short chat templates, one in each format of tool calls."""

ARGS = "{{ c.function.arguments | tojson }}"
NAME = "{{ c.function.name }}"
OBJECT = f'{{"name": "{NAME}", "arguments": {ARGS}}}'
EACH = "{% for c in m.tool_calls %}"
COMMA = "{{ ', ' if not loop.last }}"
END = "{% endfor %}"
PARAMETERS = "{% for k, v in c.function.arguments.items() %}"
VALUE = "{{ v if v is string else v | tojson }}"


def elements(call: str, key: str, close: str, end: str) -> str:
    """Return a snippet for calls of one element per parameter; `@` is where names go."""
    key = key.replace("@", "{{ k }}")
    return f"{EACH}{call.replace('@', NAME)}{PARAMETERS}{key}{VALUE}{close}{END}{end}{END}"


def python_values() -> str:
    return PARAMETERS + '{{ k }}={{ "\'" ~ v ~ "\'" if v is string else v | tojson }}' + COMMA + END


def dsml(section: str) -> str:
    mark = "｜DSML｜"
    key = f'<{mark}parameter name="@" string="{{{{ "true" if v is string else "false" }}}}">'
    inner = elements(
        f'<{mark}invoke name="@">\n', key, f"</{mark}parameter>\n", f"</{mark}invoke>\n"
    )
    return f"\n\n<{mark}{section}>\n{inner}</{mark}{section}>"


def keyed(tag: str = "", separator: str = "\n") -> str:
    return elements(
        f"\n<tool_call{tag}>@{separator}",
        f"<arg_key{tag}>@</arg_key{tag}>\n<arg_value{tag}>",
        f"</arg_value{tag}>\n",
        f"</tool_call{tag}>",
    )


# What each format prints for the calls of a turn, in Jinja.
SNIPPETS = {
    "qwen3_coder": elements(
        "\n<tool_call>\n<function=@>\n",
        "<parameter=@>\n",
        "\n</parameter>\n",
        "</function>\n</tool_call>",
    ),
    "seed_oss": elements(
        "\n<seed:tool_call>\n<function=@>\n",
        "<parameter=@>",
        "</parameter>\n",
        "</function>\n</seed:tool_call>",
    ),
    "minicpm5": elements('<function name="@">', '<param name="@">', "</param>", "</function>\n"),
    "minimax_m2": "<minimax:tool_call>\n"
    + elements('<invoke name="@">\n', '<parameter name="@">', "</parameter>\n", "</invoke>\n")
    + "</minimax:tool_call>",
    "deepseek_v32": dsml("function_calls"),
    "deepseek_v4": dsml("tool_calls"),
    "deepseek_v3": "<｜tool▁calls▁begin｜>"
    + EACH
    + f"<｜tool▁call▁begin｜>{NAME}<｜tool▁sep｜>{ARGS}<｜tool▁call▁end｜>"
    + END
    + "<｜tool▁calls▁end｜>",
    "kimi_k3": "<|open|>tools<|sep|>"
    + elements(
        '<|open|>call tool="@" index="{{ loop.index }}"<|sep|>',
        '<|open|>argument key="@" type="{{ "string" if v is string else "object" }}"<|sep|>',
        "<|close|>argument<|sep|>",
        "<|close|>call<|sep|>",
    )
    + "<|close|>tools<|sep|>",
    "kimi_k2": "<|tool_calls_section_begin|>"
    + EACH
    + f"<|tool_call_begin|>functions.{NAME}:{{{{ loop.index0 }}}}<|tool_call_argument_begin|>"
    + f"{ARGS}<|tool_call_end|>{END}<|tool_calls_section_end|>",
    "solar_open": "<|tool_calls|>"
    + EACH
    + f"<|tool_call:begin|>{{{{ c.id }}}}<|tool_call:name|>{NAME}<|tool_call:args|>{ARGS}"
    + f"<|tool_call:end|>{END}<|calls|>",
    "gemma4": EACH
    + f"<|tool_call>call:{NAME}{{{{ '{{' }}}}{PARAMETERS}"
    + '{{ k }}:{{ \'<|"|>\' ~ v ~ \'<|"|>\' if v is string else v | tojson }}'
    + f"{{{{ ',' if not loop.last }}}}{END}}}<tool_call|>{END}",
    "mistral": f"{EACH}[TOOL_CALLS]{NAME}[ARGS]{ARGS}{END}",
    "command": "<|START_ACTION|>[\n"
    + EACH
    + f'{{"tool_call_id": "0", "tool_name": "{NAME}", "parameters": {ARGS}}}{COMMA}\n{END}'
    + "]<|END_ACTION|>",
    "command_r": "{{ '\n' }}Action:\n```json\n[\n"
    + EACH
    + f'{{"tool_name": "{NAME}", "parameters": {ARGS}}}{COMMA}\n{END}]```',
    "lfm2": f"<|tool_call_start|>[{EACH}{NAME}({python_values()}){COMMA}{END}]<|tool_call_end|>",
    "olmo3": f"<function_calls>\n{EACH}{NAME}({python_values()})\n{END}</function_calls>",
    "llama4": f"<|python_start|>[{EACH}{NAME}({python_values()}){COMMA}{END}]<|python_end|>",
    "pythonic": f"[{EACH}{NAME}({python_values()}){COMMA}{END}]",
    "apertus": f'<|tools_prefix|>[{EACH}{{"{NAME}": {ARGS}}}{COMMA}{END}]<|tools_suffix|>',
    "nemotron": f"<TOOLCALL>[{EACH}{OBJECT}{COMMA}{END}]</TOOLCALL>",
    "hunyuan": "<tool_calls:opensource>"
    + keyed(":opensource", "<tool_sep:opensource>\n")
    + "\n</tool_calls:opensource>",
    "glm45": keyed(),
    "tool_calls": f"\n<tool_calls>[{EACH}{OBJECT}{COMMA}{END}]</tool_calls>",
    "gigachat": f"{EACH}<|function_call|>{OBJECT}{END}",
    "phi4_mini": f"<|tool_call|>[{EACH}{OBJECT}{COMMA}{END}]<|/tool_call|>",
    "granite": f"<|tool_call|>[{EACH}{OBJECT}{COMMA}{END}]",
    "functools": f" functools[{EACH}{OBJECT}{COMMA}{END}]",
    "internlm": "<|action_start|><|plugin|>\n"
    + f'{EACH}{{"name": "{NAME}", "parameters": {ARGS}}}\n{END}<|action_end|>',
    "functionary_v31": f"{EACH}<function={NAME}>{ARGS}</function>{END}",
    "hermes": f"{EACH}{{{{ '\n' }}}}<tool_call>\n{OBJECT}\n</tool_call>{END}",
    "llama3_json": f'{EACH}{{"name": "{NAME}", "parameters": {ARGS}}}'
    + f'{{{{ "; " if not loop.last }}}}{END}',
    "json": f"[{EACH}{OBJECT}{COMMA}{END}]",
}  # fmt: skip
HEAD = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}"
TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}{% if m.tool_calls %}@{% endif %}<|im_end|>\n"
TAIL = "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TEMPLATES = {name: HEAD + TURN.replace("@", snippet) + TAIL for name, snippet in SNIPPETS.items()}
# Formats of several messages, and the one whose prompt begins the answer.
TEMPLATES |= {
    "gpt_oss": HEAD
    + "{% if m.role != 'assistant' %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>"
    + "{% else %}{% if m.content %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    + f"<|end|>{{% endif %}}{EACH}<|start|>assistant to=functions.{NAME}<|channel|>commentary json"
    + f"<|message|>{ARGS}<|call|>{END}{{% endif %}}{END}"
    + "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
    "muse": HEAD
    + "{% if m.role != 'assistant' %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|eot|>"
    + "{% else %}{% if m.content %}<|start|>assistant to=user<|message|>{{ m.content }}<|eom|>"
    + f"{{% endif %}}{EACH}<|start|>assistant to={NAME}<|message|><atem:function_calls>\n"
    + f'<atem:invoke name="{NAME}">\n{PARAMETERS}<atem:parameter name="{{{{ k }}}}">{VALUE}'
    + f"</atem:parameter>\n{END}</atem:invoke>\n</atem:function_calls><|eom|>{END}{{% endif %}}"
    + f"{END}{{% if add_generation_prompt %}}<|start|>assistant{{% endif %}}",
    "functionary": HEAD
    + "{% if m.role != 'assistant' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>"
    + "{% else %}<|im_start|>assistant\n{% if m.content %}>>>all\\n{{ m.content }}{% endif %}"
    + f"{EACH}>>>{NAME}\n{ARGS}{END}<|im_end|>{{% endif %}}{END}"
    + "{% if add_generation_prompt %}<|im_start|>assistant\n>>>{% endif %}",
}
TEMPLATES["functionary"] = TEMPLATES["functionary"].replace("all\\n", "all\n{# all\\n #}")
