"""Experts inside ComfyUI: one call of its native Wan model, plain, with three LoRAs the stock ways, and with ours.

    COMFYUI_DIR=... python tests/benchmarks/bench_comfyui.py [--preset small|14b] [--device cpu|cuda] [--rounds 3]

Any Python will do: the script starts itself again with COMFYUI_PYTHON, or the .venv in COMFYUI_DIR (~/comfy/ComfyUI).
Random weights; all ways take turns in one process on one model. A turn is a short sampling run at batch 1 without CFG
whose calls of the model are timed, all but the first: that one still warms up. Loading, and patching weights that stay
patched, happen before. A ratio is the fastest call to the base's fastest; beside it the median over rounds of the
ratios within a round. `14b` has the true sizes, 81 frames of 512x512 in bf16: by estimate it needs a GPU of 80 GB and
100 GB of host memory.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

COMFYUI = Path(os.environ.get("COMFYUI_DIR") or Path.home() / "comfy" / "ComfyUI")
PYTHON = Path(os.environ.get("COMFYUI_PYTHON") or COMFYUI / ".venv" / "bin" / "python")
INSIDE = Path(__file__).resolve().parents[1] / "inside_comfyui"
HEAVY = ("transformers", "diffusers", "mediapipe", "librosa", "matplotlib")


def enter_comfyui(device: str) -> None:
    """ComfyUI on sys.path, on this device, ready to import, and all loaded that it loads before custom nodes."""
    sys.path.insert(1, str(INSIDE))
    if device == "cpu":
        sys.argv[1:] = [str(COMFYUI), ""]
        import start  # noqa: F401
    else:
        sys.argv[1:] = []
        sys.path.insert(1, str(COMFYUI))
        import comfy.options

        comfy.options.enable_args_parsing()
    import comfy.sd  # noqa: F401

    import nodes  # noqa: F401  ComfyUI's


def time_pack():
    """Load the pack and its list of nodes; print what that took and loaded. Returns the function to its modules."""
    from pack import load_pack

    before, begun = set(sys.modules), time.perf_counter()
    pack = load_pack()
    seconds, new = time.perf_counter() - begun, set(sys.modules) - before
    heavy, known = ([name for name in sorted(HEAVY) if name in modules] for modules in (new, before))
    print(f"loading the pack and its list of nodes: {seconds * 1e3:.0f} ms, {len(new)} modules; "
          f"heavy ones among them: {', '.join(heavy) or 'none'} (loaded by ComfyUI before: "
          f"{', '.join(known) or 'none'})")  # fmt: skip
    return pack


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("small", "14b"), default="small")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # this is ComfyUI's interpreter
    flags = parser.parse_args()
    if not (COMFYUI / "comfy").is_dir() or not PYTHON.exists():
        parser.error(f"no ComfyUI at {COMFYUI} with an interpreter at {PYTHON}; set COMFYUI_DIR and COMFYUI_PYTHON")
    return flags


def main() -> int:
    """Start again inside ComfyUI, or print the tables there."""
    flags = parse()
    if not flags.inside:
        return subprocess.call([PYTHON, __file__, "--inside", *sys.argv[1:]])
    enter_comfyui(flags.device)
    pack = time_pack()
    import native_variants  # imports ComfyUI

    native_variants.compare(pack, flags.preset, flags.device, flags.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
