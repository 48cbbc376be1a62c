"""`/v1/embeddings`."""

import base64
import struct
from concurrent.futures import Future
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from llmctl.engine.base import SupportsEmbed, SupportsTokenize, require
from llmctl.errors import RequestError
from llmctl.server.async_bridge import cancel_on_disconnect
from llmctl.server.request_log import RequestRecord
from llmctl.server.schemas.base import StrictModel
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
    """Of unit length; base64 encodes little-endian 32-bit floats."""


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


def add_embedding_routes(router: APIRouter, served: ServedModel) -> None:
    """Add the route."""
    engine = served.engine

    @router.post("/v1/embeddings")
    async def create_embeddings(body: EmbeddingRequest, request: Request) -> EmbeddingList:
        """Embed texts as the mean of a causal model's last hidden states."""
        record: RequestRecord = request.state.record
        record.model = body.model
        adapter = served.resolve_adapter(body.model)
        token_ids: list[list[int]] = []

        def submit() -> Future[list[tuple[float, ...]]]:
            tokenizer = require(engine, SupportsTokenize, param="input")
            embedder = require(engine, SupportsEmbed, param="input")
            token_ids.extend(tokenizer.tokenize(text) for text in split_prompts(body.input))
            return embedder.submit_embeddings(token_ids, adapter)

        vectors = await cancel_on_disconnect(served.await_result(submit), request.receive)
        count = sum(map(len, token_ids))
        record.usage = Usage(count, 0)
        return EmbeddingList(
            data=[
                Embedding(index=index, embedding=_encode(vector, body))
                for index, vector in enumerate(vectors)
            ],
            model=body.model,
            usage=EmbeddingUsage(prompt_tokens=count, total_tokens=count),
        )


def _encode(vector: tuple[float, ...], body: EmbeddingRequest) -> list[float] | str:
    """Return a vector in the requested format and number of dimensions.

    Raises:
        RequestError: the vector has fewer dimensions.
    """
    size = len(vector) if body.dimensions is None else body.dimensions
    if size > len(vector):
        raise RequestError(
            f"dimensions is {size}; this model's vectors have {len(vector)}", param="dimensions"
        )
    shortened = vector[:size]
    if size < len(vector):
        # As in OpenAI's API, a shortened vector is normalized again.
        norm = sum(x * x for x in shortened) ** 0.5 or 1.0
        shortened = tuple(x / norm for x in shortened)
    if body.encoding_format == "base64":
        return base64.b64encode(struct.pack(f"<{size}f", *shortened)).decode()
    return list(shortened)
