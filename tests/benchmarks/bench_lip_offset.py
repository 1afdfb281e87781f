"""Whether lip_offset finds planted offsets of -5..5 frames in clips of 5 s: a real portrait says real recorded speech.

    python tests/benchmarks/bench_lip_offset.py --task face_landmarker.task VOICES... [--pieces 12] [--noise 0.35]

VOICES are folders of recordings (one speaker each) or files, such as /usr/share/asterisk/sounds/it_IT_m_Carlo of
Debian's asterisk-core-sounds-*-g722. Of each folder come the `--pieces` longest recordings, of each its first 5 s from
where it is first loud. The astronaut's mouth is drawn open by loudness^0.7, times 1 + noise (smooth over 5 frames, so
that loudness alone does not fix the opening), the head sways by 3 pixels, the picture passes through H.264. Landmarks
are found once a clip; the sound is shifted by each offset. Found means: a verdict, and the very frame. Lips are also
held against the sound of another recording, where every verdict is a false one.

The mouth is drawn by loudness and judged by loudness: this proves decoding, landmarks and alignment, and how much
noise they bear, not how well real mouths follow it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from talking import FPS, RATE, openings, portrait, speaking, write_footage  # noqa: E402

from fantasy_core.audio import load_voice  # noqa: E402
from fantasy_core.critic.statistics import wilson  # noqa: E402
from fantasy_core.lips import LipTrack, landmarker, track  # noqa: E402
from fantasy_core.media import read_video  # noqa: E402
from fantasy_core.metrics.contract import Video  # noqa: E402
from fantasy_core.metrics.lip_offset import of_track  # noqa: E402

FRAMES, OFFSETS = 125, range(-5, 6)
MARGIN = round(5 * RATE / FPS)  # samples before and after, for the shifts
LOUD = 0.05  # of the peak: where speech begins


def recordings(place: Path, most: int) -> list[Path]:
    """The longest recordings of a folder, the longest first; a file itself."""
    if place.is_file():
        return [place]
    files = [file for file in place.rglob("*") if file.suffix in (".g722", ".wav", ".flac")]
    return sorted(files, key=lambda file: (-file.stat().st_size, file.name))[:most]


def piece(file: Path) -> np.ndarray | None:
    """5 s of a recording and the margins [n], said again if it is shorter by less than 1 s; None where it is too
    short."""
    sound, wanted = load_voice(file).numpy(), round(FRAMES / FPS * RATE) + 2 * MARGIN
    sound = sound[max(int(np.argmax(np.abs(sound) > LOUD * np.abs(sound).max())) - MARGIN, 0) :]
    return np.resize(sound, wanted) if len(sound) > wanted - RATE else None


def drawn(sound: np.ndarray, seed: int, noise: float, folder: Path) -> np.ndarray:
    """Frames uint8 [125, H, W, 3] of the portrait that says the middle of a piece, back from H.264."""
    rng, said = np.random.default_rng(seed), sound[MARGIN:-MARGIN]
    smooth = np.convolve(rng.standard_normal(FRAMES + 4), np.full(5, 5**-0.5), "valid")
    mouth = openings(said, FRAMES) * np.clip(1 + noise * smooth, 0, 2)
    frames = speaking(portrait(), mouth.clip(0, 15))
    moments = torch.arange(FRAMES).float()
    sway = torch.eye(2, 3).repeat(FRAMES, 1, 1)
    sway[:, 0, 2], sway[:, 1, 2] = ((3 * torch.sin(moments / t)) * 2 / 224 for t in (15.4, 9.7))
    grid = F.affine_grid(sway, list(frames.shape), align_corners=False)
    swayed = F.grid_sample(frames, grid, padding_mode="border", align_corners=False)
    path = write_footage(folder / f"{seed}.mp4", swayed, None)
    return np.stack([(frame * 255).round().byte().movedim(0, -1).numpy() for _, frame in read_video(path)])


def offsets(found: LipTrack, sound: np.ndarray) -> list[float | None]:
    """What is said of each planted offset: the picture is late by k where the sound begins k frames further on."""
    times, said = np.arange(FRAMES) / FPS, []
    for late in OFFSETS:
        begin = MARGIN + round(late * RATE / FPS)
        heard = sound[begin : begin + round(FRAMES / FPS * RATE)]
        video = Video(Path("clip"), np.zeros((FRAMES, 1, 1, 3), np.uint8), times, heard)
        said.append(of_track(found, video).values["lip_offset"])
    return said


def measure(place: Path, flags: argparse.Namespace, detectors, folder: Path) -> np.ndarray:
    """What is said of each clip of a speaker [clips, 11], NaN without a verdict."""
    rows, clips = [], []
    for seed, file in enumerate(recordings(place, flags.pieces)):
        sound = piece(file)
        if sound is not None:
            clips.append((track(drawn(sound, seed, flags.noise, folder), *detectors), sound))
            row = offsets(*clips[-1])
            rows.append([np.nan if one is None else one for one in row])
            wrong = [
                f"{k:+d}: {'none' if np.isnan(one) else f'{one:+.0f}'}"
                for k, one in zip(OFFSETS, rows[-1], strict=True)
                if one != k
            ]
            print(f"  {file.name:44}{', '.join(wrong) or 'all found'}", flush=True)
    others = [sound for _, sound in clips[1:] + clips[:1]]
    strange = [one for (lips, _), sound in zip(clips, others, strict=True) for one in offsets(lips, sound)]
    heard = sum(one is not None for one in strange) if len(clips) > 1 else 0
    print(f"  lips of one recording against the next one's sound: {heard} verdicts of {len(strange)}", flush=True)
    return np.array(rows).reshape(-1, len(OFFSETS))


def told(name: str, said: np.ndarray) -> str:
    """A row of the table."""
    hits = said == np.array(OFFSETS)
    silent, whole = np.isnan(said).sum(), hits.all(1)
    (low, _), (low_clips, _) = wilson(int(hits.sum()), hits.size), wilson(int(whole.sum()), len(whole))
    wrong = hits.size - hits.sum() - silent
    return (
        f"| {name} | {len(said)} | {hits.sum()} / {hits.size} | {low:.3f} | {silent} | {wrong} | "
        f"{whole.sum()} / {len(whole)} | {low_clips:.3f} |"
    )


def main() -> None:
    """Print every clip, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("voices", type=Path, nargs="+")
    parser.add_argument("--task", type=Path)
    parser.add_argument("--pieces", type=int, default=12)
    parser.add_argument("--noise", type=float, default=0.35)
    flags = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    with (
        landmarker(flags.task) as detect,
        landmarker(flags.task, confidence=0.9) as strict,
        tempfile.TemporaryDirectory() as folder,
    ):
        for place in flags.voices:
            print(place)
            found[place.name] = measure(place, flags, (detect, strict), Path(folder))
    print("| voice | clips | exact | Wilson 95 % low | no verdict | wrong | clips with all 11 | low |")
    print("|---|---|---|---|---|---|---|---|")
    for name, said in found.items():
        print(told(name, said))
    if len(found) > 1:
        print(told("all", np.concatenate(list(found.values()))))


if __name__ == "__main__":
    main()
