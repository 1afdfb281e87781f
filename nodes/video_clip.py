"""What is connected to a node that judges: frames and sound, placed by a file's own times where the VIDEO is a file.

ComfyUI's components of a file are its frames at their mean rate, and its sound from the first sample on: a voice that
begins after the picture would come too early, and frames of a varying rate at wrong times.
"""

from __future__ import annotations

from fractions import Fraction
from math import inf

import numpy as np
import torch
from comfy_api.latest import InputImpl
from torch import Tensor

from ..fantasy_core.critic.in_memory import Clip
from ..fantasy_core.errors import NoSound, UserError
from ..fantasy_core.media import frame_times, read_audio

TOUCH = Fraction(1, 10**6)  # seconds: the ends of a trim are floats


def clip_of(video, images, audio, fps: float) -> Clip:
    """What is connected: a VIDEO, or an IMAGE batch with or without AUDIO."""
    placed = None
    if video is not None:
        components = video.get_components()
        images, audio, fps = components.images, components.audio, float(components.frame_rate)
        placed = placed_in_file(video, len(images))
    if images is None or not len(images):
        raise UserError(
            "there is nothing to judge",
            got="no frames" if images is None else "a batch without frames",
            expected="a video, or images with their fps (and audio, for lip sync)",
            do="connect Create Video or Load Video",
        )
    if placed is not None:
        return Clip(images, fps, *placed)
    if audio is None:
        return Clip(images, fps)
    return Clip(images, fps, audio["waveform"][0], audio["sample_rate"])


def placed_in_file(video, frames: int) -> tuple[Tensor | None, int, np.ndarray] | None:
    """The sound [channels, n] of a VIDEO that is a file on disk, its rate, and the times [T] of its frames, both from
    its first frame on. None for any other, and where the file counts its frames otherwise than ComfyUI does."""
    if not isinstance(video, InputImpl.VideoFromFile) or not isinstance(path := video.get_stream_source(), str):
        return None
    start, duration = map(Fraction, video.get_active_trim_window())
    end = start + duration if duration else inf
    stamps = frame_times(path)
    kept = [time for time in stamps if start - TOUCH <= time < end - TOUCH]
    if len(kept) != frames or frames < 2:
        return None
    times = np.array([float(time - kept[0]) for time in kept])
    try:
        pieces = list(read_audio(path))
    except NoSound:
        return None, 0, times
    rate = pieces[0][0]
    sound = np.concatenate([piece for _, piece in pieces], 1)[:, round((kept[0] - stamps[0]) * rate) :]
    return torch.from_numpy(sound[:, : round(duration * rate) or None].copy()), rate, times
