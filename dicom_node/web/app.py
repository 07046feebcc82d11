"""The node's page: worklist, one study, health. No patient data is shown."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from dicom_node.config import NodeConfig, digest
from dicom_node.folders import Folders
from dicom_node.store.database import Database
from dicom_node.web.pages import Pages

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; style-src 'self'; "
        "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class _SecurityHeaders(BaseHTTPMiddleware):
    """Adds the headers that keep a browser from running or leaking anything."""

    async def dispatch(
        self, request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        response = await call_next(request)
        response.headers.update(_HEADERS)
        return response


def make_app(config: NodeConfig, database: Database, folders: Folders) -> Starlette:
    """Return the page as an ASGI application."""
    pages = Pages(config, database)

    def worklist(_request: Request) -> Response:
        return HTMLResponse(pages.worklist())

    def study(request: Request) -> Response:
        page = pages.study(request.path_params["uid"])
        if page is None:
            raise HTTPException(404, "no such series")
        return HTMLResponse(page)

    def picture(request: Request) -> Response:
        identity = pages.picture(request.path_params["uid"])
        path = folders.results / digest(*identity) / "summary.png" if identity else None
        if path is None or not path.is_file():
            raise HTTPException(404, "no picture yet")
        return FileResponse(path, media_type="image/png")

    def style(_request: Request) -> Response:
        return Response(pages.style(), media_type="text/css")

    def health(_request: Request) -> Response:
        pages.worklist()
        return PlainTextResponse("ok\n")

    return Starlette(
        routes=[
            Route("/", worklist),
            Route("/series/{uid}", study),
            Route("/series/{uid}/summary.png", picture),
            Route("/style.css", style),
            Route("/healthz", health),
        ],
        middleware=[
            # a foreign Host header is a DNS-rebinding page in somebody's browser
            Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"]),
            Middleware(_SecurityHeaders),
        ],
    )
