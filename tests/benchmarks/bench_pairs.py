"""train.pairs at the size of the paper: 2 million scored videos of 125 000 inputs, 180K, 100K and 130K pairs.

    python tests/benchmarks/bench_pairs.py [--inputs 125000] [--formats parquet jsonl] [--rules "--margin 1 --cap 4"]

Makes the videos and scores in a temporary folder (seeded: four models and a quality of each video in each dimension;
18 000 inputs have a real clip in the place of one candidate), as parquet and as JSON lines with scores in eight part
files, runs `train.pairs` on each in a process of its own, and prints wall seconds and the most memory it held.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from train.tables import write_columns  # noqa: E402

EACH, PARTS, REAL_INPUTS = 16, 8, 18_000
MODELS = ("fantasytalking", "hunyuan_avatar", "multitalk", "omniavatar")
COUNTS = "--count-mn 180000 --count-ls 100000 --count-vq 130000"
CRITIC, VIEWS = "c" * 64, "d" * 64


def videos_of(inputs: int) -> dict:
    """The columns of videos.jsonl, as the stages before write them."""
    rows = inputs * EACH
    number, variant = np.divmod(np.arange(rows), EACH)
    model = variant // 4
    sources = [*MODELS, "real"]
    model = np.where((variant == 0) & (number < REAL_INPUTS), len(MODELS), model)
    return {
        "video": [f"{i:06d}_{sources[m]}_{v:02d}" for i, m, v in zip(number, model, variant, strict=True)],
        "input": pa.array([f"input-{i:06d}" for i in range(inputs)]).take(pa.array(number)),
        "path": pa.array([f"videos/{i:06d}/clip.mp4" for i in range(inputs)]).take(pa.array(number)),
        "sha256": pa.array([f"{i:064x}" for i in range(inputs)]).take(pa.array(number)),
        "source": pa.array(sources).take(pa.array(model)),
        "variant": variant,
        "seed": np.arange(rows),
        "fps": np.full(rows, 23.0),
        "frames": np.full(rows, 81),
        "width": np.full(rows, 512),
        "height": np.full(rows, 512),
        "split": pa.array(["train", "validation"]).take(pa.array((number % 50 == 0).astype(int))),
    }


def scores_of(videos: dict, seed: int = 0) -> dict:
    """z of every video: what its input, its source and chance make of it."""
    rng, rows = np.random.default_rng(seed), len(videos["video"])
    source = videos["source"].dictionary_encode().indices.to_numpy()
    by_source, by_input = rng.normal(0, 0.5, (8, 3)), rng.normal(0, 1.0, (rows // EACH, 3))
    z = by_source[source] + np.repeat(by_input, EACH, 0) + rng.normal(0, 1.5, (rows, 3))
    z[videos["source"].to_numpy(zero_copy_only=False) == "real"] += 3.0
    without_sound = rng.random(rows) < 0.01
    ls = pa.array(z[:, 1], mask=without_sound)
    failed = pa.array(np.where(rng.random(rows) < 0.001, "cannot be decoded", ""))
    judge = {"critic": pa.repeat(CRITIC, rows), "views": pa.repeat(VIEWS, rows), "failed": failed}
    return {
        "video": pa.array(videos["video"]),
        "z_mn": pa.array(z[:, 0]),
        "z_ls": ls,
        "z_vq": pa.array(z[:, 2]),
        **judge,
    }


def make_world(folder: Path, inputs: int, formats: list[str]) -> None:
    """videos.FORMAT and scores_FORMAT/part-N.FORMAT."""
    videos = videos_of(inputs)
    scores, rows = scores_of(videos), inputs * EACH
    for form in formats:
        write_columns(folder / f"videos.{form}", videos, {})
        for part in range(PARTS):  # as eight processes write them, every eighth video each
            places = pa.array(np.arange(part, rows, PARTS))
            columns = {name: column.take(places) for name, column in scores.items()}
            write_columns(folder / f"scores_{form}" / f"part-{part}.{form}", columns, {})


def measure(folder: Path, form: str, rules: list[str]) -> dict:
    """Seconds, GiB and pairs of one run on files of this form, in a process of its own."""
    out = folder / f"pairs_{form}"
    files = ["--videos", f"{folder}/videos.{form}", "--scores", f"{folder}/scores_{form}", "--out", str(out)]
    command = [sys.executable, "-m", "train.pairs", *files, *rules, "--format", form]
    begun = time.perf_counter()
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - begun
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"train.pairs failed on {form}")
    told = json.loads((out / "pairs.json").read_text())
    pairs = {name: content["pairs"] for name, content in told["yield"].items()}
    size = sum(f.stat().st_size for f in folder.rglob(f"*.{form}") if "pairs_" not in str(f.parent))
    return {"seconds": seconds, "gib": used.ru_maxrss / 2**20, "pairs": pairs, "read": size / 1e9}


def main() -> None:
    """Print a line for each form."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--inputs", type=int, default=125_000)
    flags.add_argument("--formats", nargs="+", default=["parquet", "jsonl"], choices=["parquet", "jsonl"])
    flags.add_argument("--rules", default=COUNTS, help="flags of train.pairs, in one text")
    given = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with ProcessPoolExecutor(1, get_context("spawn")) as other:  # a child's peak counts what its parent holds
            other.submit(make_world, Path(folder), given.inputs, given.formats).result()
        print(f"{given.inputs * EACH} videos of {given.inputs} inputs, {os.cpu_count()} cores, {given.rules}")
        for form in given.formats:
            told = measure(Path(folder), form, given.rules.split())
            line = f"{form:8s} {told['seconds']:6.1f} s {told['gib']:5.2f} GiB, {told['read']:.2f} GB read"
            print(f"{line}, pairs {told['pairs']} = {sum(told['pairs'].values())}", flush=True)


if __name__ == "__main__":
    main()
