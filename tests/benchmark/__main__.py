"""Runs the benchmarks: python -m tests.benchmark [NAME ...] [--folder DIR] [--rounds N] [--small].

Each measures its own yardstick in the same run and prints ratios beside times. They are no tests:
what a machine reaches depends on the machine, and on what else runs on it.
"""

import argparse
import os
import platform
import tempfile
from importlib import import_module
from pathlib import Path

import torch

from tests.benchmark.measure import THREADS, Setting, say

NAMES = ("encode", "match", "musc", "reference_mode", "growth", "registration")


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--folder", type=Path, help="keep the encoded heads here for other runs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="see that everything runs")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        setting = Setting(folder.resolve(), arguments.rounds, arguments.small)
        for name in arguments.names or NAMES:
            say(f"## {name}: {machine()}")
            import_module(f"tests.benchmark.{name}").run(setting)


def machine():
    """Where and under what load the figures were made."""
    described = Path("/proc/cpuinfo").read_text().split("model name\t: ", 1)
    cpu = described[1].split("\n", 1)[0] if len(described) > 1 else platform.machine()
    capability = torch.backends.cpu.get_cpu_capability()
    load = os.getloadavg()[0]
    return f"{cpu} ({capability}), {THREADS} threads, torch {torch.__version__}, load {load:.1f}\n"


if __name__ == "__main__":
    main()
