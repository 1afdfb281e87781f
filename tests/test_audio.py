"""The audio windows against FantasyTalking's numbers, the absolute time base, the frame rules."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fantasy_core.audio import (
    AudioProjection,
    AudioTokens,
    frames_for,
    window,
    window_at,
    window_ranges,
)
from fantasy_core.errors import UserError

FRAMES = st.integers(0, 50).map(lambda k: 4 * k + 1)
RATES = st.sampled_from([8, 12.5, 16, 23, Fraction(24000, 1001), 24, 25, 29.97, 30, 50, 60])


def numbered(length):
    """Tokens [1, length, 1] that hold their own number, from 1, so that padding (0) is no token."""
    return torch.arange(1, length + 1).float()[None, :, None]


# ---- windows


def test_official_numbers():
    """81 frames, 175 tokens (reference/fantasytalking.md): t = 175 / 81 = 2.16, half = int(4.32) = 4, first centre
    int(2.16 * 3) - 1 = 5; window 2 * 4 + 1 + 2 * 4 = 17."""
    ranges = window_ranges(175, 81)
    assert ranges[:3] == [(-7, 1), (1, 9), (10, 18)] and ranges[-1] == (165, 173) and len(ranges) == 21
    audio = window(numbered(175), ranges)
    assert audio.tokens.shape == (1, 21, 17, 1) and audio.lengths.dtype == torch.int64
    assert audio.lengths[0].tolist() == [6, 14, *[17] * 18, 14]
    assert audio.tokens[0, 0, :, 0].tolist() == [1, 2, 3, 4, 5, 6, *[0] * 11]  # -11..5 clipped to 0..5, padded right
    assert audio.tokens[0, 20, :, 0].tolist() == [*range(162, 176), 0, 0, 0]  # 161..177 clipped to 161..174


@pytest.mark.parametrize("tokens, width", [(161, 15), (175, 17), (252, 21)])
def test_official_widths(tokens, width):
    """25, 23 and 16 fps: half = int(2 t) = int(3.98), int(4.32), int(6.22); width = 2 half + 9."""
    assert window(numbered(tokens), window_ranges(tokens, 81)).tokens.shape[2] == width


@settings(max_examples=100, deadline=None)
@given(
    tokens=st.integers(1, 700),
    frames=FRAMES,
    fps=st.none() | RATES,
    start=st.integers(0, 400),
    expand=st.integers(0, 6),
)
def test_windows_are_runs_of_the_track(tokens, frames, fps, start, expand):
    """Whatever the track: 1 + k equal ranges that never step back; each window is a run of consecutive real tokens, as
    many as its length says and at least one, then zeros; and it is the range, widened and clipped."""
    ranges = window_ranges(tokens, frames, fps=fps, first_frame=0 if fps is None else 4 * start)
    assert len(ranges) == (frames - 1) // 4 + 1
    assert len({last - first for first, last in ranges}) == 1
    assert all(a[0] <= b[0] for a, b in zip(ranges, ranges[1:], strict=False))
    audio = window(numbered(tokens).expand(2, -1, 3), ranges, expand)
    assert torch.equal(audio.tokens[0], audio.tokens[1]) and audio.lengths.shape == (2, len(ranges))
    for (first, last), rows, length in zip(ranges, audio.tokens[0, :, :, 0], audio.lengths[0], strict=True):
        real = [k + 1 for k in range(max(first - expand, 0), min(last + expand, tokens - 1) + 1)]
        beyond = [tokens if first > 0 else 1]  # wholly outside: the nearest token
        assert rows[:length].tolist() == (real or beyond)
        assert not rows[length:].any()


@settings(max_examples=60, deadline=None)
@given(tokens=st.integers(1, 700), frames=FRAMES.filter(lambda n: n > 1))
def test_official_ranges_never_leave_the_track(tokens, frames):
    """The clamp to the nearest token is for the absolute time base; widened by 4, no official range needs it."""
    for first, last in window_ranges(tokens, frames):
        assert first - 4 <= tokens - 1 and last + 4 >= 0


def test_single_frame():
    """t = L, half = 2 L, range 1 would begin at 3 L - 1 - 2 L = L - 1: one frame hears the whole track."""
    assert window(numbered(7), window_ranges(7, 1)).tokens[0, 0, :7, 0].tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_past_the_end_of_the_voice():
    """Frame 2000 at 23 fps is 87 s into a voice of one second: the last token, once."""
    audio = window_at(numbered(49), 5, fps=23, first_frame=2000)
    assert audio.lengths.tolist() == [[1, 1]] and audio.tokens[0, :, 0, 0].tolist() == [49, 49]


@pytest.mark.parametrize("frames", [0, -3, 2, 80, 82])
def test_frames_must_fit_the_vae(frames):
    with pytest.raises(UserError, match=r"1 \+ 4k"):
        window_ranges(100, frames)


@pytest.mark.parametrize("first_frame", [-4, 1, 82])
def test_windows_start_with_a_latent_frame(first_frame):
    with pytest.raises(UserError, match="multiple of 4"):
        window_ranges(100, 5, fps=23, first_frame=first_frame)


# ---- absolute time


def test_both_rules_agree_on_the_trained_length():
    """81 frames at 23 fps are 56347 samples, 175 tokens, so t = 2.160 stretched and 50 / 23 = 2.174 absolute: over 79
    frames 1.06 tokens, so centres differ by 0 or 1 and widths not at all."""
    official, absolute = window_ranges(175, 81), window_ranges(175, 81, fps=23)
    assert absolute[0] == official[0] and absolute[1] == official[1]
    for (a, b), (c, d) in zip(official, absolute, strict=True):
        assert b - a == d - c and c - a in (0, 1)


@settings(max_examples=60, deadline=None)
@given(fps=RATES, start=st.integers(0, 20_000), frames=FRAMES)
def test_no_drift(fps, start, frames):
    """Hours into a track the centre of latent frame i is where it is at the start: the token int(t m) - 1 of the middle
    m = first + 4 i - 1 of its frames, within half a token of t m - 1.5 (the official - 1, and truncation)."""
    t = Fraction(50) / Fraction(fps).limit_denominator(1001)
    for i, (first, last) in enumerate(window_ranges(1, frames, fps=fps, first_frame=4 * start)):
        if i:
            middle = t * (4 * start + 4 * i - 1)
            assert abs((first + last) // 2 - (middle - Fraction(3, 2))) <= Fraction(1, 2)


def test_minute_nine():
    """Frame 12420 at 23 fps is at 540 s = token 27000 exactly; the latent frame whose four frames 12421..12424 follow
    has its middle 3 frames later, at token 27006.5, and so the centre 27005."""
    first, last = window_ranges(30_000, 5, fps=23, first_frame=12_420)[1]
    assert (first + last) / 2 == 27_005


@settings(max_examples=40, deadline=None)
@given(fps=RATES, step=st.integers(1, 20), frames=st.integers(2, 21).map(lambda k: 4 * k + 1))
def test_overlapping_windows_hear_the_same(fps, step, frames):
    """A latent frame of four frames gets the same tokens in every window that holds it; only latent frame 0 of a later
    window, a single frame, is cut differently, at most two tokens later than the group that ends with that frame:
    4 t - 2 int(2 t) = 2 (2 t - int(2 t)) < 2, and one more for truncation."""
    track = torch.randn(1, 4000, 2, generator=torch.Generator().manual_seed(0))
    whole = window_at(track, frames + 4 * step, fps=fps)
    later = window_at(track, frames, fps=fps, first_frame=4 * step)
    assert torch.equal(whole.tokens[:, step + 1 :], later.tokens[:, 1:])
    assert torch.equal(whole.lengths[:, step + 1 :], later.lengths[:, 1:])
    group = window_ranges(4000, frames + 4 * step, fps=fps)[step][0]
    assert 0 <= window_ranges(4000, frames, fps=fps, first_frame=4 * step)[0][0] - group <= 2


# ---- frames


@pytest.mark.parametrize(
    "duration, fps, within, official",
    [(81 / 23, 23, 81, 85), (2.0, 23, 45, 49), (10.008, 23, 229, 233), (5 / 23, 23, 5, 9), (3.521739, 23, 81, 85)],
)
def test_frame_rules(duration, fps, within, official):
    """81 / 23 s are 81 frames, also when rounded to a microsecond; the official int(46 // 4) * 4 + 5 = 49 for 2 s."""
    assert frames_for(duration, fps) == within
    assert frames_for(duration, fps, rule="official") == official
    assert frames_for(duration, fps, max_frames=5) == 5


@settings(max_examples=200, deadline=None)
@given(duration=st.floats(0.7, 10_000), fps=RATES)
def test_the_picture_never_outruns_the_voice(duration, fps):
    """The largest 1 + 4k with frames / fps <= duration, within half a sample at 16 kHz; the official is longer."""
    exact, tolerance = Fraction(fps).limit_denominator(1001), Fraction(1, 32_000)
    frames = frames_for(duration, fps)
    assert frames % 4 == 1
    assert frames / exact <= Fraction(duration) + tolerance < (frames + 4) / exact + tolerance / 1000
    assert 0 < frames_for(duration, fps, rule="official") - frames <= 8


@settings(max_examples=100, deadline=None)
@given(k=st.integers(1, 20_000), fps=RATES)
def test_exact_boundaries(k, fps):
    """A voice of exactly 1 + 4k frames gets them all, in floating point and as a count of samples."""
    frames = 4 * k + 1
    assert frames_for(float(frames / Fraction(fps).limit_denominator(1001)), fps) == frames
    assert frames_for(math.ceil(frames * 16_000 / Fraction(fps).limit_denominator(1001)) / 16_000, fps) == frames


@pytest.mark.parametrize("duration", [0, 1 / 16_000, 3.9 / 23, float("nan"), -1, float("inf")])
@pytest.mark.parametrize("rule", ["within", "official"])
def test_too_short_for_a_video(duration, rule):
    with pytest.raises(UserError, match="shorter"):
        frames_for(duration, 23, rule=rule)


def test_bad_frame_requests():
    for fps in (0, -1, float("nan")):
        with pytest.raises(UserError, match="frame rate"):
            frames_for(3, fps)
    with pytest.raises(UserError, match=r"1 \+ 4k"):
        frames_for(10, 23, max_frames=80)


# ---- projection and tokens


def test_projection_is_linear_then_norm():
    """proj without bias, then LayerNorm (eps 1e-5): names and values of FantasyTalking's proj_model."""
    projection = AudioProjection(6, 8)
    assert set(projection.state_dict()) == {"proj.weight", "norm.weight", "norm.bias"}
    features = torch.randn(2, 5, 6)
    x = (features @ projection.proj.weight.T).double()
    expected = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    assert (projection(features) - expected).abs().max() < 1e-5


def test_tokens_move_together():
    audio = window(numbered(30), window_ranges(30, 13)).to(torch.bfloat16)
    assert audio.tokens.dtype == torch.bfloat16 and audio.lengths.dtype == torch.int64
    assert AudioTokens(audio.tokens).to("cpu").lengths is None
