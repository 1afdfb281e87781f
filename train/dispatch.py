"""Jobs spread over servers: one thread a server, one job at a time each.

A job that fails on one server is tried on another. A server that does not answer is set aside, its job goes back, and
it is looked at again from time to time. A server that refuses a kind of job gets no more of that kind; one that
refuses a job for values of its own gets the others, and this one again with its files.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from train.comfy_client import Cancelled, ComfyServer, JobFailed, JobRefused, Refused, ServerGone


class Kind(Protocol):
    @property
    def source(self) -> str: ...


Job = TypeVar("Job", bound=Kind)
Result = TypeVar("Result")
Make = Callable[[ComfyServer, Job, int, Callable[[], bool]], Result]  # on a server, the nth try, whether to stop


@dataclass(frozen=True)
class Rules:
    """`tries` of a job, wherever; at most `probe` seconds between looks at a server that is set aside; when all are,
    the run ends after `patience` seconds."""

    tries: int = 3
    probe: float = 5.0
    patience: float = 120.0


@dataclass(eq=False)
class _Waiting(Generic[Job]):
    job: Job
    failed: list[str] = field(default_factory=list)  # the servers it failed on, in order


class Dispatch(Generic[Job, Result]):
    """`run` hands every job to `done` or to `failed`, unless it raises. Both are called by one thread at a time."""

    def __init__(
        self,
        servers: Sequence[ComfyServer],
        make: Make[Job, Result],
        done: Callable[[Job, Result], None],
        failed: Callable[[Job, str], None],
        rules: Rules,
        say: Callable[[str], None],
    ):
        self.servers, self.make, self.done, self.failed, self.rules, self.say = servers, make, done, failed, rules, say
        self._lock = threading.Condition()
        self._waiting: list[_Waiting[Job]] = []
        self._running = 0
        self._unfit: dict[tuple[str, str], str] = {}  # (server, source): why
        self._aside: dict[str, str] = {}  # servers that do not answer: what happened
        self._stopped = False
        self._broken: BaseException | None = None  # a fault of ours, from a thread

    def forbid(self, server: ComfyServer, source: str, why: str) -> None:
        """No job of this source goes to this server."""
        with self._lock:
            self._unfit[server.url, source] = why

    def run(self, jobs: Sequence[Job]) -> None:
        """Make them all. Raises ServerGone when no server is left; what is done by then is done. On Ctrl-C the servers
        are told to let go of what is running."""
        self._waiting = [_Waiting(job) for job in jobs]
        self._drop_unfit()
        threads = [threading.Thread(target=self._serve, args=(server,), daemon=True) for server in self.servers]
        for thread in threads:
            thread.start()
        try:
            self._watch()
        finally:
            with self._lock:
                self._stopped = True
                self._lock.notify_all()
            for thread in threads:
                thread.join(10)
        if self._broken is not None:
            raise self._broken

    def _watch(self) -> None:
        """Wait until all is done, or nothing can be."""
        alone_since = None
        with self._lock:
            while (self._waiting or self._running) and self._broken is None:
                none_left = len(self._aside) == len(self.servers)
                alone_since = (alone_since or time.monotonic()) if none_left else None
                if alone_since and time.monotonic() - alone_since >= self.rules.patience:
                    raise ServerGone("; ".join(self._aside.values()))
                self._lock.wait(0.2)

    def _serve(self, server: ComfyServer) -> None:
        """The life of a server's thread."""
        try:
            last = ""
            while (waiting := self._take(server, last)) is not None:
                last = waiting.job.source
                try:
                    self._try(server, waiting)
                except ServerGone as gone:
                    self._set_aside(server, waiting, gone.got)
        except Cancelled:
            pass
        except BaseException as error:  # a full disk, say: the main thread raises it
            with self._lock:
                self._broken = error
                self._lock.notify_all()

    def _try(self, server: ComfyServer, waiting: _Waiting[Job]) -> None:
        """One try of one job, to its end. Raises ServerGone and Cancelled."""
        try:
            result = self.make(server, waiting.job, len(waiting.failed), lambda: self._stopped)
        except Refused as refused:
            with self._lock:
                self._running -= 1
                self._unfit[server.url, waiting.job.source] = refused.got
                self.say(f"{server.url} refuses {waiting.job.source}: {refused.got}")
                self._waiting.insert(0, waiting)
                self._drop_unfit()
                self._lock.notify_all()
        except JobFailed as error:
            if isinstance(error, JobRefused):  # its input folder may have been emptied
                server.forget_uploads()
            self._give_back(server, waiting, error.got)
        else:
            with self._lock:
                self.done(waiting.job, result)
                self._running -= 1
                self._lock.notify_all()

    def _take(self, server: ComfyServer, last: str) -> _Waiting[Job] | None:
        """The next job for a server: of the source that it has loaded, if there is one. None when all is over."""
        with self._lock:
            while not self._stopped and (self._waiting or self._running):
                mine = [w for w in self._waiting if self._may(server, w)]
                if mine:
                    chosen = next((w for w in mine if w.job.source == last), mine[0])
                    self._waiting.remove(chosen)
                    self._running += 1
                    return chosen
                self._lock.wait(0.5)
            return None

    def _may(self, server: ComfyServer, waiting: _Waiting[Job]) -> bool:
        """Not where it failed before, unless every other server that would take it is away or failed it too."""
        if (server.url, waiting.job.source) in self._unfit:
            return False
        return server.url not in waiting.failed or not any(
            other.url not in waiting.failed
            and other.url not in self._aside
            and (other.url, waiting.job.source) not in self._unfit
            for other in self.servers
        )

    def _give_back(self, server: ComfyServer, waiting: _Waiting[Job], told: str) -> None:
        """A job that failed: again, or never."""
        with self._lock:
            self._running -= 1
            waiting.failed.append(server.url)
            if len(waiting.failed) < self.rules.tries:
                self._waiting.append(waiting)
            else:
                self.failed(waiting.job, f"{told} (tried {len(waiting.failed)} times)")
            self._lock.notify_all()

    def _set_aside(self, server: ComfyServer, waiting: _Waiting[Job], told: str) -> None:
        """Its job goes back, and it is looked at until it answers or the run is over."""
        with self._lock:
            self._aside[server.url] = told
            self.say(f"{told}; set aside")
        self._give_back(server, waiting, told)
        pause = self.rules.probe / 16
        while not self._over(pause):
            if server.alive():
                server.forget_uploads()
                with self._lock:
                    del self._aside[server.url]
                    self.say(f"{server.url} answers again")
                return
            pause = min(2 * pause, self.rules.probe)

    def _over(self, seconds: float) -> bool:
        """Whether the run is over, after waiting for that for so long."""
        with self._lock:
            return self._lock.wait_for(lambda: self._stopped or not (self._waiting or self._running), seconds)

    def _drop_unfit(self) -> None:
        """Jobs that no server takes have failed."""
        for waiting in list(self._waiting):
            reasons = [self._unfit.get((server.url, waiting.job.source)) for server in self.servers]
            if all(reason is not None for reason in reasons):
                self._waiting.remove(waiting)
                self.failed(waiting.job, "refused: " + "; ".join(dict.fromkeys(filter(None, reasons))))
