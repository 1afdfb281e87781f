"""Lips against voice: planted offsets come back exactly, shifts and scales act as they must, nothing heard is None."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fantasy_core
from fantasy_core.audio import load_voice
from fantasy_core.metrics.lip_sync import (
    LEAST_SECONDS,
    MOST_LAG,
    LipSync,
    band_loudness,
    correlations,
    lip_sync,
    pooled,
    verdict,
    without_slow,
)

VOICE = Path(fantasy_core.__file__).parent / "miniature" / "assets" / "voice.flac"
FPS, RATE, SECONDS = 23.0, 8000, 8
HOP = RATE / FPS


def syllables(seed: int = 0, seconds: float = SECONDS) -> np.ndarray:
    """A voice of known loudness: noise between 500 and 3000 Hz under an envelope of smooth random syllables."""
    rng = np.random.default_rng(seed)
    n = int(seconds * RATE)
    spectrum = np.fft.rfft(rng.standard_normal(n))
    hertz = np.fft.rfftfreq(n, 1 / RATE)
    spectrum[(hertz < 500) | (hertz > 3000)] = 0
    knots = rng.uniform(0.02, 1.0, int(seconds * 8) + 2)  # eight levels a second
    envelope = np.interp(np.arange(n) / RATE * 8, np.arange(len(knots)), knots)
    return 0.3 * envelope * np.fft.irfft(spectrum, n)


def mouth(voice: np.ndarray, late: int = 0, rate: int = RATE) -> np.ndarray:
    """An opening that is the voice's own loudness, shown `late` frames after it."""
    frames = int(len(voice) / rate * FPS)
    return np.roll(np.exp(band_loudness(voice, rate, FPS, frames)), late)


@pytest.mark.parametrize("late", range(-5, 6))
def test_planted_offsets_come_back_exactly(late):
    """Opening = loudness, `late` frames on: the correlation at that lag is that of a series with its own logarithm."""
    voice = syllables()
    found = lip_sync(mouth(voice, late), FPS, voice, RATE)
    assert found.offset == late and found.correlation > 0.8 and found.reason is None
    assert found.correlation == found.curve[MOST_LAG + late] == found.curve.max()


@settings(max_examples=12)
@given(shift=st.integers(-6, 6), seed=st.integers(0, 20))
def test_shifting_the_sound_shifts_the_offset(shift, seed):
    """Sound that comes k frames later is a picture that comes k frames earlier: the offset falls by k."""
    voice = syllables(seed)
    opening, samples = mouth(voice, 2), round(abs(shift) * HOP)
    silence = np.zeros(samples)
    moved = np.concatenate([silence, voice]) if shift > 0 else np.concatenate([voice[samples:], silence])
    assert lip_sync(opening, FPS, moved, RATE).offset == 2 - shift


@settings(max_examples=12)
@given(scale=st.floats(0.01, 100), offset=st.floats(-5, 5), loud=st.floats(0.05, 3))
def test_the_units_of_the_opening_and_the_volume_do_not_matter(scale, offset, loud):
    voice = syllables()
    found, plain = (lip_sync(o, FPS, v, RATE) for o, v in (
        (scale * mouth(voice, 3) + offset, loud * voice), (mouth(voice, 3), voice)))  # fmt: skip
    assert found.offset == plain.offset == 3
    assert found.curve == pytest.approx(plain.curve, abs=1e-6)


def test_a_real_voice():
    """The voice that the miniature ships, 4.6 s, said twice: as exact, with noise of 0.7 deviations on top and a tenth
    of the frames unseen."""
    voice = np.tile(load_voice(VOICE).numpy(), 2)
    opening = mouth(voice, -4, 16_000)
    assert lip_sync(opening, FPS, voice, 16_000).offset == -4
    rng = np.random.default_rng(1)
    opening = opening + opening.std() * 0.7 * rng.standard_normal(len(opening))
    opening[rng.random(len(opening)) < 0.1] = np.nan
    assert lip_sync(opening, FPS, voice, 16_000).offset == -4


def test_another_voice_gives_no_verdict():
    """Twenty strangers: what chance gives stays below the least height in (at least) nine of ten."""
    found = [lip_sync(mouth(syllables(i)), FPS, syllables(100 + i), RATE) for i in range(20)]
    assert sum(one.offset is None for one in found) >= 18
    assert all((one.reason is None) == (one.offset is not None) == (one.correlation is not None) for one in found)


