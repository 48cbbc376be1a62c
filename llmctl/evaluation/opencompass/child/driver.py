"""Runs OpenCompass' own tasks in one process and scores every subject, even if others fail.

OpenCompass' command line starts a process per task, loses all later subjects when one fails, and
exits with 0 all the same. Its tasks are used unchanged; the configuration that the command line
would use is written to `<benchmark>_config.py`.
"""

import copy
import importlib.util
import json
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from .response_cache import event_log

GEN, PPL = "GenInferencer", "PPLInferencer"
DEFAULT_MAX_NEW_TOKENS = 512
"""Reply limit of a configuration that leaves it to the model."""
ZERO_SHOT_RETRIEVER = "opencompass.openicl.icl_retriever.ZeroRetriever"


def end_with_parent() -> None:
    """End this process when its standard input closes, which means that the parent ended."""

    def watch() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Process the request in the JSON file that the command line names."""
    end_with_parent()
    request: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    event_log.write_to(Path(request["events"]))
    event_log.emit("loading")
    # These imports fill OpenCompass' registries and take seconds.
    import opencompass.datasets
    import opencompass.openicl  # noqa: F401  registers the inferencers

    if "describe" in request:
        _describe(request)
        event_log.emit("end")
        return
    work = Path(request["work"])
    benchmarks = [(benchmark, _datasets(benchmark)) for benchmark in request["benchmarks"]]
    _write_config(request, benchmarks, work)
    for benchmark, datasets in benchmarks:
        model = _model(request, benchmark)
        for subject, dataset in datasets:
            names = {"suite": benchmark["suite"], "subject": subject}
            event_log.emit("subject", **names)
            try:
                predictions, results = _run(model, dataset, work / benchmark["suite"])
                event_log.emit("done", **names, predictions=predictions, results=results)
            except Exception as error:  # the other subjects still run
                traceback.print_exc()
                event_log.emit("failed", **names, error=f"{type(error).__name__}: {error}")
    event_log.emit("end")


def _describe(request: dict[str, Any]) -> None:
    """Emit the setup and the samples of a configuration."""
    from mmengine.config import ConfigDict
    from opencompass.utils import get_prompt_hash

    from .describe import list_samples

    description = request["describe"]
    definitions = _definitions(description["config"])
    kinds = {_inferencer_kind(dataset) for dataset in definitions}
    if len(kinds) > 1:
        raise LookupError(f"{description['config']} mixes {' and '.join(sorted(kinds))}")
    (kind,) = kinds
    mode = "ppl" if kind == PPL else "gen"
    inference = definitions[0]["infer_cfg"]
    examples = inference["retriever"].get("fix_id_list", ())
    wanted_shots = description["shots"]
    shots = len(examples) if wanted_shots is None else min(wanted_shots, len(examples))
    max_new_tokens = (
        description["max_new_tokens"]
        or inference["inferencer"].get("max_out_len")
        or DEFAULT_MAX_NEW_TOKENS
    )
    event_log.emit(
        "setup",
        subjects=[str(dataset["abbr"]) for dataset in definitions],
        mode=mode,
        shots=shots,
        max_new_tokens=0 if mode == "ppl" else max_new_tokens,
        prompt_hash=get_prompt_hash([ConfigDict(d) for d in copy.deepcopy(definitions)])[:12],
    )
    benchmark = {
        **description,
        "mode": mode,
        "shots": shots,
        "max_new_tokens": max_new_tokens,
        "path": "",
    }
    datasets = [_prepare(dataset, benchmark, None) for dataset in definitions]
    list_samples(datasets, _model(request, benchmark), description["subjects"], mode)


def _inferencer_kind(dataset: dict[str, Any]) -> str:
    kind = dataset["infer_cfg"]["inferencer"]["type"]
    name: str = kind if isinstance(kind, str) else kind.__name__
    return name.rpartition(".")[2]


def _datasets(benchmark: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return OpenCompass' definition of each wanted subject."""
    wanted: dict[str, list[int]] = benchmark["subjects"]
    found = {}
    for dataset in _definitions(benchmark["config"]):
        names = _subject_names(dataset, benchmark["suite"])
        subject = next((name for name in names if name in wanted), None)
        if subject is not None:
            found[subject] = _prepare(dataset, benchmark, wanted[subject])
    for subject in wanted:
        if subject not in found:
            event_log.emit(
                "failed",
                suite=benchmark["suite"],
                subject=subject,
                error=f"{benchmark['config']} has no subject {subject}",
            )
    return list(found.items())


