"""FantasyTalking's audio weights: the projection of audio features, and two linears for every block's cross-attention.

Dialects (all hold 3 + 2 * blocks tensors):
- `official`: a torch dict {"proj_model": ..., "audio_processor": ...}, or safetensors with these as prefixes;
- `without processor`: flat, `blocks.N.cross_attn.k_proj.weight` (the fp16 file that ComfyUI's wrapper nodes use);
- `split`: the projection alone (`proj.weight`, `norm.*`), the linears inside a merged transformer file (Wan2GP).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ..audio import AudioProjection
from ..errors import UserError, some
from ..wan import AudioProcessor, WanConfig, WanDiT
from .files import TensorSet, open_tensors
from .fp8 import dequantised, refuse_integers
from .kinds import kind
from .strict import check, fill

OUTER = r"(?:model\.)?(?:diffusion_model\.)?"
LINEAR = r"cross_attn\.(?:processor\.)?(k_proj|v_proj)\.weight"
PROCESSOR = re.compile(OUTER + r"(?:audio_processor\.)?blocks\.(\d+)\." + LINEAR)
PROJECTION = re.compile(OUTER + r"(?:proj_model\.)?(proj\.weight|norm\.weight|norm\.bias)")


@dataclass(frozen=True)
class Report:
    """Which dialect a FantasyTalking file had, and how many tensors were taken from it."""

    path: Path
    dialect: str
    tensors: int

    def __str__(self) -> str:
        return f"{self.path.name}: FantasyTalking, dialect `{self.dialect}`, {self.tensors} tensors"


def open_fantasytalking(path: str | Path) -> tuple[TensorSet, str]:
    """The tensors under official names (`proj_model.*`, `blocks.N.cross_attn.processor.*`), and the dialect they had.

    Reads the header only. Raises UserError for a file that is not FantasyTalking's or lacks the projection.
    """
    tensors = refuse_integers(dequantised(open_tensors(path)))
    linears = [name for name in tensors.entries if PROCESSOR.fullmatch(name)]
    if not any(map(PROJECTION.fullmatch, tensors.entries)):
        raise _mistaken(tensors)
    dialect = "split" if not linears else "official" if ".processor." in linears[0] else "without processor"
    return tensors.renamed(_official_name), dialect


def load_projection(source: str | Path | TensorSet, *, device: str | torch.device = "cpu") -> AudioProjection:
    """The audio projection alone (fp32, frozen), from a file of any dialect or from an opened one."""
    tensors = source if isinstance(source, TensorSet) else open_fantasytalking(source)[0]
    own = tensors.renamed(lambda name: name.removeprefix("proj_model.") if name.startswith("proj_model.") else None)
    with torch.device("meta"):
        projection = AudioProjection(*reversed(_widths(own)))
    return fill(projection, own, "audio projection", device=device, dtype=torch.float32)


def load_fantasytalking(
    path: str | Path,
    dit: WanDiT,
    *,
    dtype: torch.dtype | None = None,
) -> tuple[AudioProjection, Report]:
    """Install FantasyTalking's audio linears in `dit` (in place) and return its audio projection (fp32) and a report.

    The linears get `dtype` (default: what the transformer computes in) and the transformer's device. Demands
    exactly 3 + 2 * num_layers tensors of fitting shapes (the projection's 3 when `dit` came with its audio linears).
    Raises UserError otherwise, leaving `dit` as it was.
    """
    tensors, dialect = open_fantasytalking(path)
    if dialect == "split" and not dit.config.audio_token_dim:
        raise _alone(tensors)
    token_dim, audio_dim = _widths(tensors, "proj_model.")
    if dialect == "split":
        token_dim = dit.config.audio_token_dim
    config = replace(dit.config, audio_dim=audio_dim, audio_token_dim=token_dim)
    blocks = 0 if dialect == "split" else config.num_layers
    expected = _expected(audio_dim, token_dim, config.dim, blocks)
    check(expected, tensors, "set of FantasyTalking weights for this transformer")
    device = dit.patch_embedding.weight.device
    projection = load_projection(tensors, device=device)
    if dialect != "split":
        _install(dit, config, tensors, device, dtype or dit.patch_embedding.weight.dtype)
    dit.config = config
    return projection, Report(tensors.path, dialect, len(expected))


def load_audio(path: str | Path) -> tuple[AudioProjection, nn.ModuleList, Report]:
    """A whole FantasyTalking file without a transformer: the projection (fp32) and an AudioProcessor for each of the
    blocks it was made for, in the file's dtype. Strict like `load_fantasytalking`; a `split` file is refused."""
    tensors, dialect = open_fantasytalking(path)
    linears = {name: lazy for name, lazy in tensors.entries.items() if PROCESSOR.fullmatch(name)}
    if not linears:
        raise _alone(tensors)
    token_dim, audio_dim = _widths(tensors, "proj_model.")
    blocks = 1 + max(int(PROCESSOR.fullmatch(name)[1]) for name in linears)
    dim = linears[min(linears)].shape[0]
    expected = _expected(audio_dim, token_dim, dim, blocks)
    check(expected, tensors, "set of FantasyTalking weights")
    with torch.device("meta"):
        processors = nn.ModuleList(AudioProcessor(token_dim, dim) for _ in range(blocks))
    fill(processors, tensors.renamed(_processor_name), "set of audio linears")
    return load_projection(tensors), processors, Report(tensors.path, dialect, len(expected))


def _alone(tensors: TensorSet) -> UserError:
    return UserError(
        f"{tensors.path.name} holds the audio projection alone",
        got="the `split` dialect, whose audio linears lie in a merged transformer's file",
        expected="k_proj and v_proj for every block in one of the files",
        do="give the complete FantasyTalking file (with the command line, loading that transformer does as well)",
    )


def _mistaken(tensors: TensorSet) -> UserError:
    found = kind(tensors.entries)
    return UserError(
        f"{tensors.path.name} is not FantasyTalking's, or lacks the audio projection",
        got=(f"{found}; " if found else "") + f"its tensors begin with {some(tensors.entries, 3) or 'nothing'}",
        expected="proj_model.proj.weight and blocks.N.cross_attn.processor.k_proj.weight, or another dialect: "
        "with the prefix audio_processor., without processor., or proj.weight alone",
        do="load a LoRA as an expert instead"
        if found == "a LoRA"
        else "give fantasytalking_model.ckpt or its safetensors version",
    )


def _official_name(name: str) -> str:
    """The name in WanDiT or, for the projection, behind `proj_model.`; unknown names stay, to be reported."""
    if linear := PROCESSOR.fullmatch(name):
        return f"blocks.{linear[1]}.cross_attn.processor.{linear[2]}.weight"
    projection = PROJECTION.fullmatch(name)
    return f"proj_model.{projection[1]}" if projection else name


def _widths(tensors: TensorSet, prefix: str = "") -> tuple[int, int]:
    """Token width and feature width, from `proj.weight`."""
    lazy = tensors.entries.get(prefix + "proj.weight")
    if lazy is None or len(lazy.shape) != 2:
        raise UserError(
            f"{tensors.path.name} lacks the weight of the audio projection",
            got=some(tensors.entries, 3),
            expected="proj_model.proj.weight [token width, feature width]",
            do="use the complete file",
        )
    return lazy.shape[0], lazy.shape[1]


def _expected(audio_dim: int, token_dim: int, dim: int, blocks: int) -> dict[str, torch.Tensor]:
    """Names and shapes (on meta) of a complete set for a transformer of so many blocks of width `dim`."""
    shapes = {"proj.weight": (token_dim, audio_dim), "norm.weight": (token_dim,), "norm.bias": (token_dim,)}
    expected = {f"proj_model.{name}": torch.empty(shape, device="meta") for name, shape in shapes.items()}
    for index in range(blocks):
        for linear in ("k_proj", "v_proj"):
            name = f"blocks.{index}.cross_attn.processor.{linear}.weight"
            expected[name] = torch.empty(dim, token_dim, device="meta")
    return expected


def _processor_name(name: str) -> str | None:
    """`blocks.3.cross_attn.processor.k_proj.weight` -> `3.k_proj.weight`; None for all else."""
    linear = PROCESSOR.fullmatch(name)
    return f"{linear[1]}.{linear[2]}.weight" if linear else None


def _install(dit: WanDiT, config: WanConfig, tensors: TensorSet, device: torch.device, dtype: torch.dtype) -> None:
    with torch.device("meta"):
        processors = nn.ModuleList(AudioProcessor(config.audio_token_dim, config.dim) for _ in dit.blocks)
    fill(processors, tensors.renamed(_processor_name), "set of audio linears", device=device, dtype=dtype)
    for block, processor in zip(dit.blocks, processors, strict=True):
        block.cross_attn.processor = processor
