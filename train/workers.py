"""Work in processes of their own: one that dies takes its job alone, one that cannot begin stops all work, and none
outlives what began it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any

from fantasy_core.errors import UserError

AHEAD = 4  # jobs a worker has waiting
Work = Callable[[Any], Any]
Running = list[tuple[Any, Future]]

_unprepared: list[Exception] = []  # of a worker: what `prepare` raised


class WorkerKilled(UserError):
    """A job that killed its worker twice, the second time with nothing beside it."""


def each(
    work: Work,
    jobs: Iterable[Any],
    workers: int,
    *,
    prepare: Callable[..., None] | None = None,
    given: tuple = (),
    in_order: bool = True,
) -> Iterator[tuple[Any, Any]]:
    """(job, what `work` made of it, or the UserError that it raised), in the order of the jobs or as they are done.

    workers: processes, each prepared once by `prepare(*given)`; 0 works here. A worker that is killed, by the system or
    by a file that breaks its decoder, is replaced: what was in flight is done again one by one, and a job that kills a
    worker a second time becomes WorkerKilled. What `prepare` raises is raised here: it is the fault of no job.
    """
    if workers == 0:
        if prepare:
            prepare(*given)
        yield from ((job, _caught(work, job)) for job in jobs)
        return
    pool, running = _Pool(workers, prepare, given), []
    try:
        for job in jobs:
            running.append((job, pool.submit(work, job)))
            if len(running) >= workers * AHEAD:
                running = yield from _next(running, pool, work, in_order)
        while running:
            running = yield from _next(running, pool, work, in_order)
    finally:
        pool.stop()


def _next(running: Running, pool: _Pool, work: Work, in_order: bool):
    """Yield what is done, at least one; return what still runs. Where a worker died nothing does."""
    if in_order:
        wait([running[0][1]])
    else:
        wait([future for _, future in running], return_when=FIRST_COMPLETED)
    ready = running[:1] if in_order else [one for one in running if one[1].done()]
    left = [one for one in running if one not in ready]
    broken = any(isinstance(future.exception(), BrokenProcessPool) for _, future in ready)
    if broken:
        wait([future for _, future in left])  # all of them break with the pool, if they were not done
    for job, future in running if broken else ready:
        died = isinstance(future.exception(), BrokenProcessPool)
        yield job, pool.alone(work, job) if died else future.result()
    return [] if broken else left


def _caught(work: Work, job: Any) -> Any:
    for error in _unprepared:
        raise error
    try:
        return work(job)
    except UserError as error:
        return error


class _Pool:
    """Processes that are begun anew when one of them died."""

    def __init__(self, workers: int, prepare: Callable[..., None] | None, given: tuple):
        self.workers, self.prepare, self.given = workers, prepare, given
        self.pool = self._fresh()

    def _fresh(self) -> ProcessPoolExecutor:  # spawned: what forks a process with threads may hang
        return ProcessPoolExecutor(self.workers, get_context("spawn"), _begin, (self.prepare, self.given))

    def submit(self, work: Work, job: Any) -> Future:
        try:
            return self.pool.submit(_caught, work, job)
        except BrokenProcessPool:
            self.pool = self._fresh()
            return self.pool.submit(_caught, work, job)

    def alone(self, work: Work, job: Any) -> Any:
        """With nothing else in flight, so that a death has one cause."""
        try:
            return self.submit(work, job).result()
        except BrokenProcessPool:
            return WorkerKilled(
                f"{_file_of(job)} killed its process",
                got="a process that died twice over it",
                expected="a file that can be decoded, and memory for it",
                do="convert the file again, or give the machine more memory",
            )

    def stop(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)


def _file_of(job: Any) -> Any:
    """What a job is about, for people: jobs are files, tuples that begin with one, or have a `path`."""
    first = job[0] if isinstance(job, tuple) else job
    return getattr(first, "path", first)


def _begin(prepare: Callable[..., None] | None, given: tuple) -> None:
    """In a worker: one thread of torch, Ctrl-C ends it at once, and so does the end of the process that began it. A
    failure to prepare is kept for the first job to tell: an initializer that raises looks like a worker that died."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)
    try:
        if prepare:
            prepare(*given)
    except Exception as error:
        _unprepared.append(error)


def _end_with_parent() -> None:
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)
