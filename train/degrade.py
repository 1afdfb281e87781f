"""Clips made worse in one known way: an option of ours for negatives without a generating model (not the paper's).

    python -m train.degrade --videos real/videos.jsonl --out worse --kinds shift blur freeze

| kind | dimension | what is done | strength |
|---|---|---|---|
| shift | ls | the sound comes earlier or later | 0.2 to 1 s |
| blur | vq | Gaussian blur of the picture | sigma 0.3 to 1.5 % of the shorter side |
| compress | vq | H.264 that keeps little | crf 36 to 50 |
| overexpose | vq | brightness multiplied, highlights lost | 1.5 to 3 times |
| freeze | mn | every few frames the picture is held for as long | 4 to 16 frames |
| tremble | mn | the picture jumps from frame to frame | up to 0.4 to 2 % of the shorter side |

Writes videos/NAME.mp4 and a videos.jsonl with the given videos and their degraded ones, which have the same input and
split, source `degraded`, variant the kind, and seed and strength; all in one file, since train.pairs compares videos of
one input. The paper sets real clips against generated ones: what is learned from degradations is to undo these alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fantasy_core import media
from fantasy_core.errors import UserError
from fantasy_core.manifest import remove_partials, settings_of, sha256
from fantasy_core.media.images import to_bytes
from fantasy_core.progress import Progress
from train.clip_file import heard
from train.run import command, read_rows, setting, write_json

# ---- what can be done to frames [T, 3, H, W] in 0..1 and to a waveform [n] ----


def shift(waveform: np.ndarray, rate: int, seconds: float) -> np.ndarray:
    """The sound `seconds` later, or earlier where it is negative; silence where none is left, the length as it was."""
    moved = np.zeros_like(waveform)
    samples = min(round(abs(seconds) * rate), len(waveform))
    if seconds > 0:
        moved[samples:] = waveform[: len(waveform) - samples]
    else:
        moved[: len(waveform) - samples] = waveform[samples:]
    return moved


def blur(frames: Tensor, share: float) -> Tensor:
    """Gaussian blur; sigma is a share of the shorter side. Edges are held."""
    sigma = share * min(frames.shape[2:])
    reach = max(round(3 * sigma), 1)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).expand(3, 1, 1, -1)
    held = F.pad(frames, (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(held, weights, groups=3), weights.transpose(2, 3), groups=3).clamp(0, 1)


def compress(frames: Tensor, crf: float) -> Tensor:
    """What H.264 at a constant rate factor leaves of the frames (51 is the worst there is)."""
    import av

    height, width = frames.shape[2:]
    place = io.BytesIO()
    with av.open(place, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": str(round(crf))})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in to_bytes(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    place.seek(0)
    with av.open(place) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(pictures)).movedim(-1, 1).float() / 255


def overexpose(frames: Tensor, gain: float) -> Tensor:
    """Brightness times `gain`; what exceeds white is white."""
    return (frames * gain).clamp(0, 1)


def freeze(frames: Tensor, hold: float, generator: np.random.Generator) -> Tensor:
    """Of every two spans of `hold` frames one, by chance the first or second, shows its first frame throughout."""
    span, index = round(hold), np.arange(len(frames))
    for start in range(0, len(frames), 2 * span):
        first = start + span * int(generator.integers(2))
        index[first : first + span] = min(first, len(frames) - 1)
    return frames[torch.from_numpy(index)]


def tremble(frames: Tensor, share: float, generator: np.random.Generator) -> Tensor:
    """Each frame moved by whole pixels, by chance, up to a share of the shorter side (at least one); edges are held."""
    most = max(round(share * min(frames.shape[2:])), 1)
    held = F.pad(frames, (most,) * 4, mode="replicate")
    height, width = frames.shape[2:]
    places = generator.integers(0, 2 * most + 1, (len(frames), 2))
    return torch.stack([one[:, y : y + height, x : x + width] for one, (y, x) in zip(held, places, strict=True)])


@dataclass(frozen=True)
class Degradation:
    """A kind: which dimension it harms, from which strength to which, and how a clip (frames, waveform, rate) is
    changed at a strength."""

    dimension: str
    least: float
    most: float
    apply: Callable[[Tensor, np.ndarray, int, float, np.random.Generator], tuple[Tensor, np.ndarray]]


def _either_way(frames, waveform, rate, seconds, generator):
    return frames, shift(waveform, rate, seconds * (1 if generator.integers(2) else -1))


KINDS = {
    "shift": Degradation("ls", 0.2, 1.0, _either_way),
    "blur": Degradation("vq", 0.003, 0.015, lambda frames, sound, rate, s, g: (blur(frames, s), sound)),
    "compress": Degradation("vq", 36, 50, lambda frames, sound, rate, s, g: (compress(frames, s), sound)),
    "overexpose": Degradation("vq", 1.5, 3.0, lambda frames, sound, rate, s, g: (overexpose(frames, s), sound)),
    "freeze": Degradation("mn", 4, 16, lambda frames, sound, rate, s, g: (freeze(frames, s, g), sound)),
    "tremble": Degradation("mn", 0.004, 0.02, lambda frames, sound, rate, s, g: (tremble(frames, s, g), sound)),
}


# ---- the command ----


@dataclass(frozen=True)
class DegradeSettings:
    videos: Path = setting(help="videos.jsonl of clips with sound")
    out: Path = setting(help="folder for the degraded ones")
    kinds: tuple[str, ...] = setting(("shift", "blur", "freeze"), "what is done, each to a copy", choices=tuple(KINDS))
    strength: float | None = setting(None, "0 the weakest to 1 the strongest; by chance without", least=0.0, most=1.0)
    seed: int = setting(0, "of strengths and chance")


@dataclass(frozen=True)
class Source:
    """A row of videos.jsonl, as far as it matters here."""

    video: str
    input: str
    path: str
    fps: float


def drawn(kind: str, video: str, settings: DegradeSettings) -> tuple[float, np.random.Generator]:
    """The strength of a kind for a video, and the chance that goes on from there: by seed, video and kind alone."""
    key = hashlib.sha256(f"{settings.seed} {kind} {video}".encode()).digest()
    generator = np.random.default_rng(np.frombuffer(key, np.uint32))
    at = float(generator.random())
    at, about = (at if settings.strength is None else settings.strength), KINDS[kind]
    return about.least + at * (about.most - about.least), generator


def degrade(source: Source, kind: str, settings: DegradeSettings, out: Path) -> dict:
    """Write a degraded copy, unless it is there; the columns of its row that differ from the original's."""
    strength, generator = drawn(kind, source.video, settings)
    path = settings.videos.parent / source.path
    told = {"source": "degraded", "kind": kind, "strength": round(strength, 6), "seed": settings.seed}
    told["made_from"] = sha256(path)
    if settings_of(out) != told:
        frames = torch.stack([frame for _, frame in media.read_video(path)])
        waveform, rate = heard(path)
        worse, sound = KINDS[kind].apply(frames, waveform, rate, strength, generator)
        _write(out, worse, sound, rate, source.fps, told)
    row = {"video": f"{source.video}.{kind}", "source": "degraded", "variant": kind, "seed": settings.seed}
    return row | {"strength": told["strength"], "sha256": sha256(out), "path": f"videos/{out.name}"}


