"""What autograd saves of one block for the backward pass: frozen, under a trained gate, with a trained expert.

    python tests/benchmarks/bench_saved_bytes.py

A sixteenth of Wan2.1-I2V-14B in width, hidden layer and rank; bytes are counted, not timed. In units of the block's
input [S, D], so that they hold for the large model, where a unit is 0.335 GB at 81 frames of 832 x 480 in bf16.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from test_train_memory import VIDEO, D, saved  # noqa: E402

KINDS = {
    "base": "frozen, gradient to its input",
    "gate": "gate trained, three experts frozen",
    "expert": "one expert trained",
    "naive": "gate trained, Eq. 4 taken literally",
}


def main() -> int:
    print("| block | units, bf16 | to the frozen one | units, fp32 | to the frozen one |\n|---|---|---|---|---|")
    counted = {kind: [saved(kind, dtype) for dtype in (torch.bfloat16, torch.float32)] for kind in KINDS}
    for kind, told in KINDS.items():
        cells = []
        for size, frozen, width in zip(counted[kind], counted["base"], (2, 4), strict=True):
            cells += [f"{size / (VIDEO * D * width):.2f}", f"{size / frozen:.3f}"]
        print(f"| {told} | {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
