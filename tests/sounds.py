"""Small sound files of every kind, written with the real encoders, and what is heard in them."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np

from fantasy_core.media import read_audio


def encode(path, sound, rate, codec="pcm_s16le", offset=0, picture=False):
    """Write `sound` [channels, n], starting at sample `offset`, beside ten black frames if `picture`."""
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(sound)]
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10) if picture else None
        stream = container.add_stream(codec, rate=rate, layout=layout)
        if video:
            video.width = video.height = 32
            for k in range(10):
                frame = av.VideoFrame(32, 32, "rgb24")
                frame.pts, frame.time_base = k, Fraction(1, 10)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound, np.float32), format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, offset, Fraction(1, rate)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def whole(path, layout=None):
    """The whole sound of a file [channels, n] and its rate."""
    pieces = list(read_audio(path, layout))
    return np.concatenate([sound for _, sound in pieces], axis=1), pieces[0][0]


def click(seconds, rate, length, channels=1):
    """Silence with a short loud burst at `seconds`."""
    sound = np.zeros((channels, round(length * rate)), np.float32)
    at = round(seconds * rate)
    sound[:, at : at + rate // 500] = 0.9
    return sound


def onset(sound):
    return int(np.argmax(np.abs(sound.mean(axis=0)) > 0.3))
