"""Which candidates are to be made: inputs times sources times variants, each with the values that its graph gets.

Seeds and guidance scales are drawn from (seed, input, source, variant) alone: whatever else is asked for, and in
whatever order, a candidate is always the same one.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fantasy_core import audio, media
from fantasy_core.errors import UserError
from fantasy_core.manifest import sha256
from train.candidate_lengths import Kept, asked, of_voice, shared
from train.run import read_rows
from train.source_workflows import SAFE, SCALES, Source, fill


@dataclass(frozen=True)
class InputRow:
    """A line of inputs.jsonl; paths are relative to it."""

    input: str
    portrait: str
    audio: str
    prompt: str = ""
    split: str = "train"


@dataclass(frozen=True)
class Input:
    """A portrait and a voice of `seconds`, with the hashes of what they are. `size` (width, height) is that of a
    regenerated clip; `kept` is what every video of it must be, where that is known. `spoken` is the voice of which
    `audio` is, or will be, a copy with silence after it."""

    input: str
    portrait: Path
    audio: Path
    prompt: str
    split: str
    seconds: float
    hashes: dict[str, str]
    size: tuple[int, int] | None = None
    kept: Kept | None = None
    spoken: Path | None = None


@dataclass(frozen=True)
class Wishes:
    """What is asked of all candidates; None is the source's own. Voices with silence after them go to `voices`."""

    variants: int
    seed: int
    voices: Path
    width: int | None = None
    height: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Job:
    """A candidate to be made, and what of it is `kept` if not all. `made` is the hash of all that decides how it
    looks."""

    video: str
    given: Input
    how: Source
    variant: int
    values: dict[str, Any]
    made: str
    kept: Kept | None = None

    @property
    def source(self) -> str:
        return self.how.name


@dataclass
class Failures:
    """What cannot be made and why; the rest goes on."""

    told: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, why: str | UserError) -> None:
        self.told.append((name, f"{why.what} ({why.got})" if isinstance(why, UserError) else why))


def read_inputs(path: Path, failures: Failures) -> list[Input]:
    """The inputs of a file; those whose files cannot be used are failures. Raises UserError for ids that are no ids."""
    rows = list(read_rows(path, InputRow))
    check_ids(path, [row.input for row in rows])
    found = []
    for row in rows:
        try:
            found.append(_opened(row, path.parent))
        except UserError as error:
            failures.add(f"input {row.input}", error)
    return found


def check_ids(path: Path, ids: Sequence[str]) -> None:
    """Raise UserError unless every id is there once and can be part of a file's name."""
    wrong = [name for name in ids if not isinstance(name, str) or not SAFE.fullmatch(name)]
    twice = sorted(name for name, count in Counter(map(str, ids)).items() if count > 1)
    if wrong or twice or not ids:
        raise UserError(
            f"the inputs of {path} cannot be told apart",
            got=f"no ids: {wrong[:3]}; twice: {twice[:3]}" if ids else "no line",
            expected="an id for each, of letters, digits, '.', '-' and '_'",
            do="correct the column `input`",
        )


def _opened(row: InputRow, folder: Path) -> Input:
    portrait, voice = folder / row.portrait, folder / row.audio
    media.read_image(portrait)
    hashes = {"portrait": sha256(portrait), "audio": sha256(media.check_file(voice, "audio"))}
    return Input(row.input, portrait, voice, row.prompt, row.split, seconds_of(voice), hashes)


def seconds_of(path: Path) -> float:
    """How long a recording is, by decoding it."""
    rate, samples = 1, 0
    for rate, sound in media.read_audio(path):  # noqa: B007
        samples += sound.shape[1]
    return samples / rate


