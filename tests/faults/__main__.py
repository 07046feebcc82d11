"""Runs the faults: python -m tests.faults [--n N] [--seed S] [--kinds kill,memory,...]."""

import argparse
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

from tests.benchmark.measure import say
from tests.faults import runs
from tests.faults.inject import KINDS
from tests.make.lines import tiny_weights


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--n", type=int, default=200, help="seeded runs of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the first; the next has the next")
    parser.add_argument("--kinds", default=",".join(KINDS))
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)  # thousands of injected faults
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # the children are forked: no pool of threads may exist by then
    found = runs.Found()
    with tempfile.TemporaryDirectory() as folder:
        weights = tiny_weights(Path(folder))
        for kind in arguments.kinds.split(","):
            start = time.perf_counter()
            n_effects = runs.extent(kind, weights)
            for seed in range(arguments.seed, arguments.seed + arguments.n):
                with tempfile.TemporaryDirectory() as world:
                    runs.run(kind, seed, n_effects, Path(world), weights, found)
            seconds = time.perf_counter() - start
            say(f"{kind}: {arguments.n} runs, {n_effects} effects, {seconds:.0f} s")
    for name, n in sorted(found.injected.items()):
        say(f"  {n:6d} lives ended by or after {name}")
    say(f"  {found.acknowledged} instances acknowledged, {found.sent_again} objects sent again")
    say(f"  {len(found.faults)} violations")
    for text in found.faults[:40]:
        say(f"  VIOLATION {text}")
    sys.exit(bool(found.faults))


if __name__ == "__main__":
    main()
