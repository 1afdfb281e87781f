"""The exact judge: fit the renderer back to a video and read head, lips and lids off it.

Because every picture of this world is a known function of an identity and five numbers, Gauss-Newton finds those
numbers, and the three dimensions can be measured rather than guessed:

- `ls` lip sync: correlation of the fitted mouth opening with the opening the voice asks for (a mouth that hardly moves
  scores near 0);
- `mn` motion naturalness: how far the head travels (1 = as real clips do) times exp(-trembling beyond real clips');
- `vq` visual quality: PSNR in dB of the frames to the best-fitting clean drawing.

The judge must be told who is in the picture (`Clip.identity`). Not in the paper.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor
from torch.nn import functional as F

from .render import SIZE, background, paint, render, stages

STEP = (0.01, 0.01, 0.03, 0.05, 0.08)  # finite differences of (x, y, open, wide, lid)
LOW, HIGH = (-0.4, -0.4, -0.1, -0.2, 0.0), (0.4, 0.4, 1.3, 1.2, 1.0)
RICHNESS = 0.055  # head travel that three in four real clips reach
TREMBLE = 0.018, 0.020  # acceleration a frame^2 that real clips reach through the codec; the scale that punishes more
GROUP = 9  # frames of a batched product, whose last bits depend on their number: poses are read as they always were
FLAT_MOUTH = 0.06  # an opening that varies less than this is not credited with following anything


def squared_error(video: Tensor, drawn: Tensor) -> Tensor:
    return (video - drawn).square().mean((2, 3, 4))  # [B, T]


def coarse_search(video: Tensor, identity: Tensor) -> Tensor:
    """The best of a grid of head positions for every frame, at half size -> pose [B, T, 5]."""
    small = F.avg_pool2d(video.flatten(0, 1), 2).unflatten(0, video.shape[:2])
    grid = [(x, y, 0.3, 0.5, 1.0) for x in torch.linspace(-0.14, 0.14, 5).tolist() for y in (-0.09, -0.03, 0.03, 0.09)]
    poses = video.new_tensor(grid)  # [20, 5]
    drawn = render(identity, poses.expand(len(identity), -1, -1), SIZE // 2)  # [B, 20, 3, S/2, S/2]
    error = torch.stack([squared_error(small, drawn[:, i : i + 1]) for i in range(len(grid))], 2)
    return poses[error.argmin(2)]


class Drawing:
    """The pictures [B, T, 3, S, S] of poses [B, T, 5], with the layers they are made of, so that shifts cost less.

    A mouth that opens leaves the bust behind it as it was, and the layers of the eyes: only the stages that a number
    moves are made anew, and only what lies over them is painted again.
    """

    def __init__(self, identity: Tensor, pose: Tensor):
        self.identity, self.pose = identity, pose
        self.background = background(identity, pose)
        bust, head, self.eyes, self.mouth = (list(layers) for layers in stages(identity, pose, cropped=True))
        self.with_bust = paint(self.background, bust)
        self.with_head = paint(self.with_bust, head)
        self.with_eyes = paint(self.with_head, self.eyes)
        self.picture = paint(self.with_eyes, self.mouth)

    def shifted(self) -> Iterator[Tensor]:
        """The pictures after each of `STEP` in turn: what `render` makes of the shifted poses."""
        shifts = torch.diag(self.pose.new_tensor(STEP))
        x, y, opened, widened, lidded = (stages(self.identity, self.pose + shift, cropped=True) for shift in shifts)
        yield paint(self.background, chain(*x))
        yield paint(self.background, chain(*y))
        yield paint(self.with_bust, chain(opened[1], self.eyes, opened[3]))
        yield paint(self.with_eyes, widened[3])
        yield paint(self.with_head, chain(lidded[2], self.mouth))


def normal_equations(video: Tensor, drawing: Drawing) -> tuple[Tensor, Tensor]:
    """J^T J [B, T, 5, 5] and J^T r [B, T, 5, 1] of every frame, J by finite differences about a drawing's pose."""
    drawn = drawing.picture
    columns = [(moved - drawn).div_(step).flatten(2) for moved, step in zip(drawing.shifted(), STEP, strict=True)]
    jacobian = torch.stack(columns, 2).transpose(2, 3).contiguous()  # [B, T, P, 5], sooner than stacking by P
    residual = (video - drawn).flatten(2).unsqueeze(3)  # [B, T, P, 1]
    groups = list(zip(jacobian.split(GROUP, 1), residual.split(GROUP, 1), strict=True))
    return torch.cat([j.mT @ j for j, _ in groups], 1), torch.cat([j.mT @ r for j, r in groups], 1)