def plan(pairs: Iterable[tuple[Input, Source]], wishes: Wishes, failures: Failures) -> list[Job]:
    """The jobs of every input and source, a source after the other so that servers seldom change models."""
    jobs = []
    for given, source in sorted(pairs, key=lambda pair: (pair[1].name, pair[0].input)):
        try:
            shape, kept = shape_of(given, source, wishes)
        except UserError as error:
            failures.add(f"input {given.input} by {source.name}", error)
            continue
        heard = _lengthened(given, shape["frames"] / source.fps, wishes.voices)
        jobs += [_job(heard, source, variant, shape, kept, wishes.seed) for variant in range(wishes.variants)]
    return jobs


def shape_of(given: Input, source: Source, wishes: Wishes) -> tuple[dict[str, int | float], Kept | None]:
    """Size, rate and frames that a source is asked for, and what is kept of its video if not all. Raises UserError for
    what it cannot make."""
    if given.kept is None:
        frames, kept = of_voice(_most(given.seconds, wishes), source)
    else:
        frames, kept = asked(given.kept, source), given.kept
    if frames > source.frames:
        raise UserError(
            f"{source.name} cannot make a video of this length",
            got=f"{frames / source.fps:.2f} s, {frames} frames at {source.fps:g} a second",
            expected=f"up to {source.frames} frames",
            do="bring another recording, or cut it",
        )
    width, height = given.size or (wishes.width or source.width, wishes.height or source.height)
    if width % 16 or height % 16:
        raise UserError(
            f"{source.name} cannot make a video of this size",
            got=f"{width} x {height}",
            expected="multiples of 16",
            do="crop or scale the clip, or give other --width and --height",
        )
    return {"width": width, "height": height, "frames": frames, "fps": source.fps}, kept


def _most(seconds: float, wishes: Wishes) -> float:
    return seconds if wishes.seconds is None else min(seconds, wishes.seconds)


def at_one_rate(
    inputs: Iterable[Input], sources: Sequence[Source], fps: float, wishes: Wishes, failures: Failures
) -> list[Input]:
    """The inputs, with one length for all videos of each: what every source can make of it at `fps`."""
    found = []
    for given in inputs:
        try:
            found.append(replace(given, kept=shared(_most(given.seconds, wishes), fps, sources)))
        except UserError as error:
            failures.add(f"input {given.input}", error)
    return found


def _lengthened(given: Input, seconds: float, voices: Path) -> Input:
    """The input with a voice of `seconds` at least: its own, or a copy with silence after it, still to be written."""
    if given.seconds >= seconds - 1 / audio.SAMPLE_RATE:
        return given
    digest = hashlib.sha256(f"{given.hashes['audio']} and silence up to {seconds}".encode()).hexdigest()
    path = voices / f"{digest[:32]}.wav"
    return replace(given, audio=path, spoken=given.audio, seconds=seconds, hashes={**given.hashes, "audio": digest})


def _job(
    given: Input, source: Source, variant: int, shape: dict[str, int | float], kept: Kept | None, seed: int
) -> Job:
    drawn = draw(seed, given.input, source, variant)
    values = {**shape, **drawn, "prompt": given.prompt, "negative_prompt": source.negative_prompt}
    graph = fill(source.graph, {**values, **given.hashes, "prefix": ""})
    told = json.dumps(graph, sort_keys=True)
    if kept is not None and kept != Kept(int(shape["frames"]), source.fps):
        told += f" {kept.frames} at {kept.fps:g}"
    made = hashlib.sha256(told.encode()).hexdigest()
    return Job(f"{given.input}_{source.name}_{variant}", given, source, variant, values, made, kept)


def draw(seed: int, name: str, source: Source, variant: int) -> dict[str, Any]:
    """Seed of the noise, and a guidance scale from each range of the source, to two decimals."""
    chance = random.Random(json.dumps([seed, name, source.name, variant]))
    drawn: dict[str, Any] = {"seed": chance.randrange(2**31)}
    for scale in SCALES:
        drawn[scale] = round(chance.uniform(*source.scales[scale]), 2) if scale in source.scales else None
    return drawn
