"""Learning from pairs: Flow-DPO (Eq. 1, 2), IPO and SimPO as functions of per-video errors, and their exact gradients
one video at a time.

The error of a video is the mean squared difference of velocity and target, e = mean (v - v*)^2, over its own lip mask
where there is one (Eq. 2). Chosen and rejected, policy and reference share one noise and one sigma: independent draws
would spread the margin five times as far. With the reference's errors e_ref,

    margin m = (e_ref - e) of the chosen - (e_ref - e) of the rejected,    L = -log sigmoid(beta / 2 m)     # Eq. 1

The paper's "L(x, t)" is read as e - e_ref. beta belongs to the mean: in sums over N numbers it would be beta / N, and
in implementations without the 1/2 the same strength is called beta / 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import UserError

Diagnostics = dict[str, float]
LOSSES = ("dpo", "ipo", "simpo", "hinge", "sft")
FORMS = ("buffers", "prepass")


def video_error(velocity: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Errors [B], fp32 (or fp64), of velocities [B, C, F, h, w]: the mean over all numbers or, with a mask [B, F, h, w]
    in 0..1, over its area: sum M (v - v*)^2 / (C sum M), so that the size of a face does not change what beta means.

    Raises UserError for a mask without area, for it would be 0 / 0.
    """
    return masked_mean(error_map(velocity, target), mask)


def error_map(velocity: Tensor, target: Tensor) -> Tensor:
    """(v - v*)^2 [B, F, h, w] of velocities [B, C, F, h, w], the mean over channels: what an error is made of, before a
    mask is laid on it."""
    wide = torch.promote_types(torch.promote_types(velocity.dtype, target.dtype), torch.float32)
    return (velocity.to(wide) - target.to(wide)).square().mean(1)


def masked_mean(errors: Tensor, mask: Tensor | None = None) -> Tensor:
    """Maps [B, F, h, w] -> errors [B]: their mean, over the area of masks [B, F, h, w] where these are given."""
    if mask is None:
        return errors.flatten(1).mean(1)
    mask = mask.to(errors.dtype)
    area = mask.flatten(1).sum(1)
    if not torch.compiler.is_compiling() and bool((area == 0).any()):
        raise UserError(
            "a video has an empty lip mask",
            got=f"no area in {int((area == 0).sum())} of {len(area)} masks",
            expected="some lips in every video that is compared by them",
            do="leave these pairs out (train.pairs and train.cache count them), or train without the mask",
        )
    return (errors * mask).flatten(1).sum(1) / area  # Eq. 2


