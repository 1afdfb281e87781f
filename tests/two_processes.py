"""Runs a function as the processes of one world, as a launcher would: each a process of its own with its rank.

They are forked from a server that has imported torch and the stages once, which saves seconds a process.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["accelerate", "torch.distributed.fsdp", "train.expert", "train.gate"])
PATIENCE = 600  # seconds, on a busy machine
ROOT = str(Path(__file__).parents[1])


class Launch:
    """`function(*arguments)` in `size` processes; what they print goes to FOLDER/RANK.txt, a number returned is the
    exit code."""

    def __init__(self, folder: Path, function: Callable, *arguments, size: int = 2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.files = [folder / f"{rank}.txt" for rank in range(size)]
        self.processes = [
            CONTEXT.Process(target=_process, args=(rank, size, port, file, function, arguments))
            for rank, file in enumerate(self.files)
        ]
        sys.path.append(ROOT)  # under which pytest names the test modules whose functions are sent
        for process in self.processes:
            process.start()
        sys.path.remove(ROOT)

    def wait(self) -> list[int | None]:
        """The exit codes. As launchers do, a few seconds after one has failed the others are stopped."""
        end = time.monotonic() + PATIENCE
        while any(process.is_alive() for process in self.processes) and time.monotonic() < end:
            time.sleep(0.02)
            if any(process.exitcode for process in self.processes):
                end = min(end, time.monotonic() + 10)
        for process in self.processes:
            process.kill()
            process.join()
        return [process.exitcode for process in self.processes]

    def kill(self, *ranks: int) -> None:
        for rank in ranks:
            self.processes[rank].kill()

    @property
    def told(self) -> list[str]:
        """What every process printed."""
        return [file.read_text() for file in self.files]


def together(folder: Path, function: Callable, *arguments, size: int = 2) -> list[str]:
    """Run to the end; what they printed. Fails with it where an exit code is not 0."""
    launch = Launch(folder, function, *arguments, size=size)
    codes = launch.wait()
    assert codes == [0] * size, f"exit codes {codes}\n" + "\n".join(launch.told)
    return launch.told


def _process(rank: int, size: int, port: int, file: Path, function: Callable, arguments: tuple) -> None:
    with open(file, "wb") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    import torch

    torch.set_num_threads(1)
    sys.exit(function(*arguments))
