"""What `animate` spends its time and memory on, with the miniature: stages of one window, and memory against length.

    python tests/benchmarks/bench_animate.py [--seconds 10 20 40 60] [--steps 4] [--device cpu]

Memory is the peak resident size of a fresh process for each length; it should not grow with it (`windows`), and the
time should grow in proportion. Few steps are enough for both; the stages say what a step costs.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]


def write_inputs(folder: Path, seconds: float) -> tuple[Path, Path]:
    """A grey portrait and noise of changing loudness: what is drawn does not matter here."""
    import soundfile
    from PIL import Image

    rng = np.random.default_rng(0)
    loudness = np.repeat(rng.uniform(0.02, 0.3, int(seconds / 0.08) + 1), 1280)[: int(seconds * 16_000)]
    soundfile.write(folder / "a.wav", loudness * rng.uniform(-1, 1, len(loudness)), 16_000)
    Image.new("RGB", (64, 64), "grey").save(folder / "p.png")
    return folder / "p.png", folder / "a.wav"


def one_run(seconds: float, steps: int, device: str) -> None:
    """Animate and print wall seconds, processor seconds and the peak of resident memory in MB."""
    from fantasy_core.animate import main

    with tempfile.TemporaryDirectory() as folder:
        portrait, voice = write_inputs(Path(folder), seconds)
        argv = ["--portrait", str(portrait), "--audio", str(voice), "--out", f"{folder}/v.mp4"]
        begun = time.perf_counter()
        code = main([*argv, "--steps", str(steps), "--device", device])
        wall, used = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF)
    if code:
        sys.exit(code)
    print(f"{wall:.1f} {used.ru_utime + used.ru_stime:.1f} {used.ru_maxrss / 1024:.0f}")


@contextmanager
def timed(table: dict[str, float], name: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    table[name] = time.perf_counter() - begun


def stages(steps: int, device: str) -> dict[str, float]:
    """Seconds of each stage of the first window of a voice of 4 s."""
    from fantasy_core import animate, flags, media, miniature
    from fantasy_core.manifest import Job

    table: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        portrait, voice = write_inputs(Path(folder), 4.0)
        components = miniature.load_components(device=device)
        settings = flags.Settings.from_flags(flags.parser().parse_args(["--steps", str(steps)]), components.defaults)
        job = Job(portrait, voice, Path(folder) / "v.mp4", "", 1)
        with timed(table, "check portrait and voice"):
            clip = animate.check_job(job, settings, components)
        with timed(table, "encode portrait and voice"):
            texts = animate.encode_prompts(components, [clip], settings)
            inputs = animate.encode_inputs(components, clip, texts, settings)
        with timed(table, "load the DiT"):
            context = components.dit()
            dit = context.__enter__()
        marks = [time.perf_counter()]
        frames = animate.render_window(
            clip.windows[0], None, components=components, dit=dit, inputs=inputs, settings=settings, seed=1,
            on_step=lambda *_: marks.append(time.perf_counter()),
        )  # fmt: skip
        table["image condition and first step"] = marks[1] - marks[0]
        table["each further step"] = float(np.median(np.diff(marks[1:])))
        with timed(table, "decode"):
            decoded = list(frames)
        with timed(table, "write H.264 and AAC"), media.VideoWriter(job.out, settings.fps, sound=voice) as writer:
            for chunk in decoded:
                writer.write((chunk + 1) / 2)
        context.__exit__(None, None, None)
    return table


def main() -> None:
    """Print both tables."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--seconds", type=float, nargs="+", default=[10, 20, 40, 60])
    flags.add_argument("--steps", type=int, default=4)
    flags.add_argument("--device", default="cpu")
    flags.add_argument("--one", type=float, help=argparse.SUPPRESS)
    given = flags.parse_args()
    if given.one is not None:
        one_run(given.one, given.steps, given.device)
        return
    for name, seconds in stages(max(given.steps, 3), given.device).items():
        print(f"{name:<32}{seconds * 1000:10.1f} ms")
    print("\nvoice, s   wall, s   processor, s   peak memory, MB")
    for seconds in given.seconds:
        command = [sys.executable, __file__, "--one", str(seconds)]
        command += ["--steps", str(given.steps), "--device", given.device]
        told = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
        wall, busy, memory = told.stdout.split()
        print(f"{seconds:<11g}{wall:<10}{busy:<15}{memory}")


if __name__ == "__main__":
    main()
