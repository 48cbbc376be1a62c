"""`/v1/models`."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from llmctl.server.served_model import ServedModel
from llmctl.types import ExecutionPath


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    """Unix time in seconds since which this server serves it."""
    owned_by: str = "llmctl"
    max_model_len: int
    """Context length in tokens, prompt and reply together. vLLM's field; OpenAI has none."""
    execution_path: ExecutionPath | None = None
    """How the model runs, if known: `fused`, `batched` or `serial`. OpenAI has no such field."""
    execution_reason: str | None = None


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


def add_model_routes(router: APIRouter, served: ServedModel) -> None:
    """Add the routes."""

    def model(name: str) -> Model:
        info = served.engine.info()
        return Model(
            id=name,
            created=served.created,
            max_model_len=info.context_length,
            execution_path=info.execution_path,
            execution_reason=info.execution_reason or None,
        )

    @router.get("/v1/models", response_model_exclude_none=True)
    async def list_models() -> ModelList:
        return ModelList(data=[model(name) for name in served.names()])

    @router.get("/v1/models/{name:path}", response_model_exclude_none=True)
    async def retrieve_model(name: str) -> Model:
        served.resolve_adapter(name)
        return model(name)
