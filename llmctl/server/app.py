"""How is the server put together?"""

from collections.abc import Sequence

from fastapi import FastAPI

from llmctl import __version__
from llmctl.engine.base import BaseEngine
from llmctl.server import errors
from llmctl.server.boundary import Boundary
from llmctl.server.routers import make_router


def create_app(engine: BaseEngine, *, served_names: Sequence[str] = ()) -> FastAPI:
    """Build the application around an engine, which stays the caller's to load and close.

    Args:
        served_names: what the model answers to besides its own id.
    """
    app = FastAPI(
        title="llmctl",
        version=__version__,
        # Their pages load scripts from elsewhere; /openapi.json says the same.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_middleware(Boundary)
    errors.install(app)
    app.include_router(make_router(engine, tuple(served_names)))
    return app
