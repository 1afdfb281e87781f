"""Which scored candidates become preference pairs: pure rules on columns, no files.

Only videos of one input (portrait, voice and prompt) are compared. A video may be chosen in one dimension and rejected
in another. Candidates are columns in the order of their ids, and a video is its place there; pairs are columns of such
places, largest margins first and then by id, so the same scores give the same pairs. Comparisons are made some at a
time: memory follows the pairs that are kept, whatever the number of candidates of an input.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .errors import UserError

DIMENSIONS = ("mn", "ls", "vq")
SIDES = ("chosen", "rejected")
REAL = "real"
PIECE = 1 << 20  # comparisons made at once
REFUSALS = ("no_score", "not_better", "small_margin")  # why a real clip does not dominate a generated one

Margin = Callable[[np.ndarray, np.ndarray], np.ndarray]  # places of the better and of the worse videos -> margins


@dataclass(frozen=True)
class Pair:
    """A row of a file of pairs. chosen and rejected are ids of videos; dimension mn, ls, vq or full; margin in z. The
    hashes of their files tell them from others of the same names, where they are known."""

    chosen: str
    rejected: str
    input: str
    dimension: str
    margin: float
    split: str
    chosen_sha256: str = ""
    rejected_sha256: str = ""


@dataclass(frozen=True, eq=False)
class Candidates:
    """n scored videos in the order of their ids: `input` [n] and `source` [n] are numbers, `sources` the names
    of the latter (real, or the model that made it), `z` [n, 3] = logit(Yes) - logit(No), NaN where there is none."""

    input: np.ndarray
    source: np.ndarray
    sources: Sequence[str]
    z: np.ndarray

    def __len__(self) -> int:
        return len(self.input)

    @property
    def real(self) -> np.ndarray:
        """Which are real clips, [n]."""
        return np.array([name == REAL for name in self.sources] or [False])[self.source]

    def generated(self) -> Candidates:
        """The same without the scores of real clips, which therefore pair with nothing."""
        return dataclasses.replace(self, z=np.where(self.real[:, None], np.nan, self.z))

    def scored(self, dimension: str) -> np.ndarray:
        """Which have a score, [n]; for `full`, one in any dimension."""
        known = ~np.isnan(self.z)
        return known.any(1) if dimension == "full" else known[:, DIMENSIONS.index(dimension)]


@dataclass(frozen=True, eq=False)
class Pairs:
    """p pairs: places of the chosen and of the rejected videos, and margins in units of z, each [p]."""

    chosen: np.ndarray
    rejected: np.ndarray
    margin: np.ndarray

    def __len__(self) -> int:
        return len(self.margin)

    def __getitem__(self, places: slice | np.ndarray) -> Pairs:
        return Pairs(self.chosen[places], self.rejected[places], self.margin[places])

    def in_order(self) -> Pairs:
        """Largest margins first, then by the ids of the chosen and of the rejected."""
        return self[np.lexsort((self.rejected, self.chosen, -self.margin))]


def joined(parts: Sequence[Pairs]) -> Pairs:
    """All of them, one after the other."""
    places = [np.concatenate([np.empty(0, np.int64), *(getattr(p, side) for p in parts)]) for side in SIDES]
    return Pairs(*places, np.concatenate([np.empty(0), *(p.margin for p in parts)]))


@dataclass(frozen=True)
class Rules:
    """margin: the least z of the chosen over the rejected; signs: the critic must say Yes of the chosen and No of the
    rejected, in one dimension or by the mean (dominance is margins in all three, whatever the signs); cap: the most
    pairs that a video may take part in per dimension (0: any number)."""

    margin: float = 1.0
    signs: bool = True
    cap: int = 0

    @property
    def least(self) -> float:
        """The margin, above zero: of two equal videos neither is chosen."""
        return max(self.margin, math.ulp(0.0))

    def sides(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which videos may be chosen and which rejected, each [n], by scores z [n]."""
        known = ~np.isnan(z)
        return (known & (z >= 0), known & (z < 0)) if self.signs else (known, known)


# ---- the rules ----


def pairs_by_score(candidates: Candidates, dimension: str, rules: Rules) -> Pairs:
    """All pairs of one dimension that the rules allow, within inputs, largest margins first."""
    return _by_value(candidates, candidates.z[:, DIMENSIONS.index(dimension)], rules)


def pairs_by_count(candidates: Candidates, dimension: str, count: int, rules: Rules) -> Pairs:
    """The `count` pairs of one dimension with the largest margins, or all that there are, whatever the margin of the
    rules (their cap and signs hold). The last one's margin is that which gives so many. Raises UserError for none."""
    rules = dataclasses.replace(rules, margin=0.0)
    found = _by_value(candidates, candidates.z[:, DIMENSIONS.index(dimension)], rules, count)
    if not len(found):
        inputs = len(np.unique(candidates.input))
        raise UserError(
            f"no pairs in dimension {dimension}",
            got=f"{len(candidates)} candidates, {inputs} inputs, none with a better and a worse video",
            expected="inputs with several scored videos that the critic tells apart",
            do="score more candidates for each input, or allow pairs of one sign",
        )
    return found


def pairs_by_mean(candidates: Candidates, rules: Rules) -> Pairs:
    """`full` pairs by one number, the mean of the three scores, whatever each of them says."""
    mn, ls, vq = candidates.z.T
    return _by_value(candidates, (mn + ls + vq) / len(DIMENSIONS), rules)


