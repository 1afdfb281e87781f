"""Real clips as inputs: the first frame and the sound of each, from which a source makes a rival (the paper's
full-dimension pairs: the clip itself over what was generated from it)."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fantasy_core.errors import UserError
from fantasy_core.media import read_audio, read_video, replacing, write_wav
from fantasy_core.media.files import broken
from fantasy_core.media.images import to_bytes
from fantasy_core.progress import Progress
from train.candidate_jobs import Failures, Input, Wishes, check_ids, shape_of
from train.candidate_lengths import Kept
from train.candidate_rows import Log, VideoRow
from train.import_videos import Found, Known, measured_rows
from train.run import read_rows
from train.source_workflows import Source


@dataclass(frozen=True)
class ClipRow:
    """A line of a videos.jsonl, as far as it matters here."""

    video: str
    input: str
    path: str
    source: str = "real"
    prompt: str = ""
    split: str = "train"


def read_clips(path: Path, log: Log, failures: Failures) -> list[VideoRow]:
    """The real clips of a videos.jsonl, measured, with paths relative to the log. Raises UserError for none."""
    every = list(read_rows(path, ClipRow))
    rows = [row for row in every if row.source == "real"]
    if not rows:
        raise UserError(
            f"{path} has no real clip",
            got=f"{len(every)} videos of other sources" if every else "no line",
            expected="videos whose source is real, as train.clips writes them",
            do="give the videos.jsonl of train.clips",
        )
    check_ids(path, [row.input for row in rows])
    found = [Found(path.parent / row.path, "real", row.input, -1, name=row.video) for row in rows]
    known = {row.input: Known(row.prompt, row.split) for row in rows}
    return measured_rows(found, known, log, failures)


def as_inputs(clips: Sequence[VideoRow], out: Path, failures: Failures, *, write: bool) -> list[Input]:
    """The clips as inputs of their own size and length; first frame and sound go to `out`/real."""
    found = []
    with Progress("first frames and voices", len(clips)) as progress:
        for clip in clips:
            place = out / "real" / f"{clip.input}_{clip.sha256[:12]}"
            given = _input(clip, place)
            try:
                if write:
                    _extract(out / clip.path, given, clip.frames / clip.fps)
                found.append(given)
            except UserError as error:
                failures.add(f"clip {clip.video}", error)
            progress.step(clip.video)
    return found


def _input(clip: VideoRow, place: Path) -> Input:
    files = {"portrait": place.with_name(place.name + ".png"), "audio": place.with_name(place.name + ".wav")}
    hashes = {name: hashlib.sha256(f"{name} of {clip.sha256}".encode()).hexdigest() for name in files}
    told = {"prompt": clip.prompt, "split": clip.split, "seconds": clip.frames / clip.fps, "hashes": hashes}
    return Input(clip.input, **files, **told, size=(clip.width, clip.height), kept=Kept(clip.frames, clip.fps))


def _extract(clip: Path, given: Input, seconds: float) -> None:
    """The first frame as PNG; the sound at its own rate as WAV, as long as the picture. Done once."""
    given.portrait.parent.mkdir(parents=True, exist_ok=True)
    if not given.audio.exists():
        pieces = list(read_audio(clip))
        if not pieces:
            raise broken(clip, "audio", "no sound that can be decoded")
        rate, sound = pieces[0][0], np.concatenate([piece for _, piece in pieces], axis=1)
        samples = round(seconds * rate)
        sound = np.pad(sound[:, :samples], ((0, 0), (0, max(0, samples - sound.shape[1]))))
        with replacing(given.audio) as beside:
            write_wav(beside, sound, rate)
    if not given.portrait.exists():
        _, frame = next(read_video(clip))
        with replacing(given.portrait) as beside:
            Image.fromarray(to_bytes(frame[None])[0]).save(beside, format="png")


def one_source_each(
    inputs: Sequence[Input], sources: Sequence[Source], wishes: Wishes, failures: Failures
) -> tuple[list[tuple[Input, Source]], dict[str, int]]:
    """Every clip with one of the sources that can make a video like it, each equally likely, whatever the other clips
    are; and of how many clips each source can. A clip that none can make is a failure."""
    ordered, pairs = sorted(sources, key=lambda source: source.name), []
    able = dict.fromkeys([source.name for source in ordered], 0)
    for given in inputs:
        can, why = _able(given, ordered, wishes)
        for source in can:
            able[source.name] += 1
        if can:
            pairs.append((given, random.Random(f"{wishes.seed} {given.input} whose").choice(can)))
        elif ordered:
            failures.add(f"input {given.input}", "; ".join(why))
    return pairs, able


def _able(given: Input, sources: Sequence[Source], wishes: Wishes) -> tuple[list[Source], list[str]]:
    """The sources that can make a video of an input, and why the others cannot."""
    can, why = [], []
    for source in sources:
        try:
            shape_of(given, source, wishes)
            can.append(source)
        except UserError as error:
            why.append(f"{error.what} ({error.got})")
    return can, why
