"""One footage file becomes clips: read three times from the start, never held in memory.

First its sound and its scenes; then the faces of the spans that have voice; then the spans that are kept are written.
Everything that is dropped is told with the rule it broke. Rules come in the order of their cost.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from torch import Tensor

from fantasy_core import lips, media
from fantasy_core.errors import UserError
from fantasy_core.manifest import sha256
from fantasy_core.media.cuts import cuts, differences
from fantasy_core.media.images import to_bytes
from fantasy_core.metrics.lip_sync import LipSync, lip_sync, pooled
from train.clip_rules import Detectors, Faces, crop_box, face_fault, fitted, follow, voiced, voiced_share
from train.footage import Footage
from train.scenes import Span, at_times, scenes, spans


@dataclass(frozen=True)
class ClipRules:
    """All that decides what becomes of a file; what each of them means is said in `train.clips`."""

    fps: float
    frames: int
    min_frames: int
    size: tuple[int, int] | None  # height, width
    scene_change: float
    voiced: float
    min_face: float
    second_face: float
    max_offset: int
    unsure: str
    pool: str


@dataclass(frozen=True)
class Dropped:
    """A span that became no clip: the rule it broke and how, where it is and how long, in seconds."""

    rule: str
    why: str
    start: float
    seconds: float


@dataclass
class Outcome:
    """What became of a footage file; `clips` are rows of videos.jsonl that lack their split. `key` names content and
    rules: the same key is the same outcome. A file that cannot be read has `failed`."""

    key: str
    origin: str
    sha256: str
    seconds: float = 0.0
    clips: list[dict] = field(default_factory=list)
    dropped: list[dict] = field(default_factory=list)
    failed: str | None = None

    def drop(self, rule: str, why: str, start: float, seconds: float) -> None:
        self.dropped.append(asdict(Dropped(rule, why, round(start, 3), round(seconds, 3))))


@dataclass(frozen=True)
class Measured:
    """A span, its faces, and how its lips fit its voice."""

    span: Span
    faces: Faces
    sync: LipSync


def make_clips(job: tuple[Footage, Outcome], *, out: Path, rules: ClipRules, task: Path | None) -> Outcome:
    """Write the clips of a file to out/clips and say in its empty outcome what became of it. A file that cannot be read
    is a failure that is told; what cannot be written raises UserError, since the next file could not be either."""
    footage, outcome = job
    try:
        with ExitStack() as stack:
            detectors = tuple(stack.enter_context(lips.landmarker(task, confidence=c)) for c in (0.5, 0.9))
            kept, sound = choose(footage.path, rules, detectors, outcome)
    except UserError as error:
        outcome.failed = f"{error.what}: {error.got}"
        return outcome
    if kept:
        (out / "clips").mkdir(parents=True, exist_ok=True)
        write_all(footage, out, rules, kept, sound, outcome)
    return outcome


def choose(path: Path, rules: ClipRules, detectors: Detectors, outcome: Outcome) -> tuple[list[Measured], tuple]:
    """The spans of a file that become clips, and its sound (mono, rate); the others go to `outcome`."""
    seconds, has_sound = media.video_header(path)
    if not has_sound:
        outcome.seconds = seconds
        outcome.drop("sound", "no sound track", 0.0, seconds)
        return [], ()
    waveform, rate = heard(path)
    times, difference = differences(media.read_video(path))
    found = scenes(times, cuts(difference, rules.scene_change))
    outcome.seconds = round(found[-1][1], 3)
    whole, short = spans(found, rules.fps, rules.frames, rules.min_frames)
    for span in short:
        outcome.drop(
            "short", f"{span.frames} frames, {rules.min_frames} are needed", span.start, span.frames / rules.fps
        )
    spoken = with_voice(whole, voiced(waveform, rate), rules, outcome)
    seen = with_face(path, spoken, (waveform, rate), rules, detectors, outcome)
    return in_sync(seen, rules, outcome), (waveform, rate)


def heard(path: Path) -> tuple[np.ndarray, int]:
    """The whole sound of a file, mono [n], and its rate."""
    rate, pieces = 0, [np.zeros(0, np.float32)]
    for rate, sound in media.read_audio(path):  # noqa: B007
        pieces.append(sound.mean(axis=0))
    if not rate:
        raise UserError(
            f"cannot read the sound of {path}", got="no sample", expected="a sound track", do="convert the file again"
        )
    return np.concatenate(pieces), rate


def sound_of(span: Span, waveform: np.ndarray, rate: int, fps: float) -> np.ndarray:
    """Exactly frames / fps seconds of sound [n] from the span's start on, silence where there is none any more."""
    first, count = round(span.start * rate), round(span.frames / fps * rate)
    part = waveform[first : first + count]
    return np.pad(part, (0, count - len(part)))


def with_voice(whole: Sequence[Span], moments: np.ndarray, rules: ClipRules, outcome: Outcome) -> list[Span]:
    """The spans with enough voice."""
    kept = []
    for span in whole:
        share = voiced_share(moments, span.start, span.frames / rules.fps)
        if share >= rules.voiced:
            kept.append(span)
        else:
            why = f"voice in {share:.0%} of the time, {rules.voiced:.0%} are needed"
            outcome.drop("voice", why, span.start, span.frames / rules.fps)
    return kept


