"""Long videos against a motion that is known at every frame."""

from __future__ import annotations

import gc
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from known_motion import FPS, KnownMotion, decode, encode, waves

from fantasy_core import flow
from fantasy_core.animate import Inputs, Settings, render_window
from fantasy_core.errors import UserError
from fantasy_core.windows import Window, assemble, crossfade, hold, latent_frames, plan_windows, window_noise


def frames(least: int, most: int) -> st.SearchStrategy[int]:
    """Numbers 4k + 1, least <= k <= most."""
    return st.integers(least, most).map(lambda k: 4 * k + 1)


def plan_of(total: int, window: int, overlap: int) -> list[Window]:
    return plan_windows(total, window, min(overlap, window - 4))


@given(total=frames(0, 300), window=frames(1, 20), overlap=frames(0, 14))
def test_plan_covers_every_frame_in_windows_that_fit_the_vae(total, window, overlap):
    """Starts at multiples of 4, lengths 4k + 1, each window begins `overlap` frames before the one before it ends."""
    plan = plan_of(total, window, overlap)
    assert plan[0].start == plan[0].overlap == 0
    assert plan[-1].start + plan[-1].frames == total
    for before, after in zip(plan, plan[1:], strict=False):
        assert before.frames == window
        assert after.start == before.start + before.frames - after.overlap
        assert after.overlap == min(overlap, window - 4) and after.frames >= after.overlap + 4
    assert all(w.start % 4 == 0 and w.frames % 4 == 1 and w.latent_frames == latent_frames(w.frames) for w in plan)


@pytest.mark.parametrize("numbers", [(80, 21, 5), (81, 20, 5), (81, 21, 4), (0, 21, 5), (81, 21, 0), (81, 21, -3)])
def test_frames_that_do_not_fit_the_vae_are_refused(numbers):
    with pytest.raises(UserError, match="VAE"):
        plan_windows(*numbers)


@pytest.mark.parametrize("overlap", [21, 25])
def test_windows_must_move_on(overlap):
    with pytest.raises(UserError, match="move on"):
        plan_windows(81, 21, overlap)


def animate(model: KnownMotion, plan: list[Window], solver: str = "euler", seed: int = 0, tokens: int = 4000):
    """The frames of a video by the code of `animate`, in fp32, from a voice whose token i says i."""
    made = Settings(
        size=(16, 16), fps=FPS, window=21, overlap=5, frames_rule="within", max_frames=None, steps=3, shift=5.0,
        solver=solver, text_scale=1.0, audio_scale=1.0, negative_prompt="", passes="sequential",
    )  # fmt: skip
    text = model.text([""])
    inputs = Inputs(model.pattern(torch.zeros(1)), None, torch.arange(float(tokens))[None, :, None], text, text)
    render = partial(render_window, components=model, dit=model.velocity, inputs=inputs, settings=made, seed=seed)
    return assemble(plan, render)


@settings(max_examples=20)
@given(total=frames(0, 14), window=frames(1, 6), overlap=frames(0, 6), solver=st.sampled_from(flow.SOLVERS))
def test_no_seam_shows_on_known_motion(total, window, overlap, solver):
    """Frame k shows waves(token 2 k) whatever the windows. A window whose voice, order or held latents were off by one
    frame would show at once: the pattern moves by up to 0.8 * 0.74 a frame. The tolerance is that of fp32 after a
    division by sigma, far below 1 / 255."""
    model = KnownMotion(lambda waveform: waveform)
    video = torch.cat(list(animate(model, plan_of(total, window, overlap), solver)))
    truth = waves(2.0 * torch.arange(total))
    assert video.shape == truth.shape
    assert (video - truth).abs().max() < 1e-4


def test_the_image_condition_is_the_frame_at_which_the_window_starts():
    """4 mask channels, 1 at latent frame 0 only; there the latents of the video's frame s alone, and grey after it."""
    model, plan = KnownMotion(lambda waveform: waveform), plan_windows(53, 21, 5)
    list(animate(model, plan))
    assert [window.start for window in plan] == [0, 16, 32]
    for window, condition in zip(plan, model.conditions[::3], strict=True):
        assert torch.equal(condition[:, :4, 0], torch.ones(1, 4, 2, 2)) and not condition[:, :4, 1:].any()
        frame = waves(torch.tensor([2.0 * window.start])).transpose(0, 1)[None]  # [1, 3, 1, 16, 16]
        assert (condition[:, 4:, :1] - encode(frame)).abs().max() < 1e-5
        assert not condition[:, 4:, 1:].any()


class Stubborn(KnownMotion):
    """A model that pays no attention to what was before: its k-th window shows the constant 0.1 (k + 1) throughout."""

    windows = 0

    def velocity(self, latents, timestep, text, **kwargs):
        sigma = timestep.item() / 1000
        self.windows += sigma == 1
        self.states.append((latents, sigma))
        frames = torch.full((4 * latents.shape[2] - 3, 3, 16, 16), 0.1 * self.windows)
        return (latents - encode(frames.transpose(0, 1)[None])) / sigma


