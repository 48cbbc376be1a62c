"""Runs OpenCompass' own tasks in one process: every subject is asked and scored, come what may.

OpenCompass' command line starts a process for each task, loses all later subjects when one fails,
and ends with 0 all the same. The tasks themselves are used here as they are; the configuration
that it would have run with is written to `opencompass_config.py`.
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
"""Tokens, where a configuration leaves it to the model."""
ZERO_SHOT_RETRIEVER = "opencompass.openicl.icl_retriever.ZeroRetriever"


def end_with_parent() -> None:
    """End this process when its standard input closes, for its parent is dead then."""

    def watch() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Run what the request, a JSON file named on the command line, asks for."""
    end_with_parent()
    request: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    event_log.write_to(Path(request["events"]))
    event_log.tell("loading")
    # Both fill OpenCompass' registries, and take seconds.
    import opencompass.datasets
    import opencompass.openicl  # noqa: F401

    if "describe" in request:
        _describe(request)
        event_log.tell("end")
        return
    work = Path(request["work"])
    exams = [(exam, _datasets(exam)) for exam in request["exams"]]
    _write_config(request, exams, work)
    for exam, datasets in exams:
        model = _model(request, exam)
        for subject, dataset in datasets:
            named = {"suite": exam["suite"], "subject": subject}
            event_log.tell("subject", **named)
            try:
                predictions, results = _run(model, dataset, work / exam["suite"])
                event_log.tell("done", **named, predictions=predictions, results=results)
            except Exception as error:  # whatever it is, the other subjects go on
                traceback.print_exc()
                event_log.tell("failed", **named, error=f"{type(error).__name__}: {error}")
    event_log.tell("end")


def _describe(request: dict[str, Any]) -> None:
    """Tell what a configuration asks, and how."""
    from opencompass.utils import get_prompt_hash

    from .describe import describe

    asked = request["describe"]
    defined = _defined(asked["config"])
    kinds = {_kind(dataset) for dataset in defined}
    if len(kinds) > 1:
        raise LookupError(f"{asked['config']} mixes {' and '.join(sorted(kinds))}")
    (kind,) = kinds
    mode = "ppl" if kind == PPL else "gen"
    inferencer = defined[0]["infer_cfg"]["inferencer"]
    shown = defined[0]["infer_cfg"]["retriever"].get("fix_id_list", ())
    shots = len(shown) if asked["shots"] is None else min(asked["shots"], len(shown))
    longest = asked["max_new_tokens"] or inferencer.get("max_out_len") or DEFAULT_MAX_NEW_TOKENS
    from mmengine.config import ConfigDict

    event_log.tell(
        "named",
        subjects=[str(dataset["abbr"]) for dataset in defined],
        mode=mode,
        shots=shots,
        max_new_tokens=0 if mode == "ppl" else longest,
        prompt_hash=get_prompt_hash([ConfigDict(d) for d in copy.deepcopy(defined)])[:12],
    )
    exam = {**asked, "mode": mode, "shots": shots, "max_new_tokens": longest, "path": ""}
    asked_as = [_as_asked(dataset, exam, None) for dataset in defined]
    describe(asked_as, _model(request, exam), asked["subjects"], mode)


def _kind(dataset: dict[str, Any]) -> str:
    kind = dataset["infer_cfg"]["inferencer"]["type"]
    name: str = kind if isinstance(kind, str) else kind.__name__
    return name.rpartition(".")[2]


