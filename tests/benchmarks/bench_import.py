"""What importing the pack costs where torch is loaded already, as in ComfyUI: seconds, median of fresh interpreters.

    python tests/benchmarks/bench_import.py [--repeat 7]

The goal is under 0.3 s for the entry point and every core module together. That no heavy package is loaded is a test
(tests/test_house.py); the time is not one, because a stopwatch makes tests fail at random.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
PROBE = """
import importlib, importlib.util, json, sys, time
import numpy, PIL.Image, safetensors.torch, torch, torch.nn.functional, tqdm
root, names = sys.argv[1], sys.argv[2].split()
before, start, busy = set(sys.modules), time.perf_counter(), time.process_time()
spec = importlib.util.spec_from_file_location("the_pack", root + "/__init__.py", submodule_search_locations=[root])
sys.modules["the_pack"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
door = time.perf_counter() - start
for name in names:
    importlib.import_module("the_pack." + name)
new = len(set(sys.modules) - before)
wall, busy = time.perf_counter() - start, time.process_time() - busy
print(json.dumps({"door": door, "all": wall, "busy": busy, "modules": new}))
"""


def core_modules() -> list[str]:
    """Dotted names of the core's modules, from the pack's root."""
    paths = sorted((ROOT / "fantasy_core").rglob("*.py"))
    names = [path.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__") for path in paths]
    return [name.replace("/", ".") for name in names]


def measure() -> dict:
    """One fresh interpreter: seconds for the door and for everything (wall and processor), modules that are new."""
    command = [sys.executable, "-c", PROBE, str(ROOT), " ".join(core_modules())]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd="/").stdout)


def main() -> None:
    """Print the medians."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--repeat", type=int, default=7)
    runs = [measure() for _ in range(flags.parse_args().repeat + 1)][1:]  # the first one fills the caches
    median_of = {key: median(run[key] for run in runs) for key in runs[0]}
    print(f"the entry point    {median_of['door'] * 1000:8.2f} ms")
    print(f"every core module  {median_of['all'] * 1000:8.1f} ms")
    print(f"  processor time   {median_of['busy'] * 1000:8.1f} ms")
    print(f"modules loaded     {median_of['modules']:8.0f}")


if __name__ == "__main__":
    main()
