"""Rectified flow as Wan2.1 runs it: noise levels, schedules, solvers and guidance.

sigma in [0, 1] is the noise level and **1 is pure noise**: x_sigma = (1 - sigma) x0 + sigma noise,
velocity = noise - x0, timestep = 1000 sigma and never rounded. (The paper's t is 1 - sigma; this code never uses it.)

Solvers are plain functions over a `velocity_fn(latents, sigma: float) -> velocity`, so that anything can be put between
solver and model: guidance (`guided`), frames held from an earlier window (`windows.hold`), or a closed form in a test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .errors import UserError

VelocityFn = Callable[[Tensor, float], Tensor]
StepFn = Callable[[int, float, Tensor], None]
SOLVERS = ("euler", "unipc")
PASSES = ("batched", "sequential")


def _per_sample(sigma: float | Tensor, like: Tensor) -> float | Tensor:
    """A sigma of shape [B] made to broadcast over `like` [B, ...]; numbers pass through."""
    if isinstance(sigma, Tensor) and sigma.ndim:
        return sigma.to(like).reshape(-1, *(1,) * (like.ndim - 1))
    return sigma


def x_sigma(x0: Tensor, noise: Tensor, sigma: float | Tensor) -> Tensor:
    """Clean `x0` [B, ...] brought to noise level `sigma` (a number or [B]): (1 - sigma) x0 + sigma noise."""
    sigma = _per_sample(sigma, x0)
    return (1 - sigma) * x0 + sigma * noise


def velocity_target(x0: Tensor, noise: Tensor) -> Tensor:
    """What the model is trained to predict at every sigma: noise - x0 = d x_sigma / d sigma."""
    return noise - x0


def x0_from_velocity(latents: Tensor, velocity: Tensor, sigma: float | Tensor) -> Tensor:
    """The clean latents that a velocity at `sigma` points to: x_sigma - sigma velocity."""
    return latents - _per_sample(sigma, latents) * velocity


def timestep(sigma: float | Tensor) -> float | Tensor:
    """The DiT's time input, 1000 sigma, unrounded (Wan2.1)."""
    return 1000 * sigma


def shift_sigma(sigma: float | Tensor, shift: float) -> float | Tensor:
    """shift sigma / (1 + (shift - 1) sigma): more of [0, 1] at high noise when shift > 1; 0 and 1 stay."""
    return shift * sigma / (shift * sigma + (1 - sigma))  # this form keeps 1 at exactly 1