def _datasets(exam: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return OpenCompass' definition of each subject that is asked."""
    wanted: dict[str, list[int]] = exam["subjects"]
    found = {}
    for dataset in _defined(exam["config"]):
        subject = next((n for n in _names(dataset, exam["suite"]) if n in wanted), None)
        if subject is not None:
            found[subject] = _as_asked(dataset, exam, wanted[subject])
    for subject in wanted:
        if subject not in found:
            event_log.tell(
                "failed",
                suite=exam["suite"],
                subject=subject,
                error=f"{exam['config']} has no subject {subject}",
            )
    return list(found.items())


def _defined(name: str) -> list[dict[str, Any]]:
    """Return the data sets of a configuration of OpenCompass'. Raises `LookupError`."""
    from mmengine.config import Config

    spec = importlib.util.find_spec("opencompass.configs.datasets")
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    files = [file for folder in folders for file in Path(folder).rglob(f"{name}.py")]
    if not files:
        raise LookupError(f"OpenCompass has no dataset configuration {name!r}")
    config = Config.fromfile(str(files[0]))
    lists = [config[key] for key in config if key.endswith("_datasets")]
    return [dataset.to_dict() for one in lists for dataset in one]


def _names(dataset: dict[str, Any], suite: str) -> list[str]:
    """Return what a subject may be called, the most particular first."""
    abbr = str(dataset["abbr"])
    return [str(dataset.get("name", "")), abbr, abbr.removeprefix(f"{suite}-"), suite]


def _as_asked(
    dataset: dict[str, Any], exam: dict[str, Any], rows: list[int] | None
) -> dict[str, Any]:
    """Put our inferencer in, and what was chosen; `rows` None asks all of them."""
    inference, kind = dataset["infer_cfg"], _kind(dataset)
    ours = {
        PPL: "llmctl_oc.inferencers.SharedPrefixPPLInferencer",
        GEN: "llmctl_oc.inferencers.NotedGenInferencer",
    }.get(kind)
    if ours is None:
        raise LookupError(f"{exam['config']} needs a {kind}, which only a local model can feed")
    inference["inferencer"]["type"] = ours
    if ours.endswith("NotedGenInferencer"):
        inference["inferencer"]["max_out_len"] = exam["max_new_tokens"]
    retriever = inference["retriever"]
    if "fix_id_list" in retriever:
        shown = retriever["fix_id_list"][: exam["shots"]]
        inference["retriever"] = (
            retriever | {"fix_id_list": shown} if shown else {"type": ZERO_SHOT_RETRIEVER}
        )
    if exam["path"]:
        dataset["path"] = exam["path"]
    # It stands behind the name of a list, in an expression that OpenCompass evaluates.
    if rows is not None:
        dataset["reader_cfg"]["test_range"] = f" and {rows}"
    return dataset


def _model(request: dict[str, Any], exam: dict[str, Any]) -> dict[str, Any]:
    common = {
        "abbr": "model",
        "path": request["model"],
        "base_url": request["base_url"],
        "identity": request["identity"],
        "journal": request["journal"],
        "workers": request["workers"],
        "run_cfg": {"num_gpus": 0},
        "batch_size": 1,
    }
    if exam["mode"] == "ppl":
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
        "max_out_len": exam["max_new_tokens"],
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
    """Ask and score one subject; return where its predictions and its results lie."""
    from opencompass.tasks import OpenICLEvalTask, OpenICLInferTask
    from opencompass.utils import get_infer_output_path

    files = [
        Path(get_infer_output_path(model, dataset, str(work / folder)))
        for folder in ("predictions", "results")
    ]
    for file in files:
        # OpenCompass would take it for this run's, whatever was asked then. The journal knows.
        file.unlink(missing_ok=True)
    OpenICLInferTask(_task_config(model, dataset, work)).run()
    OpenICLEvalTask(_task_config(model, dataset, work)).run()
    return str(files[0]), str(files[1])


def _write_config(request: dict[str, Any], exams: list[Any], work: Path) -> None:
    """Write the run as OpenCompass' own command line would read it, for whoever wants to look."""
    from mmengine.config import Config

    work.mkdir(parents=True, exist_ok=True)
    for exam, datasets in exams:
        config = Config(
            {
                "models": [_model(request, exam)],
                "datasets": [dataset for _, dataset in datasets],
                "work_dir": str(work / exam["suite"]),
            }
        )
        config.dump(str(work / f"{exam['suite']}_config.py"))


if __name__ == "__main__":
    main()