@dataclass(frozen=True)
class Objective:
    """Which loss of the margin, and what is added to it.

    loss: `dpo`; `ipo`, the same minimiser m = 1/beta as (m - 1/beta)^2, scaled so that learning rates carry over;
    `simpo`, without a reference, whose beta is calibrated (`simpo_beta`); `hinge`; `sft`, the chosen videos' own error
    and nothing else, to compare with. label_smoothing: the share of pairs
    that are believed to be labelled the wrong way round (dpo). sft_weight: times the chosen videos' own error.
    anchor_weight: times beta/2 relu(e - e_ref) of the chosen, which at 1 outweighs any pull of Eq. 1 that lets a chosen
    video's error rise above the reference's (likelihood displacement).
    """

    loss: str = "dpo"
    beta: float = 5000.0
    gamma: float = 0.5  # SimPO's target margin
    label_smoothing: float = 0.0
    sft_weight: float = 0.0
    anchor_weight: float = 0.0

    def __post_init__(self):
        if self.loss not in LOSSES or not self.beta > 0 or not 0 <= self.label_smoothing < 0.5:
            raise UserError(
                "there is no such preference loss",
                got=f"loss {self.loss!r}, beta {self.beta}, label smoothing {self.label_smoothing}",
                expected=f"{', '.join(LOSSES)}; beta > 0; label smoothing from 0 to less than 0.5",
                do="paper: dpo, beta 5000 for experts and 1000 for the gate, no smoothing",
            )
        if min(self.sft_weight, self.anchor_weight) < 0 or (self.anchor_weight and not self.needs_reference):
            raise UserError(
                "these additions to the loss make no sense",
                got=f"loss {self.loss}, SFT weight {self.sft_weight}, anchor weight {self.anchor_weight}",
                expected="weights of 0 and more, and an anchor only where there is a reference to hold on to",
                do="leave the anchor out with simpo and sft, or use dpo, ipo or hinge",
            )

    @property
    def needs_reference(self) -> bool:
        return self.loss not in ("simpo", "sft")

    def __call__(
        self, chosen: Tensor, rejected: Tensor, reference_chosen: Tensor | None, reference_rejected: Tensor | None
    ) -> tuple[Tensor, Diagnostics]:
        """Errors [B] of policy and reference -> the mean loss of the pairs, and what to watch."""
        if not self.needs_reference:
            reference_chosen = reference_rejected = torch.zeros_like(chosen)
        gains = reference_chosen - chosen, reference_rejected - rejected
        margin = gains[0] - gains[1]
        logit = self.beta / 2 * margin - (self.gamma if self.loss == "simpo" else 0.0)
        if self.loss == "sft":
            return chosen.mean(), diagnose(logit, margin, *gains)
        loss = self.of_logit(logit).mean() + self.sft_weight * chosen.mean()
        if self.anchor_weight:
            loss = loss + self.anchor_weight * self.beta / 2 * F.relu(-gains[0]).mean()
        return loss, diagnose(logit, margin, *gains)

    def of_logit(self, logit: Tensor) -> Tensor:
        """The loss of each pair."""
        if self.loss == "ipo":
            return (logit - 0.5).square()  # ((beta/2) m - 1/2)^2
        if self.loss == "hinge":
            return F.relu(1 - logit)
        swapped = self.label_smoothing
        return -(1 - swapped) * F.logsigmoid(logit) - swapped * F.logsigmoid(-logit)  # Eq. 1


def diagnose(logit: Tensor, margin: Tensor, gain_chosen: Tensor, gain_rejected: Tensor) -> Diagnostics:
    """What to watch, each a mean over the pairs. `gain_chosen` is to rise: a margin can also grow while both fall
    (likelihood displacement). `pull` is sigmoid(-logit), the share of the gradient that is left (0: saturated)."""
    with torch.no_grad():
        return {
            "logit": logit.mean().item(),
            "logit_std": logit.std(correction=0).item(),
            "margin": margin.mean().item(),
            "accuracy": (margin > 0).float().mean().item(),
            "gain_chosen": gain_chosen.mean().item(),
            "gain_rejected": gain_rejected.mean().item(),
            "pull": torch.sigmoid(-logit).mean().item(),
        }


def flow_dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float = 5000.0,
) -> tuple[Tensor, Diagnostics]:
    """Flow-DPO of errors [B] (Eq. 1): (loss, diagnostics)."""
    return Objective("dpo", beta)(policy_chosen, policy_rejected, reference_chosen, reference_rejected)


def ipo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float = 5000.0,
) -> tuple[Tensor, Diagnostics]:
    """IPO of errors [B]: (beta/2 m - 1/2)^2, whose target is the margin 1/beta."""
    return Objective("ipo", beta)(policy_chosen, policy_rejected, reference_chosen, reference_rejected)


def simpo(
    policy_chosen: Tensor, policy_rejected: Tensor, beta: float, gamma: float = 0.5
) -> tuple[Tensor, Diagnostics]:
    """SimPO of errors [B]: -log sigmoid(beta/2 (e_rejected - e_chosen) - gamma), without a reference."""
    return Objective("simpo", beta, gamma)(policy_chosen, policy_rejected, None, None)


