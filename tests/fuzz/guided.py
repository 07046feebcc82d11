"""Damage that is led by which lines of the parser it reaches (atheris, libFuzzer).

``python -m tests.fuzz.guided FOLDER -runs=20000``: FOLDER keeps what reached something new, and is
where the next run begins. Needs ``pip install atheris`` (no wheel for every Python). Ends with what
it crashed on in ``crash-*``, as libFuzzer does.
"""

import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["dicom_node.inbox", "dicom_node.arrival", "pydicom"]):
    from dicom_node.errors import InstanceRejected
    from dicom_node.inbox import Inbox

from dicom_node.series import ReceivedInstance
from tests.fuzz.instances import SYNTAXES, corpus

FOLDER = Path(tempfile.mkdtemp())
INBOX = Inbox(FOLDER / "inbox", 0)


def one_input(data):
    """The first byte chooses the transfer syntax, the rest is the data set."""
    if not data:
        return
    made = ReceivedInstance(
        association_id=1,
        calling_ae_title="FUZZ",
        affected_sop_class_uid="1.2.840.10008.5.1.4.1.1.4",
        affected_sop_instance_uid="1.2.3",
        transfer_syntax_uid=str(SYNTAXES[data[0] % len(SYNTAXES)]),
        encoded=data[1:],
    )
    try:
        filed = INBOX.file_instance(made)
    except InstanceRejected:
        return
    (FOLDER / "inbox" / filed.file_name).unlink()


def main():
    warnings.simplefilter("ignore")
    folders = [Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")]
    for folder in folders[:1]:
        folder.mkdir(parents=True, exist_ok=True)
        for syntax, ds, data in corpus():
            name = f"{SYNTAXES.index(syntax)}-{ds.Modality}-{len(data)}"
            # of the identity that every request here has
            named = data.replace(
                ds.SOPInstanceUID.encode(), b"1.2.3".ljust(len(ds.SOPInstanceUID), b"\0")
            )
            (folder / name).write_bytes(bytes([SYNTAXES.index(syntax)]) + named)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