NOTHING = {
    "silence": (mouth(syllables()), np.zeros(SECONDS * RATE), "silence"),
    "a constant mouth": (np.full(180, 0.3), syllables(), "does not move"),
    "a mouth never seen": (np.full(180, np.nan), syllables(), "0% of the frames"),
    "a steady tone": (mouth(syllables()), 0.3 * np.sin(np.arange(SECONDS * RATE) * 2 * np.pi * 0.115), "does not"),
    "no samples": (mouth(syllables()), np.zeros(0), "0 frames with sound"),
    "damaged sound": (mouth(syllables()), np.full(SECONDS * RATE, np.nan), "NaN"),
}


@pytest.mark.parametrize("case", NOTHING)
def test_nothing_to_compare_is_never_a_number(case):
    opening, voice, word = NOTHING[case]
    found = lip_sync(opening, FPS, voice, RATE)
    assert found.offset is None and found.correlation is None and found.curve is None and word in found.reason


def test_short_clips_speak_together():
    """Three of 2.5 s, 57 frames each, are silent alone; pooled they are 7.4 s and right. Pooling equal curves changes
    nothing; a clip without a curve adds nothing; frame rates must be equal."""
    voices = [syllables(i, 2.5) for i in range(3)]
    parts = [lip_sync(mouth(voice, 2), FPS, voice, RATE) for voice in voices]
    assert all(part.offset is None and "needs 5 s" in part.reason for part in parts)
    together = pooled(parts)
    assert together.offset == 2 and together.seconds == pytest.approx(3 * 57 / FPS)
    assert pooled([parts[0], parts[0]]).curve == pytest.approx(parts[0].curve)
    mute = lip_sync(np.full(60, 0.1), FPS, voices[0], RATE)
    assert pooled([*parts, mute]).curve == pytest.approx(together.curve)
    assert pooled([mute]).reason == mute.reason and pooled([]).reason == "no clips"
    with pytest.raises(ValueError, match="frame rates"):
        pooled([parts[0], LipSync(None, None, None, 1.0, 25.0, "")])


def curve_with(*peaks: tuple[int, float]) -> np.ndarray:
    curve = np.zeros(2 * MOST_LAG + 1)
    for offset, height in peaks:
        curve[MOST_LAG + offset] = height
    return curve


def test_what_a_curve_says():
    """At 9 s the least height is 1.1 / 3 = 0.367; a rival of 0.85 of the peak is allowed, one above it is not; the last
    lag may hide a higher one beyond; a flank of three frames belongs to the peak."""
    assert verdict(curve_with((1, 0.37)), 9.0, FPS).offset == 1
    assert "chance" in verdict(curve_with((1, 0.36)), 9.0, FPS).reason
    assert verdict(curve_with((1, 0.6), (8, 0.5)), 9.0, FPS).offset == 1
    assert "two offsets" in verdict(curve_with((1, 0.6), (8, 0.52)), 9.0, FPS).reason
    assert verdict(curve_with((1, 0.6), (4, 0.59)), 9.0, FPS).offset == 1
    assert "last" in verdict(curve_with((15, 0.9)), 9.0, FPS).reason
    assert "needs 5 s" in verdict(curve_with((0, 1.0)), LEAST_SECONDS - 0.1, FPS).reason


def test_lags_by_hand():
    """A click of the voice at frame 40, of the mouth at 43: three late, and all of the curve is there."""
    voice, lips = np.zeros(80), np.zeros(80)
    voice[40], lips[43] = 1, 1
    curve = correlations(lips, voice)
    assert len(curve) == 31 and curve.argmax() == MOST_LAG + 3 and curve.max() == pytest.approx(1)


def test_slow_changes_are_taken_away():
    """A straight line is its own running mean, but for the half second at the ends, where it is held."""
    assert without_slow(np.arange(100.0), FPS)[11:-11] == pytest.approx(np.zeros(78), abs=1e-9)


def test_the_band():
    """A tone of 1 kHz and amplitude 0.5 has the root mean square 0.5 / sqrt(2); 100 Hz has nothing but the floor."""
    seconds = np.arange(2 * RATE) / RATE
    inside, below = (np.exp(band_loudness(0.5 * np.sin(2 * np.pi * f * seconds), RATE, 20.0, 40)) for f in (1000, 100))
    assert inside[5:-5] == pytest.approx(np.full(30, 0.5 / np.sqrt(2) + 0.0005), rel=1e-3)
    assert below[5:-5] == pytest.approx(np.full(30, 0.0005), rel=0.1)