def _definitions(name: str) -> list[dict[str, Any]]:
    """Return the datasets of a configuration of OpenCompass. Raises `LookupError`."""
    from mmengine.config import Config

    spec = importlib.util.find_spec("opencompass.configs.datasets")
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    files = [file for folder in folders for file in Path(folder).rglob(f"{name}.py")]
    if not files:
        raise LookupError(f"OpenCompass has no dataset configuration {name!r}")
    config = Config.fromfile(str(files[0]))
    lists = [config[key] for key in config if key.endswith("_datasets")]
    return [dataset.to_dict() for one in lists for dataset in one]


def _subject_names(dataset: dict[str, Any], benchmark: str) -> list[str]:
    """Return the possible names of a subject, the most specific first."""
    abbr = str(dataset["abbr"])
    return [str(dataset.get("name", "")), abbr, abbr.removeprefix(f"{benchmark}-"), benchmark]


def _prepare(
    dataset: dict[str, Any], benchmark: dict[str, Any], rows: list[int] | None
) -> dict[str, Any]:
    """Return a dataset's definition with our inferencer, shots, path and rows (None for all)."""
    inference, kind = dataset["infer_cfg"], _inferencer_kind(dataset)
    inferencer = {
        PPL: "llmctl_oc.inferencers.SharedPrefixPPLInferencer",
        GEN: "llmctl_oc.inferencers.AnnotatedGenInferencer",
    }.get(kind)
    if inferencer is None:
        raise LookupError(
            f"{benchmark['config']} needs a {kind}, which works only with local models"
        )
    inference["inferencer"]["type"] = inferencer
    if kind == GEN:
        inference["inferencer"]["max_out_len"] = benchmark["max_new_tokens"]
    retriever = inference["retriever"]
    if "fix_id_list" in retriever:
        examples = retriever["fix_id_list"][: benchmark["shots"]]
        inference["retriever"] = (
            retriever | {"fix_id_list": examples} if examples else {"type": ZERO_SHOT_RETRIEVER}
        )
    if benchmark["path"]:
        dataset["path"] = benchmark["path"]
    # OpenCompass evaluates the text `index_list` followed by `test_range`.
    if rows is not None:
        dataset["reader_cfg"]["test_range"] = f" and {rows}"
    return dataset


def _model(request: dict[str, Any], benchmark: dict[str, Any]) -> dict[str, Any]:
    common = {
        "abbr": "model",
        "path": request["model"],
        "base_url": request["base_url"],
        "identity": request["identity"],
        "cache": request["cache"],
        "workers": request["workers"],
        "run_cfg": {"num_gpus": 0},
        "batch_size": 1,
    }
    if benchmark["mode"] == "ppl":
        return {"type": "llmctl_oc.models.TextModel", **common, "shared": request["shared"]}
    turns = [{"role": "HUMAN", "api_role": "HUMAN"}]
    turns.append({"role": "BOT", "api_role": "BOT", "generate": True})  # type: ignore[dict-item]
    return {
        "type": "llmctl_oc.models.ChatModel",
        **common,
        "meta_template": {
            "round": turns,
            "reserved_roles": [{"role": "SYSTEM", "api_role": "SYSTEM"}],
        },
        "max_out_len": benchmark["max_new_tokens"],
    }


def _task_config(model: dict[str, Any], dataset: dict[str, Any], work: Path) -> Any:
    from mmengine.config import ConfigDict

    return ConfigDict(
        models=[model],
        datasets=[[dataset]],
        work_dir=str(work),
        eval={"runner": {"task": {"dump_details": True}}},
    )


def _run(model: dict[str, Any], dataset: dict[str, Any], work: Path) -> tuple[str, str]:
    """Infer and score one subject; return the paths of its predictions and its results."""
    from opencompass.tasks import OpenICLEvalTask, OpenICLInferTask
    from opencompass.utils import get_infer_output_path

    files = [
        Path(get_infer_output_path(model, dataset, str(work / folder)))
        for folder in ("predictions", "results")
    ]
    for file in files:
        # OpenCompass would reuse files of an earlier run, which may have had other rows.
        file.unlink(missing_ok=True)
    OpenICLInferTask(_task_config(model, dataset, work)).run()
    OpenICLEvalTask(_task_config(model, dataset, work)).run()
    return str(files[0]), str(files[1])


def _write_config(request: dict[str, Any], benchmarks: list[Any], work: Path) -> None:
    """Write the configuration that OpenCompass' own command line would use."""
    from mmengine.config import Config

    work.mkdir(parents=True, exist_ok=True)
    for benchmark, datasets in benchmarks:
        config = Config(
            {
                "models": [_model(request, benchmark)],
                "datasets": [dataset for _, dataset in datasets],
                "work_dir": str(work / benchmark["suite"]),
            }
        )
        config.dump(str(work / f"{benchmark['suite']}_config.py"))


if __name__ == "__main__":
    main()
