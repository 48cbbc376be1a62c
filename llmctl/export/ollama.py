"""How does Ollama run a merged model? Writes its `Modelfile`.

Ollama's templates are Go's, not Jinja. Where the model's own template is ChatML to the letter it is
written out; any other, and one that knows tools, is left to Ollama, which knows the usual ones by
the template in the GGUF.
(github.com/ollama/ollama, docs/modelfile.md)
"""

from pathlib import Path
from typing import Any

from llmctl.engine.chat.template import ChatTemplate
from llmctl.errors import TemplateError
from llmctl.types import Message

FILE = "Modelfile"
_CHATML = (
    "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
    "<|im_start|>assistant\n"
)
_PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
"""Transformers' names of sampling settings -> Ollama's."""


def write_modelfile(folder: Path, gguf: str | None) -> None:
    """Write the `Modelfile` of a model folder.

    Args:
        gguf: name of the GGUF file in it; `None` has Ollama read the safetensors.
    """
    (folder / FILE).write_text(_modelfile(folder, gguf), encoding="utf-8")


def _modelfile(folder: Path, gguf: str | None) -> str:
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    defaults: Any = GenerationConfig.from_pretrained(folder)
    name = folder.name.lower()
    lines = [
        f"# ollama create {name} -f {FILE}",
        f"# ollama create {name} -f {FILE} --quantize q4_K_M   makes it a quarter as large",
        f"FROM ./{gguf}" if gguf else "FROM .",
    ]
    template = ChatTemplate.of(tokenizer)
    found, system = _as_chatml(template)
    if found:
        lines.append(f'TEMPLATE """{_CHATML}"""')
    elif template:
        lines.append("# The chat template is no plain ChatML: Ollama chooses one for the model.")
    if system:
        lines.append(f'SYSTEM """{system}"""')
    lines += [f'PARAMETER stop "{text}"' for text in _ends(tokenizer, defaults)]
    if defaults.do_sample:
        lines += [
            f"PARAMETER {theirs} {value}"
            for ours, theirs in _PARAMETERS.items()
            if (value := getattr(defaults, ours)) is not None
        ]
    return "\n".join(lines) + "\n"


def _as_chatml(template: ChatTemplate) -> tuple[bool, str]:
    """Return whether a template writes ChatML, and the system prompt that it adds unasked."""
    if template.supports_tools:
        return False, ""
    talk = (Message("user", "Q1"), Message("assistant", "A1"), Message("user", "Q2"))
    told = (Message("system", "S"), *talk)
    try:
        bare, whole = template.render(talk).text, template.render(told).text
    except TemplateError:
        return False, ""
    begin, end = "<|im_start|>system\n", "<|im_end|>\n"
    if whole != _chatml(told) or not bare.endswith(_chatml(talk)):
        return False, ""
    added = bare.removesuffix(_chatml(talk))
    if not added:
        return True, ""
    if not (added.startswith(begin) and added.endswith(end)):
        return False, ""
    return True, added.removeprefix(begin).removesuffix(end)


def _chatml(messages: tuple[Message, ...]) -> str:
    turns = (f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in messages)
    return "".join(turns) + "<|im_start|>assistant\n"


def _ends(tokenizer: Any, defaults: Any) -> list[str]:
    """Return the text of the tokens at which a reply ends."""
    ids = defaults.eos_token_id
    listed = ids if isinstance(ids, list) else [ids]
    known = {*listed, tokenizer.eos_token_id} - {None}
    return [tokenizer.decode([number]) for number in sorted(known)]
