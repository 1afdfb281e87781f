"""Pictures in and out (Pillow): float tensors [3, H, W] in [0, 1]."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .files import broken, check_file, replacing

MULTIPLE = 16  # VAE 8 x patch 2: each side of a picture is a multiple of it
LARGEST = 4096  # pixels of a side


def read_image(path: str | Path) -> Tensor:
    """An image file as [3, H, W] in [0, 1]: upright (EXIF), transparency on white, first picture of an animation."""
    from PIL import Image, ImageOps

    path = check_file(path, "image")
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16 bit grey: Pillow would clip it to 255
                image = Image.fromarray((np.asarray(image, np.uint32) >> 8).astype(np.uint8))
            image = image.convert("RGBA")
    except Exception as error:  # Pillow's readers raise whatever a damaged file makes them raise
        raise broken(path, "image", f"{type(error).__name__}: {error}") from error
    white = Image.new("RGBA", image.size, "white")
    return to_tensor(Image.alpha_composite(white, image).convert("RGB"))


def parse_size(text: str) -> int | tuple[int, int]:
    """`"512"` -> 512 (longest edge), `"832x480"` -> (832, 480) (width, height). Raises UserError for anything else."""
    try:
        numbers = [int(part) for part in text.lower().split("x")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise UserError(
            "size is not readable", got=repr(text), expected="N or WxH", do="pass --size 512 or --size 832x480"
        )
    for number in numbers:
        check_side(number)
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def fit_image(image: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Resize [3, H, W] (LANCZOS) for the VAE, each side a multiple of 16.

    `size` N: the longest edge becomes N and the other follows, rounded up to a multiple of 16, the aspect slightly
    changed (FantasyTalking, which gets there by two resizes instead of one). (width, height): cropped about the centre
    to that aspect. Raises UserError for a size that is no multiple of 16.
    """
    from PIL import Image, ImageOps

    source = Image.fromarray(to_bytes(image[None])[0])
    if isinstance(size, tuple):
        return to_tensor(ImageOps.fit(source, (check_side(size[0]), check_side(size[1])), Image.Resampling.LANCZOS))
    scale = check_side(size) / max(source.size)
    width, height = (max(-(-int(side * scale) // MULTIPLE), 1) * MULTIPLE for side in source.size)
    return to_tensor(source.resize((width, height), Image.Resampling.LANCZOS))


def contact_sheet(frames: Tensor, path: str | Path, columns: int = 8) -> None:
    """Write `frames` [t, 3, H, W] in [0, 1] as one PNG, row by row, `columns` a row, the last row filled with white."""
    from PIL import Image

    count, _, height, width = frames.shape
    rows = -(-count // columns)
    sheet = torch.ones(rows * columns, 3, height, width)
    sheet[:count] = frames
    sheet = (
        sheet.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    )  # [3, rows*H, columns*W]
    with replacing(path) as part:
        Image.fromarray(to_bytes(sheet[None])[0]).save(part, format="PNG")


def check_side(side: int) -> int:
    if side > LARGEST:
        do = f"pass {LARGEST} or less"
        raise UserError("size is too large", got=f"{side} pixels", expected=f"at most {LARGEST}", do=do)
    if side < MULTIPLE or side % MULTIPLE:
        near = max(round(side / MULTIPLE), 1) * MULTIPLE
        raise UserError(
            "size does not fit the VAE", got=f"{side} pixels", expected=f"a multiple of {MULTIPLE}", do=f"pass {near}"
        )
    return side


def to_tensor(image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)


def to_bytes(frames: Tensor) -> np.ndarray:
    """[t, 3, H, W] in [0, 1] -> uint8 [t, H, W, 3]."""
    frames = frames.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return np.ascontiguousarray(frames.permute(0, 2, 3, 1).cpu().numpy())
