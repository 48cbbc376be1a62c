"""`/v1/adapters`: list, load and unload the LoRA adapters of one folder by name."""

import asyncio
from pathlib import Path
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from llmctl.engine.base import SupportsAdapters, require
from llmctl.errors import ModelNotFoundError, UnsupportedError
from llmctl.server.schemas.base import StrictModel
from llmctl.server.served_model import ServedModel


class AdapterRequest(StrictModel):
    name: str
    """Name of a folder in the server's `--adapter-dir`."""


class Adapter(BaseModel):
    object: Literal["adapter"] = "adapter"
    name: str
    models: list[str]
    """Model names that select the adapter in a request."""


class AdapterList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Adapter]
    available: list[str]
    """Names that can be loaded."""


class AdapterDeleted(BaseModel):
    object: Literal["adapter.deleted"] = "adapter.deleted"
    name: str
    deleted: Literal[True] = True


def add_adapter_routes(router: APIRouter, served: ServedModel) -> None:
    """Add the routes."""
    engine, adapter_dir = served.engine, served.config.adapter_dir
    load_lock = asyncio.Lock()

    def loaded_adapter(name: str) -> Adapter:
        models = [model for model, adapter in served.names().items() if adapter == name]
        return Adapter(name=name, models=models)

    def available() -> dict[str, Path]:
        # A name from a request is only compared with these, never made into a path.
        if adapter_dir is None:
            return {}
        files = sorted(Path(adapter_dir).glob("*/adapter_config.json"))
        return {file.parent.name: file.parent for file in files}

    @router.get("/v1/adapters")
    async def list_adapters() -> AdapterList:
        data = [loaded_adapter(name) for name in engine.adapters]
        return AdapterList(data=data, available=list(await asyncio.to_thread(available)))

    @router.post("/v1/adapters")
    async def load_adapter(body: AdapterRequest) -> Adapter:
        """Load an adapter. Requests can name it after this response."""
        if adapter_dir is None:
            raise UnsupportedError(
                "this server does not load adapters at run time",
                hint="start it with --adapter-dir FOLDER",
                param="name",
            )
        folders = await asyncio.to_thread(available)
        if body.name not in folders:
            raise ModelNotFoundError(
                f"The adapter {body.name!r} does not exist.",
                hint=f"available: {', '.join(folders) or 'none'}",
            )
        # One at a time: a load occupies a thread until the engine's next step.
        async with load_lock:
            loader = require(engine, SupportsAdapters, param="name")
            await asyncio.to_thread(loader.load_adapter, body.name, str(folders[body.name]))
        return loaded_adapter(body.name)

    @router.delete("/v1/adapters/{name}")
    async def unload_adapter(name: str) -> AdapterDeleted:
        """Unload an adapter once the replies that use it have ended."""
        if name not in engine.adapters:
            raise ModelNotFoundError(f"The adapter {name!r} is not loaded.")
        loader = require(engine, SupportsAdapters, param="name")
        await asyncio.wrap_future(loader.begin_unload_adapter(name))
        return AdapterDeleted(name=name)
