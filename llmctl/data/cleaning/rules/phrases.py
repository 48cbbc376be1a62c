"""Phrases of refusals, web pages and chat templates, in English and Chinese."""

import re

_AI = (
    r"(?:an? )?(?:AI(?: (?:language model|chatbot|assistant|model))?|artificial intelligence"
    r"(?: language model| assistant| model)?|large language model|language model"
    r"|(?:virtual|digital) assistant|machine learning model|text-based AI)\b"
)
_CANNOT = (
    r"(?:cannot|can ?not|can['’]?t|could(?: not|n['’]t)|won['’]t|will not|(?:am|['’]m) (?:unable"
    r"|not (?:able|allowed|permitted|programmed|capable|comfortable|going))|do(?: not|n['’]t)"
    r" (?:have|feel comfortable)|must decline|have to decline)"
)
_HELP = (
    r"(?:help|assist|fulfil|comply|provide|answer|support|create|generate|engage|discuss"
    r"|participate|recommend|give|write|share|offer|complete|access"
    r"|browse|see|hear|do (?:that|this))"
)
_SORRY = (
    r"(?:(?:I['’]?m|I am) (?:\w+ )?(?:sorry|afraid)|sorry|apologies|my apologies|I apologi[sz]e"
    r"|unfortunately|regrettably)"
)
_AI_ZH = (
    r"(?:(?:大型|大)?语言模型|(?:AI|人工智能)(?:语言模型|语言|助手|模型|助理|程序|机器人)?|智能助手|虚拟助手|聊天机器人"
    r"|机器学习模型|计算机程序)"
)
_CANNOT_ZH = r"(?:不能够?|无法|没有办法|没法|不会|不可以|不便|没有能力|不具备|没有权限|不支持)"

REFUSAL = re.compile(
    rf"\W*(?:{_SORRY}\b[^.!?\n]{{0,60}}?\bI ?{_CANNOT}\b"
    rf"|(?:{_SORRY},? but )?(?:as|I['’]m|I am) (?:just |only |simply )?{_AI}"
    rf"|I {_CANNOT} (?:\w+ ){{0,2}}?{_HELP}"
    rf"|(?:非常|十分|很|真的?|真是)?(?:抱歉|对不起|不好意思|遗憾)[，,。！!：:\s]*(?:但|不过)?(?:是)?[^。！？\n]{{0,30}}?"
    rf"(?:我|本助手)[^。！？\n]{{0,20}}?{_CANNOT_ZH}"
    rf"|(?:(?:抱歉|对不起)[，,]\s*)?(?:我)?作为(?:一个|一名|一款|一种|个|名)?{_AI_ZH}"
    rf"|我(?:只?是|仅是)(?:一个|一名|一款|一种|个)?{_AI_ZH}[^。！？\n]{{0,20}}{_CANNOT_ZH}"
    rf"|我{_CANNOT_ZH}(?:为您|为你|给您|给你)?(?:提供|回答|协助|帮助|满足|完成|生成|讨论|支持|参与))",
    re.IGNORECASE,
)
"""Beginning of an answer that refuses, or that speaks as a language model."""

_PAGE = (
    r"regenerate response|(?:skip|jump) to (?:main )?content"
    r"|(?:subscribe|sign up) (?:to|for) (?:our|the|my) (?:\w+ )?newsletter"
    r"|click here to (?:read|subscribe|learn|download|view|continue|get)"
    r"|all rights reserved|(?:we|this (?:site|website)) uses? cookies|lorem ipsum dolor"
    r"|(?:please )?enable javascript|your browser does not support"
    r"|share (?:this|on) (?:facebook|twitter)|leave a (?:reply|comment)(?: below)?\s*$"
    r"|点击(?:此处|这里|下方)?(?:链接)?(?:查看|阅读)(?:原文|全文|更多|详情)"
    r"|(?:扫码|扫描二维码|长按)关注|关注(?:我们的?|本)?(?:微信)?公众号"
    r"|版权所有[，,\s]*(?:侵权|未经|违者|翻版)|未经(?:授权|许可|允许)[，,]?\s*(?:不得|禁止|严禁)转载"
    r"|转载请(?:注明|联系)|责任编辑[：:]|本文来源[：:]|免责声明[：:]|上一篇[：:]|下一篇[：:]"
)
BOILERPLATE = re.compile(_PAGE, re.IGNORECASE | re.MULTILINE)
_COPY_CODE = re.compile(r"^(?:\w+\s*)?(?:Copy code|复制代码)$", re.MULTILINE)

TEMPLATE_MARKER = re.compile(
    r"<\|(?:im_start|im_end|im_sep|endoftext|begin_of_text|end_of_text|start_header_id"
    r"|end_header_id|eot_id|eom_id|python_tag|system|user|assistant|observation|end|endofprompt"
    r"|fim_(?:prefix|middle|suffix))\|>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>"
    r"|<[｜|](?:begin▁of▁sentence|end▁of▁sentence|User|Assistant)[｜|]>|\[gMASK\]|<sop>"
)
PROMPT_HEADING = re.compile(
    r"^#{2,3} ?(?:Instruction|Response|Input|Human|Assistant|指令|回答) ?[:：]\s*$", re.MULTILINE
)
"""Headings of the Alpaca prompt, which do not belong in an answer."""

PLACEHOLDER = re.compile(
    r"[<\[({]\s*no[ _-]?(?:output|input|response|answer)\s*[>\])}]|no(?:output|input)|todo|tbd"
    r"|[<\[({]\s*(?:insert|add|your)\b[^\n]{0,40}[>\])}]|lorem ipsum[^\n]{0,200}|待补充|待填写",
    re.IGNORECASE,
)
"""An answer without content, if it matches as a whole."""


_CLUES = [
    "newsletter",
    "click here",
    "rights reserved",
    "cookies",
    "lorem ipsum",
    "javascript",
    "main content",
    "to content",
    "regenerate response",
    "your browser",
    "copy code",
    "share this",
    "share on",
    "leave a reply",
    "leave a comment",
    "点击",
    "关注",
    "版权所有",
    "转载",
    "责任编辑",
    "本文来源",
    "免责声明",
    "上一篇",
    "下一篇",
    "复制代码",
]
"""A text without any of these has no boilerplate; substrings are searched faster than patterns."""


def find_boilerplate(text: str) -> list[str]:
    """Return the boilerplate of web pages and chat windows in a text."""
    lower = text.lower()
    if not any(clue in lower for clue in _CLUES):
        return []
    found = [match.group() for match in BOILERPLATE.finditer(text)]
    return found + [match.group() for match in _COPY_CODE.finditer(text)]
