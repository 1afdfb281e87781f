"""What train.cache is given, looked at before anything is encoded: ids, files, frame rates, sound, masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fantasy_core import media
from fantasy_core.errors import UserError, some
from fantasy_core.media import frame_times
from fantasy_core.progress import Progress
from fantasy_core.weights import open_tensors
from train.tables import videos_once

SAME_RATE = 0.01  # share by which a frame rate may differ


@dataclass(frozen=True)
class Source:
    """A row of videos.jsonl, as far as it matters here."""

    video: str
    input: str
    path: str
    prompt: str = ""


def read_sources(videos: Path, masks: Path | None) -> list[Source]:
    """The rows of videos.jsonl or .parquet. Raises UserError for an id that comes twice, and for a video or a mask that
    is not there."""
    sources = videos_once(videos, Source)
    for source in sources:
        media.check_file(videos.parent / source.path, f"video {source.video}")
        if masks is not None:
            media.check_file(masks / f"{source.video}.safetensors", f"mask of {source.video}")
    return sources


def check_sources(sources: Sequence[Source], folder: Path, fps: float, masks: Path | None, *, heard: bool) -> None:
    """Raise UserError for videos that cannot be encoded, by their headers: of another rate than `fps`, which would
    teach wrong speeds; without sound where it is `heard`; with a mask of another shape."""
    problems = []
    with Progress("headers", len(sources)) as progress:
        for source in sources:
            problems += [f"{source.video}: {why}" for why in _problems(source, folder, fps, masks, heard)]
            progress.step(source.video)
    if problems:
        raise UserError(
            f"{len(problems)} videos cannot be encoded",
            got=some(problems),
            expected=f"{fps:g} frames a second" + ", sound" * heard + ", a mask of the video's size" * bool(masks),
            do=f"convert them (ffmpeg -i IN -r {fps:g} OUT), or give --fps; take those without sound off the list"
            if masks is None
            else "convert the videos or give --fps; make the masks anew from the very videos",
        )


def _problems(source: Source, folder: Path, fps: float, masks: Path | None, heard: bool) -> list[str]:
    path, found = folder / source.path, []
    if (rate := rate_of(path)) is not None and not same_rate(rate, fps):
        found.append(f"{rate:.2f} frames a second")
    if heard and not media.video_header(path)[1]:
        found.append("no sound")
    if masks is not None:
        frames, height, width = media.video_size(path)
        try:
            _mask_entry(masks, source.video, (kept_frames(frames), height, width), turned=True)
        except UserError as error:
            found.append(f"{error.what}: {error.got}")
    return found


def rate_of(path: Path) -> float | None:
    """The mean frame rate of a video by its time stamps, None for a single frame."""
    shown = frame_times(path)
    seconds = float((shown.ticks[-1] - shown.ticks[0]) * shown.base) if shown.ticks else 0.0
    return (len(shown.ticks) - 1) / seconds if seconds else None


def same_rate(rate: float, fps: float) -> bool:
    return abs(rate - fps) <= SAME_RATE * fps


def kept_frames(frames: int) -> int:
    """The largest 4k + 1 of these."""
    return (frames - 1) // 4 * 4 + 1


def read_mask(masks: Path, video: str, size: tuple[int, int, int]) -> Tensor:
    """The mask that is given for a video: `mask` [T, H, W] in 0..1, as many frames as `size` (frames, height, width)
    has, of its height and width. Raises UserError for any other."""
    mask = _mask_entry(masks, video, size).read()[: size[0]].float()
    if not bool(((mask >= 0) & (mask <= 1)).all()):  # NaN too
        raise _no_mask(masks, video, f"values from {mask.min():g} to {mask.max():g}", size)
    return mask


def _mask_entry(masks: Path, video: str, size: tuple[int, int, int], *, turned: bool = False):
    """Its entry in the file, which is not read yet; `turned`: height and width may change places, as headers have
    them."""
    entries = open_tensors(masks / f"{video}.safetensors").entries
    shape = tuple(entries["mask"].shape) if "mask" in entries else None
    sides = {size[1:], size[:0:-1]} if turned else {size[1:]}
    if shape is None or len(shape) != 3 or shape[0] < size[0] or shape[1:] not in sides:
        got = f"tensors {some(entries) or 'none'}" if shape is None else f"shape {list(shape)}"
        raise _no_mask(masks, video, got, size)
    return entries["mask"]


def _no_mask(masks: Path, video: str, got: str, size: tuple[int, int, int]) -> UserError:
    return UserError(
        f"{masks / video}.safetensors is no mask of {video}",
        got=got,
        expected=f"`mask` of shape {list(size)} (frames, height, width) or with more frames, in 0..1",
        do="make it anew from the very video, divided by 255 if it is in bytes",
    )
