"""Metrics of all requests of a server, and traces of a sample."""

import threading
import time

import pytest

from llmctl.errors import EngineStoppedError
from llmctl.monitor import ServingMonitor
from llmctl.monitor.store import TrackingStore
from llmctl.types import RequestTrace
from tests.fakes import RecordingTracker
from tests.monitor.conftest import Opener


def request(number: int, **fields: object) -> RequestTrace:
    started = 1_800_000_000.0 + number
    return RequestTrace(f"chatcmpl-{number}", started, 1.0, **fields)  # type: ignore[arg-type]


def test_a_period_is_aggregated_over_all_requests() -> None:
    tracker = RecordingTracker()
    monitor = ServingMonitor(tracker, gauges=lambda: {"serve/queue": 3.0})
    for number in range(20):
        monitor.record(
            request(
                number,
                ttft_s=(number + 1) / 100,
                prompt_tokens=10,
                completion_tokens=5,
                cached_tokens=4,
            )
        )
    monitor.record(request(20, error="the context is full"))
    monitor.close()
    metrics = {name: value for name, value, _ in tracker.points}
    assert metrics.pop("serve/tokens_per_s") > 0
    assert metrics == {
        "serve/requests": 21,
        "serve/errors": 1,
        "serve/prompt_tokens": 200,
        "serve/completion_tokens": 100,
        "serve/cached_share": 0.4,
        "serve/ttft_p50_s": pytest.approx(0.105),
        "serve/ttft_p95_s": pytest.approx(0.1905),
        "serve/queue": 3.0,
    }
    assert tracker.traces == []


def test_each_period_with_requests_is_a_point() -> None:
    tracker = RecordingTracker()
    monitor = ServingMonitor(tracker, period_s=0.05)
    for number in range(2):
        monitor.record(request(number))
        last = time.monotonic() + 10
        while len([p for p in tracker.points if p[0] == "serve/requests"]) <= number:
            assert time.monotonic() < last
            time.sleep(0.01)
    monitor.close()
    counted = [(value, step) for name, value, step in tracker.points if name == "serve/requests"]
    assert [value for value, _ in counted] == [1, 1]
    assert counted[0][1] < counted[1][1]


def test_the_sample_has_the_requested_share_and_is_deterministic() -> None:
    tracker = RecordingTracker()
    monitor = ServingMonitor(tracker, share=0.25)
    chosen = [number for number in range(4000) if monitor.samples(f"chatcmpl-{number}")]
    assert 900 < len(chosen) < 1100
    for number in range(40):
        monitor.record(request(number))
    monitor.close()
    assert [trace.request_id for trace in tracker.traces] == [
        f"chatcmpl-{number}" for number in chosen if number < 40
    ]
    nothing, everything = (ServingMonitor(tracker, share=share) for share in (0.0, 1.0))
    assert not nothing.samples("chatcmpl-1")
    assert everything.samples("chatcmpl-1")


def test_content_is_in_traces_only_if_allowed() -> None:
    for allowed, expected in ((False, (None, None)), (True, ("[]", "hello"))):
        tracker = RecordingTracker()
        monitor = ServingMonitor(tracker, share=1.0, log_content=allowed, model_id="m-1")
        monitor.record(request(1, prompt="[]", answer="hello"))
        monitor.close()
        (trace,) = tracker.traces
        assert (trace.prompt, trace.answer) == expected
        assert trace.model_id == "m-1"
        assert tracker.used == ["m-1"]


def test_failing_gauges_do_not_stop_the_metrics() -> None:
    def gauges() -> dict[str, float]:
        raise EngineStoppedError("the engine is closed")

    tracker = RecordingTracker()
    monitor = ServingMonitor(tracker, gauges=gauges)
    monitor.record(request(1))
    monitor.close()
    assert ("serve/requests", 1, 1) in tracker.points


@pytest.mark.slow
def test_requests_of_concurrent_threads_are_all_stored(begin: Opener, store: TrackingStore) -> None:
    tracker = begin("serve")
    monitor = ServingMonitor(tracker, share=1.0)

    def serve(client: int) -> None:
        for number in range(25):
            monitor.record(request(100 * client + number, completion_tokens=2))

    clients = [threading.Thread(target=serve, args=(client,)) for client in range(4)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    monitor.close()
    tracker.end("finished")
    run = store.client.get_run(str(tracker.run_id))
    assert run.data.metrics["serve/requests"] == 100
    assert run.data.metrics["serve/completion_tokens"] == 200
    traces = store.client.search_traces(locations=[store.experiment_id], max_results=200)
    assert len({trace.info.client_request_id for trace in traces}) == 100
