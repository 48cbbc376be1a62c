"""The families whose responses consist of several messages."""

from llmctl.engine.chat.formats.parameter_calls import ParameterCalls
from llmctl.engine.chat.parsing.channels import Channels

_MUSE_CALLS = ParameterCalls(
    call='<atem:invoke name="',
    name_end=('">',),
    key='<atem:parameter name="',
    key_end='">',
    value_end="</atem:parameter>",
    end="</atem:invoke>",
    section="<atem:function_calls>",
    section_end="</atem:function_calls>",
)

GPT_OSS = Channels()
MUSE = Channels(
    message="<|message|>",
    ends=("<|eom|>", "<|eot|>"),
    channel="",
    constrain="",
    answer="",
    calls=_MUSE_CALLS,
)
