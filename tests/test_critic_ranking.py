"""Ranking takes: fronts against brute force, sums and thresholds by hand, takes that cannot be judged, reports."""

from __future__ import annotations

import json
import math
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fantasy_core.critic.critic import Score
from fantasy_core.critic.ranking import RULES, Rule, pareto_fronts, rank, weighted_mean
from fantasy_core.critic.report import report, table
from fantasy_core.errors import UserError
from fantasy_core.pair_rules import DIMENSIONS

ONES = dict.fromkeys(DIMENSIONS, 1.0)


def rule(name: str = "weighted sum", weights=(1, 1, 1), least=(0.5, 0.5, 0.5)) -> Rule:
    return Rule(name, dict(zip(DIMENSIONS, weights, strict=True)), dict(zip(DIMENSIONS, least, strict=True)))


def take(*z: float | None) -> dict[str, float | None]:
    return dict(zip(DIMENSIONS, z, strict=True))


def order(takes, by: Rule) -> list[int]:
    return [one.take for one in rank(takes, by)]


points = st.lists(st.tuples(*[st.integers(-2, 2)] * 3), min_size=1, max_size=7)


@given(points)
def test_fronts_are_the_longest_chains_of_better_takes(found):
    """A take's front is how many takes, each better than the next, can stand above it: the depth of the graph of
    dominance, walked without peeling anything."""

    @cache
    def depth(n: int) -> int:
        above = [
            m for m, other in enumerate(found) if other != found[n] and all(map(lambda a, b: a >= b, other, found[n]))
        ]
        return max((1 + depth(m) for m in above), default=0)

    assert pareto_fronts(found) == [depth(n) for n in range(len(found))]


def test_a_weighted_sum_by_hand():
    """mn, ls, vq of 3, 0, 0 and 0, 2, 0: means 1 and 2/3. With weights 1, 2, 0: 1 and 4/3; vq is not asked."""
    takes = [take(3.0, 0.0, 0.0), take(0.0, 2.0, 0.0)]
    assert order(takes, rule()) == [0, 1] and rank(takes, rule())[1].mean == pytest.approx(2 / 3)
    by = rule(weights=(1, 2, 0))
    assert order(takes, by) == [1, 0] and by.counted == ["mn", "ls"]
    assert [one.mean for one in rank(takes, by)] == pytest.approx([4 / 3, 1])


def test_pareto_first_by_hand():
    """0 beats 1 in everything; 2 is best in vq alone. Fronts 0, 1, 0; by the sum 1 (mean 2) is before 2 (mean -1)."""
    takes = [take(3.0, 3.0, 3.0), take(2.0, 2.0, 2.0), take(-4.0, -4.0, 5.0)]
    assert order(takes, rule()) == [0, 1, 2]
    assert order(takes, rule("Pareto first")) == [0, 2, 1]
    assert [one.front for one in rank(takes, rule("Pareto first"))] == [0, 0, 1]


def test_must_pass_by_hand():
    """Least 0.5 is z = 0, which passes. 0 has the largest sum and fails in ls; with least 0 nothing can fail, and a
    dimension of weight 0 counts where it has a threshold."""
    takes = [take(9.0, -0.1, 9.0), take(0.0, 0.0, 0.0), take(1.0, 1.0, -1.0)]
    found = rank(takes, rule("must pass"))
    assert [one.take for one in found] == [1, 0, 2] and [one.missed for one in found] == [(), ("ls",), ("vq",)]
    assert order(takes, rule("must pass", least=(0, 0, 0))) == [0, 2, 1]
    assert rule("must pass", weights=(1, 0, 0), least=(0, 0.5, 0)).counted == ["mn", "ls"]
    assert order(takes, rule("must pass", weights=(1, 0, 0), least=(0, 0.5, 0))) == [2, 1, 0]


@pytest.mark.parametrize("name", RULES)
def test_what_cannot_be_judged_comes_last_and_says_so(name):
    """Take 0 is best in all that is known, and silent; in a dimension that does not count that is no matter."""
    takes = [take(9.0, None, 9.0), take(-3.0, -3.0, -3.0), take(None, None, 9.0)]
    found = rank(takes, rule(name))
    assert [one.take for one in found] == [1, 0, 2]
    assert [one.unknown for one in found] == [(), ("ls",), ("mn", "ls")]
    assert order(takes, rule(name, weights=(0, 0, 1), least=(0, 0, 0.5))) == [0, 2, 1]
    assert order([take(None, None, None)] * 3, rule(name)) == [0, 1, 2]