def pictures(path: Path, wanted: Sequence[Span], fps: float) -> Iterator[tuple[Span, Iterator[Tensor]]]:
    """Each span with its frames [3, H, W] at the new rate; what is not taken of them is passed over."""
    if not wanted:
        return
    times = (time for span in wanted for time in span.times(fps))
    stream = at_times(media.read_video(path), times, fps)
    for span in wanted:
        own = islice(stream, span.frames)
        yield span, own
        deque(own, maxlen=0)


def with_face(
    path: Path, spoken: Sequence[Span], sound: tuple, rules: ClipRules, detectors: Detectors, outcome: Outcome
) -> list[Measured]:
    """The spans with one face, and how their lips fit the voice."""
    kept = []
    for span, frames in pictures(path, spoken, rules.fps):
        pixels = (to_bytes(frame[None])[0] for frame in frames)
        faces = follow(pixels, span.frames, detectors, rules.min_face)
        fault = face_fault(faces, rules.min_face, rules.second_face)
        if fault is not None:
            outcome.drop(*fault, span.start, span.frames / rules.fps)
            continue
        part = sound_of(span, *sound, rules.fps)
        kept.append(Measured(span, faces, lip_sync(faces.track.openings, rules.fps, part, sound[1])))
    return kept


def in_sync(seen: Sequence[Measured], rules: ClipRules, outcome: Outcome) -> list[Measured]:
    """The spans whose lips fit the voice; the verdict is that of all spans of a scene (or file) together, and each
    span carries it from here on."""
    kept, groups = [], {}
    for one in seen:
        groups.setdefault(one.span.scene if rules.pool == "scene" else 0, []).append(one)
    for group in groups.values():
        told = pooled([one.sync for one in group])
        for one in group:
            fault = sync_fault(told, rules)
            if fault is None:
                kept.append(Measured(one.span, one.faces, told))
            else:
                outcome.drop(*fault, one.span.start, one.span.frames / rules.fps)
    return kept


def sync_fault(told: LipSync, rules: ClipRules) -> tuple[str, str] | None:
    """The rule that a verdict breaks, and how."""
    if told.offset is None:
        return ("unsure", told.reason or "") if rules.unsure == "drop" else None
    if abs(told.offset) <= rules.max_offset:
        return None
    side = "late" if told.offset > 0 else "early"
    return "sync", f"the picture is {abs(told.offset)} frames {side}, {rules.max_offset} are allowed"


# ---- writing ----


def write_all(
    footage: Footage, out: Path, rules: ClipRules, kept: Sequence[Measured], sound: tuple, outcome: Outcome
) -> None:
    """Write the kept spans; those whose picture is smaller than the size that is asked for are dropped here."""
    by_span = {one.span: one for one in kept}
    for number, (span, frames) in enumerate(pictures(footage.path, [one.span for one in kept], rules.fps)):
        first = next(frames)
        one, (height, width) = by_span[span], first.shape[1:]
        box = crop_box(height, width, one.faces.centre, rules.size)
        if box is None:
            why = f"a picture of {width} x {height}, smaller than what is asked for"
            outcome.drop("picture", why, span.start, span.frames / rules.fps)
            continue
        name = f"{outcome.sha256[:12]}-{hashlib.sha256(outcome.key.encode()).hexdigest()[:6]}-{number:04d}"
        row = {"video": name, "path": f"clips/{name}.mp4", "origin": footage.origin, "start": round(span.start, 3)}
        row |= {
            "prompt": footage.prompt,
            "offset": one.sync.offset,
            "face": round(one.faces.width * scale_of(box, rules)),
        }
        told = {"source": "real", "origin": footage.origin, "start": row["start"]}
        ready = (fitted(frame, box, rules.size) for frame in _chain(first, frames))
        samples = sound_of(span, *sound, rules.fps)
        row |= write_clip(out / row["path"], ready, samples, sound[1], rules.fps, told, footage.prompt)
        outcome.clips.append(row)


def scale_of(box: tuple[int, int, int, int], rules: ClipRules) -> float:
    """New pixels of an old one."""
    return 1.0 if rules.size is None else rules.size[0] / box[2]


def write_clip(
    path: Path, frames: Iterator[Tensor], samples: np.ndarray, rate: int, fps: float, told: dict, prompt: str
) -> dict:
    """Write frames [3, H, W] and mono samples [n] as an mp4; what videos.jsonl says of it. `input` is a hash of the
    portrait (frame 0 before it is compressed), the sound and the prompt."""
    with tempfile.TemporaryDirectory() as place:
        sound = Path(place) / "sound.wav"
        name = hashlib.sha256(media.write_wav(sound, samples, rate))
        with media.VideoWriter(path, fps, sound=sound, settings=told) as writer:
            for frame in frames:
                if not writer.frames:
                    name.update(to_bytes(frame[None]).tobytes())
                    name.update(f"{tuple(frame.shape)} {prompt}".encode())
                writer.write(frame[None])
            shape = frame.shape  # pyright: ignore[reportPossiblyUnboundVariable]
    size = {"frames": writer.frames, "width": shape[2], "height": shape[1]}
    return {"input": name.hexdigest()[:16], "sha256": sha256(path), "fps": fps} | size


def _chain(first: Tensor, rest: Iterator[Tensor]) -> Iterator[Tensor]:
    yield first
    yield from rest