@pytest.mark.parametrize("solver", flow.SOLVERS)
def test_overlapped_latents_are_held_at_every_sigma(solver):
    """Against a model that would show 0.2 from the first frame of window 1 on: its held frames keep window 0's 0.1, so
    frames 0 ... 20 are 0.1 and 21 ... 36 are 0.2. At each sigma its held latents are (1 - sigma) x0 + sigma noise."""
    model, plan = Stubborn(lambda waveform: waveform), plan_windows(37, 21, 5)
    video = torch.cat(list(animate(model, plan, solver, seed=7)))
    expected = torch.full_like(video, 0.1)
    expected[21:] = 0.2
    assert (video - expected).abs().max() < 1e-5
    held = encode(torch.full((1, 3, 5, 16, 16), 0.1))
    noise = window_noise((1, 16, 6, 2, 2), 7, plan[1])
    for latents, sigma in model.states[3:]:
        assert (latents[:, :, :2] - flow.x_sigma(held, noise[:, :, :2], sigma)).abs().max() < 1e-5


def test_hold_leaves_the_rest_of_the_velocity_alone():
    noise, held = torch.randn(1, 16, 4, 2, 2), torch.randn(1, 16, 1, 2, 2)
    velocity = hold(lambda latents, sigma: latents * sigma, noise, held)(noise, 0.5)
    assert torch.equal(velocity[:, :, 1:], noise[:, :, 1:] * 0.5)
    assert torch.equal(velocity[:, :, :1], noise[:, :, :1] - held)


@given(window=frames(2, 6), chunk=st.integers(1, 9), data=st.data())
def test_overlaps_fade_linearly_whatever_the_chunks(window, chunk, data):
    """Window 0 is all 0 and window 1 all 1: frame j of the overlap shows (j + 1) / (overlap + 1)."""
    overlap = data.draw(frames(0, window // 4 - 1))
    plan = plan_windows(2 * window - overlap, window, overlap)
    values = iter((0.0, 1.0))

    def render(window, tail):
        return torch.full((window.frames, 3, 2, 2), next(values)).split(chunk)

    video = torch.cat(list(assemble(plan, render)))[:, 0, 0, 0]
    ramp = (torch.arange(overlap) + 1) / (overlap + 1)
    expected = torch.cat([torch.zeros(window - overlap), ramp, torch.ones(window - overlap)])
    assert torch.allclose(video, expected, atol=1e-6)


def test_crossfade_is_a_ramp():
    faded = crossfade(torch.zeros(2, 3, 1, 1), torch.ones(2, 3, 1, 1), first=1, overlap=4)
    assert faded[:, 0, 0, 0].tolist() == pytest.approx([0.4, 0.6])


def test_a_window_with_a_frame_too_few_is_an_error():
    with pytest.raises(ValueError, match="rendered with 20"):
        list(assemble(plan_windows(21), lambda window, tail: [torch.zeros(20, 3, 2, 2)]))


class Restless(KnownMotion):
    """A model whose video depends on the noise, the image and all that it saw so far."""

    def velocity(self, latents, timestep, text, *, condition, **kwargs):
        return torch.tanh(latents.roll(1, 2) + condition[:, 4:].mean(2, keepdim=True)) + 0.3 * latents


def test_full_windows_do_not_depend_on_the_length_of_the_track():
    """Windows 0, 1, 2 of 69 and of 133 frames are the same; what follows the third full window is not compared."""

    def video(total: int, seed: int) -> torch.Tensor:
        return torch.cat(list(animate(Restless(lambda waveform: waveform), plan_windows(total, 21, 5), seed=seed)))

    short, long, other = video(69, 3), video(133, 3), video(69, 4)
    assert torch.equal(short[:48], long[:48])
    assert short[:48].std() > 0.1
    assert (other - short).abs().max() > 0.1


def test_noise_of_the_first_window_is_that_of_the_plain_seed():
    """FantasyTalking: a CPU generator with the seed; later windows draw their own."""
    plain = torch.randn(1, 16, 6, 2, 2, generator=torch.Generator().manual_seed(1111))
    first, second = (window_noise(plain.shape, 1111, window) for window in plan_windows(37, 21, 5))
    assert torch.equal(first, plain)
    assert (second - first).abs().max() > 1


def resident_frames() -> int:
    """Frames of 16x16 pixels alive anywhere, shared storage counted once."""
    found = {}
    for item in gc.get_objects():
        if type(item) is torch.Tensor and item.ndim in (4, 5) and tuple(item.shape[-2:]) == (16, 16):
            storage = item.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values()) // (4 * 3 * 16 * 16)


@pytest.mark.parametrize("overlap", [5, 13])
def test_memory_does_not_grow_with_the_length(overlap):
    """Alive while the video streams out: the overlap that is faded out of, the one that is being collected, a few
    chunks of four and the portrait: at most 2 overlap + 13, for 4 windows as for 16."""

    class Counting(Stubborn):
        def decode(self, latents):
            for frames in decode(latents):
                peaks.append(resident_frames())
                yield frames

    most = []
    gc.collect()
    gc.freeze()  # leaves what was there before out of the count
    try:
        for windows in (4, 16):
            peaks = []
            plan = plan_windows(21 + (windows - 1) * (21 - overlap), 21, overlap)
            for _ in animate(Counting(lambda waveform: waveform), plan):
                pass
            most.append(max(peaks))
    finally:
        gc.unfreeze()
    assert most[0] == most[1] <= 2 * overlap + 13
    assert most[0] >= overlap  # the count sees frames at all
