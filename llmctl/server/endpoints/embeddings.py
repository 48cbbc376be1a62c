"""How does a text become a vector? `/v1/embeddings`."""

import base64
import struct
from concurrent.futures import Future
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from llmctl.errors import RequestError
from llmctl.server.cancel_on_disconnect import cancel_on_disconnect
from llmctl.server.request_record import RequestRecord
from llmctl.server.schemas.chat import StrictModel
from llmctl.server.schemas.completions import Prompt, split_prompts
from llmctl.server.served_model import ServedModel
from llmctl.types import Usage


class EmbeddingRequest(StrictModel):
    model: str
    input: Prompt
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None


class Embedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    """Of unit length; base64 is of little-endian 32-bit floats."""


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


def add_embedding_routes(router: APIRouter, serving: ServedModel) -> None:
    """Add the route."""
    engine = serving.engine

    @router.post("/v1/embeddings")
    async def create_embeddings(body: EmbeddingRequest, request: Request) -> EmbeddingList:
        """Embed texts as the mean of a causal model's last hidden states."""
        record: RequestRecord = request.state.record
        record.model = body.model
        adapter = serving.adapter_of(body.model)
        texts: list[list[int]] = []

        def submit() -> Future[list[tuple[float, ...]]]:
            texts.extend(engine.tokenize(text) for text in split_prompts(body.input))
            return engine.submit_embeddings(texts, adapter)

        vectors = await cancel_on_disconnect(serving.read(submit), request.receive)
        count = sum(map(len, texts))
        record.usage = Usage(count, 0)
        return EmbeddingList(
            data=[
                Embedding(index=index, embedding=_written(vector, body))
                for index, vector in enumerate(vectors)
            ],
            model=body.model,
            usage=EmbeddingUsage(prompt_tokens=count, total_tokens=count),
        )


def _written(vector: tuple[float, ...], body: EmbeddingRequest) -> list[float] | str:
    size = len(vector) if body.dimensions is None else body.dimensions
    if size > len(vector):
        raise RequestError(
            f"dimensions is {size}; this model's vectors have {len(vector)}", param="dimensions"
        )
    cut = vector[:size]
    if size < len(vector):
        # As OpenAI does: a shorter vector is of unit length again.
        length = sum(x * x for x in cut) ** 0.5 or 1.0
        cut = tuple(x / length for x in cut)
    if body.encoding_format == "base64":
        return base64.b64encode(struct.pack(f"<{size}f", *cut)).decode()
    return list(cut)
