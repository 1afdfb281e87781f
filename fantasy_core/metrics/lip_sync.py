"""Whether lips and voice move together, and how far apart, without any weights: `lip_offset` and `lip_corr`.

The opening of the mouth is correlated with the loudness of the voice (200 to 3800 Hz, logarithm), both freed of all
that is slower than a second, at lags of up to 15 frames. Offsets are in frames of the picture, and **positive where the
picture is late**: the voice leads, the lips follow. To mend an offset of k, delay the sound by k frames.

This tells gross desynchrony and a wrong voice, not whether a mouth forms the right sounds: it is no Sync-C and no
stand-in for it. Short clips cannot carry a verdict: below five seconds there is none, unless clips are pooled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

Array = np.ndarray
MOST_LAG = 15  # frames, either way
LEAST_FRAMES = 3 * MOST_LAG  # at the largest lag two thirds of these overlap; shorter clips have no curve
LEAST_SECONDS = 5.0  # for a verdict, of one clip or of all that are pooled
LEAST_SEEN = 0.8  # share of the frames whose mouth is known
BAND = (200.0, 3800.0)  # Hz of the voice
SILENCE = 1e-4  # peak of a waveform, -80 dB: below is silence
LEAST_SWING = 1e-3  # of the logarithm of loudness; speech has about 1
# The best of 31 lags of lips and *another* speaker's voice stays, 19 times in 20, below 0.66 in 2 s, 0.53 in 3.2 s,
# 0.49 in 5 s and 0.26 in 13 s: at most this over the root of the seconds. Drawn clips of known truth, 25 fps.
CHANCE = 1.1
LARGEST_RIVAL = 0.85  # of the peak: the highest correlation outside the peak's own flanks (our choice)
FLANK = 3  # frames on either side that belong to the peak


@dataclass(frozen=True, eq=False)
class LipSync:
    """How lips and voice of a clip, or of pooled clips, fit together.

    `offset` frames, > 0 where the picture is late, and `correlation` at it (at most 1) are None where there is no
    verdict, and `reason` says why. `curve` [31] is the correlation at offsets -15..15, None where it cannot be formed;
    `seconds` is the time that it was formed from.
    """

    offset: int | None
    correlation: float | None
    curve: Array | None
    seconds: float
    fps: float
    reason: str | None


def lip_sync(openings: Array, fps: float, waveform: Array, rate: int) -> LipSync:
    """Lips against voice in one clip.

    openings [T] of the mouth, in any unit, NaN where it is not seen (at most a fifth of the frames; bridged in straight
    lines); frame k is shown at k / fps. waveform [n] mono at `rate`, whose first sample sounds with frame 0; what one
    of them has beyond the other is left out.
    """
    openings, waveform = np.asarray(openings, np.float64), np.asarray(waveform, np.float64)
    frames = min(len(openings), int(len(waveform) / rate * fps + 1e-6))
    openings, seconds = openings[:frames], frames / fps
    reason = _unfit(openings, waveform)
    if reason is None:
        loudness = band_loudness(waveform, rate, fps, frames)
        mouth, voice = without_slow(_bridged(openings), fps), without_slow(loudness, fps)
        if mouth.std() <= 1e-6 * np.nanmax(np.abs(openings)):
            reason = "the mouth does not move"
        elif voice.std() <= LEAST_SWING:
            reason = "the sound does not change"
        else:
            return verdict(correlations(mouth, voice), seconds, fps)
    return LipSync(None, None, None, seconds, fps, reason)


def pooled(clips: Iterable[LipSync]) -> LipSync:
    """One verdict for clips that share an offset: the mean of their curves, by their seconds. Clips without a curve
    count for nothing. Raises ValueError for clips of different frame rates, whose frames are not the same time."""
    clips = list(clips)
    formed = [clip for clip in clips if clip.curve is not None]
    if len({clip.fps for clip in clips}) > 1:
        raise ValueError(f"frame rates {sorted({clip.fps for clip in clips})} cannot be pooled")
    if not formed:
        why = clips[0].reason if clips else "no clips"
        return LipSync(None, None, None, 0.0, clips[0].fps if clips else math.nan, why)
    seconds = np.array([clip.seconds for clip in formed])
    curve = np.average([clip.curve for clip in formed], axis=0, weights=seconds)
    return verdict(curve, float(seconds.sum()), formed[0].fps)


def verdict(curve: Array, seconds: float, fps: float) -> LipSync:
    """What a curve [31] says: its peak, if it is high enough for so many seconds, inside the range and the only one."""
    peak = int(curve.argmax())
    height, offset = float(curve[peak]), peak - MOST_LAG
    flank = np.abs(np.arange(len(curve)) - peak) <= FLANK
    rival = float(curve[~flank].max())
    silent = LipSync(None, None, curve, seconds, fps, None)
    if seconds < LEAST_SECONDS - 1e-6:
        return replace(silent, reason=f"{seconds:.1f} s, a verdict needs {LEAST_SECONDS:g} s or pooled clips")
    if height < (least := CHANCE / math.sqrt(seconds)):
        return replace(silent, reason=f"lips and voice agree by {height:.2f}, chance alone may give {least:.2f}")
    if abs(offset) == MOST_LAG:
        return replace(silent, reason=f"the best offset, {offset} frames, is the last that was tried")
    if rival > LARGEST_RIVAL * height:
        return replace(silent, reason=f"two offsets fit alike: {height:.2f} and {rival:.2f}")
    return replace(silent, offset=offset, correlation=height)


def correlations(mouth: Array, voice: Array) -> Array:
    """Normalised cross-correlation [31] of two series [T]: entry 15 + k compares the mouth k frames after the voice."""
    curve = []
    for lag in range(-MOST_LAG, MOST_LAG + 1):
        late, early = mouth[max(lag, 0) : len(mouth) + min(lag, 0)], voice[max(-lag, 0) : len(voice) - max(lag, 0)]
        late, early = late - late.mean(), early - early.mean()
        power = math.sqrt((late @ late) * (early @ early))
        curve.append(late @ early / power if power else 0.0)
    return np.array(curve)


def band_loudness(waveform: Array, rate: int, fps: float, frames: int) -> Array:
    """Logarithm [frames] of the root mean square between 200 and 3800 Hz, while each frame is shown; a floor of a
    thousandth of the loudest sample keeps pauses from reaching into the noise. The filter has no delay."""
    spectrum = np.fft.rfft(waveform)
    hertz = np.fft.rfftfreq(len(waveform), 1 / rate)
    spectrum[(hertz < BAND[0]) | (hertz > BAND[1])] = 0
    power = np.concatenate([[0.0], np.cumsum(np.fft.irfft(spectrum, len(waveform)) ** 2)])
    edges = np.clip(np.round(np.arange(frames + 1) * rate / fps).astype(int), 0, len(waveform))
    mean = np.maximum(np.diff(power[edges]), 0) / np.maximum(np.diff(edges), 1)
    return np.log(np.sqrt(mean) + 1e-3 * np.abs(waveform).max())


def without_slow(series: Array, fps: float) -> Array:
    """A series [T] less its running mean over a second, whose ends are held."""
    half = max(round((fps - 1) / 2), 1)
    held = np.pad(series, half, "edge")
    return series - np.convolve(held, np.full(2 * half + 1, 1 / (2 * half + 1)), "valid")


def _bridged(openings: Array) -> Array:
    known = np.flatnonzero(np.isfinite(openings))
    return np.interp(np.arange(len(openings)), known, openings[known])


def _unfit(openings: Array, waveform: Array) -> str | None:
    """Why no curve can be formed, as far as that is seen before it is tried."""
    if len(openings) < LEAST_FRAMES:
        return f"{len(openings)} frames with sound, {LEAST_FRAMES} are needed"
    if (seen := float(np.isfinite(openings).mean())) < LEAST_SEEN:
        return f"the mouth is seen in {seen:.0%} of the frames, {LEAST_SEEN:.0%} are needed"
    if not np.isfinite(waveform).all():
        return "the sound has NaN or infinite samples"
    return "silence" if np.abs(waveform - waveform.mean()).max() < SILENCE else None
