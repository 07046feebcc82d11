"""The dispatcher: one lane per destination, and one for the reports that senders are owed.

A lane is a thread that waits for its peer most of the time; a dead destination blocks only its own.
"""

from __future__ import annotations

import threading

from dicom_node.config import NodeConfig
from dicom_node.delivery import Lane
from dicom_node.folders import Folders
from dicom_node.parts.process import run
from dicom_node.pledges import Reporter
from dicom_node.store.database import Database


def dispatcher(config: NodeConfig, stop: threading.Event, _name: str) -> None:
    """Send until `stop` is set; the association in hand is finished first.

    Raises
    ------
    RuntimeError
        A lane ended by itself, a fault of ours. The process ends with it, so that the supervisor
        starts all lanes anew: results that nobody sends would be noticed late.
    """
    folders = Folders(config.node.data_dir)
    database = Database(folders.database)
    lanes: list[Lane | Reporter] = [
        Lane(database, folders.results, destination, config.node.ae_title)
        for destination in config.destinations
    ]
    lanes.append(Reporter(database, folders.inbox, config))
    threads = [threading.Thread(target=lane.run, args=(stop,)) for lane in lanes]
    for thread in threads:
        thread.start()
    while not stop.wait(0.5):
        if not all(thread.is_alive() for thread in threads):
            break
    fault = not stop.is_set()
    stop.set()
    for thread in threads:
        thread.join()
    if fault:
        raise RuntimeError("a delivery lane has ended; its traceback is above")


if __name__ == "__main__":
    run(dispatcher)
