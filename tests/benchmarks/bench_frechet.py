"""What a Frechet distance costs: the nuclear norm of the samples against the eigenvalues of the covariances.

    python tests/benchmarks/bench_frechet.py [--samples 64 80] [--width 2048] [--repeat 5]

One thread. The other side is torchmetrics' `_compute_fid` where it is installed, else the same formula by
`torch.linalg.eigvals`; it runs once, ours `--repeat` times, of which the least counts. Covariances are outside its
time, inside ours.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from fantasy_core.metrics.frechet import frechet_distance


def by_eigenvalues(mu1, sigma1, mu2, sigma2) -> torch.Tensor:
    """The usual formula: the roots of the eigenvalues of S1 S2."""
    roots = torch.linalg.eigvals(sigma1 @ sigma2).sqrt().real.sum()
    return (mu1 - mu2).square().sum() + sigma1.trace() + sigma2.trace() - 2 * roots


def other_side():
    """(name, function of mu1, S1, mu2, S2)."""
    try:
        from torchmetrics import __version__
        from torchmetrics.image.fid import _compute_fid
    except ImportError:
        return "torch.linalg.eigvals (torchmetrics is not installed)", by_eigenvalues
    return f"torchmetrics {__version__} _compute_fid", _compute_fid


def timed(function, *arguments) -> tuple[float, float]:
    """(seconds, value)."""
    start = time.perf_counter()
    value = float(function(*arguments))
    return time.perf_counter() - start, value


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs=2, default=[64, 64])
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--repeat", type=int, default=5)
    flags = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    x, y = (rng.normal(shift, 1 + shift, (n, flags.width)) for n, shift in zip(flags.samples, (0, 0.3), strict=True))
    ours, value = min(timed(frechet_distance, x, y) for _ in range(flags.repeat))
    moments = [torch.from_numpy(part) for z in (x, y) for part in (z.mean(0), np.cov(z, rowvar=False))]
    name, function = other_side()
    theirs, expected = timed(function, *moments)
    print(f"{flags.samples[0]} and {flags.samples[1]} samples, {flags.width} wide")
    print("| way | seconds | value |\n|---|---|---|")
    print(f"| nuclear norm | {ours:.4f} | {value:.8g} |\n| {name} | {theirs:.2f} | {expected:.8g} |")
    print(f"{theirs / ours:.0f} times as fast; relative difference {abs(value / expected - 1):.1e}")


if __name__ == "__main__":
    main()
