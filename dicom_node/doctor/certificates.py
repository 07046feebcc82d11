"""The files of TLS: readable, of their kind, matching, private where they must be, and in time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

from dicom_node import clock
from dicom_node.association import tls
from dicom_node.config import NodeConfig
from dicom_node.doctor.certificate_dates import validity
from dicom_node.doctor.checks import Check, Said, failed, ok
from dicom_node.doctor.ports import ders
from dicom_node.network_config import PeerTls, WebDestination

#: two weeks: an authority of a hospital may take one to sign
_SOON = timedelta(days=14)


@dataclass(frozen=True, slots=True)
class Files:
    """The certificate files of one section."""

    section: str
    certificate: Path | None
    key: Path | None
    ca: Path | None
    #: makes the context that the node makes; raises ConfigError
    load: Callable[[], object]


def checks(settings: NodeConfig) -> list[Check]:
    """Return a check per section with certificate files."""
    return [
        Check(
            "certificates",
            f"TLS {files.section}",
            partial(look, files),
            remedy=f"Put the files of [{files.section}] right: PEM, readable, the key without a "
            "pass phrase and of that certificate.",
        )
        for files in sections(settings)
    ]


def sections(settings: NodeConfig) -> list[Files]:
    """Return the sections that name files of TLS."""
    found = []
    own = settings.receiver.tls
    if own is not None:
        load = partial(tls.server_context, own)
        found.append(Files("receiver.tls", own.certificate, own.key, own.ca, load))
    named = [(f"destination {of.name}", of.tls) for of in settings.destination]
    named += [(f"archive {of.name}", of.tls) for of in settings.archive]
    named += [(f"peer {of.ae_title}", of.tls) for of in settings.peer]
    named += [(f"web_destination {of.name}", _of_web(of)) for of in settings.web_destination]
    for section, files in named:
        if files is not None:
            load = partial(tls.client_context, files, section)
            found.append(Files(section, files.certificate, files.key, files.ca, load))
    return found


def _of_web(of: WebDestination) -> PeerTls | None:
    if not of.url.startswith("https:") and of.ca is None and of.certificate is None:
        return None
    return PeerTls(ca=of.ca, certificate=of.certificate, key=of.key)


def look(files: Files) -> Said:
    """Load the files as the node does, then look at dates and rights; raises ConfigError."""
    files.load()
    named = [path for path in (files.certificate, files.ca) if path is not None]
    for path in named:
        fault = _dates_fault(path)
        if fault is not None:
            return fault
    if files.key is not None and files.key.stat().st_mode & 0o077:
        return failed(
            f"others may read the private key {files.key}", f"Run: chmod 0600 {files.key}"
        )
    if not named:
        return ok("the system's authorities are trusted")
    ends = min(validity(der).until for path in named for der in _certificates(path))
    return ok(f"valid until {ends:%Y-%m-%d}: {', '.join(path.name for path in named)}")


def _dates_fault(path: Path) -> Said | None:
    now = clock.now()
    for der in _certificates(path):
        dates = validity(der)
        if now < dates.since:
            return failed(
                f"a certificate of {path} is valid only from {dates.since:%Y-%m-%d %H:%M} UTC on",
                "Set this machine's clock, or have the certificate made anew.",
            )
        if dates.until - now < _SOON:
            expires = "has expired" if dates.until < now else "expires"
            return failed(
                f"a certificate of {path} {expires} on {dates.until:%Y-%m-%d %H:%M} UTC",
                f"Have a new one signed and put it in the place of {path}.",
            )
    return None


def _certificates(path: Path) -> list[bytes]:
    # text may stand between the certificates, in whatever encoding
    return ders(path.read_text("utf-8", "replace"))
