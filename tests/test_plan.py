"""The plan: what it chooses and why; its FLOPs, bytes and errors against closed forms, torch's count and rounding."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, chain

import pytest
import torch
from small_dits import TINY, audio_tokens, inputs, meta_dit, random_dit
from small_experts import random_bank
from torch.utils.flop_counter import FlopCounterMode

from fantasy_core import estimate
from fantasy_core.errors import UserError
from fantasy_core.experts import ExpertBank, LowRank, Rows
from fantasy_core.fusion import AUDIO_LINEARS, LINEARS, Tokens, attach, build_plan, host_of
from fantasy_core.fusion.calibrate import fastest, measure, threshold
from fantasy_core.fusion.plan import break_even, choose, expected_error
from fantasy_core.wan import PRESETS

I2V = PRESETS["wan2.1-i2v-14b"]
D, FFN, R, AUDIO = 5120, 13824, 384, 21 * 8  # audio: 8 rows for each of 21 latent frames
N = 21 * 30 * 52  # 81 frames of 480 x 832: 32,760 tokens
ALL = LINEARS + AUDIO_LINEARS
IN_PLACE = {torch.ops.aten.addmm_: lambda y, a, b, **_: 2 * a[0] * a[1] * b[1]}  # torch does not count this product


def meta_bank(host, rank: int = R // 3) -> ExpertBank:
    """Three experts on every linear, in bf16, of which only the shapes exist."""

    def pair(size_in: int, size_out: int) -> LowRank:
        return LowRank(*(torch.empty(shape, device="meta").bfloat16() for shape in ((rank, size_in), (size_out, rank))))

    rows = {address: Rows.stack([pair(*sizes)] * 3, *sizes) for address, sizes in host.shapes().items()}
    return ExpertBank(("mn", "ls", "vq"), rows, {}, dict.fromkeys(("mn", "ls", "vq"), ""))


@pytest.fixture(scope="module")
def wan_14b():
    """The host of the 14B preset and a bank for it, on the meta device."""
    host = host_of(meta_dit(I2V).bfloat16())
    return host, meta_bank(host)


def strategies_of(plan, block: int = 0) -> dict[str, str]:
    return {name: plan.linears[f"blocks.{block}.{name}"].choice.strategy for name in ALL}


CHOICES = [  # for 100 x 300 -> N* = 30000 / 400 = 75
    ({"tokens": 75}, "merged", "75 tokens >= N* = 75"),
    ({"tokens": 74}, "stacked", "74 tokens < N* = 75"),
    ({"tokens": 25, "passes": 3}, "merged", "25 tokens >= N* = 25"),
    ({"tokens": 24, "passes": 3}, "stacked", "24 tokens < N* = 25"),
    ({"tokens": 3000, "threshold": 3001.0}, "stacked", "3,000 tokens < measured N* = 3,001"),
    ({"tokens": 40, "threshold": 40.0}, "merged", "40 tokens >= measured N* = 40"),
    ({"tokens": 1100, "threshold": 3000.0, "passes": 3}, "merged", "1,100 tokens >= measured N* = 1,000"),
    ({"tokens": 75, "weights": "stored"}, "merged", "75 tokens >= N* = 75, dequantised first"),
    ({"tokens": 9999, "weights": "own"}, "stacked", "the linear has a forward of its own"),
    ({"tokens": 9999, "grad": True}, "stacked", "gradients are recorded"),
    ({"tokens": 9999, "per_sample": True}, "stacked", "weights differ in the batch"),
    ({"tokens": 9999, "strategy": "stacked"}, "stacked", "asked for"),
    ({"tokens": 9999, "strategy": "naive", "grad": True, "per_sample": True}, "naive", "asked for"),
    ({"tokens": 1, "strategy": "merged"}, "merged", "asked for"),
    ({"tokens": 9999, "strategy": "merged", "grad": True}, "stacked", "gradients are recorded"),
    ({"tokens": 9999, "strategy": "merged", "weights": "own"}, "stacked", "the linear has a forward of its own"),
]


@pytest.mark.parametrize("facts, strategy, why", CHOICES)
def test_every_fact_decides(facts, strategy, why):
    assert choose(100, 300, **facts) == (strategy, why)


def test_break_even_of_the_released_models():
    """in out / (in + out): half the width of a square linear, and 13824 * 5120 / 18944 = 3736 for the 14B's FFN."""
    assert [round(break_even(*sizes)) for sizes in ((D, D), (D, FFN), (FFN, D), (2048, D), (1536, 1536))] == [
        2560, 3736, 3736, 1463, 768,
    ]  # fmt: skip


