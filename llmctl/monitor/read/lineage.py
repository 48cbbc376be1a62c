"""Lineage of runs, datasets and models, as a tree of sources and a tree of results.

A run has datasets and a model as inputs and as outputs. Datasets are identified by their digest,
models by the id of their LoggedModel.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from llmctl.types import TAG_ADAPTER, DatasetUse, RunRecord

LineageNodeKind = Literal["run", "dataset", "model"]


@dataclass(frozen=True, slots=True)
class LineageNode:
    """A run, a dataset or a model, with its sources or its results."""

    kind: LineageNodeKind
    id: str
    """Run id, digest or LoggedModel id."""
    name: str
    role: str = ""
    """Relation to the parent node: `training`, `output`, `model`, `part`, ..."""
    run: RunRecord | None = None
    dataset: DatasetUse | None = None
    branches: tuple["LineageNode", ...] = ()
    seen: bool = False
    """Its branches are at its first occurrence in the tree."""


class Lineage:
    """The relations between all runs of a store."""

    def __init__(self, runs: Iterable[RunRecord]) -> None:
        self._runs: dict[str, RunRecord] = {}
        self._made_by: defaultdict[tuple[str, str], list[RunRecord]] = defaultdict(list)
        """Runs by the kind and id of an output."""
        self._used_by: defaultdict[tuple[str, str], list[RunRecord]] = defaultdict(list)
        """Runs by the kind and id of an input."""
        for run in sorted(runs, key=lambda run: run.started):
            self._runs[run.run_id] = run
            for use in run.datasets:
                side = self._made_by if use.context == "output" else self._used_by
                side["dataset", use.digest].append(run)
            if run.model_id:
                self._made_by["model", run.model_id].append(run)
            if run.used_model_id:
                self._used_by["model", run.used_model_id].append(run)
            if run.parent_run_id:
                self._used_by["run", run.parent_run_id].append(run)

    def sources(self, run: RunRecord) -> LineageNode:
        """Return the tree of the inputs of a run."""
        return self._grow(self._node_of(run), up=True, seen=set())

    def results(self, run: RunRecord) -> LineageNode:
        """Return the tree of the outputs of a run."""
        return self._grow(self._node_of(run), up=False, seen=set())

    def _grow(
        self, node: LineageNode, *, up: bool, seen: set[tuple[str, str]], above: str = ""
    ) -> LineageNode:
        key = (node.kind, node.id)
        if key in seen:  # reached by two paths, or part of a cycle
            return replace(node, seen=bool(self._next(node, up=up)))
        seen.add(key)
        branches = [
            self._grow(following, up=up, seen=seen, above=node.id)
            for following in self._next(node, up)
            if following.run is None or following.id != above  # not the run itself
        ]
        return replace(node, branches=tuple(branches))

    def _next(self, node: LineageNode, up: bool) -> list[LineageNode]:
        if node.run is not None:
            return self._around(node.run, up=up)
        side = self._made_by if up else self._used_by
        return [self._node_of(run) for run in side.get((node.kind, node.id), ())]

    def _around(self, run: RunRecord, *, up: bool) -> list[LineageNode]:
        found = [
            LineageNode("dataset", use.digest, use.name, use.context, dataset=use)
            for use in run.datasets
            if (use.context == "output") is not up
        ]
        if up:
            if run.used_model_id:
                found.append(self._model(run.used_model_id))
            if run.parent_run_id in self._runs:
                found.append(self._node_of(self._runs[run.parent_run_id], "whole"))
            elif run.parent_run_id:
                missing = "not in this store any more"
                found.append(LineageNode("run", run.parent_run_id, missing, "whole"))
            return found
        if run.model_id:
            found.append(self._model(run.model_id))
        parts = self._used_by.get(("run", run.run_id), ())
        return found + [self._node_of(part, "part") for part in parts]

    def _model(self, model_id: str) -> LineageNode:
        key = ("model", model_id)
        known = [*self._made_by.get(key, ()), *self._used_by.get(key, ())]
        folders = (run.tags[TAG_ADAPTER] for run in known if TAG_ADAPTER in run.tags)
        return LineageNode("model", model_id, next(folders, model_id), "model")

    def _node_of(self, run: RunRecord, role: str = "") -> LineageNode:
        return LineageNode("run", run.run_id, run.name, role, run=run)
