"""The status of runs after every kind of end of a process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmctl.monitor.read.runs import open_runs
from llmctl.monitor.store import TrackingStore
from llmctl.monitor.write.events import MetricEvent
from llmctl.monitor.write.liveness import DIED_ERROR, is_alive, mark_dead_runs, process_identity
from llmctl.monitor.write.spool import Spool
from llmctl.types import TAG_ERROR, TAG_HEARTBEAT, TAG_PROCESS
from tests.monitor.conftest import Opener

Child = subprocess.Popen[str]


@pytest.fixture
def start(store: TrackingStore) -> Iterator[Callable[..., Child]]:
    """A function that starts `child.py`; all children are killed after the test."""
    assert store.uri
    children: list[Child] = []

    def starter(*arguments: str) -> Child:
        command = [sys.executable, "-m", "tests.monitor.child", *arguments]
        pipe = subprocess.PIPE
        children.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True))
        return children[-1]

    yield starter
    for child in children:
        child.kill()
        child.communicate()


def run_id_of(child: Child) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def points(store: TrackingStore, run_id: str) -> int:
    return len(store.client.get_metric_history(run_id, "train/loss"))


def wait_for_points(store: TrackingStore, run_id: str) -> None:
    for _ in range(200):
        if points(store, run_id):
            return
        time.sleep(0.05)
    raise AssertionError("no metric was delivered")


def stop_with_spooled_events(child: Child, home: Path) -> set[int]:
    """Stop a child while its spool holds metrics; return their steps."""
    for _ in range(400):
        time.sleep(0.05)
        child.send_signal(signal.SIGSTOP)
        (file,) = (home / "tracking").glob("*.jsonl")
        steps = {row.step for row in Spool(file).read().events if isinstance(row, MetricEvent)}
        if steps:
            return steps
        child.send_signal(signal.SIGCONT)
    raise AssertionError("no metric was spooled")


@pytest.mark.slow
def test_signals_and_a_crash_set_the_status(
    store: TrackingStore, start: Callable[..., Child]
) -> None:
    children = {number: start("long") for number in (signal.SIGINT, signal.SIGTERM)}
    crashing = start("crash")
    runs = {}
    for number, child in children.items():
        runs[number] = run_id_of(child)
        child.send_signal(number)
    crashed = store.client.get_run(run_id_of(crashing))
    _, trace = crashing.communicate(timeout=180)
    assert "ZeroDivisionError" in trace
    crashed = store.client.get_run(crashed.info.run_id)
    assert crashed.info.status == "FAILED"
    assert crashed.data.tags[TAG_ERROR] == "ZeroDivisionError: the loss is NaN"
    files = [file.path for file in store.client.list_artifacts(crashed.info.run_id)]
    assert files == ["traceback.txt"]
    codes = {number: child.wait(180) for number, child in children.items()}
    assert codes == {signal.SIGINT: -signal.SIGINT, signal.SIGTERM: 128 + signal.SIGTERM}
    for number, reason in ((signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")):
        run = store.client.get_run(runs[number])
        assert run.info.status == "KILLED"
        assert run.info.end_time >= run.info.start_time
        assert run.data.tags[TAG_ERROR] == f"stopped by {reason}"


@pytest.mark.slow
def test_a_run_killed_by_sigkill_is_recovered_and_can_be_resumed(
    home: Path, store: TrackingStore, start: Callable[..., Child], begin: Opener
) -> None:
    child = start("long")
    run_id = run_id_of(child)
    wait_for_points(store, run_id)
    assert mark_dead_runs(store.client, [store.experiment_id]) == []  # it is alive
    spooled = stop_with_spooled_events(child, home)
    child.kill()
    child.wait()
    assert store.client.get_run(run_id).info.status == "RUNNING"

    with open_runs() as reader:
        curve = reader.curves(run_id)["train/loss"]
        (dead,) = reader.runs()
    assert dead.status == "killed"
    assert dead.ended is not None
    assert dead.ended >= curve[-1].time - 1
    assert spooled <= {point.step for point in curve}
    before = points(store, run_id)
    assert before == len(curve) > max(spooled)  # some were delivered already
    assert list((home / "tracking").glob("*.jsonl")) == []

    begin("eval").end("finished")
    run = store.client.get_run(run_id)
    assert run.info.status == "KILLED"
    assert run.data.tags[TAG_ERROR] == DIED_ERROR
    assert abs(run.info.end_time / 1000 - time.time()) < 120

    again = start("short", run_id)
    assert run_id_of(again) == run_id
    assert again.wait(180) == 0
    run = store.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert TAG_ERROR not in run.data.tags
    assert points(store, run_id) == before + 100


def test_a_local_process_is_identified_by_pid_and_start_time() -> None:
    mine = process_identity()
    machine, pid, started = mine.rsplit(" ", 2)
    assert is_alive(mine, seen=None)
    assert pid == str(os.getpid())
    assert not is_alive(f"{machine} {pid} {int(started) - 3600}", seen=time.time())
    assert not is_alive(f"{machine} 999999999 {started}", seen=time.time())


def test_a_remote_process_is_dead_after_15_minutes_without_heartbeat() -> None:
    assert is_alive("elsewhere/1 12 1700000000", seen=1000.0, now=1000.0 + 890)
    assert not is_alive("elsewhere/1 12 1700000000", seen=1000.0, now=1000.0 + 910)
    assert not is_alive("elsewhere/1 12 1700000000", seen=None)
    assert not is_alive("nonsense", seen=None)


def test_runs_of_other_programs_are_unchanged(store: TrackingStore) -> None:
    other = store.client.create_run(store.experiment_id)
    theirs = {TAG_PROCESS: "elsewhere/1 12 1700000000", TAG_HEARTBEAT: f"{time.time():.0f}"}
    remote = store.client.create_run(store.experiment_id, tags=theirs)
    assert mark_dead_runs(store.client, [store.experiment_id]) == []
    store.client.set_tag(remote.info.run_id, TAG_HEARTBEAT, "1700000000")
    assert mark_dead_runs(store.client, [store.experiment_id]) == [remote.info.run_id]
    assert store.client.get_run(other.info.run_id).info.status == "RUNNING"
