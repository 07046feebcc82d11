"""The dispatcher: one lane per destination."""

from __future__ import annotations

import threading

from dicom_node.config import NodeConfig
from dicom_node.delivery import Lane
from dicom_node.folders import Folders
from dicom_node.parts.process import run
from dicom_node.store.database import Database


def dispatcher(config: NodeConfig, stop: threading.Event, _name: str) -> None:
    """Send until `stop` is set."""
    folders = Folders(config.node.data_dir)
    database = Database(folders.database)
    lanes = [
        Lane(database, folders.results, destination, config.node.ae_title)
        for destination in config.destination
    ]
    threads = [threading.Thread(target=lane.run, args=(stop,)) for lane in lanes]
    for thread in threads:
        thread.start()
    stop.wait()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    run(dispatcher)
