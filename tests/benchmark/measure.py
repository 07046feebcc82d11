"""What every benchmark here is measured with: yardstick, interleaved rounds, memory of a child."""

import ctypes
import gc
import multiprocessing
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

#: of every process that is measured
THREADS = 2
MIB = 2**20


@dataclass(frozen=True)
class Setting:
    """How much is measured, and where the heads that all benchmarks share are kept."""

    folder: Path
    rounds: int = 3
    #: tiny grids and batches: shows that everything runs, and nothing about speed
    small: bool = False


class Gemm:
    """The yardstick: one square product of a dtype, as fast as torch has it."""

    def __init__(self, dtype=torch.float32):
        # where bf16 is emulated a large product takes minutes
        emulated = dtype is torch.bfloat16 and not torch.cpu._is_avx512_bf16_supported()
        n = 512 if emulated else 1536
        self._factors = [torch.randn(n, n).to(dtype) for _ in range(2)]
        self.flops = 2 * n**3
        self._seconds = []
        torch.mm(*self._factors)

    def __call__(self):
        """Multiply once."""
        self._seconds.append(timed(lambda: torch.mm(*self._factors)))

    def measure(self, seconds):
        """Multiply for about so long: between the parts of what is measured."""
        end = time.perf_counter() + seconds
        self()
        while time.perf_counter() < end:
            self()

    def rate(self):
        """Floating-point operations per second, of the median product."""
        return self.flops / median(self._seconds)


def timed(work):
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def interleaved(rounds, **works):
    """Time all of `works` in turn, several times: {name: seconds of each round}."""
    seconds = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            seconds[name].append(timed(work))
    return seconds


def ratio(above, below):
    """Median over the rounds of one time over the other: a busy machine slows both."""
    return median(a / b for a, b in zip(above, below, strict=True))


def in_child(work, *arguments):
    """Run a function of a module in a fresh process, which holds nothing of earlier benchmarks."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, torch.set_num_threads, (THREADS,)) as child:
        return child.submit(work, *arguments).result()


class Peak:
    """Peak resident memory (VmHWM) of a block, in MiB: over what was held before it, and in all."""

    def __enter__(self):
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # freed memory would hide what the block takes
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts from here
        self.before = resident("VmRSS")
        return self

    def __exit__(self, *_exception):
        self.total = resident("VmHWM")
        self.added = self.total - self.before


def resident(what):
    """VmRSS or VmHWM of this process in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{what}:\s+(\d+) kB", status)[1]) / 1024


def say(text=""):
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def table(header, *rows):
    """Write a table as the README has them."""
    for row in (header, ["---"] * len(header), *rows):
        say("| " + " | ".join(str(cell) for cell in row) + " |")
    say()
