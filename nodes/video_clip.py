"""What is connected to a node that judges: frames and sound, placed by a file's own times where the VIDEO is a file.

ComfyUI's components of a file are its frames at their mean rate, and its sound from the first sample on: a voice that
begins after the picture would come too early, and frames of a varying rate at wrong times.
"""

from __future__ import annotations

import numpy as np
import torch
from comfy_api.latest import InputImpl
from torch import Tensor

from ..fantasy_core.critic.in_memory import Clip
from ..fantasy_core.errors import NoSound, UserError
from ..fantasy_core.media import frame_times, read_audio


def clip_of(video, images, audio, fps: float) -> Clip:
    """What is connected: a VIDEO, or an IMAGE batch with or without AUDIO."""
    placed = None
    if video is not None:
        components = video.get_components()
        images, audio, fps = components.images, components.audio, float(components.frame_rate)
        placed = placed_in_file(video, images)
    if images is None or not len(images):
        raise UserError(
            "there is nothing to judge",
            got="no frames" if images is None else "a batch without frames",
            expected="a video, or images with their fps (and audio, for lip sync)",
            do="connect Create Video or Load Video",
        )
    if placed is not None:
        return placed
    if audio is None:
        return Clip(images, fps)
    return Clip(images, fps, audio["waveform"][0], audio["sample_rate"])


def placed_in_file(video, images: Tensor) -> Clip | None:
    """The clip of a VIDEO that is a file on disk, from its first frame on: at the mean rate of these frames, for the
    file's own may be that of others. None for any other VIDEO, and where ComfyUI decoded another number of frames."""
    if not isinstance(video, InputImpl.VideoFromFile) or not isinstance(path := video.get_stream_source(), str):
        return None
    start, duration = video.get_active_trim_window()
    stamps = frame_times(path)
    first, end = int(start / stamps.base), int((start + duration) / stamps.base)  # as ComfyUI rounds them
    kept = [tick for tick in stamps.ticks if tick >= first and (not duration or tick < end)]
    if len(kept) != len(images) or len(kept) < 2:
        return None
    times = np.array([float((tick - kept[0]) * stamps.base) for tick in kept])
    fps = (len(times) - 1) / times[-1]
    try:
        pieces = list(read_audio(path, last=True))
    except NoSound:
        pieces = []
    if not pieces:
        return Clip(images, fps, times=times)
    rate, begins = pieces[0][0], float((kept[0] - stamps.ticks[0]) * stamps.base)
    sound = np.concatenate([piece for _, piece in pieces], 1)[:, round(begins * rate) :]
    sound = sound[:, : round(duration * rate)] if duration else sound
    return Clip(images, fps, torch.from_numpy(sound.copy()), rate, times)
