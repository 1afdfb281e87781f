"""Which scored videos become pairs: the rules on columns against a definition in plain Python, and by hand."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fantasy_core import pair_rules
from fantasy_core.errors import UserError
from fantasy_core.pair_rules import (
    DIMENSIONS,
    REFUSALS,
    Candidates,
    Pairs,
    Rules,
    pairs_by_count,
    pairs_by_dominance,
    pairs_by_mean,
    pairs_by_score,
    pairs_with_real,
)


@dataclass(frozen=True)
class One:
    """A scored video."""

    video: str
    input: str
    source: str
    split: str
    z: dict[str, float]


def candidate(video: str, *z: float, input: str = "a", source: str = "omniavatar", split: str = "train") -> One:
    return One(video, input, source, split, dict(zip(DIMENSIONS, z, strict=False)))


class World:
    """Scored videos as columns, and pairs of them as rows again."""

    def __init__(self, found: list[One]):
        self.rows = sorted(found, key=lambda one: one.video)
        self.inputs = sorted({one.input for one in found})
        sources = sorted({one.source for one in found})
        z = np.array([[one.z.get(d, np.nan) for d in DIMENSIONS] for one in self.rows]).reshape(-1, 3)
        numbers = np.array([self.inputs.index(one.input) for one in self.rows], int)
        of = np.array([sources.index(one.source) for one in self.rows], int)
        self.columns = Candidates(numbers, of, sources, z)

    def named(self, pairs: Pairs) -> list[tuple[str, str]]:
        videos = [one.video for one in self.rows]
        return [(videos[b], videos[w]) for b, w in zip(pairs.chosen, pairs.rejected, strict=True)]

    def told(self, pairs: Pairs) -> list[tuple[str, str, float]]:
        return [(*names, float(margin)) for names, margin in zip(self.named(pairs), pairs.margin, strict=True)]


# one input: in mn v2 > v1 > v0 by 2 each, in ls the other way round
THREE = [candidate("v0", -2.0, 2.0, 0.0), candidate("v1", 0.0, 0.0, 0.5), candidate("v2", 2.0, -2.0, 1.0)]


def by_score(found: list[One], dimension: str, rules: Rules) -> list[tuple[str, str]]:
    world = World(found)
    return world.named(pairs_by_score(world.columns, dimension, rules))


# ---- the definition: every two videos of an input, in plain Python ----


def allowed(rules: Rules, better: float, worse: float) -> bool:
    return better - worse >= rules.margin and (not rules.signs or better >= 0 > worse)


def dominates(rules: Rules, better: One, worse: One) -> bool:
    return all(d in better.z and d in worse.z and better.z[d] - worse.z[d] >= rules.margin for d in DIMENSIONS)


def defined(found: list[One], agree, margin, cap: int) -> list[tuple[str, str, float]]:
    """Largest margins first, then by ids; from the top, what finds both of its videos used less than the cap."""
    pairs = [(b.video, w.video, margin(b, w)) for b, w in permutations(found, 2) if b.input == w.input and agree(b, w)]
    kept, uses = [], dict.fromkeys((one.video for one in found), 0)
    for chosen, rejected, value in sorted(pairs, key=lambda p: (-p[2], p[0], p[1])):
        if not cap or max(uses[chosen], uses[rejected]) < cap:
            kept.append((chosen, rejected, value))
            uses[chosen], uses[rejected] = uses[chosen] + 1, uses[rejected] + 1
    return kept


def defined_by_score(found: list[One], d: str, rules: Rules) -> list[tuple[str, str, float]]:
    scored = [one for one in found if d in one.z]
    return defined(scored, lambda b, w: allowed(rules, b.z[d], w.z[d]), lambda b, w: b.z[d] - w.z[d], rules.cap)


def differences(better: One, worse: One) -> list[float]:
    return [better.z[d] - worse.z[d] for d in DIMENSIONS if d in better.z and d in worse.z]


def refusal(rules: Rules, better: One, worse: One) -> str:
    if len(differences(better, worse)) < len(DIMENSIONS):
        return "no_score"
    return "small_margin" if min(differences(better, worse)) > 0 else "not_better"


def defined_with_real(
    found: list[One], rules: Rules | None
) -> tuple[list[tuple[str, str, float]], dict[str, int], int]:
    def met(b: One, w: One) -> bool:
        return b.source == "real" != w.source

    def agree(b: One, w: One) -> bool:
        return met(b, w) and (rules is None or dominates(rules, b, w))

    def margin(b: One, w: One) -> float:
        return min(differences(b, w), default=0.0)

    compared = [(b, w) for b, w in permutations(found, 2) if b.input == w.input and met(b, w)]
    refused = Counter(refusal(rules, b, w) for b, w in compared if rules and not dominates(rules, b, w))
    counts = {reason: refused[reason] for reason in REFUSALS}
    return defined(found, agree, margin, rules.cap if rules else 0), counts, len(compared)


VALUE = st.none() | st.integers(-4, 4).map(lambda quarters: quarters / 4)  # many ties; a quarter is exact
SCORED = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["real", "x", "y"]), st.tuples(VALUE, VALUE, VALUE)), max_size=14
)
RULES = st.builds(
    Rules, margin=st.sampled_from([-1.0, 0.0, 0.5, 1.0]), signs=st.booleans(), cap=st.sampled_from([0, 1, 2, 5])
)


def drawn(scored, seed: int) -> list[One]:
    """Videos with ids in an order that has nothing to do with their inputs."""
    ids = random.Random(seed).sample(range(100), len(scored))
    told = [{d: v for d, v in zip(DIMENSIONS, z, strict=True) if v is not None} for _, _, z in scored]
    return [
        One(f"v{i:02d}", name, source, {"c": "test"}.get(name, "train"), z)
        for i, (name, source, _), z in zip(ids, scored, told, strict=True)
    ]


EXAMPLES = settings(max_examples=60, deadline=None)


@EXAMPLES
@given(scored=SCORED, rules=RULES, seed=st.integers(0, 99), at_once=st.sampled_from([1, 5, 1 << 20]))
def test_pairs_are_those_of_the_definition_in_its_order(scored, rules, seed, at_once):
    """All rules, on groups with ties, missing scores, real clips and two splits, however many comparisons are made at
    once (one, fewer than a group has, all)."""
    found = drawn(scored, seed)
    world = World(found)
    made = [one for one in found if one.source != "real"]
    whole = [replace(one, z={"mn": (one.z["mn"] + one.z["ls"] + one.z["vq"]) / 3}) for one in made if len(one.z) == 3]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair_rules, "PIECE", at_once)
        for d in DIMENSIONS:
            assert world.told(pairs_by_score(world.columns, d, rules)) == defined_by_score(found, d, rules)
        generated = world.columns.generated()
        assert world.told(pairs_by_dominance(generated, rules)) == defined(
            made, lambda b, w: dominates(rules, b, w), lambda b, w: min(differences(b, w)), rules.cap
        )
        assert world.told(pairs_by_mean(generated, rules)) == defined_by_score(whole, "mn", rules)
        for checked in (rules, None):
            pairs, refused, compared = pairs_with_real(world.columns, checked)
            assert (world.told(pairs), refused, compared) == defined_with_real(found, checked)


@EXAMPLES
@given(
    scored=SCORED, rules=RULES, seed=st.integers(0, 99), count=st.integers(1, 30), at_once=st.sampled_from([1, 4, 64])
)
def test_a_count_takes_the_first_of_all_pairs(scored, rules, seed, count, at_once):
    """Whatever the margin of the rules: the count largest margins above zero that the cap leaves. With few comparisons
    at once the smaller margins are dropped on the way."""
    found = drawn(scored, seed)
    world, open_rules = World(found), replace(rules, margin=math.ulp(0.0))
    expected = defined_by_score(found, "mn", open_rules)[:count]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair_rules, "PIECE", at_once)
        if expected:
            assert world.told(pairs_by_count(world.columns, "mn", count, rules)) == expected
        else:
            with pytest.raises(UserError, match="no pairs"):
                pairs_by_count(world.columns, "mn", count, rules)


@pytest.mark.parametrize("cap", [0, 2])
@pytest.mark.parametrize("count", [1, 2, 7, 50])
def test_what_is_dropped_on_the_way_to_a_count_is_not_missed(monkeypatch, count, cap):
    """Thirty inputs of six videos with many ties, about nine comparisons at once: the candidates for the first pairs
    are thinned out again and again, and the first pairs are those of all."""
    monkeypatch.setattr(pair_rules, "PIECE", 9)
    rng = random.Random(count)
    found = [candidate(f"v{rng.random()}", rng.randint(-4, 4) / 4, input=f"i{i % 30:02d}") for i in range(180)]
    world, rules = World(found), Rules(1.0, cap=cap)
    expected = defined_by_score(found, "mn", replace(rules, margin=math.ulp(0.0)))
    assert len(expected) > 2 * count
    assert world.told(pairs_by_count(world.columns, "mn", count, rules)) == expected[:count]


def test_an_input_with_hundreds_of_videos_is_compared_in_pieces(monkeypatch):
    """300 videos of one input make 150 x 150 comparisons with signs. No piece has more than 1000 of them, and with a
    cap of one every video finds one partner: the best with the worst, the second with the second worst."""
    monkeypatch.setattr(pair_rules, "PIECE", 1000)
    z = np.arange(300.0) - 150
    world = Candidates(np.zeros(300, int), np.zeros(300, int), ["x"], np.stack([z] * 3, 1))
    sizes = [len(b) for b, _, _ in pair_rules.comparisons(world.input, z >= 0, z < 0)]
    assert max(sizes) <= 1000 and sum(sizes) == 150 * 150
    pairs = pairs_by_score(world, "mn", Rules(1.0, cap=1))
    assert list(pairs.chosen) == list(range(299, 149, -1)) and list(pairs.rejected) == list(range(150))


# ---- by hand ----


def test_pairs_of_one_dimension_by_hand():
    """Signs: chosen at 0 or above, rejected below: v1 and v2 over v0, margins 2 and 4. Without: v2 over v1 as well,
    equal margins in the order of ids. What wins in mn loses in ls."""
    assert by_score(THREE, "mn", Rules(1.0)) == [("v2", "v0"), ("v1", "v0")]
    assert by_score(THREE, "mn", Rules(1.0, signs=False)) == [("v2", "v0"), ("v1", "v0"), ("v2", "v1")]
    assert by_score(THREE, "ls", Rules(1.0)) == [("v0", "v2"), ("v1", "v2")]
    assert by_score(THREE, "mn", Rules(2.5)) == [("v2", "v0")]
    assert World(THREE).told(pairs_by_score(World(THREE).columns, "mn", Rules(2.5))) == [("v2", "v0", 4.0)]


def test_only_videos_of_one_input_are_compared():
    other = [candidate("w0", -5.0, input="b"), candidate("w1", 5.0, input="b")]
    assert by_score([*THREE, *other], "mn", Rules(1.0)) == [("w1", "w0"), ("v2", "v0"), ("v1", "v0")]


def test_a_video_takes_part_as_often_as_the_cap_allows():
    """v0 loses twice; with a cap of one the larger margin stays, and v1 finds no other partner."""
    assert by_score(THREE, "mn", Rules(1.0, cap=1)) == [("v2", "v0")]
    assert by_score(THREE, "mn", Rules(1.0, signs=False, cap=2)) == [("v2", "v0"), ("v1", "v0"), ("v2", "v1")]


def test_dominance_needs_all_three_dimensions():
    """b over w by 2, 1.5 and 4. m is better than w by 3, 2.5 and 2, though its third score is No: its margin of 2 comes
    first. x lacks a score."""
    better, worse = candidate("b", 1.0, 1.0, 1.0), candidate("w", -1.0, -0.5, -3.0)
    mixed, blind = candidate("m", 2.0, 2.0, -1.0), candidate("x", 9.0, 9.0)
    world = World([better, worse, mixed, blind])
    assert world.told(pairs_by_dominance(world.columns, Rules(1.0))) == [("m", "w", 2.0), ("b", "w", 1.5)]


def test_real_clips_against_what_was_made_from_them():
    """As in the paper; the critic's agreement is a filter that counts what it leaves out. r is better than g by 6, 8
    and 4.5, though g's picture is a Yes; h moves as well as r; s is better in all, but by 0.5 in ls; n has no ls."""
    real = candidate("r", 5.0, 5.0, 5.0, source="real")
    silent = One("n", "a", "omniavatar", "train", {"mn": 0.0, "vq": 0.0})
    made = [candidate("g", -1.0, -3.0, 0.5), candidate("h", 5.0, -1.0, -1.0), candidate("s", 0.0, 4.5, 0.0), silent]
    world = World([real, *made])
    found, refused, compared = pairs_with_real(world.columns, Rules(1.0))
    assert world.told(found) == [("r", "g", 4.5)] and compared == 4
    assert refused == {"no_score": 1, "not_better": 1, "small_margin": 1}
    found, refused, compared = pairs_with_real(world.columns, None)
    assert sorted(world.named(found)) == [("r", name) for name in "ghns"] and compared == 4
    assert not any(refused.values())


def test_the_margin_for_a_count():
    """Margins 4, 2 with signs: one pair needs 4, two need 2, ten are not to be had: 2."""
    world = World(THREE).columns
    found = [pairs_by_count(world, "mn", count, Rules()) for count in (1, 2, 10)]
    assert [(len(pairs), pairs.margin[-1]) for pairs in found] == [(1, 4.0), (2, 2.0), (2, 2.0)]
    with pytest.raises(UserError, match="no pairs"):
        pairs_by_count(World(THREE[:1]).columns, "mn", 1, Rules())
