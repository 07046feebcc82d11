"""The control part: standing duties and the node's page.

Both are light and only look at the ledger or queue rows, hence one process.
"""

from __future__ import annotations

import threading

import uvicorn

from dicom_node.config import NodeConfig
from dicom_node.errors import PartFailed
from dicom_node.folders import Folders
from dicom_node.parts.process import run
from dicom_node.schedule import Duties
from dicom_node.store.database import Database
from dicom_node.web.app import make_app


def control(config: NodeConfig, stop: threading.Event, _name: str) -> None:
    """Run the duties and serve the page until `stop` is set.

    Raises
    ------
    PartFailed
        The page could not be served at all: its port is taken.
    RuntimeError
        It ended later, a fault of ours; the supervisor starts the part anew.
    """
    folders = Folders(config.node.data_dir)
    database = Database(folders.database)
    duties = Duties(config, database)
    duties.start()
    app = make_app(config, database, folders)
    server = uvicorn.Server(
        uvicorn.Config(
            app, host=config.web.bind, port=config.web.port, log_config=None, access_log=False
        )
    )
    # in a thread: outside the main one the server leaves the signals alone
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while thread.is_alive() and not stop.wait(0.2):
        pass
    duties.stop()
    if not stop.is_set() and server.started:
        raise RuntimeError("the page has ended by itself")
    if not stop.is_set():
        # the server has logged the reason and would have ended the process
        raise PartFailed(
            f"the page cannot be served on {config.web.bind}:{config.web.port}: the port is taken; "
            "set web.port to a free one"
        )
    server.should_exit = True
    thread.join(timeout=10)


if __name__ == "__main__":
    run(control)
