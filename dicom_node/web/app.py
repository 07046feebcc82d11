"""The node's page: worklist, one study, health. No patient data is shown.

HTTP alone: routes, headers, and what exceptions become. What the pages say is in ``pages``. Nothing
from a URL becomes part of a path: a picture is found by the ledger's own record of a known series.
"""

from __future__ import annotations

import logging
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
from dicom_node.errors import NodeError
from dicom_node.folders import Folders
from dicom_node.store.database import Database
from dicom_node.web import monitoring
from dicom_node.web.pages import Pages

_log = logging.getLogger(__name__)

#: the pages need their style sheet and pictures of their own origin, and nothing else
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; style-src 'self'; "
        "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # a picture of a patient's head must not outlive the visit in a browser's cache
    "Cache-Control": "no-store",
}


class _SecurityHeaders(BaseHTTPMiddleware):
    """Adds the headers that keep a browser from running or leaking anything."""

    async def dispatch(
        self, request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        """Answer as the application does, with the headers added."""
        response = await call_next(request)
        response.headers.update(_HEADERS)
        return response


def _unavailable(_request: Request, error: Exception) -> Response:
    """Answer 503 with the reason: the ledger is locked or gone, which may pass.

    The browser is asked to come again, so that a page on a wall recovers by itself.
    """
    _log.warning("the page cannot be shown: %s", error)
    return PlainTextResponse(f"{error}\n", 503, headers={"Refresh": "5"})


def _failed(_request: Request, _error: Exception) -> Response:
    """Answer 500 without the reason; the server logs the traceback."""
    # made outside all middleware: the headers would be missing
    return PlainTextResponse("the node failed; its log says why\n", 500, headers=_HEADERS)


def make_app(config: NodeConfig, database: Database, folders: Folders) -> Starlette:
    """Return the page as an ASGI application.

    Parameters
    ----------
    database
        Only read.
    folders
        Where the summary pictures of scores lie.

    Returns
    -------
    Answers GET and HEAD on its routes: 404 for what is unknown, 405 for other methods, 400 for a
    foreign Host, 503 while the ledger does not answer. ``/healthz`` says ``ok`` when this process
    runs and reads the ledger; of the other parts it knows nothing.
    """
    pages = Pages(config, database)

    def worklist(_request: Request) -> Response:
        return HTMLResponse(pages.worklist())

    def study(request: Request) -> Response:
        page = pages.study(request.path_params["uid"], request.query_params.get("part", ""))
        if page is None:
            raise HTTPException(404, "no such series")
        return HTMLResponse(page)

    def picture(request: Request) -> Response:
        # of a result folder only the ledger knows the name
        part = request.query_params.get("part", "")
        identity = pages.picture(request.path_params["uid"], part)
        path = folders.results / digest(*identity) / "summary.png" if identity else None
        if path is None or not path.is_file():
            raise HTTPException(404, "no picture yet")
        return FileResponse(path, media_type="image/png")

    def style(_request: Request) -> Response:
        return Response(pages.style(), media_type="text/css")

    def health(_request: Request) -> Response:
        pages.check()
        return PlainTextResponse("ok\n")

    return Starlette(
        routes=[
            Route("/", worklist),
            Route("/series/{uid}", study),
            Route("/series/{uid}/summary.png", picture),
            Route("/style.css", style),
            Route("/healthz", health),
            *monitoring.routes(config, database),
        ],
        # the first is the outermost: a refused host gets the headers too
        middleware=[
            Middleware(_SecurityHeaders),
            # a foreign Host header is a DNS-rebinding page in somebody's browser
            Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"]),
        ],
        exception_handlers={NodeError: _unavailable, Exception: _failed},
    )