def test_the_14b_merges_where_the_video_flows(wan_14b):
    """32,760 video tokens are above every N*; 512 of text, 257 of the image and 168 of audio are below."""
    chosen = strategies_of(build_plan(*wan_14b, tokens=Tokens(video=N, audio=AUDIO)), block=39)
    few = {"cross_attn.k", "cross_attn.v", "cross_attn.k_img", "cross_attn.v_img", *AUDIO_LINEARS}
    assert {name for name, strategy in chosen.items() if strategy == "stacked"} == few
    assert {name for name, strategy in chosen.items() if strategy == "merged"} == set(ALL) - few
    once = build_plan(*wan_14b, tokens=Tokens(video=3120, audio=AUDIO))  # 5 frames: between N* of d x d and of the FFN
    assert strategies_of(once)["self_attn.q"] == "merged" and strategies_of(once)["ffn.0"] == "stacked"


FRAMES = [  # frames, % of a pass: stacked, merged in every pass, merged once for three passes; as published to 2 digits
    (1, 12.1, 29.8, 9.9), (5, 11.4, 14.8, 4.9), (9, 10.9, 9.6, 3.2), (17, 10.0, 5.3, 1.8), (33, 8.5, 2.6, 0.85),
    (81, 5.96, 0.77, 0.26),
]  # fmt: skip


