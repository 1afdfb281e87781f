"""The lines of the miniature's table: which experts and gates each of them is, and what the paper claims of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fantasy_core.pair_rules import DIMENSIONS
from train.miniature_candidates import STEPS
from train.miniature_evaluate import Experts
from train.miniature_report import Row


@dataclass(frozen=True)
class Size:
    """How large a table is: frames of a clip; inputs of the first candidates, of the on-policy ones and of rollouts;
    seeds of experts and of gates; iterations; held-out clips; least margins of pairs by dimension, by the mean score,
    and mined."""

    frames: int = 25
    inputs: int = 96
    on_policy: int = 64
    rollouts: int = 48
    seeds: int = 3
    gate_seeds: int = 5
    iterations: int = 120
    gate_iterations: int = 100
    clips: int = 128
    margin: float = 0.7
    mean_margin: float = 0.5
    mined_margin: float = 0.1


STANDARD = Size()
RANKS = (2, 4, 16, 32)  # of the experts and so under their gate, beside 8: a quarter, half, twice and four times
LABELS = {"mn": "motion", "ls": "lip sync", "vq": "quality"}
HALF, BLOCKS = STEPS // 2, 4  # of the miniature
PARTS = (
    ("early steps", "steps:NAME=" + ",".join(["1"] * HALF + ["0"] * (STEPS - HALF))),
    ("late steps", "steps:NAME=" + ",".join(["0"] * HALF + ["1"] * (STEPS - HALF))),
    ("first blocks", f"table:block NAME\n0-{BLOCKS // 2 - 1} 1\n{BLOCKS // 2}-{BLOCKS - 1} 0"),
    ("last blocks", f"table:block NAME\n0-{BLOCKS // 2 - 1} 0\n{BLOCKS // 2}-{BLOCKS - 1} 1"),
)
CLAIMS = (  # better, worse, in what
    *((d, "baseline", d) for d in DIMENSIONS),
    *((name, "baseline", d) for name in ("tlpo_printed", "tlpo") for d in DIMENSIONS),
    *(("tlpo_printed", name, "gap") for name in ("dpo", "sft", "average", "sum", "ipo", "simpo")),
    *(("tlpo", name, "gap") for name in ("dpo", "dpo_mean", "dpo_mined", "sft", "sft_mined", "average", "sum")),
    *(("tlpo_printed", f"tlpo_rank{rank}", "gap") for rank in RANKS),
    *(("fitted", name, "gap") for name in ("sum", "tlpo", "dpo_mined", "sft")),
    *(
        ("tlpo", f"tlpo_{name}", "gap")
        for name in ("printed", "softmax", "no_timestep", "expert_level", "module_level")
    ),
)


def experts_of(out: Path, size: Size, seed: int, rank: int | None = None) -> dict[str, Path]:
    """The files of the three experts, of another rank if it is given; gates of more seeds than these begin again with
    the first."""
    of = f"_rank{rank}" if rank else ""
    return {d: out / f"{d}{of}-{seed % size.seeds}" / f"{d}.safetensors" for d in DIMENSIONS}


def rows_of(out: Path, size: Size, ablations: Sequence[str]) -> list[Row]:
    """The table's lines, in its order; with `ablations` those of `--full`."""

    def single(name: str, label: str, dimension: str = "full") -> Row:
        files = (out / f"{name}-{seed}" / f"{dimension}.safetensors" for seed in range(size.seeds))
        return Row(name, label, tuple(Experts({dimension: file}) for file in files))

    def constant(name: str, label: str, weight: float) -> Row:
        seeds = range(size.seeds)
        return Row(name, label, tuple(Experts(experts_of(out, size, s), f"constant:{weight:.6f}") for s in seeds))

    def gated(name: str, label: str, seeds: int, rank: int | None = None) -> Row:
        gates = (str(out / f"{name}-{seed}" / "gate.safetensors") for seed in range(seeds))
        return Row(name, label, tuple(Experts(experts_of(out, size, s, rank), gate) for s, gate in enumerate(gates)))

    def part(dimension: str, where: str, gate: str) -> Row:
        """An expert of the first seed that acts in some steps or blocks only."""
        file = out / f"{dimension}-0" / f"{dimension}.safetensors"
        experts = Experts({dimension: file}, gate.replace("NAME", dimension))
        return Row(f"{dimension}_{where.replace(' ', '_')}", f"{LABELS[dimension]} expert, {where} only", (experts,))

    rows = [
        Row("baseline", "baseline", (None,)),
        *(single(dimension, f"{label} expert", dimension) for dimension, label in LABELS.items()),
        constant("average", "experts averaged, w = 1/3", 1 / len(DIMENSIONS)),
        constant("sum", "experts summed, w = 1", 1),
        single("dpo", "DPO, one LoRA, real against generated"),
        single("dpo_mean", "DPO, one LoRA, by the mean score"),
        single("sft", "SFT on real clips"),
        single("dpo_mined", "DPO, one LoRA, mined pairs"),
        single("sft_mined", "SFT on the chosen of mined pairs"),
        gated("tlpo_printed", "TLPO as printed", size.gate_seeds),
        gated("tlpo", "TLPO, mined pairs, from the sum, linear in t", size.gate_seeds),
    ]
    if size.rollouts:
        rows.append(gated("fitted", "schedule fitted to scores", size.seeds))
    if ablations:
        rows += [single("ipo", "IPO, one LoRA"), single("simpo", "SimPO, one LoRA")]
        rows += [gated(f"tlpo_{name}", f"TLPO, {name.replace('_', ' ')}", size.gate_seeds) for name in ablations]
        rows += [gated(f"tlpo_rank{r}", f"TLPO as printed, rank {r}", size.seeds, r) for r in RANKS]
        rows += [part(dimension, where, gate) for dimension in DIMENSIONS for where, gate in PARTS]
    return rows
