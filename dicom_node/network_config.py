"""``[receiver]``, ``[[destination]]``, ``[[archive]]``, ``[[peer]]``: who is on the other end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dicom_node.config_types import AETitle, Port, Seconds, Section

#: registered with IANA for DICOM over TLS (PS3.15 B.12 names no port of its own)
TLS_PORT = 2762

#: how the configuration, the command line and messages call it
PeerName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]


class ReceiverTls(Section):
    """``[receiver.tls]``: a port that speaks TLS (PS3.15 Annex B); files are PEM."""

    port: Port = TLS_PORT
    #: the node's own, with the intermediate ones after it
    certificate: Path
    #: its private key, without a pass phrase
    key: Path
    #: who must have signed a sender's certificate
    ca: Path | None = None
    client_certificate: Literal["required", "none"] = "required"

    @model_validator(mode="after")
    def _authority_named(self) -> ReceiverTls:
        if self.client_certificate == "required" and self.ca is None:
            raise ValueError(
                "receiver.tls.ca is missing: name the authorities that sign senders' certificates, "
                'or set client_certificate = "none"'
            )
        return self


class Receiver(Section):
    """``[receiver]``: the C-STORE SCP."""

    #: loopback by default: a node that is not yet set up must not be open to the network
    bind: str = "127.0.0.1"
    #: registered for DICOM with IANA; 104 would need root
    port: Port = 11112
    #: false: only ``[receiver.tls]`` listens
    plain: bool = True
    max_associations: Annotated[int, Field(ge=1, le=1000)] = 25
    #: a peer that is silent this long is cut off
    network_timeout: Seconds = 60.0
    #: calling AE titles that may store; empty admits any that knows our AE title
    allowed_calling_ae_titles: tuple[AETitle, ...] = ()
    require_called_ae_title: bool = True
    #: calling AE titles whose series are scored before all others
    urgent_calling_ae_titles: tuple[AETitle, ...] = ()
    tls: ReceiverTls | None = None

    @model_validator(mode="after")
    def _listens(self) -> Receiver:
        if not self.plain and self.tls is None:
            raise ValueError("receiver.plain = false needs [receiver.tls]: nothing would listen")
        if self.plain and self.tls is not None and self.tls.port == self.port:
            raise ValueError("receiver.tls.port must differ from receiver.port")
        return self


class PeerTls(Section):
    """``[destination.tls]``, ``[archive.tls]``, ``[peer.tls]``: to it over TLS; files are PEM."""

    #: who must have signed its certificate; the system's authorities where it is left out
    ca: Path | None = None
    #: ours, where it demands one, with the intermediate ones after it
    certificate: Path | None = None
    #: its private key, without a pass phrase
    key: Path | None = None
    #: the certificate must be of the host that is called
    check_host_name: bool = True

    @model_validator(mode="after")
    def _pair(self) -> PeerTls:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key of a tls section go together")
        return self


class KnownPeer(Section):
    """``[[peer]]``: a sender that may ask for storage commitment, and where it is told."""

    ae_title: AETitle
    host: str
    port: Port
    #: for the connection and for each answer
    timeout: Seconds = 30.0
    tls: PeerTls | None = None


class Archive(Section):
    """``[[archive]]``: a PACS that is asked for what it holds, and that series are fetched from."""

    name: PeerName
    ae_title: AETitle
    host: str
    port: Port
    #: for the connection and for each answer to a query
    timeout: Seconds = 30.0
    #: a retrieval is given up after this long without progress: an archive may read from tape
    retrieve_timeout: Seconds = 600.0
    #: "move": it sends to the node's receiver; "get": on the association that asks
    retrieve: Literal["move", "get"] = "move"
    tls: PeerTls | None = None


class LaneSettings(Section):
    """What every kind of destination has: its name, and how long to try."""

    name: PeerName
    #: for the connection and for each answer
    timeout: Seconds = 30.0
    #: the wait after the first failure; it doubles up to the next
    retry_first: Seconds = 30.0
    retry_max: Seconds = 3600.0
    #: after this long an object is set aside
    give_up: Seconds = 3 * 86400.0


class Destination(LaneSettings):
    """``[[destination]]``: a PACS that receives results; one lane each."""

    ae_title: AETitle
    host: str
    port: Port
    #: an object counts as delivered only when the destination says that it commits to it
    commitment: bool = False
    #: an object is sent again when it has not said so for this long
    commitment_timeout: Seconds = 3600.0
    #: what is delivered is looked for there (C-FIND), and found again or missed by name
    verify: bool = False
    tls: PeerTls | None = None


class WebDestination(LaneSettings):
    """``[[web_destination]]``: a DICOMweb server that results go to by STOW-RS; one lane each."""

    #: of the service, without "/studies"
    url: Annotated[str, Field(pattern=r"^https?://[^/]+")]
    #: holds a bearer token; read for each round, so that it may be renewed
    token_file: Path | None = None
    #: who must have signed the server's certificate; the system's authorities where it is left out
    ca: Path | None = None
    #: ours, where the server demands one, and its private key, without a pass phrase; PEM
    certificate: Path | None = None
    key: Path | None = None

    @model_validator(mode="after")
    def _pair(self) -> WebDestination:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key of a web_destination go together")
        return self


#: whoever results are sent to
AnyDestination = Destination | WebDestination
