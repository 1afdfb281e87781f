"""A picture of a gate: for every expert a heat map of its weight, block by step."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image
from torch import Tensor

from .errors import UserError
from .media.files import replacing

INCHES = 3.4, 2.8  # of one map


def draw_gate(w: Tensor, names: tuple[str, ...], sigmas: Tensor) -> Image.Image:
    """w [S, J, M, E] at the steps of schedule `sigmas` [S + 1] -> one map an expert, the mean over linears where M > 1.

    All maps share one colour scale, symmetric around zero when a weight is negative.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps, blocks, _, experts = w.shape
    maps = w.float().mean(2).permute(2, 1, 0).cpu().numpy()  # [E, J, S]
    low, high = min(maps.min(), 0.0), max(maps.max(), 1e-6)
    look = {"cmap": "RdBu_r", "vmin": -max(-low, high), "vmax": max(-low, high)} if low < 0 else {
        "cmap": "viridis", "vmin": 0.0, "vmax": high}  # fmt: skip
    figure = Figure((INCHES[0] * experts + 0.8, INCHES[1] + 0.4), layout="constrained")
    rows = figure.subplots(1, experts, squeeze=False, sharey=True)[0]
    for axis, name, values in zip(rows, names, maps, strict=True):
        image = axis.imshow(values, aspect="auto", interpolation="nearest", origin="lower", **look)
        axis.set_title(f"{name}, mean {values.mean():.2f}")
        shown = sorted({round(i * (steps - 1) / 4) for i in range(5)})
        axis.set_xticks(shown, [f"{step}\n{sigmas[step]:.2f}" for step in shown])
        axis.set_xlabel("step, sigma (1 = pure noise)")
        axis.yaxis.get_major_locator().set_params(integer=True)
    rows[0].set_ylabel(f"block, 0 to {blocks - 1}")
    figure.colorbar(image, ax=list(rows), label="weight")
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return Image.open(buffer).convert("RGB")


def save_plot(path: Path, w: Tensor, names: tuple[str, ...], sigmas: Tensor) -> None:
    """Write the picture as a PNG, whole or not at all."""
    if path.suffix.lower() != ".png":
        raise UserError("the gate's plot is a PNG", got=path.name, expected="NAME.png", do="name it so")
    with replacing(path) as beside:
        draw_gate(w, names, sigmas).save(beside, format="PNG")
