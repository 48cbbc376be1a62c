"""How do adapters come and go while the server runs? By name, from one folder."""

import asyncio
from pathlib import Path
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from llmctl.errors import ModelNotFoundError, UnsupportedError
from llmctl.server.schemas.chat import StrictModel
from llmctl.server.served_model import ServedModel


class AdapterRequest(StrictModel):
    name: str
    """Of a folder within the server's `--adapter-dir`."""


class Adapter(BaseModel):
    object: Literal["adapter"] = "adapter"
    name: str
    models: list[str]
    """What a request writes as its model."""


class AdapterList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Adapter]
    available: list[str]
    """What could be loaded."""


class AdapterDeleted(BaseModel):
    object: Literal["adapter.deleted"] = "adapter.deleted"
    name: str
    deleted: Literal[True] = True


def add_adapter_routes(router: APIRouter, serving: ServedModel) -> None:
    """Add what loads, lists and unloads adapters."""
    engine, home = serving.engine, serving.options.adapter_dir
    loading = asyncio.Lock()

    def described(name: str) -> Adapter:
        return Adapter(
            name=name, models=[m for m, adapter in serving.models().items() if adapter == name]
        )

    def available() -> dict[str, Path]:
        # A request's name is only ever compared with these, never made into a path.
        if home is None:
            return {}
        found = sorted(Path(home).glob("*/adapter_config.json"))
        return {file.parent.name: file.parent for file in found}

    @router.get("/v1/adapters")
    async def list_adapters() -> AdapterList:
        names = [described(name) for name in engine.adapters]
        return AdapterList(data=names, available=list(await asyncio.to_thread(available)))

    @router.post("/v1/adapters")
    async def load_adapter(body: AdapterRequest) -> Adapter:
        """Load an adapter; requests can name it once this is answered."""
        if home is None:
            raise UnsupportedError(
                "this server loads no adapters while it runs",
                hint="start it with --adapter-dir FOLDER",
                param="name",
            )
        folders = await asyncio.to_thread(available)
        if body.name not in folders:
            raise ModelNotFoundError(
                f"The adapter {body.name!r} does not exist.",
                hint=f"there are: {', '.join(folders) or 'none'}",
            )
        # One at a time: a load holds a thread until the engine's next step.
        async with loading:
            await asyncio.to_thread(engine.load_adapter, body.name, str(folders[body.name]))
        return described(body.name)

    @router.delete("/v1/adapters/{name}")
    async def unload_adapter(name: str) -> AdapterDeleted:
        """Take an adapter away; replies under it are still written to their end."""
        if name not in engine.adapters:
            raise ModelNotFoundError(f"The adapter {name!r} is not loaded.")
        await asyncio.wrap_future(engine.begin_unload_adapter(name))
        return AdapterDeleted(name=name)
