"""Which scored candidates become preference pairs: pure rules, no files.

Only videos of one input (portrait, voice and prompt) are compared. A video may be chosen in one dimension and rejected
in another. Orders are by margin, then by id: the same scores give the same pairs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

from .errors import UserError, some

DIMENSIONS = ("mn", "ls", "vq")
Scores = Mapping[str, float]  # dimension -> z = logit(Yes) - logit(No)


@dataclass(frozen=True)
class Candidate:
    """A scored video. `source` is real or the name of the model that made it, z its scores by dimension."""

    video: str
    input: str
    source: str
    split: str
    z: Scores


@dataclass(frozen=True)
class Pair:
    """chosen and rejected are ids of videos; dimension mn, ls, vq or full; margin in units of z."""

    chosen: str
    rejected: str
    input: str
    dimension: str
    margin: float
    split: str


@dataclass(frozen=True)
class Rules:
    """margin: the least z of the chosen over the rejected; signs: the critic must say Yes of the chosen and No of the
    rejected; cap: the most pairs that a video may take part in per dimension (0: any number)."""

    margin: float = 1.0
    signs: bool = True
    cap: int = 0

    def allow(self, better: float, worse: float) -> bool:
        return better - worse >= self.margin and (not self.signs or (better >= 0 > worse))


def groups(candidates: Iterable[Candidate]) -> dict[str, list[Candidate]]:
    """Candidates by input, both in order of their ids. Raises UserError for a video that is there twice and for an
    input in two splits."""
    found: dict[str, list[Candidate]] = {}
    for candidate in sorted(candidates, key=lambda c: (c.input, c.video)):
        found.setdefault(candidate.input, []).append(candidate)
    twice = [video for video, n in Counter(c.video for group in found.values() for c in group).items() if n > 1]
    torn = [name for name, group in found.items() if len({c.split for c in group}) > 1]
    if twice or torn:
        raise UserError(
            "these candidates cannot be paired",
            got=f"videos twice: {some(twice) or 'none'}; inputs in two splits: {some(torn) or 'none'}",
            expected="every video once, and all videos of an input in one split",
            do="give each video an id of its own, and split by input",
        )
    return found


def pairs_by_score(candidates: Iterable[Candidate], dimension: str, rules: Rules) -> list[Pair]:
    """All pairs of one dimension that the rules allow, within groups, largest margins first."""
    found = []
    for name, group in groups(candidates).items():
        for better, worse in permutations(group, 2):
            if dimension in better.z and dimension in worse.z and rules.allow(better.z[dimension], worse.z[dimension]):
                margin = better.z[dimension] - worse.z[dimension]
                found.append(Pair(better.video, worse.video, name, dimension, margin, better.split))
    return capped(found, rules.cap)


def pairs_by_dominance(candidates: Iterable[Candidate], rules: Rules) -> list[Pair]:
    """`full` pairs mined from candidates: better by the margin in all three dimensions; the smallest margin counts."""
    found = []
    for name, group in groups(candidates).items():
        for better, worse in permutations(group, 2):
            if dominates(better.z, worse.z, rules):
                margin = min(better.z[d] - worse.z[d] for d in DIMENSIONS)
                found.append(Pair(better.video, worse.video, name, "full", margin, better.split))
    return capped(found, rules.cap)


def pairs_with_real(candidates: Iterable[Candidate], rules: Rules | None) -> tuple[list[Pair], int]:
    """The paper's `full` pairs: the real clip against each clip generated from its first frame and its voice, and how
    many of them the critic would not have agreed to (left out where `rules` are given)."""
    found, refused = [], 0
    for name, group in groups(candidates).items():
        for real, made in ((a, b) for a, b in permutations(group, 2) if a.source == "real" != b.source):
            margins = [real.z[d] - made.z[d] for d in DIMENSIONS if d in real.z and d in made.z]
            agreed = rules is None or dominates(real.z, made.z, rules)
            refused += not agreed
            if agreed:
                found.append(Pair(real.video, made.video, name, "full", min(margins, default=0.0), real.split))
    return capped(found, rules.cap if rules else 0), refused


def dominates(better: Scores, worse: Scores, rules: Rules) -> bool:
    """Whether the margin (and, if asked for, the signs) hold in all three dimensions."""
    return all(d in better and d in worse and rules.allow(better[d], worse[d]) for d in DIMENSIONS)


def capped(pairs: Iterable[Pair], cap: int) -> list[Pair]:
    """Largest margins first, each video in at most `cap` pairs."""
    ordered = sorted(pairs, key=lambda pair: (-pair.margin, pair.chosen, pair.rejected))
    if not cap:
        return ordered
    kept, uses = [], Counter()
    for pair in ordered:
        if uses[pair.chosen] < cap and uses[pair.rejected] < cap:
            kept.append(pair)
            uses.update((pair.chosen, pair.rejected))
    return kept


def margin_for(candidates: Sequence[Candidate], dimension: str, count: int, rules: Rules) -> float:
    """The margin at which a dimension yields `count` pairs, or all that there are (cap and signs of the rules held)."""
    open_rules = Rules(-math.inf if rules.signs else 0.0, rules.signs, rules.cap)
    found = pairs_by_score(candidates, dimension, open_rules)
    if not found:
        raise UserError(
            f"no pairs in dimension {dimension}",
            got=f"{len(candidates)} candidates, {len(groups(candidates))} groups, none with a better and a worse video",
            expected="inputs with several scored videos that the critic tells apart",
            do="score more candidates for each input, or allow pairs of one sign",
        )
    return max(found[min(count, len(found)) - 1].margin, math.ulp(0.0))


def yields(pairs: Sequence[Pair], candidates: Sequence[Candidate], own: str = "fantasytalking") -> dict:
    """What to know of a set of pairs: groups without one, share of chosen videos by source (one model that wins all is
    a style, not a preference), share of pairs with videos of the trained model itself (`own`)."""
    source = {candidate.video: candidate.source for candidate in candidates}
    inputs = {candidate.input for candidate in candidates}
    chosen, rejected = (Counter(source[getattr(pair, side)] for pair in pairs) for side in ("chosen", "rejected"))
    total, with_own = max(len(pairs), 1), sum(own in (source[p.chosen], source[p.rejected]) for p in pairs)
    margins = sorted(pair.margin for pair in pairs)
    return {
        "pairs": len(pairs),
        "groups": len(inputs),
        "groups_without": len(inputs - {pair.input for pair in pairs}),
        "chosen_by_source": {name: n / total for name, n in sorted(chosen.items())},
        "rejected_by_source": {name: n / total for name, n in sorted(rejected.items())},
        "own_share": with_own / total,
        "splits": dict(sorted(Counter(pair.split for pair in pairs).items())),
        "margins": {q: margins[int(q * (len(margins) - 1))] for q in (0.0, 0.5, 1.0)} if margins else {},
    }