values = st.one_of(st.none(), st.integers(-2, 2).map(float))


@given(st.lists(st.tuples(*[values] * 3), min_size=1, max_size=6), st.sampled_from(RULES))
def test_equal_takes_stand_in_the_order_they_came(found, name):
    """Every take is ranked once; doubling the list leaves the order as it was, with each copy behind its original
    wherever the two are neighbours."""
    takes = [take(*z) for z in found]
    once, twice = order(takes, rule(name)), order(takes + takes, rule(name))
    assert sorted(once) == list(range(len(takes)))
    assert [n for n in twice if n < len(takes)] == once == [n - len(takes) for n in twice if n >= len(takes)]
    assert all(twice.index(n) < twice.index(n + len(takes)) for n in once)


@pytest.mark.parametrize(
    "name,weights,least",
    [
        ("best", (1, 1, 1), (0, 0, 0)),
        ("must pass", (0, 0, 0), (0.5, 0.5, 0.5)),
        ("weighted sum", (-1, 1, 1), (0, 0, 0)),
        ("weighted sum", (math.nan, 1, 1), (0, 0, 0)),
        ("must pass", (1, 1, 1), (0, 0, 1.5)),
    ],
)
def test_senseless_rules_are_refused(name, weights, least):
    with pytest.raises(UserError, match="cannot be ranked"):
        rule(name, weights, least)


def test_scores_saturate_where_z_does_not():
    """sigmoid(40) and sigmoid(45) are both 1.0 in double precision; 45 is better. Far below, no overflow."""
    assert order([take(40.0, 0.0, 0.0), take(45.0, 0.0, 0.0)], rule()) == [1, 0]
    assert order([take(-1000.0, 0.0, 0.0), take(0.0, 0.0, 0.0)], rule("must pass")) == [1, 0]
    assert weighted_mean(take(None, None, None), ONES) is None


# ---- reports ----

SILENT = Score({"mn": 1.0, "ls": None}, {"mn": -0.5, "ls": None}, 0.9, 2, ["no sound: ls cannot be judged"])
FINE = Score(ONES, ONES, 0.8, 1)
MADE_BY = {"critic": "abc", "views": "def"}


def test_a_report_tells_all_of_a_score():
    """sigmoid(1) = 0.731; lip sync could not be judged, the picture was not asked for."""
    told = report(SILENT, ["mn", "ls"], MADE_BY, ["the whole frame"]).splitlines()
    assert told[:3] == [
        "motion naturalness (mn): 0.731 (z +1.000, least window -0.500)",
        "lip sync (ls): cannot be judged",
        "visual quality (vq): not asked",
    ]
    assert "mass 0.90" in told[3] and "2 windows" in told[3]
    assert told[4:] == ["warning: no sound: ls cannot be judged", "warning: the whole frame", "critic abc, views def"]


def test_a_ranking_tells_takes_by_their_sockets():
    """Sockets 0 and 2 are connected; 0 is silent, so 2 is best."""
    silent = Score({**SILENT.z, "vq": 5.0}, {**SILENT.least, "vq": 5.0}, 0.9, 2, SILENT.warnings)
    by = rule()
    scores = {0: (silent, []), 2: (FINE, ["the whole frame"])}
    told = json.loads(table(scores, rank([s.z for s, _ in scores.values()], by), by, MADE_BY))
    assert (told["best"], told["critic"], told["views"]) == (2, "abc", "def")
    assert [row["take"] for row in told["takes"]] == [2, 0] and [row["place"] for row in told["takes"]] == [1, 2]
    assert told["takes"][0]["score"]["mn"] == 0.7311 and told["takes"][0]["warnings"] == ["the whole frame"]
    assert told["takes"][1]["z"]["ls"] is None and told["warnings"] == ["take 0 cannot be judged in ls and comes last"]


def test_a_best_that_is_none_is_said():
    by = rule("must pass", least=(0.9, 0.9, 0.9))
    told = json.loads(table({0: (FINE, [])}, rank([FINE.z], by), by, MADE_BY))
    assert told["warnings"][0].startswith("no take passes") and told["takes"][0]["note"].startswith("does not pass")
    told = json.loads(table({0: (SILENT, [])}, rank([SILENT.z], rule()), rule(), MADE_BY))
    assert told["warnings"][0].startswith("no take can be judged")
