"""`/health`, `/ready`, `/metrics`, and the web page at `/`."""

from functools import cache
from importlib.resources import files
from typing import Literal

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from llmctl.errors import EngineStoppedError
from llmctl.server.metrics import CONTENT_TYPE_LATEST, Metrics
from llmctl.server.served_model import ServedModel

STALLED_S = 120.0
"""An engine that has work and has made no step for so long is considered dead."""

_PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Health(BaseModel):
    status: Literal["ok"] = "ok"
    model: str
    in_flight: int
    """Requests that have not ended."""
    running: int
    waiting: int
    last_step_s: float
    """Seconds since the last step of an engine that has work."""


class Ready(BaseModel):
    status: Literal["ready"] = "ready"
    model: str


@cache
def _page() -> str:
    return files("llmctl.server").joinpath("page.html").read_text(encoding="utf-8")


def add_status_routes(router: APIRouter, served: ServedModel, metrics: Metrics) -> None:
    """Add the routes."""
    engine = served.engine

    @router.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        """Return a page to chat with the model."""
        return HTMLResponse(_page(), headers={"Content-Security-Policy": _PAGE_POLICY})

    @router.get("/health")
    async def health() -> Health:
        """Return 503 when the engine is closed or dead, or has work and makes no step."""
        state = engine.state()
        if not state.alive or state.last_step_age_s > STALLED_S:
            raise EngineStoppedError(
                f"the engine has work and made no step for {state.last_step_age_s:.0f} seconds"
                if state.alive
                else "the engine is dead"
            )
        return Health(
            model=engine.info().model_id,
            in_flight=engine.in_flight,
            running=state.running,
            waiting=state.waiting,
            last_step_s=round(state.last_step_age_s, 3),
        )

    @router.get("/ready")
    async def ready() -> Ready:
        """Return 503 when the server is shutting down. While it loads, `startup` answers."""
        return Ready(model=engine.info().model_id)

    @router.get("/metrics", response_class=Response)
    async def prometheus_metrics() -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
