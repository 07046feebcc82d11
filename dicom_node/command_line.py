"""What the verbs of the command line share: options, one line of output, the ledger of a node."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from dicom_node.association import tls
from dicom_node.association.requestor import Peer
from dicom_node.config import NodeConfig
from dicom_node.errors import ConfigError
from dicom_node.folders import Folders
from dicom_node.store.database import Database, migrate

ConfigPath = Annotated[
    Path,
    typer.Option(
        "--config", "-c", help="The node's configuration file.", envvar="DICOM_NODE_CONFIG"
    ),
]
DEFAULT_CONFIG = Path("config.toml")

# of the verbs that work through folders of scans
Scans = Annotated[list[Path], typer.Argument(help="Folders or files: DICOM series, NIfTI files.")]
Preset = Annotated[
    str | None,
    typer.Option("--preset", help="mr, ct or published; by default what the series are."),
]
EncoderOf = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Take the encoder of this node configuration."),
]
MethodOf = Annotated[
    str | None, typer.Option("--protocol", help="And the method of this protocol of it.")
]
Images = Annotated[
    str | None,
    typer.Option("--images", help='Only such files or Series Descriptions: "*_flair.nii.gz".'),
]
Masks = Annotated[
    str | None,
    typer.Option("--masks", help='The readers\' masks: "labels/*"; by default "*_label" etc.'),
]


def say(console: Console, head: str, style: str, text: str) -> None:
    """Print one line, its head in colour; not wrapped, so that a script finds it whole."""
    console.print(Text.assemble((head, style), f" {text}"), soft_wrap=True)


def ledger_of(settings: NodeConfig) -> Path:
    """Return where the ledger lies; raises ConfigError rather than let one be made by a question.

    An empty one beside the real one would say that all is well.
    """
    path = Folders(settings.node.data_dir).database
    if not path.exists():
        raise ConfigError(f"{path} does not exist: this node has never been started")
    return path


def database_of(settings: NodeConfig) -> Database:
    """Open the ledger, brought up to date: the node may not have been started since an update.

    Raises ConfigError where there is none.
    """
    path = ledger_of(settings)
    migrate(path)
    return Database(path)


def own_peers(settings: NodeConfig) -> list[Peer]:
    """Return the node itself, once per port."""
    receiver = settings.receiver
    own, bind, found = settings.node.ae_title, receiver.bind, []
    if receiver.plain:
        found.append(Peer("this-node", own, bind, receiver.port))
    if receiver.tls is not None:
        by = tls.own_port(receiver.tls)
        found.append(Peer("this-node-tls", own, bind, receiver.tls.port, by))
    return found
