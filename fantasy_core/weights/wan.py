"""Wan2.1 model files: find the parts in a folder or beside a file, and load the transformer.

Layouts:
- `official`: the published folder, `config.json` with `diffusion_pytorch_model*.safetensors`, `Wan2.1_VAE.pth`,
  `models_t5_umt5-xxl-enc-bf16.pth`, `models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth`, `google/umt5-xxl/`;
- `diffusers`: `transformer/`, `vae/`, `text_encoder/`, `image_encoder/`, `tokenizer/`;
- `single file`: what ComfyUI loads, names with or without a `diffusion_model.` prefix, fp16, bf16, fp8 or fp8-scaled;
  the other parts are looked for where ComfyUI keeps them (`text_encoders`, `clip_vision`, `vae` beside its folder).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatch
from pathlib import Path

import torch

from ..errors import UserError, some
from ..fp8_linear import Fp8Linear
from ..wan import Float32Parameters, WanConfig, WanDiT
from .files import SHARD, TensorSet, open_tensors
from .fp8 import dequantised, keep_fp8, refuse_integers
from .kinds import kind
from .names import from_diffusers
from .strict import fill

PREFIXES = ("model.diffusion_model.", "diffusion_model.")
PARTS = {
    "dit": "the transformer (diffusion_pytorch_model*.safetensors)",
    "text": "the text encoder (models_t5_umt5-xxl-enc-bf16.pth)",
    "tokenizer": "the tokenizer (google/umt5-xxl)",
    "clip": "the image encoder (models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth)",
    "vae": "the video autoencoder (Wan2.1_VAE.pth)",
}
PATTERNS = {  # of the single files, without regard to case
    "text": ("*umt5*xxl*.safetensors", "*umt5*xxl*.pth"),
    "clip": ("clip_vision_h*.safetensors", "*clip*vit-huge*.pth", "*clip*vit-huge*.safetensors"),
    "vae": ("wan*2[._]1*vae*.safetensors", "wan*2[._]1*vae*.pth"),
}
COMFY_FOLDERS = {"text": ("text_encoders", "clip"), "clip": ("clip_vision",), "vae": ("vae",)}
TOKENIZERS = ("google/umt5-xxl", "umt5-xxl")
DIFFUSERS_FOLDERS = {
    "dit": "transformer",
    "text": "text_encoder",
    "tokenizer": "tokenizer",
    "clip": "image_encoder",
    "vae": "vae",
}
DIT_FOLDERS = ("diffusion_models", "unet")


@dataclass(frozen=True)
class WanFiles:
    """Where the parts of a Wan model are; a part that is not there is None.

    A part is a file, or a folder in the layout of diffusers. The tokenizer may be None when the text encoder's file
    holds it (ComfyUI's `spiece_model`).
    """

    layout: str
    root: Path
    dit: Path | None = None
    text: Path | None = None
    tokenizer: Path | None = None
    clip: Path | None = None
    vae: Path | None = None

    def need(self, *parts: str) -> list[Path]:
        """The paths of these parts, in order. Raises UserError naming every one that is absent."""
        missing = [part for part in parts if getattr(self, part) is None]
        if missing:
            raise UserError(
                f"{self.root} lacks {', '.join(missing)}",
                got=f"layout `{self.layout}` with {some(p for p in PARTS if getattr(self, p)) or 'nothing known'}",
                expected="; ".join(PARTS[part] for part in missing),
                do="finish the download of the folder, or give the absent part by its own path",
            )
        return [getattr(self, part) for part in parts]


def find_wan(path: str | Path, **parts: str | Path | None) -> WanFiles:
    """Recognise a Wan2.1 folder or transformer file and find its parts.

    `parts` (dit, text, tokenizer, clip, vae) override what is found. Nothing is loaded: a part may be absent until it
    is asked for with `need`. Raises UserError when nothing is there, or when the layout is unknown.
    """
    path = Path(path)
    if not path.exists():
        raise UserError("the Wan model was not found", got=str(path), expected="a folder or file", do="check the path")
    files = _find_folder(path) if path.is_dir() else _find_file(path)
    given = {name: Path(value) for name, value in parts.items() if value is not None}
    absent = [f"{name}: {value}" for name, value in given.items() if not value.exists()]
    if absent:
        what = "parts of the Wan model were not found"
        raise UserError(what, got=some(absent), expected="existing paths", do="check the paths")
    return replace(files, **given)


def _find_folder(folder: Path) -> WanFiles:
    if (folder / "transformer").is_dir() or (folder / "model_index.json").is_file():
        found = {part: folder / name for part, name in DIFFUSERS_FOLDERS.items() if (folder / name).is_dir()}
        return WanFiles("diffusers", folder, **found)
    transformers = [found for name in DIT_FOLDERS for found in _match(folder / name, ("*wan*.safetensors",))]
    if len(transformers) == 1:
        return _find_file(transformers[0])
    if transformers:
        raise UserError(
            f"{folder} holds several transformers",
            got=some(str(found.relative_to(folder)) for found in transformers),
            expected="one",
            do="give the path of the file itself",
        )
    dit = folder if any(folder.glob("diffusion_pytorch_model*.safetensors*")) else None
    files = WanFiles("official", folder, dit, **_parts_in(lambda part: [folder]))
    if all(getattr(files, part.name) is None for part in fields(files)[2:]):
        raise UserError(
            f"{folder} is no known layout of Wan2.1",
            got=some(entry.name for entry in folder.iterdir()) or "an empty folder",
            expected="official (config.json, diffusion_pytorch_model*.safetensors, Wan2.1_VAE.pth, ...), diffusers "
            "(transformer/, vae/, ...), a ComfyUI models folder, or a single transformer file",
            do="give the folder that holds these, or the transformer file itself",
        )
    return files


def _find_file(path: Path) -> WanFiles:
    """A transformer file; its other parts lie beside it or where ComfyUI keeps them. A shard stands for its folder."""
    if SHARD.fullmatch(path.name):
        return _find_folder(path.parent)
    models = next((up.parent for up in path.parents if up.name in DIT_FOLDERS), None)
    comfy = {part: [models / name for name in names] for part, names in COMFY_FOLDERS.items()} if models else {}
    return WanFiles("single file", path, path, **_parts_in(lambda part: [path.parent, *comfy.get(part, [])]))


def _parts_in(places: Callable[[str], list[Path]]) -> dict[str, Path | None]:
    """The parts but the transformer, each from the first of its places that has it."""
    found = {}
    for part, patterns in PATTERNS.items():
        found[part] = next((best for place in places(part) if (best := _largest(_match(place, patterns)))), None)
    tokenizers = (place / name for place in places("text") for name in TOKENIZERS)
    return {**found, "tokenizer": next((folder for folder in tokenizers if folder.is_dir()), None)}


def _match(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Files of this folder whose names match, without regard to case."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if path.is_file() and any(fnmatch(path.name.lower(), p) for p in patterns))


def _largest(found: list[Path]) -> Path | None:
    """Of several files of one part, the largest: it is the least quantised."""
    return max(found, key=lambda path: path.stat().st_size, default=None)


def load_dit(
    files: WanFiles | str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    fp8: str = "dequantised",
    **override,
) -> WanDiT:
    """The transformer, frozen and in eval mode; time path, norms, modulation and head in fp32, the rest in `dtype`.

    Sizes come from the shapes, the number of heads from config.json or from the file's metadata (128 wide heads where
    neither tells); `override` sets fields of WanConfig. `fp8="kept"`: linears of the blocks that the file stores in fp8
    stay so (`Fp8Linear`) and compute in `dtype`. One copy: tensors are converted one by one, and those that need no
    conversion stay mapped to the file. Raises UserError for anything but a complete Wan2.1 transformer.
    """
    files = files if isinstance(files, WanFiles) else find_wan(files)
    tensors = open_dit(*files.need("dit"))
    config = dit_config(tensors, **override)
    with torch.device("meta"):
        model = WanDiT(config)
    if fp8 == "kept":
        tensors = keep_fp8(model.blocks, tensors, "blocks")
    own = dict.fromkeys(float32_names(model), torch.float32)
    for name, module in model.named_modules():
        if isinstance(module, Fp8Linear):
            own |= {f"{name}.weight": module.weight.dtype, f"{name}.scale_weight": torch.float32}
    return fill(model, tensors, "Wan transformer", device=device, dtype=lambda name: own.get(name, dtype))


def dit_config(source: WanFiles | TensorSet, **override) -> WanConfig:
    """The sizes of the transformer, from headers and config.json alone: nothing is loaded."""
    tensors = source if isinstance(source, TensorSet) else open_dit(*source.need("dit"))
    return WanConfig.from_state_dict(tensors.meta(), **{**_told(tensors), **override})


def float32_names(model: torch.nn.Module) -> set[str]:
    """Names of the parameters that a WanDiT computes in fp32 whatever its dtype."""
    owners = [name for name, module in model.named_modules() if isinstance(module, Float32Parameters)]
    return {name for name, _ in model.named_parameters() if name.rpartition(".")[0] in owners}


def open_dit(path: str | Path) -> TensorSet:
    """The transformer's tensors under official names, fp8 scales applied, whatever layout `path` has."""
    tensors = open_tensors(path)
    found = kind(tensors.entries)
    if found != "a Wan transformer" and not _is_diffusers(tensors.entries):
        raise UserError(
            f"{tensors.path} is not a Wan transformer",
            got=(f"{found}; " if found else "") + f"its tensors begin with {some(tensors.entries, 3) or 'nothing'}",
            expected="official names (patch_embedding.weight, blocks.0.self_attn.q.weight), the same behind "
            "`diffusion_model.`, or diffusers' (condition_embedder..., blocks.0.attn1.to_q.weight)",
            do="load a LoRA as an expert, on top of a Wan model"
            if found == "a LoRA"
            else "give the file of the transformer itself",
        )
    tensors = dequantised(tensors.renamed(_without_prefix))
    if _is_diffusers(tensors.entries):
        tensors = tensors.renamed(from_diffusers)
    return refuse_integers(tensors)


def _is_diffusers(names) -> bool:
    return any("condition_embedder." in name for name in names)


def _without_prefix(name: str) -> str:
    return next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)


def _told(tensors: TensorSet) -> dict:
    """Sizes that shapes do not tell: from config.json (official or diffusers) or ComfyUI's `config` in the metadata."""
    folder = tensors.path if tensors.path.is_dir() else tensors.path.parent
    beside = folder / "config.json"
    try:
        told = json.loads(tensors.metadata.get("config", "{}")).get("transformer", {})
        if beside.is_file() and not told:
            told = json.loads(beside.read_text("utf-8"))
            if not str(told.get("_class_name", "Wan")).startswith("Wan"):  # another model's, beside a single file
                told = {}
        heads = told.get("num_heads", told.get("num_attention_heads"))
    except (ValueError, AttributeError) as error:
        what = f"the configuration of {tensors.path} cannot be read"
        raise UserError(what, got=str(error), expected="JSON", do="fetch config.json again") from error
    found = {"num_heads": heads, "text_len": told.get("text_len"), "eps": told.get("eps")}
    return {name: value for name, value in found.items() if value is not None}
