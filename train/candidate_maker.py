"""One candidate made on one server: files sent, graph handed in, video fetched, cut to what is kept of it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from fantasy_core.errors import UserError
from fantasy_core.manifest import remove_partials
from fantasy_core.media import replacing
from train.candidate_jobs import Failures, Job
from train.candidate_lengths import cut, with_silence
from train.candidate_rows import Measured, VideoRow, measure
from train.comfy_client import FOLDER, ComfyServer, JobFailed
from train.source_workflows import fill, places


def has_voice(job: Job, failures: Failures) -> bool:
    """Whether the voice that is sent is there, written where silence has to follow it."""
    try:
        if job.given.spoken is not None:
            with_silence(job.given.spoken, job.given.audio, job.given.seconds)
    except UserError as error:
        failures.add(job.video, error)
        return False
    return True


def maker(out: Path, timeout: float) -> Callable[[ComfyServer, Job, int, Callable[[], bool]], VideoRow]:
    """A function that makes one candidate on one server, within `timeout` seconds, into out/candidates."""

    def make(server: ComfyServer, job: Job, tried: int, stop: Callable[[], bool]) -> VideoRow:
        files = {n: server.upload(getattr(job.given, n), job.given.hashes[n]) for n in ("portrait", "audio")}
        prefix = f"{FOLDER}/{job.video}" + (f"_try{tried + 1}" if tried else "")  # a lost file is not in the way
        graph = fill(job.how.graph, {**job.values, **files, "prefix": prefix})
        run = server.queue(graph, {(key, field) for key, _, field in places(job.how.graph)})
        saved = server.wait(graph, run, job.how.saver, most=timeout, stop=stop)
        suffix = Path(saved["filename"]).suffix.lower()
        path = out / "candidates" / f"{job.video}{suffix if job.kept is None else '.mp4'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_partials(path)
        with replacing(path) as beside, tempfile.TemporaryDirectory() as place:
            made = Path(place) / f"made{suffix}"
            with made.open("wb") as file:
                server.download(saved, file)
            try:
                final, told = _as_kept(made, job)
            except UserError as error:
                raise JobFailed(f"the video cannot be used: {error.what} ({error.got})") from None
            shutil.move(final, beside)
        drawn = {name: job.values[name] for name in ("seed", "text_scale", "audio_scale")}
        return VideoRow(
            job.video, job.given.input, f"candidates/{path.name}", told.sha256, job.source, job.variant, **drawn,
            fps=told.fps, frames=told.frames, width=told.width, height=told.height, split=job.given.split,
            prompt=job.given.prompt,
        )  # fmt: skip

    return make


def _as_kept(made: Path, job: Job) -> tuple[Path, Measured]:
    """A fetched video, as it is where that is what is kept, else cut and resampled. Raises UserError."""
    told = measure(made)
    if job.kept is None or (made.suffix == ".mp4" and job.kept.fits(told)):
        return made, told
    final = made.with_name("kept.mp4")
    cut(made, final, job.kept)
    return final, measure(final)
