"""Videos longer than the model: overlapping windows, generated one after another and streamed out (not in the paper).

A window is a clip of its own, as in training: frame s alone makes its latent frame 0, every later latent frame covers
four frames. It is never a slice of one long latent, whose first frame would have to cover four frames instead of one.

- A later window starts at s = start + window - overlap. Its **image condition** is frame s of the window before it, as
  decoded; the CLIP image stays the user's portrait and so anchors the identity.
- The overlapped frames s ... s + overlap - 1 are encoded again and **held** while the new window is sampled: at every
  sigma those latents are (1 - sigma) x0 + sigma noise. Held frames carry the motion on, not the position alone.
- In pixels the overlap is **cross-faded** linearly from the old window to the new one, which hides what the codec's
  round trip changed. A frame is yielded as soon as no later window can touch it: memory does not grow with the length.
- **Voice** is cut by absolute time (`audio.window_ranges` with fps and first_frame), so sync cannot drift.
- **Noise** is drawn per window from (seed, s). The last window is shortened to the frames that remain (4k + 1, like all
  of them), so every full window is the same however long the track is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .audio import FRAMES_PER_LATENT, check_frames
from .errors import UserError
from .flow import VelocityFn, draw_noise, velocity_target


@dataclass(frozen=True)
class Window:
    """Frames [start, start + frames) of the whole video; the first `overlap` are also the last of the window before."""

    start: int
    frames: int
    overlap: int

    @property
    def latent_frames(self) -> int:
        return latent_frames(self.frames)


def latent_frames(frames: int) -> int:
    """F = 1 + (T - 1) / 4."""
    return 1 + (frames - 1) // FRAMES_PER_LATENT


def plan_windows(total: int, window: int = 81, overlap: int = 13) -> list[Window]:
    """The windows of a video of `total` frames; total, window and overlap are each 4k + 1, and overlap < window.

    Only the last window may be shorter than `window`; it always has at least four new frames.
    Raises UserError for numbers that do not fit the VAE.
    """
    for frames in (total, window, overlap):
        check_frames(frames)
    if overlap >= window:
        raise UserError(
            "windows would not move on",
            got=f"an overlap of {overlap} frames in windows of {window}",
            expected="an overlap smaller than the window",
            do=f"try --overlap {max(1, window // 6 // 4 * 4 + 1)}",
        )
    windows = [Window(0, min(window, total), 0)]
    while (end := windows[-1].start + windows[-1].frames) < total:
        start = end - overlap
        windows.append(Window(start, min(window, total - start), overlap))
    return windows


def window_noise(shape: Iterable[int], seed: int, window: Window, dtype: torch.dtype = torch.float32) -> Tensor:
    """The window's noise on the CPU. The first window draws from the plain seed, as FantasyTalking does."""
    return draw_noise(tuple(shape), seed, *((window.start,) if window.start else ()), dtype=dtype)


def hold(velocity_fn: VelocityFn, noise: Tensor, held: Tensor | None) -> VelocityFn:
    """`velocity_fn` with the first latent frames forced along the straight line from `noise` to `held`.

    noise [B, C, F, h, w] is what sampling starts from at sigma 1, held [B, C, n, h, w] the clean latents of the first n
    frames, or None. Their velocity is the constant noise - held, which every solver here integrates exactly: the state
    is (1 - sigma) held + sigma noise at each step and ends at `held`, and a multistep solver's memory stays consistent.
    """
    if held is None:
        return velocity_fn
    n = held.shape[2]
    known = velocity_target(held, noise[:, :, :n])

    def held_velocity(latents: Tensor, sigma: float) -> Tensor:
        free = velocity_fn(latents, sigma)[:, :, n:]
        return torch.cat([known.to(free), free], dim=2)

    return held_velocity


def crossfade(old: Tensor, new: Tensor, first: int, overlap: int) -> Tensor:
    """Frames old and new [t, 3, H, W], frames first ... first + t - 1 of `overlap`, mixed along a linear ramp.

    Frame j of the overlap takes the share (j + 1) / (overlap + 1) from the new window.
    """
    share = torch.arange(first + 1, first + 1 + len(new), dtype=new.dtype, device=new.device) / (overlap + 1)
    return torch.lerp(old, new, share[:, None, None, None])


def assemble(windows: list[Window], render: Callable[[Window, Tensor | None], Iterable[Tensor]]) -> Iterator[Tensor]:
    """The whole video as chunks [t, 3, H, W], in order, each as soon as it is final.

    `render(window, tail)` yields the frames of one window in chunks, `window.frames` in all; `tail` is the last
    `window.overlap` frames so far (None for the first window). Alive here at a time: the overlap that is faded out of,
    the one that is being collected, and a chunk, besides what `render` itself holds.
    """
    tail = None
    for window, following in zip(windows, [*windows[1:], None], strict=True):
        keep = window.frames - (following.overlap if following else 0)
        faded = _faded(window, tail, render(window, tail))
        tail = None  # the generators above own it now; a second reference would keep it through the window
        kept = []
        for chunk, at in faded:
            final = min(max(keep - at, 0), len(chunk))
            if final:
                yield chunk[:final]
            if final < len(chunk):
                kept.append(chunk[final:])
        tail = torch.cat(kept) if kept else None


def _faded(window: Window, tail: Tensor | None, chunks: Iterable[Tensor]) -> Iterator[tuple[Tensor, int]]:
    """Each chunk with the position of its first frame, the overlap mixed with the `tail` of the window before."""
    at = 0
    for chunk in chunks:
        mixed = min(max(window.overlap - at, 0), len(chunk)) if tail is not None else 0
        if mixed:
            chunk = torch.cat([crossfade(tail[at : at + mixed], chunk[:mixed], at, window.overlap), chunk[mixed:]])
        yield chunk, at
        at += len(chunk)
        if at >= window.overlap:
            tail = None
    if at != window.frames:
        raise ValueError(f"a window of {window.frames} frames was rendered with {at}")