def damped_step(pose: Tensor, normal: Tensor, gradient: Tensor, damping: Tensor) -> Tensor:
    """One Gauss-Newton step for every frame -> new pose [B, T, 5]."""
    ridge = damping[..., None, None] * torch.diag_embed(normal.diagonal(dim1=2, dim2=3)) + 1e-3 * torch.eye(5)
    step = torch.linalg.solve(normal + ridge, gradient).squeeze(3)
    return (pose + step.clamp(-0.25, 0.25)).clamp(pose.new_tensor(LOW), pose.new_tensor(HIGH))


@torch.no_grad()
def fit(video: Tensor, identity: Tensor, iterations: int = 4) -> tuple[Tensor, Tensor]:
    """Poses [B, T, 5] that explain video [B, T, 3, S, S] (0..1) of identity [B, K], and the squared error left [B,
    T]."""
    pose = coarse_search(video, identity)
    drawing = Drawing(identity, pose)
    error, damping = squared_error(video, drawing.picture), torch.full(video.shape[:2], 1e-2)
    normal, gradient = normal_equations(video, drawing)
    for left in reversed(range(iterations)):
        candidate = damped_step(pose, normal, gradient, damping)
        drawing = Drawing(identity, candidate)
        candidate_error = squared_error(video, drawing.picture)
        better = candidate_error < error
        pose = torch.where(better[..., None], candidate, pose)
        error = torch.where(better, candidate_error, error)
        damping = torch.where(better, damping * 0.3, damping * 5)
        if left:  # a frame whose step was refused keeps its equations
            normal_there, gradient_there = normal_equations(video, drawing)
            normal = torch.where(better[..., None, None], normal_there, normal)
            gradient = torch.where(better[..., None, None], gradient_there, gradient)
    return pose, error


def fit_in_pieces(video: Tensor, identity: Tensor, frames: int = 27) -> tuple[Tensor, Tensor]:
    """`fit`, a piece of one person at a time: memory stays small, and longer pieces are hardly faster."""
    rows = []
    for clip, who in zip(video.split(1), identity.split(1), strict=True):
        pieces = [fit(piece, who) for piece in clip.split(frames, 1)]
        rows.append((torch.cat([pose for pose, _ in pieces], 1), torch.cat([error for _, error in pieces], 1)))
    return torch.cat([pose for pose, _ in rows]), torch.cat([error for _, error in rows])


def lip_sync(opening: Tensor, asked: Tensor) -> Tensor:
    """Correlation over time of openings [B, T] -> [B]; the shown one's spread is floored at FLAT_MOUTH."""
    shown, asked = opening - opening.mean(1, keepdim=True), asked - asked.mean(1, keepdim=True)
    spread = shown.square().mean(1).sqrt().clamp_min(FLAT_MOUTH) * asked.square().mean(1).sqrt().clamp_min(1e-6)
    return (shown * asked).mean(1) / spread


def motion(path: Tensor) -> tuple[Tensor, Tensor]:
    """Head path [B, T, 2] -> its travel (standard deviation) and trembling (rms acceleration), each [B]."""
    travel = (path - path.mean(1, keepdim=True)).square().sum(2).mean(1).sqrt()
    return travel, path.diff(dim=1).diff(dim=1).square().sum(2).mean(1).sqrt()


def judge(video: Tensor, identity: Tensor, mouth: Tensor) -> dict[str, Tensor]:
    """Score videos [B, T, 3, S, S] in 0..1 of people [B, K] against the mouth [B, T, 2] their voices ask for.

    Returns `ls`, `mn`, `vq` [B] and what they were made of: `pose` [B, T, 5], `travel`, `tremble` [B], `error` [B, T].
    """
    pose, error = fit_in_pieces(video, identity)
    travel, tremble = motion(pose[..., :2])
    natural = (travel / RICHNESS).clamp(max=1) * torch.exp(-(tremble - TREMBLE[0]).clamp_min(0) / TREMBLE[1])
    quality = -10 * torch.log10(error[:, 1:].mean(1) + 1e-6)
    scores = {"ls": lip_sync(pose[..., 2], mouth[..., 0]), "mn": natural, "vq": quality}
    return {**scores, "pose": pose, "travel": travel, "tremble": tremble, "error": error}
