"""What to know of a set of preference pairs before training on it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .pair_rules import Candidates, Pairs

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)  # of margins
LARGE_SHARE = 0.8  # of the chosen videos: more of one source is a style


def yields(pairs: Pairs, candidates: Candidates, dimension: str, own: str = "fantasytalking") -> dict:
    """What to know of a set of pairs: inputs without one, share of chosen videos by source (one model that wins all is
    a style, not a preference), share of pairs with videos of the trained model itself (`own`) and of those without
    (`off_policy_share`)."""
    inputs, scored = np.unique(candidates.input), candidates.scored(dimension)
    sizes = np.bincount(candidates.input[scored], minlength=int(candidates.input.max(initial=-1)) + 1)
    is_own = np.array([name == own for name in candidates.sources] or [False])[candidates.source]
    with_own = float((is_own[pairs.chosen] | is_own[pairs.rejected]).mean()) if len(pairs) else 0.0
    margins = np.sort(pairs.margin)
    return {
        "pairs": len(pairs),
        "groups": len(inputs),
        "groups_without": len(inputs) - len(np.unique(candidates.input[pairs.chosen])),
        "groups_of_one": int((sizes == 1).sum()),
        "videos_without_score": int((~scored).sum()),
        "chosen_by_source": _shares(candidates, pairs.chosen),
        "rejected_by_source": _shares(candidates, pairs.rejected),
        "own_share": with_own,
        "off_policy_share": 1 - with_own if len(pairs) else 0.0,
        "margins": {q: float(margins[int(q * (len(margins) - 1))]) for q in QUANTILES} if len(margins) else {},
    }


def _shares(candidates: Candidates, places: np.ndarray) -> dict[str, float]:
    """The share of each source among videos, by name."""
    counts = np.bincount(candidates.source[places], minlength=len(candidates.sources))
    told = {name: int(n) / len(places) for name, n in zip(candidates.sources, counts, strict=True) if n}
    return dict(sorted(told.items()))


def style_warning(told: dict, dimension: str, sources: Iterable[str]) -> str | None:
    """A word about pairs of which one of several sources wins nearly all: they teach its style."""
    name, share = max(told["chosen_by_source"].items(), key=lambda item: item[1], default=("", 0.0))
    if share <= LARGE_SHARE or len(set(sources)) < 2:
        return None
    return f"{dimension}: {share:.0%} of the chosen videos are of {name}; what is learned may be its style"