def sample_sigma(
    n: int,
    *,
    distribution: str = "logit-normal",
    shift: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`n` noise levels for training, fp32 [n] on the CPU, before `shift`: sigmoid(N(0, 1)) or uniform on [0, 1).

    Raises UserError for another distribution.
    """
    if distribution == "logit-normal":
        sigma = torch.randn(n, generator=generator).sigmoid()
    elif distribution == "uniform":
        sigma = torch.rand(n, generator=generator)
    else:
        raise UserError(
            "unknown distribution of sigma",
            got=repr(distribution),
            expected="logit-normal or uniform",
            do="use one of them",
        )
    return shift_sigma(sigma, shift)


def schedule(steps: int = 30, shift: float = 5.0, sigmas: Sequence[float] | None = None) -> Tensor:
    """The noise levels a sampler visits, float64 [steps + 1] from the first down to 0.

    By default linspace(1, 0, steps + 1), shifted (FantasyTalking: 30 steps, shift 5). Explicit `sigmas` are taken as
    they are (`steps` and `shift` then have no say), with a 0 appended if it is missing.
    Raises UserError unless they fall strictly from at most 1 to at least 0.
    """
    if sigmas is None:
        if steps < 1 or not shift > 0:
            raise UserError(
                "no schedule has these numbers",
                got=f"steps {steps}, shift {shift}",
                expected="steps >= 1 and shift > 0",
                do="try steps 30 and shift 5",
            )
        return shift_sigma(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift)
    values = [float(value) for value in sigmas]
    if not values or values[-1] != 0:
        values.append(0.0)
    falling = all(a > b for a, b in zip(values, values[1:], strict=False))
    if len(values) < 2 or not falling or not values[0] <= 1:
        raise UserError(
            "these sigmas are no schedule",
            got=", ".join(f"{value:g}" for value in values),
            expected="strictly falling numbers between 1 and 0",
            do="for example 1, 0.75, 0.5, 0.25",
        )
    return torch.tensor(values, dtype=torch.float64)


def euler(velocity_fn: VelocityFn, noise: Tensor, sigmas: Tensor, *, on_step: StepFn | None = None) -> Tensor:
    """First order: x += (sigma_next - sigma) velocity. What FantasyTalking uses. See `sample`."""
    levels = sigmas.tolist()
    latents = noise
    for step, (sigma, following) in enumerate(zip(levels, levels[1:], strict=False)):
        latents = latents + (following - sigma) * velocity_fn(latents, sigma).to(latents.dtype)
        if on_step is not None:
            on_step(step, following, latents)
    return latents


def unipc(velocity_fn: VelocityFn, noise: Tensor, sigmas: Tensor, *, on_step: StepFn | None = None) -> Tensor:
    """Second order predictor and corrector, UniPC-bh2 of diffusers (Wan2.1's own default). See `sample`.

    diffusers rounds its timesteps to int64 and its sigmas to fp32. Neither is used: the model is fed our sigma, and the
    scheduler's own levels are replaced by ours in float64. Only a first sigma of 1 becomes 1 - 1e-9 inside the
    scheduler, which takes its logarithm (log-SNR is -inf at pure noise); the model still sees 1.
    """
    from diffusers import UniPCMultistepScheduler

    levels = sigmas.tolist()
    scheduler = UniPCMultistepScheduler(
        solver_order=2, solver_type="bh2", prediction_type="flow_prediction", use_flow_sigmas=True
    )
    scheduler.set_timesteps(sigmas=sigmas[:-1].numpy().copy())  # for its step count: the next line replaces the rest
    scheduler.sigmas = sigmas.to("cpu", torch.float64).clamp(max=1 - 1e-9)
    scheduler.set_begin_index(0)
    latents = noise
    for step, (sigma, following) in enumerate(zip(levels, levels[1:], strict=False)):
        velocity = velocity_fn(latents, sigma).to(latents.dtype)
        latents = scheduler.step(velocity, timestep(sigma), latents, return_dict=False)[0]
        if on_step is not None:
            on_step(step, following, latents)
    return latents


def sample(
    velocity_fn: VelocityFn,
    noise: Tensor,
    sigmas: Tensor,
    *,
    solver: str = "euler",
    on_step: StepFn | None = None,
) -> Tensor:
    """Integrate d x / d sigma = velocity from `noise` at sigmas[0] down to sigmas[-1] = 0; returns the latents there.

    noise [B, C, F, h, w] in fp32 or float64 (the state keeps its dtype whatever the model computes in); sigmas from
    `schedule`; `on_step(step, sigma reached, latents)` is called after each step. Raises UserError for another solver.
    """
    if solver not in SOLVERS:
        raise UserError("unknown solver", got=repr(solver), expected=" or ".join(SOLVERS), do="use one of them")
    return {"euler": euler, "unipc": unipc}[solver](velocity_fn, noise, sigmas, on_step=on_step)


def guidance_weights(text_scale: float, audio_scale: float, *, same_text: bool = False) -> tuple[float, float, float]:
    """Coefficients of the passes (negative prompt, prompt, prompt with audio): (1 - s, s - a, a); they add up to 1.

    FantasyTalking's u + s (n - u) + a (c - n), regrouped: at its default s = a the middle pass drops out, and any pass
    whose coefficient is zero need not run. `same_text`: prompt and negative prompt are one (or there is no text at
    all), so u = n and their coefficients fold into one: (0, 1 - a, a).
    """
    if same_text:
        return 0.0, 1 - audio_scale, audio_scale
    return 1 - text_scale, text_scale - audio_scale, audio_scale


def guide(
    uncond: Tensor | Callable[[], Tensor] | None,
    text: Tensor | Callable[[], Tensor] | None,
    audio: Tensor | Callable[[], Tensor] | None,
    text_scale: float,
    audio_scale: float,
    *,
    same_text: bool = False,
) -> Tensor:
    """The guided velocity (1 - s) u + (s - a) n + a c of the three passes (see `guidance_weights`).

    Each pass is a tensor or a function that computes it; one whose coefficient is zero is never called and may be None.
    """
    weights = guidance_weights(text_scale, audio_scale, same_text=same_text)
    total = None
    for weight, part in zip(weights, (uncond, text, audio), strict=True):
        if weight == 0:
            continue
        value = part() if callable(part) else part
        total = weight * value if total is None else total + weight * value
    return total


def _same(prompt: Tensor, negative: Tensor | None) -> bool:
    return negative is None or (prompt.shape == negative.shape and torch.equal(prompt, negative))


def guided(
    dit: Callable[..., Tensor],
    text: Tensor,
    audio,
    *,
    negative: Tensor | None = None,
    condition: Tensor | None = None,
    clip: Tensor | None = None,
    text_scale: float = 5.0,
    audio_scale: float = 5.0,
    passes: str = "sequential",
) -> VelocityFn:
    """The velocity_fn of a WanDiT under guidance.

    text, negative [1, L, text_dim] (negative None or equal to text: two passes at most); audio AudioTokens of a batch
    of one; condition [1, 20, F, h, w] and clip [1, 257, clip_dim] or None. The no-audio passes leave the audio branch
    out, which equals FantasyTalking's audio scale of 0 exactly. `passes`: `sequential` runs them one after another,
    `batched` in one call (faster when the GPU is not full, more memory); the results are equal.
    """
    if passes not in PASSES:
        raise UserError("unknown guidance passes", got=repr(passes), expected=" or ".join(PASSES), do="use one of them")
    same = _same(text, negative)
    weights = guidance_weights(text_scale, audio_scale, same_text=same)
    branches = ((negative, 0.0), (text, 0.0), (text, 1.0))  # prompt, weight of the audio branch
    used = [(weight, *branch) for weight, branch in zip(weights, branches, strict=True) if weight != 0]

    def sequentially(latents: Tensor, sigma: float) -> Tensor:
        time = latents.new_full((1,), timestep(sigma))

        def run(prompt: Tensor | None, loudness: float) -> Callable[[], Tensor]:
            heard = audio if loudness else None
            return lambda: dit(latents, time, prompt, condition=condition, clip=clip, audio=heard).to(latents.dtype)

        return guide(*(run(*branch) for branch in branches), text_scale, audio_scale, same_text=same)

    def batched(latents: Tensor, sigma: float) -> Tensor:
        n = len(used)
        out = dit(
            latents.expand(n, *latents.shape[1:]),
            latents.new_full((n,), timestep(sigma)),
            stacked_text,
            condition=_repeat(condition, n),
            clip=_repeat(clip, n),
            audio=None if not heard else type(audio)(*(_repeat(part, n) for part in (audio.tokens, audio.lengths))),
            audio_scale=latents.new_tensor([loudness for _, _, loudness in used]),
        ).to(latents.dtype)
        return sum(weight * row for (weight, _, _), row in zip(used, out.split(1), strict=True))

    if passes == "sequential" or len(used) == 1:
        return sequentially
    stacked_text = _stack_prompts([prompt for _, prompt, _ in used])
    heard = any(loudness for _, _, loudness in used)
    return batched


def _repeat(part: Tensor | None, n: int) -> Tensor | None:
    return None if part is None else part.expand(n, *part.shape[1:])


def _stack_prompts(prompts: list[Tensor]) -> Tensor:
    """Prompts [1, L_i, D] of several lengths as [n, max L, D]; the zeros are those the DiT would pad with itself."""
    longest = max(prompt.shape[1] for prompt in prompts)
    return torch.cat([functional.pad(prompt, (0, 0, 0, longest - prompt.shape[1])) for prompt in prompts])


def draw_noise(shape: Sequence[int], seed: int, *keys: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal noise from a CPU generator, equal on every device. `keys` (a window's start, ...) choose
    independent streams of one seed, so that the noise of a window does not depend on what was drawn before it."""
    mixed = seed
    for key in keys:
        mixed = (mixed * 6364136223846793005 + key * 1442695040888963407 + 1) % 2**63
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(mixed), dtype=dtype)
