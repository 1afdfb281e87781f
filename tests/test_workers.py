"""Work in other processes: order, errors, deaths, and the end of the process that began it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from deadly_reader import cannot_begin, die_over, die_over_pair, slow_first

from fantasy_core.errors import UserError
from train.workers import WorkerKilled, each

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("in_order", [True, False])
def test_a_job_that_kills_its_worker_fails_alone(tmp_path, in_order):
    """Twelve jobs, two deadly, one that is refused; the others come back whole, each once."""
    files = [tmp_path / f"{n:02d}" for n in range(12)]
    texts = {n: "deadly" if n in (2, 3) else "wrong" if n == 7 else f"text {n}" for n in range(12)}
    for number, file in enumerate(files):
        file.write_text(texts[number])
    pairs = list(each(die_over, files, 2, in_order=in_order))
    found = dict(pairs)
    assert [job for job, _ in pairs] == files if in_order else sorted(found) == files
    assert len(pairs) == 12 and all(isinstance(found[files[n]], WorkerKilled) for n in (2, 3))
    assert isinstance(found[files[7]], UserError) and not isinstance(found[files[7]], WorkerKilled)
    assert all(found[file] == texts[n] for n, file in enumerate(files) if n not in (2, 3, 7))


def test_here_is_as_in_other_processes(tmp_path):
    files = [tmp_path / str(n) for n in range(3)]
    for number, file in enumerate(files):
        file.write_text("wrong" if number == 1 else "text")
    here, there = (dict(each(die_over, files, workers)) for workers in (0, 1))
    assert {job: str(told) for job, told in here.items()} == {job: str(told) for job, told in there.items()}


def test_a_killed_job_is_told_by_its_file(tmp_path):
    (tmp_path / "bad.mp4").write_text("deadly")
    ((_, found),) = each(die_over_pair, [(tmp_path / "bad.mp4", "more")], 1)
    assert isinstance(found, WorkerKilled) and found.what == f"{tmp_path / 'bad.mp4'} killed its process"


@pytest.mark.parametrize(
    "error", [UserError("no model", got="none", expected="one", do="fetch it"), RuntimeError("zip")]
)
@pytest.mark.parametrize("workers", [0, 2])
def test_workers_that_cannot_begin_stop_the_work(tmp_path, workers, error):
    """It is raised as it is: no job is a WorkerKilled for it."""
    (tmp_path / "a").write_text("text")
    with pytest.raises(type(error), match=str(error).splitlines()[0]):
        list(each(die_over, [tmp_path / "a"] * 3, workers, prepare=cannot_begin, given=(error,)))


def test_results_come_in_order_or_as_they_are_done():
    """Two workers; job 0 takes a second, and the five others none."""
    assert [job for job, _ in each(slow_first, range(6), 2)] == list(range(6))
    assert [job for job, _ in each(slow_first, range(6), 2, in_order=False)][-1] == 0


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_process_that_began_them(tmp_path, way):
    """Killed, a process cannot end its workers: they do it themselves, in the middle of a job of ten minutes."""
    script = "import sys, pathlib; from deadly_reader import tell_and_stay; from train.workers import each\n"
    script += (
        f"if __name__ == '__main__': list(each(tell_and_stay, [pathlib.Path({str(tmp_path)!r}) / n for n in 'ab'], 2))"
    )
    (tmp_path / "script.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    begun = subprocess.Popen([sys.executable, tmp_path / "script.py"], env=environment, start_new_session=True, **quiet)
    wait_for(lambda: all((tmp_path / n).is_file() and (tmp_path / n).read_text() for n in "ab"))
    workers = [int((tmp_path / n).read_text()) for n in "ab"]
    assert all(map(runs, workers))
    os.killpg(begun.pid, way) if way == signal.SIGINT else begun.send_signal(way)  # Ctrl-C reaches all of a terminal
    assert begun.wait(60) != 0
    wait_for(lambda: not any(map(runs, workers)))


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
