"""Runs the fuzzing: python -m tests.fuzz [instances] [associations] [--n N] [--seed S]."""

import argparse
import logging
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

from tests.benchmark.measure import say
from tests.fuzz import associations, instances

RUNS = {"instances": (instances.run, 50_000), "associations": (associations.run, 1_000)}


def peak_mib():
    """The most resident memory this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("names", nargs="*", help=", ".join(RUNS))
    parser.add_argument("--n", type=int, help="instead of 50 000 instances and 1000 associations")
    parser.add_argument("--seed", type=int, default=0, help="of the first; the next has the next")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(RUNS):
        parser.error(f"there is no run {', '.join(sorted(unknown))}")
    logging.disable(logging.CRITICAL)  # thousands of refusals
    warnings.simplefilter("ignore")
    failed = False
    for name in arguments.names or RUNS:
        run, usual = RUNS[name]
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            found = run(arguments.n or usual, Path(folder), arguments.seed)
        say(
            f"{name}: {arguments.n or usual} in {time.perf_counter() - start:.0f} s, slowest "
            f"{found.slowest_s:.2f} s, memory {found.before_mib:.1f} MiB after a quarter, "
            f"{found.after_mib:.1f} MiB at the end, peak {peak_mib():.1f} MiB"
        )
        for outcome, n in sorted(found.outcomes.items()):
            say(f"  {n:7d}  {outcome}")
        for number, text in found.faults[:20]:
            say(f"  FAULT seed {number}: {text}")
        failed |= bool(found.faults)
    sys.exit(failed)


if __name__ == "__main__":
    main()
