"""OpenCompass inferencers that keep its prompts and file layout but use the server."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opencompass.openicl.icl_inferencer import GenInferencer, PPLInferencer
from opencompass.openicl.icl_inferencer.icl_base_inferencer import PPLInferencerOutputHandler

from .http import GroupScores, ServerRequestError, score_by_echo, score_shared_prefix
from .response_cache import cache_key, event_log

NOTES = "llmctl"
"""Key of the entries added to a prediction: error, token counts, finish reason."""


class SharedPrefixPPLInferencer(PPLInferencer):  # type: ignore[misc]
    """Scores all texts of a subject together, so that shared prefixes are computed once.

    OpenCompass scores label by label and sample by sample. At batch sizes above one its left
    padding adds a wrong term to every shorter text; these scores are those of batch size one.
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
        example_ids = retriever.retrieve()
        labels = self._labels(retriever, templates)
        examples = [retriever.generate_ice(ids, ice_template=ice_template) for ids in example_ids]
        output.save_ice(self.model.parse_template(examples, mode="ppl"))

        def texts(index: int) -> list[str]:
            return self._texts(retriever, labels, index, examples[index], templates)

        predictions: list[Any] = [""] * len(example_ids)
        notes: list[dict[str, Any]] = [{} for _ in example_ids]
        dropped = [0] * len(example_ids)
        event_log.emit("questions", count=len(example_ids))
        groups = {index: texts(index) for index in range(len(example_ids))}
        while groups:
            shortened = {}
            for index, scores, computed in self._scores(groups):
                if isinstance(scores, ServerRequestError):
                    ids = example_ids[index]
                    fewer = ids[: -1 - dropped[index]]
                    if scores.too_long and len(fewer) < len(ids) - dropped[index]:
                        # As in OpenCompass, the last example is dropped first.
                        dropped[index] += 1
                        examples[index] = retriever.generate_ice(fewer, ice_template=ice_template)
                        shortened[index] = texts(index)
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
                        without_examples = text.replace(shown, "")
                        output.save_prompt_and_ppl(label, without_examples, text, loss, index)
                        entry = output.results_dict[str(index)][f"label: {label}"]
                        entry["BPB"] = loss * count / len(without_examples.encode())
                event_log.emit("question")
            groups = shortened
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
        """Return the labels and, for each sample, their texts, without scoring them."""
        templates = {"ice_template": ice_template, "prompt_template": prompt_template}
        labels = self._labels(retriever, templates)
        return labels, [
            self._texts(
                retriever,
                labels,
                index,
                retriever.generate_ice(ids, ice_template=ice_template),
                templates,
            )
            for index, ids in enumerate(retriever.retrieve())
        ]

    def _labels(self, retriever: Any, templates: dict[str, Any]) -> list[Any]:
        labels: list[Any] | None = self.labels
        return list(retriever.get_labels(**templates)) if labels is None else labels

    def _texts(
        self, retriever: Any, labels: list[Any], index: int, example: Any, templates: dict[str, Any]
    ) -> list[str]:
        prompts = [
            retriever.generate_label_prompt(idx=index, ice=example, label=label, **templates)
            for label in labels
        ]
        return [self.model.parse_template(prompt, mode="ppl") for prompt in prompts]

    def _scores(self, groups: dict[int, list[str]]) -> Iterator[GroupScores]:
        """Yield the cached scores, then those of the server as they arrive."""
        model = self.model
        keys = {index: cache_key("ppl", model.identity, group) for index, group in groups.items()}
        missing = []
        for index, key in keys.items():
            if (cached := model.cache.get(key)) is None:
                missing.append(index)
                continue
            scores, computed = cached
            yield index, [(logprob, count) for logprob, count in scores], computed
        if not missing:
            return
        texts = [groups[index] for index in missing]
        answers = (
            score_shared_prefix(model.server, texts)
            if model.shared
            else score_by_echo(model.server, texts, model.workers)
        )
        for at, scores, computed in answers:
            if not isinstance(scores, ServerRequestError):
                model.cache.put(keys[missing[at]], [scores, computed])
            yield missing[at], scores, computed


class AnnotatedGenInferencer(GenInferencer):  # type: ignore[misc]
    """Sends all prompts in one batch and adds errors and token counts to the predictions."""

    def __init__(self, *args: Any, **options: Any) -> None:
        # The model limits the requests in flight; OpenCompass would wait between batches.
        super().__init__(*args, **options | {"batch_size": 10**9})

    def inference(self, *args: Any, **options: Any) -> list[str]:
        predictions: list[str] = super().inference(*args, **options)
        file = Path(options["output_json_filepath"]) / options["output_json_filename"]
        content = json.loads(file.read_text(encoding="utf-8"))
        for index, response in enumerate(self.model.responses):
            note = {name: response[name] for name in response if name != "reply"}
            content[str(index)][NOTES] = note
        text = json.dumps(content, ensure_ascii=False, indent=4)
        file.write_text(text, encoding="utf-8")
        return predictions