def pairs_by_dominance(candidates: Candidates, rules: Rules) -> Pairs:
    """`full` pairs mined from candidates: better by the margin in all three dimensions; the smallest margin counts."""
    z, known = candidates.z, ~np.isnan(candidates.z).any(1)
    return select(candidates.input, known, known, lambda b, w: (z[b] - z[w]).min(1), rules.least, rules.cap)


def pairs_with_real(candidates: Candidates, rules: Rules | None) -> tuple[Pairs, dict[str, int], int]:
    """The paper's `full` pairs: the real clip against each clip generated from its first frame and its voice, where
    `rules` are given only those in which it dominates (see `pairs_by_dominance`); how many of these comparisons were
    refused for that, by reason; and how many comparisons there are."""
    group, z, real = candidates.input, candidates.z, candidates.real
    compared = int(np.bincount(group[~real], minlength=_groups(candidates))[group[real]].sum())
    if rules is None:
        every = select(group, real, ~real, lambda b, w: _smallest_known(z[b] - z[w]), -math.inf)
        return every, dict.fromkeys(REFUSALS, 0), compared
    agreed = select(group, real, ~real, lambda b, w: (z[b] - z[w]).min(1), rules.least, rules.cap)
    return agreed, _refusals(candidates, rules.least), compared


def _refusals(candidates: Candidates, margin: float) -> dict[str, int]:
    """Of how many comparisons with real clips a score is missing, the generated one is as good in some dimension, or
    the real one is better in all, but in some by less than the margin."""
    z, counts = candidates.z, np.zeros(len(REFUSALS), int)
    for b, w, _ in comparisons(candidates.input, candidates.real, ~candidates.real):
        least = (z[b] - z[w]).min(1)  # NaN where a score is missing
        reasons = np.isnan(least), least <= 0, (least > 0) & (least < margin)
        counts += [int(reason.sum()) for reason in reasons]
    return dict(zip(REFUSALS, counts.tolist(), strict=True))


def _groups(candidates: Candidates) -> int:
    return int(candidates.input.max(initial=-1)) + 1


def _smallest_known(differences: np.ndarray) -> np.ndarray:
    """The smallest of [p, 3] that is known; 0 where none is."""
    least = np.where(np.isnan(differences), np.inf, differences).min(1)
    return np.where(np.isinf(least), 0.0, least)


def _by_value(candidates: Candidates, value: np.ndarray, rules: Rules, count: int | None = None) -> Pairs:
    better, worse = rules.sides(value)
    return select(candidates.input, better, worse, lambda b, w: value[b] - value[w], rules.least, rules.cap, count)


# ---- comparing ----


def select(
    group: np.ndarray,
    better: np.ndarray,
    worse: np.ndarray,
    margin: Margin,
    least: float,
    cap: int = 0,
    count: int | None = None,
) -> Pairs:
    """Pairs in order of those that may be chosen with those that may be rejected (masks [n]) in the same group [n], of
    a margin of at least `least`, each video in at most `cap`, the first `count` of them."""
    kept, waiting = [], []
    for b, w, complete in comparisons(group, better, worse):
        margins = margin(b, w)
        enough = margins >= least
        waiting.append(Pairs(b[enough], w[enough], margins[enough]))
        if cap and not complete:
            continue  # a cap needs all pairs of a video, and they are all of one group
        kept.append(capped(joined(waiting), cap) if cap else joined(waiting))
        waiting = []
        if count is not None and sum(map(len, kept)) >= max(2 * count, PIECE // 4):
            kept = [joined(kept).in_order()[:count]]
            least = max(least, float(kept[0].margin[-1]))  # a smaller one cannot be among the first any more
    return joined(kept).in_order()[:count]


def comparisons(
    group: np.ndarray, better: np.ndarray, worse: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """All pairs of places (b, w) of one group, not of a video with itself, some at a time; and whether all those of the
    groups so far are out."""
    by_group = np.argsort(group, kind="stable")
    left, right = by_group[better[by_group]], by_group[worse[by_group]]
    sizes = np.bincount(group[right], minlength=int(group.max(initial=-1)) + 1)
    number, begin = sizes[group[left]], (np.cumsum(sizes) - sizes)[group[left]]
    for first, last, complete in _pieces(group[left], np.cumsum(number)):
        here = number[first:last]
        b = np.repeat(left[first:last], here)
        w = right[np.arange(len(b)) + np.repeat(begin[first:last] - (np.cumsum(here) - here), here)]
        other = b != w
        yield b[other], w[other], complete


def _pieces(group: np.ndarray, total: np.ndarray) -> Iterator[tuple[int, int, bool]]:
    """Ranges of rows, sorted by group, with about PIECE comparisons (`total` is their running sum), which end with a
    group where that is possible; and whether they do."""
    first, rows = 0, len(total)
    while first < rows:
        before = total[first - 1] if first else 0
        last = max(int(np.searchsorted(total, before + PIECE, side="right")), first + 1)
        if last < rows and group[last - 1] == group[last]:
            begun = int(np.searchsorted(group, group[last]))
            last = begun if begun > first else last
        yield first, last, last == rows or bool(group[last - 1] != group[last])
        first = last


def capped(pairs: Pairs, cap: int) -> Pairs:
    """Largest margins first, each video in at most `cap` pairs (0: any number)."""
    pairs = pairs.in_order()
    if not cap or not len(pairs):
        return pairs
    uses = [0] * (1 + int(max(pairs.chosen.max(), pairs.rejected.max())))
    kept = np.zeros(len(pairs), bool)
    for place, (chosen, rejected) in enumerate(zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True)):
        if uses[chosen] < cap and uses[rejected] < cap:
            kept[place] = True
            uses[chosen] += 1
            uses[rejected] += 1
    return pairs[kept]
