"""What is told of a set of pairs: counts, shares and margins by hand; a source that wins nearly everything."""

from __future__ import annotations

import numpy as np
import pytest

from fantasy_core.pair_report import style_warning, yields
from fantasy_core.pair_rules import Candidates, Rules, pairs_by_score


def test_the_report_counts():
    """Of input a two pairs, real (2) and the trained model's (1) over omniavatar's (-1); input b has one video and no
    pair. Real wins one of two, the trained model takes part in one. A second look at ls, of which nothing has a
    score."""
    sources = ["real", "fantasytalking", "omniavatar"]
    z = np.full((4, 3), np.nan)
    z[:, 0] = (2.0, 1.0, -1.0, 0.0)
    world = Candidates(np.array([0, 0, 0, 1]), np.array([0, 1, 2, 2]), sources, z)
    told = yields(pairs_by_score(world, "mn", Rules(1.0)), world, "mn")
    assert (told["pairs"], told["groups"], told["groups_without"], told["groups_of_one"]) == (2, 2, 1, 1)
    assert (told["own_share"], told["off_policy_share"], told["videos_without_score"]) == (0.5, 0.5, 0)
    assert told["chosen_by_source"] == {"real": 0.5, "fantasytalking": 0.5} and told["margins"][1.0] == 3.0
    assert told["rejected_by_source"] == {"omniavatar": 1.0} and told["margins"][0.0] == 2.0
    blind = yields(pairs_by_score(world, "ls", Rules(1.0)), world, "ls")
    assert (blind["pairs"], blind["groups_without"], blind["groups_of_one"], blind["videos_without_score"]) == (
        0,
        2,
        0,
        4,
    )
    assert blind["margins"] == {} and blind["own_share"] == blind["off_policy_share"] == 0.0


@pytest.mark.parametrize(
    ("shares", "sources", "warned"),
    [
        ({"x": 0.81, "y": 0.19}, "xy", True),
        ({"x": 0.8, "y": 0.2}, "xy", False),
        ({"x": 1.0}, "x", False),
        ({}, "", False),
    ],
)
def test_one_source_that_wins_nearly_everything_is_a_style(shares, sources, warned):
    told = style_warning({"chosen_by_source": shares}, "vq", sources)
    assert (told is not None) == warned and (not warned or "vq: 81% of the chosen videos are of x" in str(told))
