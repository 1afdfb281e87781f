"""What the critic said, for people: lines about one clip, a table in JSON about several."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ..pair_rules import DIMENSIONS
from .critic import Score
from .ranking import Ranked, Rule

NAMES = {"mn": "motion naturalness", "ls": "lip sync", "vq": "visual quality"}


def report(score: Score, asked: Sequence[str], made_by: Mapping[str, str], warnings: Sequence[str] = ()) -> str:
    """A line for each dimension, then how far to trust them. made_by: hashes and names, told at the end."""
    lines = [_line(score, dimension, asked) for dimension in DIMENSIONS]
    count = f"{score.windows} window{'' if score.windows == 1 else 's'}"
    lines += [f"mass {score.mass:.2f} (of the probability, on Yes and No), {count} a dimension at most"]
    lines += [f"warning: {warning}" for warning in [*score.warnings, *warnings]]
    lines.append(", ".join(f"{name} {value}" for name, value in made_by.items()))
    return "\n".join(lines)


def _line(score: Score, dimension: str, asked: Sequence[str]) -> str:
    name = f"{NAMES[dimension]} ({dimension})"
    if dimension not in asked:
        return f"{name}: not asked"
    z, least, value = score.z[dimension], score.least[dimension], score.score[dimension]
    if z is None or least is None or value is None:
        return f"{name}: cannot be judged"
    return f"{name}: {value:.3f} (z {z:+.3f}, least window {least:+.3f})"


def table(
    scores: Mapping[int, tuple[Score, list[str]]],
    ranked: Sequence[Ranked],
    rule: Rule,
    made_by: Mapping[str, str],
) -> str:
    """JSON of a ranking, a line a take, best first. scores: by the number of the take's socket, each with warnings of
    its own; the `take` of `ranked` counts these in order."""
    sockets, judged = list(scores), rule.counted
    takes = [_row(place, one, sockets[one.take], *scores[sockets[one.take]]) for place, one in enumerate(ranked)]
    notes = [f"take {row['take']} {row['note']}" for row in takes if row["note"]]
    told = {
        "best": takes[0]["take"],
        "rule": rule.name,
        "weights": {d: rule.weights[d] for d in judged},
        **({"least": {d: rule.least[d] for d in judged}} if rule.name == "must pass" else {}),
        "warnings": [*_on_the_best(ranked[0], rule), *notes],
    }
    rows = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in takes)
    return "{\n " + ",\n ".join([*_lines(told), f'"takes": [\n  {rows}\n ]', *_lines(made_by)]) + "\n}"


def _lines(told: Mapping[str, object]) -> list[str]:
    return [f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in told.items()]


def _row(place: int, one: Ranked, socket: int, score: Score, warnings: Sequence[str]) -> dict:
    return {
        "place": place + 1,
        "take": socket,
        "score": _rounded(score.score),
        "z": _rounded(score.z),
        "least_z": _rounded(score.least),
        "mean_z": None if one.mean is None else round(one.mean, 4),
        **({} if one.front is None else {"front": one.front}),
        "note": _note(one),
        "mass": round(score.mass, 4),
        "windows": score.windows,
        "warnings": [*score.warnings, *warnings],
    }


def _rounded(values: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 4) for name, value in values.items()}


def _note(one: Ranked) -> str:
    parts = [f"cannot be judged in {', '.join(one.unknown)} and comes last"] if one.unknown else []
    return "; ".join(parts + ([f"does not pass in {', '.join(one.missed)}"] if one.missed else []))


def _on_the_best(best: Ranked, rule: Rule) -> list[str]:
    if best.unknown:
        return ["no take can be judged in all that counts: the first one is the best of what is known"]
    if rule.name == "must pass" and best.missed:
        return ["no take passes: the first one is the best of those that do not"]
    return []
