"""The miniature's fast judge against the plain one: shared stages and cropped shapes give what whole renders give."""

from __future__ import annotations

from itertools import chain, pairwise

import numpy as np
import pytest
import torch

from fantasy_core.miniature.judge import (
    HIGH,
    LOW,
    STEP,
    Drawing,
    coarse_search,
    fit,
    fit_in_pieces,
    judge,
    squared_error,
)
from fantasy_core.miniature.render import FAINT, IDENTITY, Canvas, background, paint, render, stages
from fantasy_core.miniature.world import draw_clip, draw_identity


def people(count: int) -> torch.Tensor:
    return torch.stack([draw_identity(np.random.default_rng(seed)) for seed in range(count)])


def poses(*shape: int) -> torch.Tensor:
    """Poses anywhere a fit may go [*shape, 5], the first with closed lids and mouth: the slivers."""
    low, high = torch.tensor(LOW), torch.tensor(HIGH)
    drawn = low + (high - low) * torch.rand(*shape, 5, generator=torch.Generator().manual_seed(0))
    drawn[0, 0] = torch.tensor([0.0, 0.0, 0.0, 0.5, 0.0])
    return drawn


def test_a_drawing_is_the_render_and_its_shifts_are_renders_of_shifted_poses():
    """Two people, three poses, all five numbers; the pictures kept on the way are not painted over.

    The drawing is cropped, by what no eye sees: a twentieth of a step of an 8-bit video. Drawn whole, it is the same
    bit for bit.
    """
    who, pose = people(2), poses(2, 3)
    drawing = Drawing(who, pose)
    for _ in range(2):
        assert (drawing.picture - render(who, pose)).abs().max() < 0.05 / 255
        for i, picture in enumerate(drawing.shifted()):
            shifted = pose.clone()
            shifted[..., i] += STEP[i]
            assert (picture - render(who, shifted)).abs().max() < 0.05 / 255
            assert (picture - drawing.picture).abs().max() > 1e-3
    whole = paint(background(who, pose), chain(*stages(who, pose)))
    assert torch.equal(whole, render(who, pose))


def test_a_cropped_canvas_is_small_where_the_shape_is():
    """An ellipse of radius 0.1 about (0.2, -0.3) that moves by 0.1 to the right; alpha < 1e-6 beyond ln(1e6) / 48 =
    0.288 of its edge: x from -0.188 to 0.688, which are pixels 26 to 53 of 64; y from -0.688 to 0.088: 10 to 34."""
    canvas = Canvas(64, torch.zeros(1), cropped=True)
    near = canvas.around(torch.tensor([0.2, 0.3]), torch.tensor(-0.3), 0.1, 0.1)
    assert near.window == (slice(10, 35), slice(26, 54))
    whole = Canvas(64, torch.zeros(1)).ellipse(torch.tensor([0.2, 0.3]).view(1, 2, 1, 1), -0.3, 0.1, 0.1)
    beyond = whole.clone()
    beyond[..., near.window[0], near.window[1]] = 0
    assert beyond.max() < FAINT < 4 * whole[..., 10, :].max()


def plain_fit(video: torch.Tensor, who: torch.Tensor, iterations: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The judge's definition: damped Gauss-Newton whose differences are whole renders, all made anew every time.

    Returns the poses and, of every iteration, which frames took their step.
    """
    pose, damping, taken = coarse_search(video, who), torch.full(video.shape[:2], 1e-2), []
    for _ in range(iterations):
        drawn, columns = render(who, pose), []
        for i, step in enumerate(STEP):
            shifted = pose.clone()
            shifted[..., i] += step
            columns.append((render(who, shifted) - drawn).flatten(2) / step)
        jacobian = torch.stack(columns, 3)
        normal = jacobian.transpose(2, 3) @ jacobian
        gradient = jacobian.transpose(2, 3) @ (video - drawn).flatten(2).unsqueeze(3)
        ridge = damping[..., None, None] * torch.diag_embed(normal.diagonal(dim1=2, dim2=3)) + 1e-3 * torch.eye(5)
        move = torch.linalg.solve(normal + ridge, gradient).squeeze(3).clamp(-0.25, 0.25)
        candidate = (pose + move).clamp(torch.tensor(LOW), torch.tensor(HIGH))
        better = squared_error(video, render(who, candidate)) < squared_error(video, drawn)
        pose = torch.where(better[..., None], candidate, pose)
        damping = torch.where(better, damping * 0.3, damping * 5)
        taken.append(better)
    return pose, taken


def test_fit_is_plain_gauss_newton():
    """On a video of somebody else, where frames refuse steps and later go on from the equations they kept: the same
    poses, up to what FAINT over a step of 0.01 may do to a slope (1e-4 of it)."""
    clip, other = draw_clip(10, 0, 5), draw_clip(11, 0, 5)
    video, who = clip.video()[None], other.identity[None]
    expected, taken = plain_fit(video, who, 7)
    assert any((~now & then).any() for now, then in pairwise(taken)), "no frame steps after a refusal"
    pose, error = fit(video, who, 7)
    assert torch.allclose(pose, expected, atol=1e-3)
    assert torch.allclose(error, squared_error(video, render(who, expected)), rtol=1e-5)


def test_pieces_do_not_show():
    """Every frame is fitted for itself, and every person: in pieces of two frames or in one, the same poses."""
    clips = [draw_clip(seed, 0, 5) for seed in (5, 6)]
    video, who = torch.stack([clip.video() for clip in clips]), torch.stack([clip.identity for clip in clips])
    for whole, pieces in zip(fit(video, who), fit_in_pieces(video, who, 2), strict=True):
        assert torch.allclose(whole, pieces, atol=1e-4)


def test_judge_is_frozen():
    """Scores compare only while the judge reads of clip (8, 0), whose quality is spoiled, what it read when they were
    measured: the plain judge's numbers."""
    clip = draw_clip(8, 0, 9, spoil=True)
    found = judge(clip.video()[None], clip.identity[None], clip.mouth[None])
    assert clip.spoiled == ("vq",)
    assert [float(found[name]) for name in ("ls", "mn", "vq")] == pytest.approx(
        [0.937037, 0.264851, 36.066635], rel=1e-4
    )
    assert found["pose"][0, 8].tolist() == pytest.approx([-0.066003, 0.041577, 0.564043, 0.768048, 0.844551], abs=1e-4)


def test_render_can_be_differentiated():
    """Painting over its own pictures loses no gradient: float64, identity and pose against finite differences.

    The pose lies inside the ranges where `clamp` and shape edges are smooth: lids and mouth half open.
    """
    who = people(1).double().requires_grad_()
    pose = torch.tensor([[[0.05, -0.02, 0.5, 0.4, 0.6]]], dtype=torch.float64, requires_grad=True)
    assert who.shape == (1, IDENTITY)
    assert torch.autograd.gradcheck(lambda who, pose: render(who, pose, 6), (who, pose), fast_mode=True)
