"""The strategies against Eq. 4 written out in fp64: equal to it, to one another and, without a voice, to the base."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st

from fantasy_core.experts import LowRank, Rows
from fantasy_core.fusion.strategies import STRATEGIES, add_naive, add_stacked, merge, merged, naive, stacked, weighed

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-6}


def random_rows(size_in: int, size_out: int, ranks: tuple[int, ...], change: float = 0.3, dtype=torch.float32) -> Rows:
    """Experts of these ranks (0: absent) and unequal scales; all of weight 1 change the output by about `change`."""
    pairs = []
    for i, rank in enumerate(ranks):
        A = torch.randn(rank, size_in) * size_in**-0.5
        B = torch.randn(size_out, rank) * change * max(1, rank * len(ranks)) ** -0.5
        pairs.append(LowRank(A, B, 0.8 + 0.4 * i / len(ranks)) if rank else None)
    return Rows.stack(pairs, size_in, size_out).to(dtype)


def written_out(x, weight, bias, rows: Rows, c) -> torch.Tensor:
    """h + sum_i w_i B_i (A_i x) in fp64, sample by sample and expert by expert."""  # Eq. 4
    y = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    down, up = rows.down.double(), rows.up.double()
    for sample in range(len(x)):
        weights = c if c.ndim == 1 else c[sample]
        for first, last in pairwise(rows.offsets):
            if last > first:
                A, B = down[first:last], up[first:last].T
                y[sample] += weights[first].double() * (x[sample].double() @ A.T @ B.T)
    return y


def difference(got: torch.Tensor, reference: torch.Tensor) -> float:
    """max |difference| / max |fp64 reference|."""
    return ((got.double() - reference).abs().max() / reference.abs().max()).item()


@pytest.mark.parametrize("dtype", TOLERANCE)
@example(sizes=(8, 8), ranks=(3, 0, 5), batch=(2, 4), biased=True, per_sample=True, seed=0)
@example(sizes=(8, 24), ranks=(0,), batch=(1,), biased=False, per_sample=False, seed=0)
@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    ranks=st.lists(st.integers(0, 6), min_size=1, max_size=5).map(tuple),
    batch=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
    biased=st.booleans(),
    per_sample=st.booleans(),
    seed=st.integers(0, 1000),
)
@torch.no_grad()
def test_every_strategy_is_eq_4(dtype, sizes, ranks, batch, biased, per_sample, seed):
    torch.manual_seed(seed)
    size_in, size_out = sizes
    x, weight = torch.randn(*batch, size_in, dtype=dtype), torch.randn(size_out, size_in, dtype=dtype)
    bias = torch.randn(size_out, dtype=dtype) if biased else None
    rows = random_rows(size_in, size_out, ranks, dtype=dtype)
    c = rows.coefficients(torch.randn(*batch[:1] * per_sample, len(ranks)))
    expected = written_out(x, weight, bias, rows, c)
    for name, strategy in STRATEGIES.items():
        if name == "merged" and per_sample:
            continue
        got = strategy(x, weight, bias, rows, c)
        assert got.shape == expected.shape and got.dtype == dtype
        assert difference(got, expected) <= TOLERANCE[dtype], name


@torch.no_grad()
def test_what_a_host_computed_itself_can_be_added_to():
    """y comes from elsewhere (a quantised product, another LoRA): Eq. 4 is added, y itself is not written."""
    rows, x, y = random_rows(24, 40, (3, 5)), torch.randn(2, 7, 24), torch.randn(2, 7, 40)
    c, before = rows.coefficients(torch.tensor([0.4, -0.7])), y.clone()
    expected = y.double() + written_out(x, torch.zeros(40, 24), None, rows, c)
    for add in (add_naive, add_stacked):
        assert difference(add(y, x, rows, c), expected) <= 1e-6
        assert torch.equal(y, before)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8)


def error_of(got: torch.Tensor, exact: torch.Tensor, change: torch.Tensor) -> float:
    return ((got.double() - exact).norm() / change.norm()).item()


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
def test_bf16_error_at_a_change_of_one_percent(seed):
    """Of the experts' change, for d = 512, three experts: the floor is that of rounding the exact output to bf16.

    rms of rounding to nearest is about 0.21 eps of the value and eps = 2^-7, so the floor is 0.21 * 0.0078 / 0.01 =
    0.166. Stacked and merged round once more, sqrt(2) * 0.166 = 0.235 = 1.41 floors. peft adds one adapter after the
    other: 1 + 3 roundings, 2 floors. The bound of 1.5 lies between.
    """
    torch.manual_seed(seed)
    x, weight = torch.randn(256, 512).bfloat16(), (torch.randn(512, 512) * 512**-0.5).bfloat16()
    rows = random_rows(512, 512, (16, 16, 16), change=0.01, dtype=torch.bfloat16)
    c = rows.coefficients(torch.ones(3))
    exact = written_out(x, weight, None, rows, c)
    change = exact - x.double() @ weight.double().T
    assert 0.008 < (change.norm() / exact.norm()).item() < 0.012
    floor = error_of(exact.bfloat16(), exact, change)
    peft = F.linear(x, weight)
    for first, last in pairwise(rows.offsets):
        adapter = F.linear(F.linear(x, rows.down[first:last]), rows.up[first:last].T)
        peft = peft + adapter * c[first].item()
    errors = {name: error_of(run(x, weight, None, rows, c), exact, change) for name, run in STRATEGIES.items()}
    errors["peft"] = error_of(peft, exact, change)
    assert floor == pytest.approx(0.166, rel=0.1)
    for name in ("stacked", "merged"):
        assert errors[name] <= 1.5 * floor and errors[name] < 0.8 * errors["peft"], (floor, errors)
    assert errors["naive"] == pytest.approx(errors["peft"], rel=0.05) and errors["peft"] > 1.8 * floor


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", STRATEGIES)
def test_zero_weights_are_the_base_bit_for_bit(name, dtype):
    x, weight, bias = torch.randn(3, 5, 24).to(dtype), torch.randn(40, 24).to(dtype), torch.randn(40).to(dtype)
    rows = random_rows(24, 40, (3, 5), dtype=dtype)
    got = STRATEGIES[name](x, weight, bias, rows, rows.coefficients(torch.zeros(2)))
    assert torch.equal(bits(got), bits(F.linear(x, weight, bias)))


@torch.no_grad()
@pytest.mark.parametrize("add", [add_naive, add_stacked])
def test_zero_weights_keep_the_sign_of_zeros(add):
    """-0 + 0 = 0: nothing is added where no expert speaks, and something where one does."""
    rows, x, y = random_rows(24, 40, (3, 5)), torch.randn(2, 24), torch.full((2, 40), -0.0)
    assert torch.equal(bits(add(y, x, rows, rows.coefficients(torch.zeros(2)))), bits(y))
    assert add(y, x, rows, rows.coefficients(torch.tensor([0.0, 0.1]))).all()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_never_writes_the_weight(dtype):
    """Fifty mixtures later W has the same bits at the same version, and the last mixture is as if it were the first."""
    weight, x = torch.randn(40, 24).to(dtype), torch.randn(7, 24).to(dtype)
    rows = random_rows(24, 40, (3, 5), dtype=dtype)
    before, version, last = weight.clone(), weight._version, rows.coefficients(torch.tensor([0.3, 0.6]))
    first = merged(x, weight, None, rows, last)
    for _ in range(50):
        merged(x, weight, None, rows, rows.coefficients(torch.randn(2)))
    assert torch.equal(weight, before) and weight._version == version
    assert torch.equal(merged(x, weight, None, rows, last), first)
    assert not torch.equal(first, F.linear(x, weight))


@torch.no_grad()
@pytest.mark.parametrize("fp8", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("name", STRATEGIES)
def test_weights_stored_in_fp8_are_dequantised_and_never_requantised(name, fp8):
    """Every fp8 number is an fp32 and a bf16 number, so the result is that of the wider weight to the bit. A change of
    1 % arrives whole in fp32, where fp8, whose steps are 6 % and more, would have lost it."""
    stored, x, bias = torch.randn(40, 64).to(fp8), torch.randn(9, 64), torch.randn(40).to(fp8)
    rows, before = random_rows(64, 40, (3, 5), change=0.08), stored.view(torch.uint8).clone()  # |x W^T| is about 8
    c = rows.coefficients(torch.ones(2))
    change = written_out(x, torch.zeros(40, 64), None, rows, c)
    got = STRATEGIES[name](x, stored, bias, rows, c) - F.linear(x, stored.float(), bias.float())
    assert error_of(got, change, change) < 1e-4
    assert torch.equal(stored.to(torch.bfloat16).float(), stored.float())
    rows, x = rows.bfloat16(), x.bfloat16()
    narrow = STRATEGIES[name](x, stored, bias, rows, c)
    assert torch.equal(narrow, STRATEGIES[name](x, stored.bfloat16(), bias.bfloat16(), rows, c))
    assert torch.equal(stored.view(torch.uint8), before)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_delta_and_the_weight_make_the_merged_weight(dtype):
    """D itself, and W + D whether the host adds it or `merge` does. fp32 and fp64 add up 8 products, a rounding each;
    bf16 is rounded once from fp32, D before and the sum after the addition."""
    weight, rows = torch.randn(40, 24, dtype=dtype), random_rows(24, 40, (3, 0, 5), dtype=dtype)
    c, eps = rows.coefficients(torch.tensor([0.5, 1.0, -0.8])), torch.finfo(dtype).eps
    exact = (rows.up.double() * c[:, None]).T @ rows.down.double()
    wide = torch.promote_types(dtype, torch.float32)  # what bf16 factors are rounded to would add to the error
    change, whole = (weighed(rows.up, c, wide) @ rows.down.to(wide)).to(dtype), merge(weight, rows, c)
    assert change.dtype == whole.dtype == dtype and change.shape == weight.shape
    once = 0.5 if dtype == torch.bfloat16 else 4
    assert difference(change, exact) <= once * eps
    assert difference(whole, weight.double() + exact) <= once * eps
    assert difference(weight + change, whole.double()) <= 2 * once * eps
    if dtype == torch.bfloat16:  # factors rounded to bf16 as well would make it 0.3 eps
        assert error_of(change, exact, exact) < 0.25 * eps


@pytest.mark.parametrize("per_sample", [False, True])
def test_gradients_of_the_stacked_path(per_sample):
    """To x, coefficients and both factors, by finite differences in fp64; batch of 2, experts of unequal rank."""
    weight, bias = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    c = torch.randn(*[2] * per_sample, 3, dtype=torch.float64, requires_grad=True)
    down, up = (torch.randn(3, size, dtype=torch.float64, requires_grad=True) for size in (4, 5))

    def run(x, c, down, up):
        rows = Rows(torch.zeros(3, 4), torch.zeros(3, 5), torch.ones(3), (1, 2))
        del rows.down, rows.up
        rows.down, rows.up = down, up
        return stacked(x, weight, bias, rows, c)

    assert torch.autograd.gradcheck(run, (x, c, down, up))


def saved_columns(strategy, tokens: int, dtype=torch.bfloat16) -> float:
    """Numbers per token that autograd keeps of a frozen linear 32 -> 48 with experts of rank 2, 3 and 4 while x and the
    gate weights need gradients. What exists anyway (weight, factors) and does not grow with tokens is left out."""
    x, weight = torch.randn(1, tokens, 32, dtype=dtype, requires_grad=True), torch.randn(48, 32, dtype=dtype)
    rows, w = random_rows(32, 48, (2, 3, 4), dtype=dtype), torch.ones(1, 3, requires_grad=True)
    storages: dict[int, float] = {}

    def keep(tensor):
        if tensor.shape[:1] in ((tokens,), (1,)) and tensor.numel() >= tokens:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() / dtype.itemsize
        return tensor

    c = rows.coefficients(w)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        strategy(x, weight, None, rows, c)
    return sum(storages.values()) / tokens


def test_the_stacked_path_saves_r_numbers_a_token():
    """R = 2 + 3 + 4 = 9, against E x out = 3 x 48 = 144 deltas for Eq. 4 literally."""
    assert saved_columns(stacked, tokens=1000) == 9
    assert saved_columns(naive, tokens=1000) == 144


def test_writing_into_the_base_output_is_only_done_without_gradients():
    """Values do not depend on whether gradients are recorded, and none flow when nothing asks for them."""
    x, weight, rows = torch.randn(2, 7, 24), torch.randn(40, 24), random_rows(24, 40, (3, 5))
    c = rows.coefficients(torch.tensor([0.4, -0.7]))
    with torch.no_grad():
        still = stacked(x, weight, None, rows, c)
    recorded = stacked(x.requires_grad_(), weight, None, rows, c)
    assert recorded.requires_grad and not still.requires_grad and torch.allclose(recorded, still, atol=1e-6)


@torch.no_grad()
def test_autocast_does_not_round_the_weight_twice():
    """Under autocast the merged weight is made in the dtype of W and rounded once, by the product that uses it."""
    x, weight, rows = torch.randn(9, 64), torch.randn(40, 64), random_rows(64, 40, (3, 5))
    c = rows.coefficients(torch.tensor([0.4, -0.7]))
    with torch.autocast("cpu", torch.bfloat16):
        got = merged(x, weight, None, rows, c)
    assert torch.equal(got, F.linear(x.bfloat16(), merge(weight, rows, c).bfloat16()))
