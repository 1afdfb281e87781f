"""Where the miniature's shipped experts act: `python tests/benchmarks/bench_experts_act.py [--clips 128] [--out DIR]`.

Each expert alone, whole and in one half of the steps or blocks, the sum, and TLPO as printed, by the protocol and the
judge of the miniature's table; differences from the baseline and from the whole expert are paired by clip.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import gettempdir

from fantasy_core.miniature.components import WEIGHTS
from train.miniature_evaluate import Experts
from train.miniature_report import Protocol, Row, compare, judge_rows, markdown
from train.miniature_rows import LABELS, PARTS, STANDARD
from train.miniature_videos import SHIPPED

OUT = Path(gettempdir()) / "experts_act"


def rows() -> tuple[list[Row], list[tuple[str, str, str]]]:
    """The lines, and what is claimed of them: (better, worse, in which score)."""
    found, claims = [Row("baseline", "baseline", (None,))], []
    for name, label in LABELS.items():
        file = {name: WEIGHTS / f"{name}.safetensors"}
        found.append(Row(name, f"{label} expert", (Experts(file),)))
        for where, gate in PARTS:
            part = f"{name}, {where}"
            found.append(Row(part, f"{label} expert, {where} only", (Experts(file, gate.replace("NAME", name)),)))
            claims += [(part, "baseline", name), (name, part, name)]
    found += [
        Row("sum", "summed", (Experts(SHIPPED.files, "constant:1"),)),
        Row("printed", "TLPO as printed", (SHIPPED,)),
    ]
    return found, claims + [(row, "baseline", name) for row in ("sum", "printed") for name in LABELS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=STANDARD.clips, help="of the test seeds")
    parser.add_argument("--out", type=Path, default=OUT, help="where scores are kept, so that it goes on")
    args = parser.parse_args()
    lines, claims = rows()
    scores, real = judge_rows(Protocol(WEIGHTS, "test", args.clips, STANDARD.frames), lines, args.out)
    print(markdown(compare(scores, real, "baseline", lines, claims)))


if __name__ == "__main__":
    main()
