"""Conversion of an answered request to a trace of MLflow."""

import json
from base64 import b64encode
from typing import TYPE_CHECKING, Any

from llmctl.monitor.write.events import TraceEvent
from llmctl.monitor.write.sanitize import valid_text

if TYPE_CHECKING:
    from mlflow.entities import Span, TraceInfo

_PREVIEW_CHARS = 1000
_SECOND_NS = 1_000_000_000


def build_trace(event: TraceEvent, experiment_id: str, run_id: str) -> "tuple[TraceInfo, Span]":
    """Return the trace and its only span. The same event always gives the same trace."""
    from mlflow.entities import Span, TraceInfo, TraceLocation, TraceState
    from mlflow.tracing.constant import SpanAttributeKey, TraceMetadataKey, TraceTagKey

    trace, trace_id = event.trace, f"tr-{event.trace_id}"
    started_ns = int(trace.started * _SECOND_NS)
    ended_ns = started_ns + int(trace.duration_s * _SECOND_NS)
    usage = {
        "input_tokens": trace.prompt_tokens,
        "output_tokens": trace.completion_tokens,
        "total_tokens": trace.prompt_tokens + trace.completion_tokens,
    }
    attributes: dict[str, Any] = {
        SpanAttributeKey.REQUEST_ID: trace_id,
        SpanAttributeKey.SPAN_TYPE: "CHAT_MODEL",
        SpanAttributeKey.CHAT_USAGE: usage,
        SpanAttributeKey.INPUTS: trace.prompt,
        SpanAttributeKey.OUTPUTS: trace.answer,
        "llmctl.ttft_s": trace.ttft_s,
        "llmctl.queued_s": trace.queued_s,
        "llmctl.cached_tokens": trace.cached_tokens,
        "llmctl.finish_reason": trace.finish_reason,
    }
    events = []
    if trace.ttft_s is not None:
        first_ns = started_ns + int(trace.ttft_s * _SECOND_NS)
        events.append({"name": "first token", "time_unix_nano": first_ns, "attributes": {}})
    span = Span.from_dict(
        {
            "trace_id": _base64(event.trace_id),
            "span_id": _base64(event.trace_id[:16]),
            "parent_span_id": None,
            "name": "request",
            "start_time_unix_nano": started_ns,
            "end_time_unix_nano": ended_ns,
            "status": {
                "code": "ERROR" if trace.error else "OK",
                "message": valid_text(trace.error),
            },
            "attributes": {
                name: valid_text(json.dumps(value, ensure_ascii=False, default=str))
                for name, value in attributes.items()
                if value is not None
            },
            "events": events,
        }
    )
    metadata = {
        TraceMetadataKey.SOURCE_RUN: run_id,
        TraceMetadataKey.TOKEN_USAGE: json.dumps(usage),
        "mlflow.trace_schema.version": "3",
    }
    if trace.model_id is not None:
        metadata[TraceMetadataKey.MODEL_ID] = trace.model_id
    info = TraceInfo(
        trace_id=trace_id,
        trace_location=TraceLocation.from_experiment_id(experiment_id),
        request_time=started_ns // 1_000_000,
        execution_duration=(ended_ns - started_ns) // 1_000_000,
        state=TraceState.ERROR if trace.error else TraceState.OK,
        request_preview=_preview(trace.prompt),
        response_preview=_preview(trace.answer),
        client_request_id=valid_text(trace.request_id),
        trace_metadata=metadata,
        tags={TraceTagKey.TRACE_NAME: "request"},
    )
    return info, span


def _base64(hexadecimal: str) -> str:
    return b64encode(bytes.fromhex(hexadecimal)).decode()


def _preview(value: object) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return valid_text(text)[:_PREVIEW_CHARS]
