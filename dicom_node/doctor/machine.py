"""The memory of this machine, or of the container that we are in."""

from __future__ import annotations

from pathlib import Path

from dicom_node.config import NodeConfig
from dicom_node.doctor.checks import Check, Said, failed, note, ok
from dicom_node.doctor.disk import gib

#: torch, the weights and one study of 1 mm voxels (the benchmark reference_mode, rounded up)
_WORKER_BYTES = 1.75 * 2**30
#: receiver, dispatcher, control and the system
_REST_BYTES = 0.75 * 2**30
_MEMINFO = Path("/proc/meminfo")
_CONTAINER = Path("/sys/fs/cgroup/memory.max")


def checks(settings: NodeConfig) -> list[Check]:
    """Return what is looked at of the machine."""
    n_workers = settings.scoring.workers
    return [Check("machine", "memory", lambda: memory(n_workers, total_bytes()))]


def memory(n_workers: int, total: float | None) -> Said:
    """Compare the memory with what so many workers take; what runs now does not matter."""
    if total is None:
        return note(f"{_MEMINFO} does not say how much memory there is")
    needed = n_workers * _WORKER_BYTES + _REST_BYTES
    text = f"{n_workers} workers need about {gib(needed)}, there are {gib(total)}"
    if needed > total:
        most = int((total - _REST_BYTES) // _WORKER_BYTES)
        least = gib(_WORKER_BYTES + _REST_BYTES)
        return failed(
            text,
            f"Set scoring.workers = {most}." if most >= 1 else f"Give the machine {least} or more.",
        )
    return ok(text)


def total_bytes() -> float | None:
    """Return the machine's memory, or the container's limit where that is lower."""
    found = [n for n in (_of_machine(), _of_container()) if n is not None]
    return min(found, default=None)


def _of_machine() -> float | None:
    try:
        lines = _MEMINFO.read_text("ascii").splitlines()
    except OSError:
        return None
    return next((int(x.split()[1]) * 1024.0 for x in lines if x.startswith("MemTotal:")), None)


def _of_container() -> float | None:
    try:
        said = _CONTAINER.read_text("ascii").strip()
    except OSError:
        return None
    return float(said) if said.isdecimal() else None
