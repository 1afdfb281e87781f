"""Jobs over servers: those that hang, those that never can; and kills of the whole run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from candidate_files import ROOT, arguments, files, rows_of, video, wait_for  # noqa: F401
from comfy_peer import Peer

from train import candidates as stage
from train.comfy_client import ComfyServer, JobFailed
from train.dispatch import Dispatch, Rules


class Number(int):
    source = "toy"


def spread(servers, make, count: int, **rules):
    done, failed, said = [], [], []
    dispatch = Dispatch(
        servers, make, lambda job, made: done.append((job, made)), lambda job, why: failed.append((job, why)),
        Rules(**rules), said.append,
    )  # fmt: skip
    dispatch.run([Number(i) for i in range(count)])
    return done, failed, said


def test_a_server_that_hangs_is_set_aside_and_comes_back(video):  # noqa: F811
    """Six jobs; the first server hangs from its second job on. It is set aside; the other server waits in its third job
    until the first answers again: so it made jobs before and after."""
    with Peer(video) as first, Peer(video) as second:
        servers = [ComfyServer(first.url, answer=0.3), ComfyServer(second.url)]
        made_by, hung = [], []

        def make(server, job, tried, stop):
            if server is servers[0] and made_by.count(0) == 1 and not hung:
                hung.append(True)  # once: whether the peer has counted the question is a race
                first.hang.set()
                server.queue({})
            if server is servers[1] and made_by.count(1) == 2:
                wait_for(first.hang.is_set)
                wait_for(lambda: any("set aside" in told for told in said))
                first.hang.clear()
                wait_for(lambda: made_by.count(0) > 1)
            time.sleep(0.02)
            made_by.append(servers.index(server))
            return server.url

        done, said = [], []
        run = Dispatch(servers, make, lambda job, url: done.append(job), lambda *told: done.append(told),
                       Rules(probe=0.05), said.append)  # fmt: skip
        run.run([Number(i) for i in range(6)])
    assert sorted(done) == list(range(6)) and made_by.count(0) >= 2
    assert "set aside" in said[0] and "answers again" in said[1]


def test_a_job_that_no_server_can_do_is_tried_as_often_as_the_rules_say():
    servers, tried_on = [ComfyServer("http://127.0.0.1:1"), ComfyServer("http://127.0.0.1:2")], []

    def make(server, job, tried, stop):
        if job != 1:
            return None
        tried_on.append((tried, server.url[-1]))
        raise JobFailed("never")

    done, failed, _ = spread(servers, make, 4, tries=3)
    assert len(done) == 3 and failed == [(1, "never (tried 3 times)")]
    assert [tried for tried, _ in tried_on] == [0, 1, 2] and {where for _, where in tried_on[:2]} == {"1", "2"}


def test_a_server_that_comes_back_empty_gets_its_files_again(files, video):  # noqa: F811
    """It dies in the second of four jobs and is there again without its input folder: every file that a job of the new
    one names was put there."""
    old = Peer(video, seconds=0.1).__enter__()
    made: list[Peer] = []

    def restart():
        wait_for(lambda: len(old.jobs) == 2)
        old.__exit__()
        made.append(Peer(video, port=old.port).__enter__())

    restarted = threading.Thread(target=restart)
    restarted.start()
    assert stage.main(arguments(files, old, patience=30)) == 0
    restarted.join()
    made[0].__exit__()
    named = {node["inputs"][kind] for p in made[0].prompts() for node, kind in ((p["1"], "image"), (p["2"], "audio"))}
    assert len(rows_of(files)) == 4 and named == {f"fantasytalking2/{name}" for name in made[0].uploads} and named


def test_a_server_stays_with_the_source_that_it_has_loaded():
    """Jobs come as a b a b; one server makes a a b b."""

    class Named(str):
        @property
        def source(self) -> str:
            return self[0]

    made: list[str] = []
    run = Dispatch([ComfyServer("http://127.0.0.1:1")], lambda *told: None, lambda job, _: made.append(job),
                   lambda *told: None, Rules(), print)  # fmt: skip
    run.run([Named(name) for name in ("a0", "b0", "a1", "b1")])
    assert made == ["a0", "a1", "b0", "b1"]


def test_a_fault_of_ours_ends_the_run():
    """A full disk, say: it is raised where the run was begun, and the other server's thread ends too."""

    def make(server, job, tried, stop):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        spread([ComfyServer("http://127.0.0.1:1"), ComfyServer("http://127.0.0.1:2")], make, 4)


# ---- kills ----


def started(files: Path, peer: Peer, **more) -> subprocess.Popen:  # noqa: F811
    command = [sys.executable, "-m", "train.candidates", *arguments(files, peer, **more)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def test_killed_it_goes_on_where_it_was(files, video):  # noqa: F811
    """SIGKILL in the third of six jobs: two are kept as they are, four are made, and the log's torn line is no harm."""
    with Peer(video, seconds=0.3) as peer:
        process = started(files, peer, variants=3)
        wait_for(lambda: len(peer.jobs) == 3)
        process.kill()
        process.wait()
        log = files / "out" / "log.jsonl"
        assert len(log.read_text().splitlines()) == 2
        kept = {path: path.stat().st_mtime_ns for path in (files / "out" / "candidates").glob("*.mp4")}
        with log.open("a") as file:
            file.write('{"made": "ab')
        (files / "out" / "candidates" / f".i0_toy_2.mp4.{process.pid}.part").write_bytes(b"half")
        peer.seconds = 0.0
        assert stage.main(arguments(files, peer, variants=3)) == 0
    assert len(peer.jobs) == 3 + 4 and len(rows_of(files)) == 6
    assert all(path.stat().st_mtime_ns == at for path, at in kept.items()) and len(kept) == 2
    assert not list((files / "out" / "candidates").glob(".*"))


def test_ctrl_c_takes_the_job_off_the_server(files, video):  # noqa: F811
    with Peer(video, seconds=0.2) as peer:
        process = started(files, peer)
        wait_for(lambda: len(peer.jobs) == 1)
        peer.seconds = 60.0
        wait_for(lambda: len(peer.jobs) == 2)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130  # seconds, on a busy machine
        running = list(peer.jobs)[1]
    assert peer.cancelled == [("queue", running), ("interrupt", running)]
    assert len(rows_of(files)) == 1, "what was made is told"
