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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fantasy_core import audio, media
from fantasy_core.errors import UserError
from fantasy_core.manifest import sha256
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
    """A portrait and a voice of `seconds`, with the hashes of what they are. `size` (width, height) and `whole` (no
    shorter than the voice) are for regenerated clips."""

    input: str
    portrait: Path
    audio: Path
    prompt: str
    split: str
    seconds: float
    hashes: dict[str, str]
    size: tuple[int, int] | None = None
    whole: bool = False


@dataclass(frozen=True)
class Wishes:
    """What is asked of all candidates; None is the source's own."""

    variants: int
    seed: int
    width: int | None = None
    height: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Job:
    """A candidate to be made. `made` is the hash of all that decides how it looks."""

    video: str
    given: Input
    how: Source
    variant: int
    values: dict[str, Any]
    made: str

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
            shape = _shape(given, source, wishes)
        except UserError as error:
            failures.add(f"input {given.input} by {source.name}", error)
            continue
        jobs += [_job(given, source, variant, shape, wishes.seed) for variant in range(wishes.variants)]
    return jobs


def _shape(given: Input, source: Source, wishes: Wishes) -> dict[str, int | float]:
    """Size, rate and frames of a candidate: as many as the voice fills, up to what the source can."""
    seconds = given.seconds if wishes.seconds is None or given.whole else min(given.seconds, wishes.seconds)
    wanted = audio.frames_for(seconds, source.fps)
    frames = min(wanted, source.frames)
    if frames < source.least_frames or (given.whole and wanted > source.frames):
        raise UserError(
            f"{source.name} cannot make a video of this length",
            got=f"{seconds:.2f} s, {wanted} frames at {source.fps:g} a second",
            expected=f"{source.least_frames} to {source.frames} frames",
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
    return {"width": width, "height": height, "frames": frames, "fps": source.fps}


def _job(given: Input, source: Source, variant: int, shape: dict[str, int | float], seed: int) -> Job:
    drawn = draw(seed, given.input, source, variant)
    values = {**shape, **drawn, "prompt": given.prompt, "negative_prompt": source.negative_prompt}
    graph = fill(source.graph, {**values, **given.hashes, "prefix": ""})
    made = hashlib.sha256(json.dumps(graph, sort_keys=True).encode()).hexdigest()
    return Job(f"{given.input}_{source.name}_{variant}", given, source, variant, values, made)


def draw(seed: int, name: str, source: Source, variant: int) -> dict[str, Any]:
    """Seed of the noise, and a guidance scale from each range of the source, to two decimals."""
    chance = random.Random(json.dumps([seed, name, source.name, variant]))
    drawn: dict[str, Any] = {"seed": chance.randrange(2**31)}
    for scale in SCALES:
        drawn[scale] = round(chance.uniform(*source.scales[scale]), 2) if scale in source.scales else None
    return drawn