@pytest.mark.parametrize("frames, stacked, merged, shared", FRAMES)
def test_flops_of_the_14b(wan_14b, frames, stacked, merged, shared):
    """2 N R (in + out) and 2 R in out, over 14 linears, in percent of linears and attention of a pass."""
    tokens = Tokens(video=1560 * (1 + (frames - 1) // 4), audio=AUDIO)

    def percent(strategy: str, passes: int = 1) -> float:
        return build_plan(*wan_14b, tokens=tokens, strategy=strategy, passes=passes).flops_percent

    assert percent("stacked") == percent("naive") == pytest.approx(stacked, abs=0.05)
    assert percent("merged") == pytest.approx(merged, rel=0.02)
    assert percent("merged", passes=3) == pytest.approx(shared, rel=0.02)
    assert percent("auto") <= min(percent("stacked"), percent("merged"))


def test_flops_of_the_14b_at_81_frames_to_three_digits(wan_14b):
    """By hand, a block, in TFLOP: linears 2 (6 d^2 + 2 d f) N + 4 d^2 (512 + 257) + 4 * 2048 d * 168 = 19.72,
    attention 4 N (N + 512 + 257) d = 22.50. Stacked 2 R (N (12 d + 2 (d + f)) + ...) = 2.516 is 5.96 %."""
    plan = build_plan(*wan_14b, tokens=Tokens(video=N, audio=AUDIO), strategy="stacked")
    linears = 2 * (6 * D * D + 2 * D * FFN) * N + 4 * D * D * (512 + 257) + 4 * 2048 * D * AUDIO
    attention = 4 * N * (N + 512 + 257) * D
    assert plan.pass_flops == 40 * (linears + attention) == pytest.approx(1.687e15, rel=1e-3)
    added = 2 * R * (N * (12 * D + 2 * (D + FFN)) + 2 * (512 + 257) * 2 * D + 2 * AUDIO * (2048 + D))
    assert sum(linear.flops for linear in plan.linears.values()) == 40 * added
    assert plan.flops_percent == pytest.approx(5.96, abs=0.005)
    once = 2 * R * (10 * D * D + 2 * D * FFN + 2 * 2048 * D)  # merging 14 linears
    plan = build_plan(*wan_14b, tokens=Tokens(video=N, audio=AUDIO), strategy="merged")
    assert plan.flops_percent == pytest.approx(100 * once / (linears + attention)) == pytest.approx(0.77, abs=0.005)


def test_a_batch_shares_a_merge_as_passes_do(wan_14b):
    """Three passes as one batch: three times the base's FLOPs, samples attend to themselves alone, one merge."""
    batch = Tokens(video=3 * N, text=3 * 512, image=3 * 257, audio=3 * AUDIO, batch=3)
    together = build_plan(*wan_14b, tokens=batch, strategy="merged")
    apart = build_plan(*wan_14b, tokens=Tokens(video=N, audio=AUDIO), strategy="merged", passes=3)
    assert together.pass_flops == 3 * apart.pass_flops
    assert together.flops_percent == pytest.approx(apart.flops_percent)


def test_bytes(wan_14b):
    """bf16: a merged weight is in x out, stacking keeps N x R, Eq. 4 literally N x out twice. Three experts of rank 128
    on 14 linears of 40 blocks are 2,375,024,640 numbers; streamed, only the largest linear's are on the device."""
    tokens = Tokens(video=N, audio=AUDIO)

    def of(strategy: str, name: str, **facts) -> int:
        return build_plan(*wan_14b, tokens=tokens, strategy=strategy, **facts).linears[f"blocks.7.{name}"].bytes

    assert (of("merged", "self_attn.q"), of("merged", "ffn.2")) == (2 * D * D, 2 * D * FFN)
    assert of("stacked", "ffn.0") == 2 * N * R and of("naive", "ffn.0") == 2 * 2 * N * FFN
    assert of("merged", "self_attn.q", dtype=torch.float32) == 4 * D * D
    assert build_plan(*wan_14b, tokens=tokens).bank_bytes == 2 * 2_375_024_640
    assert build_plan(*wan_14b, tokens=tokens, streamed=True).bank_bytes == 2 * R * (D + FFN)


def test_expected_errors():
    """Against those measured in bf16 (d = 1536, three experts of rank 128, a change of 1 %); in fp32 as eps."""
    for strategy, measured in {"stacked": 0.234, "merged": 0.235, "naive": 0.321}.items():
        assert expected_error(strategy, torch.bfloat16, 3) == pytest.approx(measured, rel=0.1)
    values = torch.randn(100_000)  # rounding alone, which all errors are multiples of
    floor = (values.bfloat16().float() - values).norm() / values.norm() / 0.01
    assert expected_error("merged", torch.bfloat16, 3) == pytest.approx(2**0.5 * floor.item(), rel=0.02)
    assert expected_error("stacked", torch.float32, 3) == expected_error("stacked", torch.bfloat16, 3) * 2**-16


@torch.no_grad()
@pytest.mark.parametrize("strategy", ["naive", "stacked", "merged"])
def test_flops_are_those_torch_counts(strategy):
    """Exact, in a forward of a tiny DiT with audio: what experts add to the base's products."""
    torch.manual_seed(0)
    dit, given = random_dit(TINY), inputs(TINY, batch=1) | {"audio": audio_tokens(TINY, batch=1)}
    bank = random_bank(dit, ranks=(2, 4, 3), linears=ALL)
    tokens = Tokens(video=3 * 2 * 3, text=TINY.text_len, image=257, audio=3 * 7)

    def counted() -> int:
        with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
            dit(**given)
        return counter.get_total_flops()

    base = counted()
    with attach(dit, bank, lambda t_emb, timestep: torch.ones(1, 2, 1, 3), strategy):
        added = counted() - base
    plan = build_plan(dit, bank, tokens=tokens, strategy=strategy)
    assert added == sum(linear.flops for linear in plan.linears.values())


def test_flops_of_the_base_are_those_of_the_estimate():
    """`estimate` counts the embedders and the head besides the blocks, told apart by a DiT without blocks."""
    grid = (3, 2, 3)
    host = host_of(meta_dit(TINY))
    blocks = estimate.pass_flops(TINY, grid, audio_rows=0).total
    blocks -= estimate.pass_flops(replace(TINY, num_layers=0), grid, audio_rows=0).total
    tokens = Tokens(video=18, text=TINY.text_len)
    assert build_plan(host, meta_bank(host), tokens=tokens).pass_flops == blocks


def odd_dit():
    """One linear stored in fp8, and one whose forward something else has replaced."""
    dit = random_dit(TINY)
    dit.blocks[0].ffn[0].weight.data = dit.blocks[0].ffn[0].weight.data.to(torch.float8_e4m3fn)
    dit.blocks[1].ffn[0].forward = lambda x: x
    return dit


def test_weights_in_fp8_and_linears_with_a_forward_of_their_own():
    """Each linear is asked what it is; fp8 computes in bf16."""
    plan = build_plan(odd_dit(), random_bank(random_dit(TINY)), tokens=Tokens(video=1000)).linears
    stored, own, plain = plan["blocks.0.ffn.0"], plan["blocks.1.ffn.0"], plan["blocks.1.ffn.2"]
    assert (stored.choice.strategy, stored.dtype) == ("merged", torch.bfloat16) and "dequantised" in stored.choice.why
    assert own.choice.strategy == "stacked" and (plain.choice.strategy, plain.dtype) == ("merged", torch.float32)


def test_explain_is_a_table_for_people():
    """One line for each kind of linear and choice: ffn.0 differs in the two blocks. 96 x 160 numbers, merged, are
    30 KiB in bf16 and 60 KiB in fp32."""
    bank = random_bank(random_dit(TINY), ranks=(2, 4, 3))
    text = build_plan(odd_dit(), bank, tokens=Tokens(video=180, text=6)).explain()
    head, *lines, blank, total, error = text.splitlines()
    assert head.split() == ["linear", "blocks", "strategy", "FLOPs", "memory", "error", "why"]
    rows = {(line.split()[0], line[head.index("why") :]): line.split() for line in lines}
    assert len(rows) == len(lines) == len(LINEARS) + 1
    why = "180 tokens >= N* = 60, dequantised first"
    assert rows["ffn.0", why][1:3] == ["1", "merged"] and rows["ffn.0", why][5:7] == ["30", "KiB"]
    assert rows["ffn.0", "the linear has a forward of its own"][1:3] == ["1", "stacked"]
    assert rows["cross_attn.k", "6 tokens < N* = 48"][1:3] == ["2", "stacked"]
    assert total.startswith("experts: ") and "at most 60 KiB more" in total and error.startswith("error: rms")
    assert not blank and max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("facts", [{"strategy": "fastest"}, {"strategy": "merged", "per_sample": True}])
def test_strategies_that_cannot_be_are_refused(facts):
    host = host_of(meta_dit(TINY))
    with pytest.raises(UserError, match="do: .* use auto"):
        build_plan(host, meta_bank(host), tokens=Tokens(video=18), **facts)


def clock_of(conversion: int):
    """A clock that counts what torch does: a second for every FLOP of a product, `conversion` for every number that is
    converted to another dtype. A backend with slow half precision, the same on every machine."""
    convert = {torch.ops.aten._to_copy: lambda source, out_shape=None, **_: conversion * source.numel()}
    return FlopCounterMode(display=False, custom_mapping=IN_PLACE | convert)


def rows_of(size_in: int, size_out: int, rank: int, dtype) -> Rows:
    return Rows.stack([LowRank(torch.randn(rank, size_in), torch.randn(size_out, rank))], size_in, size_out).to(dtype)


@pytest.mark.parametrize("conversion, expected, chosen", [(0, 30, "merged"), (10, 60, "stacked")])
def test_a_slow_merge_is_not_chosen(conversion, expected, chosen):
    """48 x 80, R = 12, bf16: N* = 3840 / 128 = 30 tokens, where both take 2 * 12 * 3840 = 92,160 FLOPs. On a CPU the
    merge converts W, both factors and the result: 2 * 3840 + 12 * 128 = 9,216 numbers, a tenth of that. At 10 seconds
    each merging takes twice as long, N* doubles, and 40 tokens are no longer enough."""
    with clock_of(conversion) as counter:
        found = threshold(48, 80, rows_of(48, 80, 12, torch.bfloat16), torch.bfloat16, torch.device("cpu"),
                          counter.get_total_flops)  # fmt: skip
    assert found == pytest.approx(expected)
    assert choose(48, 80, 40).strategy == "merged" and choose(48, 80, 40, threshold=found).strategy == chosen


def test_every_shape_of_a_bank_is_measured_once():
    """With FLOPs for seconds the measured N* is N*, but for rounding to whole tokens; the plan takes it from there."""
    dit = random_dit(TINY)
    bank = random_bank(dit, linears=ALL)
    with clock_of(0) as counter:
        found = measure(dit, bank, counter.get_total_flops)
    assert found.keys() == set(host_of(dit).shapes().values()) == {(96, 96), (96, 160), (160, 96), (48, 96)}
    assert all(found[sizes] == pytest.approx(break_even(*sizes), rel=0.02) for sizes in found)
    slow = build_plan(dit, bank, tokens=Tokens(video=100), thresholds={(96, 96): 101.0})
    assert strategies_of(slow)["self_attn.q"] == "stacked" and strategies_of(slow)["ffn.0"] == "merged"


def test_the_first_round_does_not_count_and_the_fastest_does():
    """Seconds of four rounds: 100 (warming up), 3, 2, 5."""
    times = accumulate(chain.from_iterable((1, seconds) for seconds in (100, 3, 2, 5)))
    assert fastest(lambda: torch.ones(()), torch.device("cpu"), lambda: next(times)) == 2
