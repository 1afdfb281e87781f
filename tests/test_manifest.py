"""The manifest: its lines become jobs, bad ones are named, leftovers of killed runs go."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fantasy_core.errors import UserError
from fantasy_core.manifest import Failures, Job, read_manifest, remove_partials


def test_manifest_lines_become_jobs(tmp_path):
    (tmp_path / "m.jsonl").write_text(
        '{"portrait": "p.png", "audio": "a.wav", "out": "1.mp4"}\n\n'
        '{"portrait": "/p.png", "audio": "a.wav", "out": "2.mp4", "prompt": "x", "seed": 3}\n'
    )
    failures = Failures(one_job=False)
    first, second = read_manifest(tmp_path / "m.jsonl", "y", 7, failures)
    assert first == Job(tmp_path / "p.png", tmp_path / "a.wav", tmp_path / "1.mp4", "y", 7)
    assert (second.portrait, second.prompt, second.seed) == (Path("/p.png"), "x", 3)
    assert not failures.lines


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 1"),
        ("[]", "a list"),
        ('{"portrait": "p", "audio": "a"}', "no out"),
        ('{"portrait": "p", "audio": "a", "out": "o.mp4", "sed": 1}', "sed"),
        ('{"portrait": "p", "audio": "a", "out": "o.mp4", "seed": "1"}', 'seed is "1"'),
        ('{"portrait": "p", "audio": "a", "out": "o.mp4", "seed": true}', "seed is true"),
        ('{"portrait": 1, "audio": "a", "out": "o.mp4"}', "portrait is 1"),
    ],
)
def test_bad_lines_are_named_and_do_not_stop_the_others(tmp_path, line, told):
    good = '{"portrait": "p", "audio": "a", "out": "good.mp4"}'
    (tmp_path / "m.jsonl").write_text(f"{line}\n{good}\n{good}\n")
    failures = Failures(one_job=False)
    assert [job.out.name for job in read_manifest(tmp_path / "m.jsonl", "", 0, failures)] == ["good.mp4"]
    first, again = failures.lines
    assert first.startswith("line 1: ") and told in first
    assert again.startswith("line 3: ") and "the same out" in again


def test_an_empty_or_absent_manifest_is_an_error(tmp_path):
    (tmp_path / "m.jsonl").write_text("\n")
    for name in ("m.jsonl", "absent.jsonl"):
        with pytest.raises(UserError, match="manifest"):
            read_manifest(tmp_path / name, "", 0, Failures(one_job=False))


def test_only_what_a_dead_process_left_is_removed(tmp_path):
    """A part of this video by a process that ended goes; one by a living process, or of another video, stays."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = [f".v[1].mp4.{ended.pid}.part", f".v[1].mp4.{os.getpid()}.part", f".w.mp4.{ended.pid}.part", "v[1].mp4"]
    for name in names:
        (tmp_path / name).touch()
    remove_partials(tmp_path / "v[1].mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])


def test_a_process_that_nobody_waits_for_is_dead(tmp_path):
    """As the orphans of a killed run are where the first process of a container waits for nobody."""
    ended = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    ended.stdout.read()  # until its end
    (tmp_path / f".v.mp4.{ended.pid}.part").touch()
    for _ in range(1000):
        remove_partials(tmp_path / "v.mp4")
        if not list(tmp_path.iterdir()):
            break
        time.sleep(0.01)
    assert not list(tmp_path.iterdir()) and ended.returncode is None
    ended.wait()
