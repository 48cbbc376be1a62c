"""Sample replies: the same few prompts, answered before, during and after the training."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmctl.atomic_files import write_atomically
from llmctl.data.dataset import TokenDataset
from llmctl.engine.chat.template import ChatTemplate
from llmctl.types import Message, SampleReply

SAMPLES_FILE = "samples.jsonl"
_MIN_PROMPT_TOKENS = 4
"""Rows with shorter prompts are skipped: a row whose first token is a target has no prompt."""


@dataclass(frozen=True, slots=True)
class SamplePrompt:
    """A prompt for sample replies."""

    text: str
    """For display: the last user message, or the whole prompt."""
    ids: list[int]


def user_prompts(prompts: Sequence[str], template: ChatTemplate) -> list[SamplePrompt]:
    """Return the prompts of `sample_prompts`, rendered as the server renders a user message."""
    return [SamplePrompt(p, template.render([Message("user", p)]).ids) for p in prompts]


def held_out_prompts(rows: TokenDataset, count: int, tokenizer: Any) -> list[SamplePrompt]:
    """Return up to `count` different prompts of rows, spread over the dataset."""
    prompts: list[SamplePrompt] = []
    seen: set[tuple[int, ...]] = set()
    for index in np.linspace(0, len(rows) - 1, num=min(len(rows), 4 * count), dtype=int):
        row = rows[int(index)]
        length = int(np.argmax(row.loss_mask))
        ids = row.ids[:length].tolist()
        if length < _MIN_PROMPT_TOKENS or tuple(ids) in seen:
            continue
        seen.add(tuple(ids))
        prompts.append(SamplePrompt(_last_user_message(tokenizer, ids), ids))
        if len(prompts) == count:
            break
    return prompts


def _last_user_message(tokenizer: Any, ids: list[int]) -> str:
    """Return the text of the last user message in a prompt; a guess by the control tokens."""
    special = set(tokenizer.all_special_ids)
    pieces: list[list[int]] = [[]]
    for token in ids:
        if token in special:
            pieces.append([])
        else:
            pieces[-1].append(token)
    texts = [tokenizer.decode(piece).strip() for piece in pieces]
    turns = [text for text in texts if len(text.splitlines()) > 1] or [t for t in texts if t]
    role, _, content = turns[-1].partition("\n")
    return str(content.strip() or role)


class SampleGenerator:
    """Generates the sample replies of a model in training. Greedy, so replies are comparable.

    Args:
        check: called before each token; may raise.
    """

    def __init__(
        self,
        prompts: Sequence[SamplePrompt],
        tokenizer: Any,
        eos_ids: tuple[int, ...],
        max_tokens: int,
        check: Callable[[], None],
    ) -> None:
        self._prompts = prompts
        self._tokenizer = tokenizer
        self._eos = eos_ids
        self._max_tokens = max_tokens
        self._check = check

    @torch.no_grad()
    def generate(self, model: Any) -> tuple[SampleReply, ...]:
        """Generate the replies to all prompts in one batch."""
        if not self._prompts:
            return ()
        width = max(len(prompt.ids) for prompt in self._prompts)
        pad = self._eos[0]
        ids = torch.full((len(self._prompts), width), pad)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(self._prompts):
            ids[row, width - len(prompt.ids) :] = torch.tensor(prompt.ids)
            mask[row, width - len(prompt.ids) :] = 1
        was_training = model.training
        model.eval()
        try:
            out = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=self._max_tokens,
                do_sample=False,
                num_beams=1,
                # Without these, sampling defaults of the model would cause warnings.
                temperature=None,
                top_p=None,
                top_k=None,
                repetition_penalty=1.0,
                eos_token_id=list(self._eos),
                pad_token_id=pad,
                use_cache=True,
                stopping_criteria=[lambda *_, **__: self._should_stop()],
            )
        finally:
            model.train(was_training)
        return tuple(
            self._reply(prompt, row[width:].tolist())
            for prompt, row in zip(self._prompts, out, strict=True)
        )

    def _should_stop(self) -> bool:
        self._check()
        return False

    def _reply(self, prompt: SamplePrompt, ids: list[int]) -> SampleReply:
        end = next((i for i, token in enumerate(ids) if token in self._eos), None)
        text = self._tokenizer.decode(ids[:end], skip_special_tokens=True).strip()
        return SampleReply(prompt.text, text, complete=end is not None)


class SampleLog:
    """`samples.jsonl` beside the checkpoints: one line with the replies of each evaluation."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / SAMPLES_FILE

    def add(self, step: int, replies: Sequence[SampleReply]) -> None:
        """Write the replies of a step; later steps, of a run that was set back, are removed."""
        kept = {s: r for s, r in self.read().items() if s < step} | {step: tuple(replies)}
        lines = [
            json.dumps({"step": s, "replies": [asdict(r) for r in rs]}, ensure_ascii=False)
            for s, rs in kept.items()
        ]
        write_atomically(self._file, "".join(f"{line}\n" for line in lines))

    def read(self) -> dict[int, tuple[SampleReply, ...]]:
        """Return the replies by step."""
        if not self._file.is_file():
            return {}
        entries = map(json.loads, self._file.read_text(encoding="utf-8").splitlines())
        return {e["step"]: tuple(SampleReply(**r) for r in e["replies"]) for e in entries}
