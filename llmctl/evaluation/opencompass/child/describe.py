"""Tells the questions of a configuration, as OpenCompass would put them, without asking any."""

import os
import traceback
from typing import Any

from .http import _shared
from .models import _messages
from .response_cache import event_log


def describe(
    datasets: list[dict[str, Any]], model: dict[str, Any], wanted: list[str], mode: str
) -> None:
    """Tell each data set's questions, or why it has none.

    Args:
        datasets: as `driver._as_asked` leaves them, but for the rows.
        wanted: names of data sets; none is all.
    """
    from mmengine.config import ConfigDict
    from opencompass.utils import build_model_from_cfg

    _name_missing_files()
    built = build_model_from_cfg(ConfigDict(model))
    for dataset in datasets:
        name = str(dataset["abbr"])
        if wanted and name not in wanted:
            continue
        try:
            event_log.tell("listed", subject=name, questions=_questions(dataset, built, mode))
        except Exception as error:  # whatever a data set's code does where its files are not
            traceback.print_exc()
            event_log.tell("failed", subject=name, error=str(error) or repr(error))


def _name_missing_files() -> None:
    """Let OpenCompass say which file it misses; by itself it says that its download failed."""
    from opencompass.utils import datasets

    fetch = datasets.download_dataset

    def fetched(path: str, *rest: Any, **more: Any) -> Any:
        try:
            return fetch(path, *rest, **more)
        except Exception as error:
            missing = os.path.normpath(path)
            raise FileNotFoundError(f"{missing} is missing, and not to be had: {error}") from error

    datasets.download_dataset = fetched


def _questions(dataset: dict[str, Any], model: Any, mode: str) -> list[dict[str, Any]]:
    from mmengine.config import ConfigDict
    from opencompass.registry import ICL_INFERENCERS, ICL_PROMPT_TEMPLATES, ICL_RETRIEVERS
    from opencompass.utils import build_dataset_from_cfg

    config = ConfigDict(dataset)
    data = build_dataset_from_cfg(config)
    inference = config["infer_cfg"]
    templates = {
        name: ICL_PROMPT_TEMPLATES.build(inference[name])
        for name in ("ice_template", "prompt_template")
        if name in inference
    }
    retriever = ICL_RETRIEVERS.build({**inference["retriever"], "dataset": data})
    inferencer = ICL_INFERENCERS.build({**inference["inferencer"], "model": model})
    reader = retriever.dataset_reader
    column = reader.output_column
    golds = list(reader.dataset["test"][column]) if column else [""] * len(data.test)
    if mode == "gen":
        prompts = inferencer.get_generation_prompt_list_from_retriever_indices(
            retriever.retrieve(), retriever, inferencer.gen_field_replace_token, **templates
        )
        asked: list[dict[str, Any]] = [
            {"messages": _messages(model.parse_template(prompt, mode="gen"))} for prompt in prompts
        ]
    else:
        labels, groups = inferencer.all_texts(retriever, **templates)
        asked = []
        for texts in groups:
            context = _shared(texts)
            asked.append(
                {
                    "labels": [str(label) for label in labels],
                    "context": context,
                    "continuations": [text[len(context) :] for text in texts],
                }
            )
    return [
        {**one, "gold": gold if isinstance(gold, str) else str(gold)}
        for one, gold in zip(asked, golds, strict=True)
    ]
