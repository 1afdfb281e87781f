"""An expert and its files.

`NAME.safetensors` holds `diffusion_model.blocks.N.<linear>.lora_A.weight` [r, in] and `.lora_B.weight` [out, r], one
rank, alpha = r: ComfyUI and diffusers read it as it is, peft after `to_peft`. The audio linears would make diffusers
refuse the whole file, so they lie in `NAME.audio.safetensors` beside it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import UserError, some
from .fusion.hosts import AUDIO_LINEARS, LINEARS, split_address
from .weights import save_tensors, tensors_hash
from .weights.lora import open_lora, read_pairs, refuse_unsupported

DIMENSIONS = ("mn", "ls", "vq", "full")
ORDER = LINEARS + AUDIO_LINEARS
KEPT = ("tlpo.", "modelspec.", "ss_")  # metadata that stays true when an expert is written anew
PEFT_CONFIG = {"peft_type": "LORA", "task_type": None, "base_model_name_or_path": None, "inference_mode": True}
PEFT_CONFIG |= {"bias": "none", "lora_dropout": 0.0, "use_rslora": False, "use_dora": False, "fan_in_fan_out": False}


@dataclass(frozen=True)
class LowRank:
    """The change of one linear, scale * B A: A [r, in], B [out, r]; `scale` is alpha/r times a fixed strength."""

    A: Tensor
    B: Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    def folded(self) -> LowRank:
        """The same change at scale 1: B takes the scale, multiplied in fp32 or more and rounded once."""
        if self.scale == 1:
            return self
        wide = self.B.to(torch.promote_types(self.B.dtype, torch.float32))
        return LowRank(self.A, (wide * self.scale).to(self.B.dtype))

    def widened(self, rank: int) -> LowRank:
        """The same change at a larger rank: zeros for the rest."""
        more = rank - self.rank
        return LowRank(F.pad(self.A, (0, 0, 0, more)), F.pad(self.B, (0, more)), self.scale)


@dataclass(frozen=True)
class Expert:
    """A LoRA by official addresses: `pairs["blocks.3.self_attn.q"]`; linears that are absent are not changed."""

    name: str
    pairs: Mapping[str, LowRank]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def hash(self) -> str:
        """sha256 (hex) of the addresses in order and of A and scale * B in fp32.

        Name, metadata, container, naming, a scale folded into B and a type that holds the same numbers do not matter.
        """
        digest = hashlib.sha256()
        for address in sorted(self.pairs):
            pair = self.pairs[address]
            tensors = {f"{address}.A": pair.A.float(), f"{address}.B": pair.B.float() * pair.scale}
            digest.update(tensors_hash(tensors).encode())
        return digest.hexdigest()


def load_expert(
    path: str | Path, name: str | None = None, *, ignore_unsupported: bool = False, with_audio: bool = True
) -> Expert:
    """Read any Wan LoRA as an expert, with `NAME.audio.safetensors` beside `NAME.safetensors` where there is one and
    `with_audio`.

    `name` defaults to the dimension in the metadata, then to the file's stem. Our own files must hold every linear that
    they promise, at one rank and alpha = r; in others, absent linears are zero, and what is no low-rank change of a
    block's linear is an error that lists it, or is left out with `ignore_unsupported`. Raises UserError for these and
    for what `open_lora` and `read_pairs` refuse.
    """
    path, pairs = Path(path), {}
    lora, twin = open_lora(path), audio_twin(path)
    for part in [lora, open_lora(twin)] if with_audio and twin.is_file() else [lora]:
        if part.own or not ignore_unsupported:
            refuse_unsupported(part)
        _check_twice(part.path, pairs.keys() & part.pairs.keys())
        pairs |= {address: LowRank(A, B, scale) for address, A, B, scale in read_pairs(part)}
    if lora.own:
        _check_own(lora.path, pairs, lora.metadata, with_audio)
    stem = path.name if path.is_dir() else path.stem
    return Expert(name or lora.metadata.get("tlpo.dimension") or stem, pairs, lora.metadata)


def save_expert(path: str | Path, expert: Expert, metadata: Mapping[str, str] | None = None) -> None:
    """Write `NAME.safetensors`, and `NAME.audio.safetensors` for the audio linears; without any, an old one goes.

    A scale other than 1 is folded into B. Where ranks or linears differ from block to block, zeros make them equal:
    readers that take alpha from one rank would otherwise misjudge the rest. `metadata` adds to the expert's own and
    overrides it. Raises UserError for an expert without any of the 12 linears and when a file cannot be written.
    """
    path, pairs = Path(path), _rectangular(expert.pairs)
    names = {split_address(address)[1] for address in pairs}
    if not names - set(AUDIO_LINEARS):
        raise UserError(
            f"expert {expert.name} has nothing for {path.name}",
            got=some(names) or "no linears at all",
            expected=f"some of {', '.join(LINEARS)}",
            do="save it together with the linears that it was trained with",
        )
    told = _metadata(expert, pairs, metadata or {})
    tensors = _tensors(pairs, "diffusion_model.")
    audio = {key: tensor for key, tensor in tensors.items() if ".processor." in key}
    if audio:
        save_tensors(audio_twin(path), audio, told)
    save_tensors(path, {key: tensor for key, tensor in tensors.items() if key not in audio}, told)
    if not audio:
        audio_twin(path).unlink(missing_ok=True)


def to_peft(expert: Expert, folder: str | Path) -> None:
    """Write adapter_model.safetensors and adapter_config.json, which peft's `PeftModel.from_pretrained` hangs on a
    WanDiT. Raises UserError when a file cannot be written."""
    folder, pairs = Path(folder), _rectangular(expert.pairs)
    names = sorted({split_address(address)[1] for address in pairs}, key=ORDER.index)
    rank = next(iter(pairs.values())).rank
    # A full match: names alone would reach linears outside the blocks too
    targets = rf"blocks\.({_blocks(pairs)})\.({'|'.join(map(re.escape, names))})"
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "adapter_model.safetensors", _tensors(pairs, "base_model.model."), {"format": "pt"})
    config = {**PEFT_CONFIG, "r": rank, "lora_alpha": rank, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2), "utf-8")


def to_kohya(path: str | Path, expert: Expert) -> None:
    """Write one file under kohya's names (sd-scripts, musubi-tuner), alpha the rank; the audio linears are in it too.
    Raises UserError when it cannot be written."""
    path, pairs, tensors = Path(path), _rectangular(expert.pairs), {}
    for address, pair in pairs.items():
        name = f"lora_unet_{address.replace('.', '_')}"
        tensors |= {f"{name}.lora_down.weight": pair.A, f"{name}.lora_up.weight": pair.B}
        tensors[f"{name}.alpha"] = torch.tensor(float(pair.rank))
    save_tensors(path, tensors, _metadata(expert, pairs, {}))


def audio_twin(path: Path) -> Path:
    """Where the audio linears of an expert file lie: `mn.safetensors` -> `mn.audio.safetensors`."""
    return path.with_name(f"{path.stem}.audio.safetensors")


def _blocks(pairs: Mapping[str, LowRank]) -> str:
    return "|".join(str(block) for block in sorted({split_address(address)[0] for address in pairs}))


def _tensors(pairs: Mapping[str, LowRank], prefix: str) -> dict[str, Tensor]:
    tensors = {f"{prefix}{address}.lora_A.weight": pair.A for address, pair in pairs.items()}
    return tensors | {f"{prefix}{address}.lora_B.weight": pair.B for address, pair in pairs.items()}


def _rectangular(pairs: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """Scale 1, one rank, and the same linears in every block up to the last that changes."""
    rank = max((pair.rank for pair in pairs.values()), default=0)
    equal = {address: pair.folded().widened(rank) for address, pair in pairs.items()}
    alike = {split_address(address)[1]: pair for address, pair in equal.items()}
    blocks = 1 + max((split_address(address)[0] for address in pairs), default=-1)
    addresses = [(f"blocks.{block}.{name}", name) for block in range(blocks) for name in ORDER if name in alike]
    return {address: equal.get(address) or _silent(alike[name]) for address, name in addresses}


def _silent(like: LowRank) -> LowRank:
    return LowRank(torch.zeros_like(like.A), torch.zeros_like(like.B))


def _metadata(expert: Expert, pairs: Mapping[str, LowRank], more: Mapping[str, str]) -> dict[str, str]:
    """Defaults, what was known, what the caller adds, and what the tensors are; the later wins."""
    rank, blocks = next(iter(pairs.values())).rank, 1 + max(split_address(address)[0] for address in pairs)
    defaults = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "wan2.1/lora",
        "modelspec.implementation": "https://github.com/Wan-Video/Wan2.1",
        "modelspec.title": expert.name,
        **({"tlpo.dimension": expert.name} if expert.name in DIMENSIONS else {}),
    }
    known = {key: value for key, value in expert.metadata.items() if key.startswith(KEPT) and "hash_sha" not in key}
    facts = {
        "ss_network_module": "networks.lora_wan",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "tlpo.rank": rank,
        "tlpo.blocks": blocks,
        "tlpo.linears": " ".join(dict.fromkeys(split_address(address)[1] for address in pairs)),
    }
    return {key: str(value) for key, value in {**defaults, **known, **more, **facts}.items()}


def _check_twice(path: Path, twice: set[str]) -> None:
    if twice:
        raise UserError(
            f"{path} changes linears that the file beside it changes too",
            got=some(twice),
            expected=f"the audio linears alone: {', '.join(AUDIO_LINEARS)}",
            do="keep only the one that belongs to the expert, or rename it",
        )


def _check_own(path: Path, pairs: Mapping[str, LowRank], metadata: Mapping[str, str], with_audio: bool) -> None:
    """Every linear that the file promises, one rank, alpha = r; `with_audio` False leaves the audio linears out."""
    expected = _promised(pairs, metadata)
    expected = {address for address in expected if with_audio or not address.endswith(AUDIO_LINEARS)}
    missing, extra = expected - pairs.keys(), pairs.keys() - expected
    if missing or extra:
        audio = missing and all(address.endswith(AUDIO_LINEARS) for address in missing)
        rest = path.name.endswith(".audio.safetensors") and all(a.endswith(AUDIO_LINEARS) for a in pairs)
        raise UserError(
            f"{path} is not a whole expert",
            got=f"missing: {some(missing) or 'none'}; unexpected: {some(extra) or 'none'}",
            expected=f"the {len(expected)} linears that its metadata promises",
            do=f"put {audio_twin(path).name}, which was saved with it, beside it"
            if audio
            else f"give {path.name.replace('.audio', '')}; this file is read with it"
            if rest
            else "fetch it again (and its .audio file), or save it again",
        )
    ranks, scales = {pair.rank for pair in pairs.values()}, {pair.scale for pair in pairs.values()}
    if len(ranks) > 1 or scales != {1.0}:
        raise UserError(
            f"{path} was changed since it was saved",
            got=f"ranks {some(ranks)}, alpha/rank {some(scales)}",
            expected="one rank for all linears, and alpha = rank",
            do="use the expert as it was saved, or remove the tlpo.* metadata to load it as any LoRA",
        )


def _promised(pairs: Mapping[str, LowRank], metadata: Mapping[str, str]) -> set[str]:
    """The addresses that the metadata tells; without, 12 linears of every block, 10 when none is an image linear."""
    image, audio = (any(address.endswith(ends) for address in pairs) for ends in (("k_img", "v_img"), AUDIO_LINEARS))
    usual = [name for name in LINEARS if image or not name.endswith("_img")] + list(AUDIO_LINEARS) * audio
    names = metadata["tlpo.linears"].split() if "tlpo.linears" in metadata else usual
    told, seen = metadata.get("tlpo.blocks", ""), 1 + max(split_address(address)[0] for address in pairs)
    blocks = min(int(told), seen + 1) if told.isdecimal() else seen  # one absent block is enough to tell
    return {f"blocks.{block}.{name}" for block in range(blocks) for name in names}
