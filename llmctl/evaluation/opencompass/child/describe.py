"""Lists the samples of a dataset configuration, rendered by OpenCompass, without a model."""

import os
import traceback
from typing import Any

from .http import shared_prefix
from .models import chat_messages
from .response_cache import event_log


def list_samples(
    datasets: list[dict[str, Any]], model: dict[str, Any], wanted: list[str], mode: str
) -> None:
    """Emit the samples of each dataset, or its error.

    Args:
        datasets: definitions from `driver._prepare`, with all rows.
        model: definition of the model, which renders the prompts.
        wanted: names of datasets; empty lists all.
        mode: `ppl` or `gen`.
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
            event_log.emit("samples", subject=name, samples=_samples(dataset, built, mode))
        except Exception as error:  # a dataset's own code fails in any way if its files are missing
            traceback.print_exc()
            event_log.emit("failed", subject=name, error=str(error) or repr(error))


def _name_missing_files() -> None:
    """Make OpenCompass name a missing file; its own message is about the failed download."""
    from opencompass.utils import datasets

    download = datasets.download_dataset

    def download_or_name(path: str, *rest: Any, **more: Any) -> Any:
        try:
            return download(path, *rest, **more)
        except Exception as error:
            file = os.path.normpath(path)
            raise FileNotFoundError(
                f"{file} is missing and cannot be downloaded: {error}"
            ) from error

    datasets.download_dataset = download_or_name


def _samples(dataset: dict[str, Any], model: Any, mode: str) -> list[dict[str, Any]]:
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
    samples: list[dict[str, Any]]
    if mode == "gen":
        prompts = inferencer.get_generation_prompt_list_from_retriever_indices(
            retriever.retrieve(), retriever, inferencer.gen_field_replace_token, **templates
        )
        samples = [
            {"messages": chat_messages(model.parse_template(prompt, mode="gen"))}
            for prompt in prompts
        ]
    else:
        labels, groups = inferencer.all_texts(retriever, **templates)
        samples = []
        for texts in groups:
            context = shared_prefix(texts)
            samples.append(
                {
                    "labels": [str(label) for label in labels],
                    "context": context,
                    "continuations": [text[len(context) :] for text in texts],
                }
            )
    return [
        {**sample, "gold": gold if isinstance(gold, str) else str(gold)}
        for sample, gold in zip(samples, golds, strict=True)
    ]