def _write(out: Path, frames: Tensor, sound: np.ndarray, rate: int, fps: float, told: dict) -> None:
    with tempfile.TemporaryDirectory() as place:
        media.write_wav(Path(place) / "sound.wav", sound, rate)
        with media.VideoWriter(out, fps, sound=f"{place}/sound.wav", settings=told) as writer:
            writer.write(frames)


def all_rows(settings: DegradeSettings) -> list[tuple[Source, dict]]:
    """The rows of the given file, checked and as they are. Raises UserError for none and for videos that are gone."""
    sources = list(read_rows(settings.videos, Source))
    lines = [json.loads(line) for line in settings.videos.read_text("utf-8").split("\n") if line.strip()]
    if not sources:
        do = "give the videos.jsonl of train.clips"
        raise UserError(f"{settings.videos} has no videos", got="no rows", expected="clips", do=do)
    for source in sources:
        media.check_file(settings.videos.parent / source.path, f"video {source.video}")
    return list(zip(sources, lines, strict=True))


def run(settings: DegradeSettings, dry_run: bool) -> None:
    rows, place = all_rows(settings), settings.out / "videos"
    if dry_run:
        kinds = ", ".join(f"{kind} ({KINDS[kind].dimension})" for kind in settings.kinds)
        print(f"dry run: {len(rows)} videos, each {kinds}, would be written to {settings.out}")
        return
    place.mkdir(parents=True, exist_ok=True)
    back, found = os.path.relpath(settings.videos.parent.resolve(), settings.out.resolve()), []
    with Progress("degrade", len(rows) * len(settings.kinds)) as progress:
        for source, row in rows:
            found.append(row | {"path": (Path(back) / source.path).as_posix()})
            for kind in settings.kinds:
                out = place / f"{source.video.replace('/', '_')}.{kind}.mp4"
                remove_partials(out)
                found.append(row | degrade(source, kind, settings, out))
                progress.step(out.name)
    with media.replacing(settings.out / "videos.jsonl") as beside:
        beside.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found), "utf-8")
    write_json(settings.out / "degrade.json", {"made_from": {"videos": sha256(settings.videos)}, "seed": settings.seed,
               "kinds": {kind: KINDS[kind].dimension for kind in settings.kinds}})  # fmt: skip
    print(f"{len(rows)} videos and {len(rows) * len(settings.kinds)} degraded ones in {settings.out / 'videos.jsonl'}")


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command(DegradeSettings, __doc__, run, argv)


if __name__ == "__main__":
    sys.exit(main())
