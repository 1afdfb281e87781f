"""Weight files, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..errors import UserError


def save_tensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file beside `path` and rename it: readers see the old file or the whole new one.

    The same tensors and metadata give the same bytes, and so the same hash of the file. A failed write (full disk, file
    size limit, no permission) leaves nothing behind and raises UserError.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    size = sum(tensor.numel() * tensor.element_size() for tensor in ready.values())
    try:
        save_file(ready, beside, metadata=dict(metadata or {}) or None)
        os.chmod(beside, 0o666 & ~_umask())  # safetensors makes files that nobody else may read
        with open(beside, "rb+") as file:
            _order_metadata(file)
            os.fsync(file.fileno())
        os.replace(beside, path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path.name} could not be written",
            got=f"{error}; {_free(path.parent)}",
            expected=f"{size / 1e6:.1f} MB of space in a writable folder",
            do=f"free space in {path.parent}, or write elsewhere; nothing half-written was left",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def _umask() -> int:
    """What is taken from the permissions of new files; there is no asking without setting."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _order_metadata(file: BinaryIO) -> None:
    """Sort the metadata in the header, which safetensors writes in a random order."""
    size = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(size))
    if told := header.get("__metadata__"):
        header["__metadata__"] = dict(sorted(told.items()))
        ordered = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(ordered) <= size:
            file.seek(8)
            file.write(ordered.ljust(size))


def _free(folder: Path) -> str:
    return f"{shutil.disk_usage(folder).free / 1e6:.1f} MB free" if folder.is_dir() else f"no folder {folder}"
