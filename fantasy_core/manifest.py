"""Many videos in one call: a JSON-lines manifest, and which of its videos are already there.

A line is `{"portrait": P, "audio": A, "out": V.mp4}` with `prompt` and `seed` if they differ from the flags; paths are
relative to the manifest. A finished video says in its metadata how it was made; it is skipped when that still holds.
"""

from __future__ import annotations

import argparse
import glob
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .errors import UserError, some

KEYS = {"portrait": str, "audio": str, "out": str, "prompt": str, "seed": int}


@dataclass(frozen=True)
class Job:
    """One video to make."""

    portrait: Path
    audio: Path
    out: Path
    prompt: str
    seed: int


@dataclass
class Failures:
    """What went wrong, by line; with `one_job` the first error goes straight to the user."""

    one_job: bool
    lines: list[str] = field(default_factory=list)

    def add(self, name: str, error: UserError) -> None:
        self.lines.append(f"{name}: {error.what} ({error.got})")

    @contextmanager
    def of(self, job: Job) -> Iterator[None]:
        """What goes wrong inside belongs to this job and does not stop the others; too little GPU memory is told so."""
        try:
            with _memory_told():
                yield
        except UserError as error:
            if self.one_job:
                raise
            self.add(str(job.out), error)

    def report(self, total: int) -> None:
        """Raise one UserError that names every failed line, if there is any."""
        if self.lines:
            raise UserError(
                f"{len(self.lines)} of {total} lines of the manifest failed",
                got="\n            ".join(self.lines),
                expected="lines whose files can be read and written",
                do="mend these lines and run the same command again: finished videos are skipped",
            )


@contextmanager
def _memory_told() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            "the GPU's memory is too small for this video",
            got=str(error).splitlines()[0],
            expected="what --dry-run prints, and a tenth more",
            do="pass --offload blocks, a smaller --size, a shorter --window, or --guidance-passes sequential",
        ) from error


def read_jobs(flags: argparse.Namespace, failures: Failures) -> list[Job]:
    """The one job of the flags, or those of the manifest. Raises UserError for flags that do not go together."""
    one = {"--portrait": flags.portrait, "--audio": flags.audio, "--out": flags.out}
    missing = [name for name, value in one.items() if value is None]
    given = [name for name in one if name not in missing]
    if flags.manifest is None and not missing:
        return [Job(flags.portrait, flags.audio, flags.out, flags.prompt, flags.seed)]
    if flags.manifest is not None and len(missing) == len(one):
        return read_manifest(flags.manifest, flags.prompt, flags.seed, failures)
    raise UserError(
        "what to animate is not clear",
        got=" ".join(given + (["--manifest"] if flags.manifest else [])) or "none of them",
        expected="--portrait, --audio and --out, or --manifest alone",
        do=f"add {', '.join(missing)}" if flags.manifest is None else "leave the others out",
    )


def read_manifest(path: Path, prompt: str, seed: int, failures: Failures) -> list[Job]:
    """The jobs of a manifest in order; `prompt` and `seed` are for lines without. Bad lines go to `failures`.

    Raises UserError when the file cannot be read or holds no line.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read the manifest {path}", got=str(error), expected="a JSON-lines file", do="check the path"
        ) from error
    jobs, outs = [], set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            job = _job(line, path.parent, prompt, seed)
            if job.out.resolve() in outs:
                raise _bad_line(f"the same out as an earlier line: {job.out}")
        except UserError as error:
            failures.add(f"line {number}", error)
            continue
        outs.add(job.out.resolve())
        jobs.append(job)
    if not jobs and not failures.lines:
        raise UserError(
            f"the manifest {path} is empty", got="no line", expected="one JSON object a line", do="add lines to it"
        )
    return jobs


def _job(line: str, folder: Path, prompt: str, seed: int) -> Job:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise _bad_line(str(error)) from error
    if not isinstance(values, dict):
        raise _bad_line(f"a {type(values).__name__}")
    values = {"prompt": prompt, "seed": seed, **values}
    if missing := KEYS.keys() - values.keys():
        raise _bad_line(f"no {some(missing)}")
    if unknown := values.keys() - KEYS.keys():
        raise _bad_line(f"unknown keys {some(unknown)}")
    for key, kind in KEYS.items():
        if type(values[key]) is not kind:
            raise _bad_line(f"{key} is {json.dumps(values[key])}")
    paths = {key: folder / values[key] for key in ("portrait", "audio", "out")}
    return Job(**paths, prompt=values["prompt"], seed=values["seed"])


def _bad_line(got: str) -> UserError:
    return UserError(
        "a line of the manifest cannot be used",
        got=got,
        expected='{"portrait": "p.png", "audio": "a.wav", "out": "v.mp4"}, and "prompt" or "seed" if they differ',
        do="correct the line",
    )


def check_out(out: Path) -> None:
    """Raise UserError unless `out` can become an mp4: its folder exists and may be written to. Writes nothing."""
    folder = out.parent
    got = None
    if out.suffix.lower() != ".mp4":
        got = f"the name {out.name}"
    elif out.is_dir():
        got = "a folder of that name"
    elif not folder.is_dir():
        got = f"no folder {folder}"
    elif not os.access(folder, os.W_OK):
        got = f"a folder that may not be written to: {folder}"
    if got:
        raise UserError(
            f"cannot write {out}", got=got, expected="a file NAME.mp4 in an existing, writable folder",
            do="create the folder or choose another name",
        )  # fmt: skip


def remove_partials(out: Path) -> None:
    """Delete what a killed run left of this video: `.NAME.mp4.PID.part` whose process is gone."""
    for part in glob.glob(f".{glob.escape(out.name)}.*.part", root_dir=out.parent):
        pid = part.split(".")[-2]
        if pid.isdigit() and not _alive(int(pid)):
            (out.parent / part).unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has waited for, usual in containers, does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except ProcessLookupError:
        return False
    except OSError:  # another user's, or a system without /proc
        return True


def settings_of(video: Path) -> dict | None:
    """The settings in the metadata of a video that `animate` wrote; None for any other file, or none at all."""
    import av

    try:
        with av.open(str(video)) as container:
            settings = json.loads(container.metadata.get("comment", ""))
    except (av.FFmpegError, OSError, ValueError):
        return None
    return settings if isinstance(settings, dict) else None


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
