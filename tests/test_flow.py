"""Noise levels, solvers and guidance against closed forms in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fantasy_core import flow
from fantasy_core.audio import AudioTokens
from fantasy_core.errors import UserError
from fantasy_core.wan import PRESETS, WanDiT

few = settings(max_examples=25, deadline=None)


def double(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_x_sigma_is_a_straight_line_with_the_target_as_slope():
    """x_0 = x0, x_1 = noise, (x_b - x_a) / (b - a) = noise - x0, x_sigma - sigma velocity = x0; sigma may be [B]."""
    x0, noise = double(3, 2, 4), double(3, 2, 4, seed=1)
    sigma = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    noisy = flow.x_sigma(x0, noise, sigma)
    velocity = flow.velocity_target(x0, noise)
    assert torch.equal(noisy[0], x0[0]) and torch.equal(noisy[2], noise[2])
    slope = (flow.x_sigma(x0, noise, 0.75) - flow.x_sigma(x0, noise, 0.25)) / 0.5
    assert torch.allclose(slope, velocity, atol=1e-14)
    assert torch.allclose(flow.x0_from_velocity(noisy, velocity, sigma), x0, atol=1e-14)


@few
@given(steps=st.integers(1, 60), shift=st.floats(0.2, 12))
def test_schedule_falls_from_one_to_zero_and_unshifts_to_a_line(steps, shift):
    """sigma' = k s / (1 + (k - 1) s) has the inverse s = sigma' / (k - (k - 1) sigma'), which must be 1 - i / steps."""
    sigmas = flow.schedule(steps, shift)
    assert sigmas.dtype == torch.float64 and sigmas[0] == 1 and sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()
    line = 1 - torch.arange(steps + 1, dtype=torch.float64) / steps
    assert torch.allclose(sigmas / (shift - (shift - 1) * sigmas), line, atol=1e-12)


def test_schedule_is_that_of_diffusers_with_explicit_sigmas():
    """Same levels as FlowMatchEulerDiscreteScheduler(shift=5) given linspace(1, 1/30, 30), up to its fp32."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / 30, 30).tolist())
    assert (scheduler.sigmas.double() - flow.schedule(30, 5.0)).abs().max() < 2e-7


def test_explicit_sigmas_are_taken_as_they_are():
    assert flow.schedule(99, 7, sigmas=[0.9, 0.4]).tolist() == [0.9, 0.4, 0.0]
    assert flow.schedule(sigmas=[1, 0.5, 0]).tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    "sigmas", [[], [0], [0.5, 0.5], [0.2, 0.4], [1.2, 0.3], [0.5, -0.1], [math.nan], [0.5, math.nan]]
)
def test_explicit_sigmas_that_are_no_schedule_are_refused(sigmas):
    with pytest.raises(UserError, match="no schedule"):
        flow.schedule(sigmas=sigmas)


@pytest.mark.parametrize(("steps", "shift"), [(0, 5.0), (-1, 5.0), (3, 0.0), (3, math.nan)])
def test_steps_and_shift_are_checked(steps, shift):
    with pytest.raises(UserError, match="no schedule"):
        flow.schedule(steps, shift)


@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_sample_sigma_has_the_quantiles_of_its_distribution(shift):
    """Logit-normal: P(sigma < shifted sigmoid(z)) = Phi(z). Uniform: P(sigma < shifted u) = u.

    With n = 20000 draws a share has a standard deviation of at most 0.5 / sqrt(n) = 0.0035; 0.015 is over 4 of them.
    """
    for name, inverse in (("logit-normal", lambda z: 1 / (1 + math.exp(-z))), ("uniform", lambda z: _phi(z))):
        draws = flow.sample_sigma(20_000, distribution=name, shift=shift, generator=torch.Generator().manual_seed(3))
        assert draws.shape == (20_000,) and draws.min() >= 0 and draws.max() <= 1
        for z in (-1.5, -0.5, 0.0, 1.0, 2.0):
            share = (draws < flow.shift_sigma(inverse(z), shift)).double().mean().item()
            assert abs(share - _phi(z)) < 0.015


def _phi(z: float) -> float:
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def test_sample_sigma_refuses_an_unknown_distribution():
    with pytest.raises(UserError, match="distribution"):
        flow.sample_sigma(3, distribution="cosine")


# ---- solvers ----


@pytest.mark.parametrize(("solver", "tolerance"), [("euler", 1e-14), ("unipc", 1e-8)])
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_a_constant_velocity_is_integrated_exactly(solver, tolerance, steps):
    """dx / dsigma = c from x at sigma 1 gives x - c at sigma 0 for any schedule.

    UniPC starts at 1 - 1e-9 inside (the log-SNR of pure noise is infinite), so it is exact to 1e-9 |c|.
    """
    start, c = double(1, 2, 3), double(1, 2, 3, seed=1)
    end = flow.sample(lambda x, s: c, start, flow.schedule(steps, 5.0), solver=solver)
    assert (end - (start - c)).abs().max() < tolerance


def gaussian_velocity(x: torch.Tensor, sigma: float, mean: float = 0.7, std: float = 0.3) -> torch.Tensor:
    """E[noise - x0 | x_sigma] for x0 ~ N(mean, std^2), noise ~ N(0, 1): both are linear in x_sigma."""
    centred = x - (1 - sigma) * mean
    variance = (1 - sigma) ** 2 * std**2 + sigma**2
    return sigma / variance * centred - (mean + (1 - sigma) * std**2 / variance * centred)


def gaussian_error(solver: str, steps: int) -> float:
    start = torch.linspace(-3, 3, 101, dtype=torch.float64).reshape(1, 1, 101)
    end = flow.sample(gaussian_velocity, start, flow.schedule(steps, 1.0), solver=solver)
    return (end - (0.7 + 0.3 * start)).abs().max().item()


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("unipc", 2)])
def test_order_of_convergence_on_a_gaussian_flow(solver, order):
    """The flow of a Gaussian carries noise z at sigma 1 to mean + std z at sigma 0. Halving the step divides the error
    by 2^order: between 160 and 320 unshifted steps the observed order is within 0.1 of 1 (Euler) and 2 (UniPC)."""
    errors = [gaussian_error(solver, steps) for steps in (160, 320)]
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.1
    assert errors[1] < {1: 1e-2, 2: 1e-4}[order]


def test_unipc_is_nearer_than_euler_at_thirty_steps():
    """The reason to offer it, at equal model evaluations and shift 1."""
    assert gaussian_error("unipc", 30) < 0.2 * gaussian_error("euler", 30)


@pytest.mark.parametrize("solver", flow.SOLVERS)
def test_the_model_sees_every_sigma_unrounded(solver):
    """diffusers' UniPC would feed int64 timesteps: 1000 * 0.9666... = 966."""
    seen = []
    sigmas = flow.schedule(7, 5.0)
    flow.sample(lambda x, s: seen.append(s) or x, double(1, 2, 3), sigmas, solver=solver)
    assert seen == sigmas[:-1].tolist()
    assert any(flow.timestep(sigma) % 1 for sigma in seen)


def test_unipc_is_the_scheduler_of_diffusers_at_our_levels():
    """Against UniPCMultistepScheduler left alone, given the same sigmas: only its fp32 and 1 - 1e-6 start differ."""
    from diffusers import UniPCMultistepScheduler

    start, sigmas = double(1, 2, 3), flow.schedule(12, 5.0)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    scheduler.set_timesteps(sigmas=sigmas[:-1].numpy())
    latents = start
    for time, sigma in zip(scheduler.timesteps, sigmas[:-1].tolist(), strict=True):
        latents = scheduler.step(gaussian_velocity(latents, sigma), time, latents).prev_sample
    ours = flow.sample(gaussian_velocity, start, sigmas, solver="unipc")
    assert (ours - latents).abs().max() < 1e-4


@pytest.mark.parametrize("solver", flow.SOLVERS)
def test_progress_is_told_after_each_step(solver):
    told = []
    end = flow.sample(
        gaussian_velocity, double(1, 2, 3), flow.schedule(4, 5.0), solver=solver,
        on_step=lambda step, sigma, latents: told.append((step, sigma, latents)),
    )  # fmt: skip
    assert [step for step, _, _ in told] == [0, 1, 2, 3]
    assert [sigma for _, sigma, _ in told] == flow.schedule(4, 5.0)[1:].tolist()
    assert torch.equal(told[-1][2], end)


def test_an_unknown_solver_is_refused():
    with pytest.raises(UserError, match="solver"):
        flow.sample(gaussian_velocity, double(1, 2, 3), flow.schedule(2), solver="heun")


# ---- guidance ----


def never():
    raise AssertionError("a pass with coefficient zero was run")


@few
@given(s=st.floats(-4, 9), a=st.floats(-4, 9))
def test_guidance_is_the_formula_of_fantasytalking(s, a):
    """u + s (n - u) + a (c - n), in float64 up to rounding; the coefficients add up to 1."""
    u, n, c = double(5), double(5, seed=1), double(5, seed=2)
    expected = u + s * (n - u) + a * (c - n)
    assert torch.allclose(flow.guide(u, lambda: n, c, s, a), expected, atol=1e-12)
    assert math.isclose(sum(flow.guidance_weights(s, a)), 1, abs_tol=1e-12)
    folded = flow.guide(never, n, c if a else never, s, a, same_text=True)
    assert torch.allclose(folded, n + a * (c - n), atol=1e-12)


def test_passes_with_coefficient_zero_never_run():
    """s = a: u + s (n - u) + s (c - n) = u + s (c - u), without n. s = a = 1: c alone. s = 1: no u. a = 0: no c."""
    u, n, c = double(5), double(5, seed=1), double(5, seed=2)
    three = u + 5 * (n - u) + 5 * (c - n)
    assert (flow.guide(u, never, c, 5, 5) - three).abs().max() < 1e-14
    assert torch.equal(flow.guide(never, None, lambda: c, 1, 1), c)
    assert torch.allclose(flow.guide(never, n, c, 1, 4), n + 4 * (c - n))
    assert torch.allclose(flow.guide(u, n, never, 3, 0), u + 3 * (n - u))
    assert torch.equal(flow.guide(never, never, c, 7, 1, same_text=True), c)


@pytest.fixture(scope="module")
def tiny():
    """A tiny WanDiT whose audio branch and head do something, and inputs for it."""
    torch.manual_seed(0)
    config = PRESETS["tiny"]
    dit = WanDiT(config).double().eval().requires_grad_(False)
    for name, parameter in dit.named_parameters():
        if ".processor." in name or name.startswith("head.head"):
            torch.nn.init.normal_(parameter, std=0.3)
    inputs = {
        "text": double(1, 3, config.text_dim),
        "negative": double(1, 5, config.text_dim, seed=1),
        "audio": AudioTokens(double(1, 2, 6, config.audio_token_dim, seed=2), torch.tensor([[4, 6]])),
        "condition": double(1, config.condition_dim, 2, 4, 6, seed=3),
        "clip": double(1, 257, config.clip_dim, seed=4),
    }
    return dit, inputs, double(1, config.out_dim, 2, 4, 6, seed=5)


class Counted:
    """A model that counts the rows it is given."""

    def __init__(self, model):
        self.model, self.calls = model, []

    def __call__(self, latents, *args, **kwargs):
        self.calls.append(len(latents))
        return self.model(latents, *args, **kwargs)


@pytest.mark.parametrize(
    ("s", "a", "rows"), [(5.0, 5.0, 2), (5.0, 3.0, 3), (1.0, 1.0, 1), (1.0, 4.0, 2), (2.0, 0.0, 2)]
)
def test_guided_model_batched_equals_sequential_equals_three_passes(tiny, s, a, rows):
    """Against the three passes by hand, the silent ones with an audio scale of 0 as FantasyTalking computes them."""
    dit, inputs, latents = tiny
    time = torch.tensor([875.25], dtype=torch.float64)
    fixed = {"condition": inputs["condition"], "clip": inputs["clip"], "audio": inputs["audio"]}
    u = dit(latents, time, inputs["negative"], audio_scale=torch.zeros(1), **fixed)
    n = dit(latents, time, inputs["text"], audio_scale=torch.zeros(1), **fixed)
    c = dit(latents, time, inputs["text"], **fixed)
    assert (c - n).abs().max() > 1e-3 and (n - u).abs().max() > 1e-3
    expected = u + s * (n - u) + a * (c - n)
    for passes, calls in (("sequential", [1] * rows), ("batched", [rows])):
        counted = Counted(dit)
        velocity = flow.guided(counted, **inputs, text_scale=s, audio_scale=a, passes=passes)(latents, 0.87525)
        # the time embedding, norms and attention masks run in fp32, whose rounding guidance multiplies by up to 5
        assert (velocity - expected).abs().max() < 2e-5 * expected.abs().max()
        assert counted.calls == calls


def test_equal_prompts_fold_into_two_passes(tiny):
    """prompt = negative: u = n, so the text scale has no say and c and u remain, whatever it is."""
    dit, inputs, latents = tiny
    results = []
    for negative in (None, inputs["text"].clone()):
        counted = Counted(dit)
        velocity_fn = flow.guided(counted, **{**inputs, "negative": negative}, text_scale=7.0, audio_scale=2.0)
        results.append(velocity_fn(latents, 0.5))
        assert counted.calls == [1, 1]
    three = flow.guided(dit, **{**inputs, "negative": inputs["text"] + 1e-14}, text_scale=7.0, audio_scale=2.0)
    assert torch.equal(*results)
    assert (results[0] - three(latents, 0.5)).abs().max() < 1e-4


def test_unknown_passes_are_refused(tiny):
    dit, inputs, _ = tiny
    with pytest.raises(UserError, match="passes"):
        flow.guided(dit, **inputs, passes="parallel")


def test_noise_depends_on_seed_and_keys_alone():
    """The same stream whatever was drawn before it, another one for another seed or key, standard normal."""
    first = flow.draw_noise((1, 16, 4, 8, 8), 7, 68)
    flow.draw_noise((5,), 7)
    assert torch.equal(first, flow.draw_noise((1, 16, 4, 8, 8), 7, 68))
    others = [flow.draw_noise((1, 16, 4, 8, 8), *keys) for keys in ((7,), (8, 68), (7, 136), (7, 68, 0), (68, 7))]
    assert all((first - other).std() > 1.2 for other in others)
    assert abs(first.mean()) < 0.1 and abs(first.std() - 1) < 0.05
    assert torch.equal(flow.draw_noise((9,), 7), torch.randn(9, generator=torch.Generator().manual_seed(7)))
