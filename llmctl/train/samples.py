"""How does the model answer right now? The same few questions, before, during and after."""

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
_SHORTEST = 4
"""Tokens of a prompt: a row that is learnt from its first token on asks nothing."""


@dataclass(frozen=True, slots=True)
class SamplePrompt:
    text: str
    """For a person: what the user says, or the whole prompt."""
    ids: list[int]


def user_prompts(prompts: Sequence[str], template: ChatTemplate) -> list[SamplePrompt]:
    """Return what a person wants to be asked, as the server would ask it."""
    return [SamplePrompt(p, template.render([Message("user", p)]).ids) for p in prompts]


def held_out_prompts(rows: TokenDataset, count: int, tokenizer: Any) -> list[SamplePrompt]:
    """Return the prompts of a few rows, spread over the data."""
    found: list[SamplePrompt] = []
    seen: set[tuple[int, ...]] = set()
    for index in np.linspace(0, len(rows) - 1, num=min(len(rows), 4 * count), dtype=int):
        row = rows[int(index)]
        length = int(np.argmax(row.loss_mask))
        ids = row.ids[:length].tolist()
        if length < _SHORTEST or tuple(ids) in seen:
            continue
        seen.add(tuple(ids))
        found.append(SamplePrompt(_last_turn(tokenizer, ids), ids))
        if len(found) == count:
            break
    return found


def _last_turn(tokenizer: Any, ids: list[int]) -> str:
    """Return what the user says at the end of a prompt, as well as that can be told."""
    special = set(tokenizer.all_special_ids)
    pieces: list[list[int]] = [[]]
    for token in ids:
        if token in special:
            pieces.append([])
        else:
            pieces[-1].append(token)
    texts = [tokenizer.decode(piece).strip() for piece in pieces]
    spoken = [text for text in texts if len(text.splitlines()) > 1] or [t for t in texts if t]
    role, _, said = spoken[-1].partition("\n")
    return str(said.strip() or role)


class SampleGenerator:
    """Asks a model that is being taught. Greedy, so that a difference is a difference.

    Args:
        check: called before each token; may raise.
    """

    def __init__(
        self,
        questions: Sequence[SamplePrompt],
        tokenizer: Any,
        eos_ids: tuple[int, ...],
        max_tokens: int,
        check: Callable[[], None],
    ) -> None:
        self._questions = questions
        self._tokenizer = tokenizer
        self._eos = eos_ids
        self._max_tokens = max_tokens
        self._check = check

    @torch.no_grad()
    def ask(self, model: Any) -> tuple[SampleReply, ...]:
        """Answer all questions in one batch."""
        if not self._questions:
            return ()
        width = max(len(question.ids) for question in self._questions)
        pad = self._eos[0]
        ids = torch.full((len(self._questions), width), pad)
        mask = torch.zeros_like(ids)
        for row, question in enumerate(self._questions):
            ids[row, width - len(question.ids) :] = torch.tensor(question.ids)
            mask[row, width - len(question.ids) :] = 1
        was_training = model.training
        model.eval()
        try:
            out = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=self._max_tokens,
                do_sample=False,
                num_beams=1,
                # What the model's own defaults say of sampling would only be warned about.
                temperature=None,
                top_p=None,
                top_k=None,
                repetition_penalty=1.0,
                eos_token_id=list(self._eos),
                pad_token_id=pad,
                use_cache=True,
                stopping_criteria=[lambda *_, **__: self._go_on()],
            )
        finally:
            model.train(was_training)
        return tuple(
            self._reply(question, row[width:].tolist())
            for question, row in zip(self._questions, out, strict=True)
        )

    def _go_on(self) -> bool:
        self._check()
        return False

    def _reply(self, question: SamplePrompt, ids: list[int]) -> SampleReply:
        end = next((i for i, token in enumerate(ids) if token in self._eos), None)
        text = self._tokenizer.decode(ids[:end], skip_special_tokens=True).strip()
        return SampleReply(question.text, text, complete=end is not None)


class SampleLog:
    """The replies of all measurements, a JSON line each, beside the checkpoints."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / SAMPLES_FILE

    def add(self, step: int, replies: Sequence[SampleReply]) -> None:
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
