"""Ollama's `Modelfile` of a merged model.

Ollama's templates are Go templates, not Jinja. A chat template that is exactly ChatML is written
out. Any other, and one with tools, is left to Ollama, which detects common templates in the GGUF.
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
        gguf: name of the GGUF file in it; with `None` Ollama reads the safetensors.
    """
    (folder / FILE).write_text(_modelfile(folder, gguf), encoding="utf-8")


def _modelfile(folder: Path, gguf: str | None) -> str:
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    defaults: Any = GenerationConfig.from_pretrained(folder)
    name = folder.name.lower()
    lines = [
        f"# ollama create {name} -f {FILE}",
        f"# ollama create {name} -f {FILE} --quantize q4_K_M   is a quarter of the size",
        f"FROM ./{gguf}" if gguf else "FROM .",
    ]
    template = ChatTemplate.of(tokenizer)
    is_chatml, system = _detect_chatml(template)
    if is_chatml:
        lines.append(f'TEMPLATE """{_CHATML}"""')
    elif template:
        lines.append("# The chat template is not plain ChatML: Ollama chooses the template.")
    if system:
        lines.append(f'SYSTEM """{system}"""')
    lines += [f'PARAMETER stop "{text}"' for text in _stop_texts(tokenizer, defaults)]
    if defaults.do_sample:
        lines += [
            f"PARAMETER {ollama_name} {value}"
            for name, ollama_name in _PARAMETERS.items()
            if (value := getattr(defaults, name)) is not None
        ]
    return "\n".join(lines) + "\n"


def _detect_chatml(template: ChatTemplate) -> tuple[bool, str]:
    """Return whether a template renders ChatML, and its default system prompt."""
    if template.supports_tools:
        return False, ""
    turns = (Message("user", "Q1"), Message("assistant", "A1"), Message("user", "Q2"))
    with_system = (Message("system", "S"), *turns)
    try:
        rendered = template.render(turns).text
        rendered_with_system = template.render(with_system).text
    except TemplateError:
        return False, ""
    if rendered_with_system != _chatml(with_system) or not rendered.endswith(_chatml(turns)):
        return False, ""
    prefix = rendered.removesuffix(_chatml(turns))
    if not prefix:
        return True, ""
    start, end = "<|im_start|>system\n", "<|im_end|>\n"
    if not (prefix.startswith(start) and prefix.endswith(end)):
        return False, ""
    return True, prefix.removeprefix(start).removesuffix(end)


def _chatml(messages: tuple[Message, ...]) -> str:
    turns = (f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in messages)
    return "".join(turns) + "<|im_start|>assistant\n"


def _stop_texts(tokenizer: Any, defaults: Any) -> list[str]:
    """Return the texts of the end-of-sequence tokens."""
    ids = defaults.eos_token_id
    listed = ids if isinstance(ids, list) else [ids]
    return [tokenizer.decode([id_]) for id_ in sorted({*listed, tokenizer.eos_token_id} - {None})]
