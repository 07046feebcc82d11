"""A scoring worker: one process, the encoder loaded once.

The only part that loads torch; its own process, so that a fault on the device ends no reception.
"""

from __future__ import annotations

import logging
import threading

from dicom_node.config import NodeConfig
from dicom_node.folders import Folders, cache_folder
from dicom_node.line import Line
from dicom_node.parts.process import run
from dicom_node.store.database import Database
from dicom_node.worker import Worker

# run as a program its __name__ is "__main__", which is not below the node's log level
_log = logging.getLogger("dicom_node.parts.scorer")


def scorer(config: NodeConfig, stop: threading.Event, name: str) -> None:
    """Work until `stop` is set; the job in hand is finished first.

    Raises
    ------
    WeightsMissing, WeightsMismatch
        The encoder cannot be built as configured, found before the first job rather than in it.
    """
    line = Line(config, Database(Folders(config.node.data_dir).database), cache_folder())
    # loads the weights now
    encoder = line.encoder
    _log.info("encoder %s on %s in %s", encoder.spec.timm_name, encoder.device, encoder.dtype)
    Worker(line, name).run(stop)


if __name__ == "__main__":
    run(scorer)
