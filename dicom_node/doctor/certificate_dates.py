"""From when to when an X.509 certificate is valid, read from its DER.

The standard library decodes no certificate from a file by a public call, and this is the one field
that is needed.

References
----------
RFC 5280 4.1 (Certificate, TBSCertificate) and 4.1.2.5 (Validity); X.690 8.1.3 (lengths).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18


@dataclass(frozen=True, slots=True)
class Validity:
    """Both moments are included."""

    since: datetime
    until: datetime


def validity(der: bytes) -> Validity:
    """Return the validity of a certificate; raises ValueError for what is none."""
    certificate, _ = _take(der, _SEQUENCE)
    fields, _ = _take(certificate, _SEQUENCE)
    if fields[:1] == bytes([_VERSION]):
        _, fields = _take(fields)
    for _ in ("serialNumber", "signature", "issuer"):
        _, fields = _take(fields)
    dates, _ = _take(fields, _SEQUENCE)
    since, dates = _moment(dates)
    until, _ = _moment(dates)
    return Validity(since, until)


def _take(data: bytes, tag: int | None = None) -> tuple[bytes, bytes]:
    """Return the content of the first element, and what comes after it."""
    if len(data) < 2 or (tag is not None and data[0] != tag):
        raise ValueError("no X.509 certificate")
    length, start = data[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(data[2:start])
    if len(data) < start + length:
        raise ValueError("the certificate is cut off")
    return data[start : start + length], data[start + length :]


def _moment(data: bytes) -> tuple[datetime, bytes]:
    """Read a UTCTime or a GeneralizedTime; both end in Z."""
    tag = data[0] if data else 0
    content, rest = _take(data)
    text = content.decode("ascii")
    if tag == _UTC_TIME:
        # years of two digits: below 50 they are of this century (RFC 5280 4.1.2.5.1)
        text = ("20" if int(text[:2]) < 50 else "19") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("the certificate has no validity")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC), rest
