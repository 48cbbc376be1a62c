"""`/v1/models`."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from llmctl.server.served_model import ServedModel


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    """Unix time in seconds since which this server serves it."""
    owned_by: str = "llmctl"
    max_model_len: int
    """Context length in tokens, prompt and reply together. vLLM's field; OpenAI has none."""


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


def add_model_routes(router: APIRouter, served: ServedModel) -> None:
    """Add the routes."""

    def model(name: str) -> Model:
        context_length = served.engine.info().context_length
        return Model(id=name, created=served.created, max_model_len=context_length)

    @router.get("/v1/models")
    async def list_models() -> ModelList:
        return ModelList(data=[model(name) for name in served.names()])

    @router.get("/v1/models/{name:path}")
    async def retrieve_model(name: str) -> Model:
        served.resolve_adapter(name)
        return model(name)
