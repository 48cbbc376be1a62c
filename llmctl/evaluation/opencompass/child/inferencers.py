"""Our inferencers for OpenCompass: its prompts and file layout, our way of asking."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opencompass.openicl.icl_inferencer import GenInferencer, PPLInferencer
from opencompass.openicl.icl_inferencer.icl_base_inferencer import PPLInferencerOutputHandler

from .http import ServerRequestError, TextLogprob, score_by_echo, score_shared_prefix
from .response_cache import cache_key, event_log

NOTES = "llmctl"
"""What we add to a prediction of OpenCompass': an error, token counts, how a reply ended."""


class SharedPrefixPPLInferencer(PPLInferencer):  # type: ignore[misc]
    """Asks for all texts of a subject together, so that what they share is computed once.

    OpenCompass goes label by label and question by question, and at batch sizes above one its
    left padding adds a wrong term to every shorter text; these are its numbers at batch size one.
    """

    def inference(
        self,
        retriever: Any,
        ice_template: Any = None,
        prompt_template: Any = None,
        output_json_filepath: str = "",
        output_json_filename: str = "",
        normalizing_str: str | None = None,
    ) -> list[str]:
        if normalizing_str is not None:
            raise NotImplementedError("normalizing_str is not supported")
        output = PPLInferencerOutputHandler()
        templates = {"ice_template": ice_template, "prompt_template": prompt_template}
        chosen = retriever.retrieve()
        labels = self._labels(retriever, templates)
        examples = [retriever.generate_ice(ids, ice_template=ice_template) for ids in chosen]
        output.save_ice(self.model.parse_template(examples, mode="ppl"))

        def texts(index: int) -> list[str]:
            return self._texts(retriever, labels, index, examples[index], templates)

        predictions: list[Any] = [""] * len(chosen)
        notes: list[dict[str, Any]] = [{} for _ in chosen]
        dropped = [0] * len(chosen)
        event_log.tell("questions", count=len(chosen))
        groups = {index: texts(index) for index in range(len(chosen))}
        while groups:
            again = {}
            for index, scores, computed in self._scores(groups):
                if isinstance(scores, ServerRequestError):
                    left = chosen[index][: -1 - dropped[index]]
                    if scores.too_long and len(left) < len(chosen[index]) - dropped[index]:
                        # As in OpenCompass, the last example goes first.
                        dropped[index] += 1
                        examples[index] = retriever.generate_ice(left, ice_template=ice_template)
                        again[index] = texts(index)
                        continue
                    notes[index] = {"error": str(scores), "too_long": scores.too_long}
                    output.results_dict[str(index)]["origin_prompt"] = groups[index][0]
                else:
                    losses = [-logprob / count for logprob, count in scores]
                    predictions[index] = labels[losses.index(min(losses))]
                    notes[index] = {
                        "tokens": computed,
                        "naive_tokens": sum(count for _, count in scores),
                        "dropped": dropped[index],
                    }
                    shown = self.model.parse_template(examples[index], mode="ppl")
                    for at, label in enumerate(labels):
                        text, loss, count = groups[index][at], losses[at], scores[at][1]
                        without = text.replace(shown, "")
                        output.save_prompt_and_ppl(label, without, text, loss, index)
                        entry = output.results_dict[str(index)][f"label: {label}"]
                        entry["BPB"] = loss * count / len(without.encode())
                event_log.tell("question")
            groups = again
        output.save_predictions(predictions)
        reader = retriever.dataset_reader
        if reader.output_column:
            output.save_golds(reader.dataset["test"][reader.output_column])
        for index, note in enumerate(notes):
            output.results_dict[str(index)][NOTES] = note
        Path(output_json_filepath).mkdir(parents=True, exist_ok=True)
        output.write_to_json(output_json_filepath, output_json_filename)
        return predictions

    def all_texts(
        self, retriever: Any, ice_template: Any = None, prompt_template: Any = None
    ) -> tuple[list[Any], list[list[str]]]:
        """Return the labels, and their texts for each question, without asking."""
        templates = {"ice_template": ice_template, "prompt_template": prompt_template}
        labels = self._labels(retriever, templates)
        chosen = retriever.retrieve()
        return labels, [
            self._texts(
                retriever,
                labels,
                index,
                retriever.generate_ice(ids, ice_template=ice_template),
                templates,
            )
            for index, ids in enumerate(chosen)
        ]

    def _labels(self, retriever: Any, templates: dict[str, Any]) -> list[Any]:
        known: list[Any] | None = self.labels
        return list(retriever.get_labels(**templates)) if known is None else known

    def _texts(
        self, retriever: Any, labels: list[Any], index: int, example: Any, templates: dict[str, Any]
    ) -> list[str]:
        prompts = [
            retriever.generate_label_prompt(idx=index, ice=example, label=label, **templates)
            for label in labels
        ]
        return [self.model.parse_template(prompt, mode="ppl") for prompt in prompts]

    def _scores(
        self, groups: dict[int, list[str]]
    ) -> Iterator[tuple[int, list[TextLogprob] | ServerRequestError, int]]:
        """Yield what is known from an earlier run, then what the server says, as it says it."""
        model = self.model
        keys = {index: cache_key("ppl", model.identity, group) for index, group in groups.items()}
        left = []
        for index, key in keys.items():
            if (known := model.journal.get(key)) is None:
                left.append(index)
                continue
            scores, computed = known
            yield index, [(logprob, count) for logprob, count in scores], computed
        if not left:
            return
        asked = [groups[index] for index in left]
        answers = (
            score_shared_prefix(model.server, asked)
            if model.shared
            else score_by_echo(model.server, asked, model.workers)
        )
        for at, scores, computed in answers:
            if not isinstance(scores, ServerRequestError):
                model.journal.put(keys[left[at]], [scores, computed])
            yield left[at], scores, computed


class NotedGenInferencer(GenInferencer):  # type: ignore[misc]
    """OpenCompass' own, with all questions in one batch and what went wrong written beside."""

    def __init__(self, *args: Any, **options: Any) -> None:
        # In-flight requests are the model's to limit; OpenCompass would wait between batches.
        super().__init__(*args, **options | {"batch_size": 10**9})

    def inference(self, *args: Any, **options: Any) -> list[str]:
        predictions: list[str] = super().inference(*args, **options)
        file = Path(options["output_json_filepath"]) / options["output_json_filename"]
        found = json.loads(file.read_text(encoding="utf-8"))
        for index, note in enumerate(self.model.notes):
            found[str(index)][NOTES] = {name: note[name] for name in note if name != "reply"}
        text = json.dumps(found, ensure_ascii=False, indent=4)
        file.write_text(text, encoding="utf-8")
        return predictions
