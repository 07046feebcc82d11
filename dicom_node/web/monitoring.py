"""The routes of a monitor: ``/metrics`` and ``/readyz``; ``/healthz`` is the page's own."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from dicom_node.config import NodeConfig
from dicom_node.store.database import Database
from dicom_node.web.metrics import CONTENT_TYPE, LedgerMetrics
from dicom_node.web.readiness import Readiness


def routes(config: NodeConfig, database: Database) -> list[Route]:
    """Return the routes; both only read the ledger, and raise DatabaseUnavailable or say so."""
    found, readiness = LedgerMetrics(config, database), Readiness(config, database)

    def metrics(_request: Request) -> Response:
        return Response(found.text(), headers={"content-type": CONTENT_TYPE})

    def ready(_request: Request) -> Response:
        faults = readiness.faults()
        text = "".join(f"{fault}\n" for fault in faults) or "ready\n"
        return PlainTextResponse(text, 503 if faults else 200)

    return [Route("/metrics", metrics), Route("/readyz", ready)]
