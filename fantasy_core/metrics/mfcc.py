"""Mel cepstra as python_speech_features computes them by default, which SyncNet was trained on.

25 ms windows every 10 ms without a taper, pre-emphasis 0.97, 26 triangles on whole bins of a 512-point spectrum,
logarithm, orthonormal DCT-II, lifter 22, the first coefficient replaced by the logarithm of the energy.
"""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray
RATE, WINDOW, STEP, POINTS = 16000, 400, 160, 512  # Hz, samples
FILTERS, CEPSTRA, LIFTER, EMPHASIS = 26, 13, 22, 0.97
TINY = np.finfo(np.float64).eps  # in place of no energy, whose logarithm there is not


def mfcc(samples: Array) -> Array:
    """Samples [n] at 16 kHz on the scale of 16-bit integers -> cepstra [frames, 13], frames = 1 + ceil((n - 400) / 160)
    and at least one; the end is filled with zeros."""
    samples = np.asarray(samples, np.float64)
    emphasised = np.concatenate([samples[:1], samples[1:] - EMPHASIS * samples[:-1]])
    frames = 1 + max(math.ceil((len(samples) - WINDOW) / STEP), 0)
    filled = np.pad(emphasised, (0, (frames - 1) * STEP + WINDOW - len(samples)))
    windows = np.lib.stride_tricks.sliding_window_view(filled, WINDOW)[::STEP]
    power = np.abs(np.fft.rfft(windows, POINTS)) ** 2 / POINTS
    energies = _logarithm(power @ triangles().T)
    cepstra = energies @ _cosines().T * (1 + LIFTER / 2 * np.sin(np.pi * np.arange(CEPSTRA) / LIFTER))
    cepstra[:, 0] = _logarithm(power.sum(1))
    return cepstra


def triangles() -> Array:
    """Mel filters [26, 257]: edges evenly spaced in mel from 0 to 8 kHz, each rounded down to a bin."""
    mels = np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), FILTERS + 2)
    edges = np.floor((POINTS + 1) * 700 * (10 ** (mels / 2595) - 1) / RATE)
    bins = np.arange(POINTS // 2 + 1)
    low, middle, high = (edges[k : k + FILTERS, None] for k in range(3))
    rising = (bins - low) / np.maximum(middle - low, 1)
    falling = (high - bins) / np.maximum(high - middle, 1)
    return np.where((bins >= low) & (bins < middle), rising, np.where((bins >= middle) & (bins < high), falling, 0.0))


def _cosines() -> Array:
    """The first 13 rows of the orthonormal DCT-II of 26 values."""
    order, place = np.arange(CEPSTRA)[:, None], np.arange(FILTERS) + 0.5
    scale = np.where(order == 0, math.sqrt(1 / FILTERS), math.sqrt(2 / FILTERS))
    return scale * np.cos(np.pi * order * place / FILTERS)


def _logarithm(values: Array) -> Array:
    return np.log(np.where(values == 0, TINY, values))
