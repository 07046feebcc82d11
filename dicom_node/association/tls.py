"""Certificates and contexts of TLS, for both roles.

TLS 1.2 or newer with the ciphers of this OpenSSL's defaults, which is the non-downgrading BCP 195
profile or stricter. Contexts are made from the files each time they are needed by the requestor: a
renewed certificate is in force at the next association. The acceptor reads its own at its start.

References
----------
PS3.15 B.12 (the BCP 195 TLS profile), RFC 9325.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from dicom_node.config import NodeConfig
from dicom_node.errors import ConfigError
from dicom_node.network_config import PeerTls, ReceiverTls


def server_context(settings: ReceiverTls) -> ssl.SSLContext:
    """Return the acceptor's context; raises ConfigError that names the key and the file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_pair(context, "receiver.tls", settings.certificate, settings.key)
    if settings.client_certificate == "required" and settings.ca is not None:
        _load_authorities(context, "receiver.tls", settings.ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(settings: PeerTls, section: str) -> ssl.SSLContext:
    """Return a requestor's context; the peer's certificate is always verified.

    Parameters
    ----------
    section
        Of the configuration, for messages: "destination pacs".

    Raises
    ------
    ConfigError
        A file is not there or is not what it should be; names the key and the file.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = settings.check_host_name
    if settings.ca is None:
        context.load_default_certs()
    else:
        _load_authorities(context, f"{section} tls", settings.ca)
    if settings.certificate is not None and settings.key is not None:
        _load_pair(context, f"{section} tls", settings.certificate, settings.key)
    return context


def own_port(settings: ReceiverTls) -> PeerTls:
    """Return how the node calls its own TLS port: with its own certificate, and trusting just it.

    The name in it is not checked: it is called by the address that it binds to.
    """
    return PeerTls(
        ca=settings.certificate,
        certificate=settings.certificate,
        key=settings.key,
        check_host_name=False,
    )


def check(config: NodeConfig) -> None:
    """Read every certificate file once; raises ConfigError that names the first bad one."""
    if config.receiver.tls is not None:
        server_context(config.receiver.tls)
    for destination in config.destination:
        if destination.tls is not None:
            client_context(destination.tls, f"destination {destination.name}")
    for archive in config.archive:
        if archive.tls is not None:
            client_context(archive.tls, f"archive {archive.name}")
    for web in config.web_destination:
        files = PeerTls(ca=web.ca, certificate=web.certificate, key=web.key)
        client_context(files, f"web_destination {web.name}")
    for peer in config.peer:
        if peer.tls is not None:
            client_context(peer.tls, f"peer {peer.ae_title}")


def reason_of(error: OSError) -> str:
    """Return why a handshake failed, in words; the library's text holds source lines of C."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return str(error.reason).lower().replace("_", " ")
    return (error.strerror or str(error)).lower()


def _load_authorities(context: ssl.SSLContext, section: str, path: Path) -> None:
    try:
        context.load_verify_locations(path)
    except OSError as error:  # SSLError is one
        raise ConfigError(_not_loaded(f"{section}: ca = {path}", error)) from error
    # a certificate that is named is trusted by itself, whoever signed it
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN


def _load_pair(context: ssl.SSLContext, section: str, certificate: Path, key: Path) -> None:
    for name, path in (("certificate", certificate), ("key", key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise ConfigError(_not_loaded(f"{section}: {name} = {path}", error)) from error
    try:
        # a pass phrase would be asked for on the terminal
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ValueError) as error:
        what = f"{section}: certificate = {certificate}, key = {key}"
        raise ConfigError(_not_loaded(what, error)) from error


def _not_loaded(what: str, error: OSError | ValueError) -> str:
    """Say what to do about a file that is not there, or is no PEM file of its kind."""
    if isinstance(error, ssl.SSLError) or not isinstance(error, OSError):
        why = reason_of(error) if isinstance(error, ssl.SSLError) else str(error)
        return (
            f"{what}: cannot be loaded ({why or 'no PEM'}); name PEM files, the key of that "
            "certificate and without a pass phrase"
        )
    return f"{what}: {error.strerror}; name a file that this user may read"