def simpo_beta(chosen: Tensor, rejected: Tensor) -> float:
    """The beta at which beta/2 (e_rejected - e_chosen) has standard deviation 1 on the first pairs [n].

    Errors of two videos lie a hundred times as far apart as those of policy and reference, so that DPO's beta would
    saturate at once. Raises UserError where all pairs have one difference.
    """
    spread = (rejected - chosen).double().std(correction=0).item()
    if not spread > 0:
        raise UserError(
            "SimPO's beta cannot be calibrated",
            got=f"{len(chosen)} pairs, all with the same difference of errors",
            expected="some spread",
            do="give more pairs for the calibration, or set beta by hand",
        )
    return 2 / spread


def accumulate_gradient(
    run: Callable[[int], Tensor],
    pairs: Sequence[tuple[int, int]],
    parameters: Sequence[Tensor],
    objective: Objective,
    reference: Tensor | None = None,
    *,
    form: str = "buffers",
    weight: float = 1.0,
) -> tuple[float, Diagnostics, Tensor]:
    """Add weight * (the gradient of the mean loss of all pairs) to `.grad`, with one video's activations in memory at a
    time: (loss, diagnostics, errors [V]).

    run(v) is the error of video v, a scalar with its graph; pairs hold indices (chosen, rejected) into the V videos of
    one draw; reference [V]. The loss depends on a video through its error alone, so dL/dtheta = sum_v (dL/de_v)
    (de_v/dtheta), exactly. For one pair that halves the activations; m candidates of one input have m (m - 1) / 2
    pairs and m passes. form `buffers` keeps de_v/dtheta of every video (V times the parameters) and runs each once;
    `prepass` first runs all without gradients to know dL/de_v, then each again: a third more work, one buffer. Under
    DDP or FSDP call it without gradient synchronisation and reduce `.grad` afterwards.
    """
    if form not in FORMS:
        raise UserError("unknown form of the gradient", got=repr(form), expected=" or ".join(FORMS), do="use buffers")
    videos, parameters = sorted({video for pair in pairs for video in pair}), list(parameters)
    if form == "prepass":
        with torch.no_grad():
            errors = torch.stack([run(video).detach() for video in videos])
        loss, told, slopes = _slopes(errors, videos, pairs, objective, reference)
        for video, slope in zip(videos, slopes.tolist(), strict=True):
            if slope:
                _add(parameters, _gradient(run(video), parameters), weight * slope)
        return loss, told, errors
    found, gradients = [], []
    for video in videos:
        error = run(video)
        gradients.append(_gradient(error, parameters))
        found.append(error.detach())
    errors = torch.stack(found)
    loss, told, slopes = _slopes(errors, videos, pairs, objective, reference)
    for gradient, slope in zip(gradients, slopes.tolist(), strict=True):
        _add(parameters, gradient, weight * slope)
    return loss, told, errors


def _slopes(
    errors: Tensor, videos: list[int], pairs: Sequence[tuple[int, int]], objective: Objective, reference: Tensor | None
) -> tuple[float, Diagnostics, Tensor]:
    """Loss, diagnostics, and dL/de of every video."""
    place = {video: n for n, video in enumerate(videos)}
    chosen, rejected = (torch.tensor([place[pair[side]] for pair in pairs], device=errors.device) for side in (0, 1))
    errors = errors.detach().requires_grad_()
    known = (None, None) if reference is None else (reference[videos][side].to(errors) for side in (chosen, rejected))
    with torch.enable_grad():
        loss, told = objective(errors[chosen], errors[rejected], *known)
        (slopes,) = torch.autograd.grad(loss, errors)
    return loss.item(), told, slopes


def _gradient(error: Tensor, parameters: list[Tensor]) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(error, parameters, allow_unused=True)


def _add(parameters: list[Tensor], gradients: tuple[Tensor | None, ...], scale: float) -> None:
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is None:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.add_(gradient.to(parameter.grad.dtype), alpha=scale)
