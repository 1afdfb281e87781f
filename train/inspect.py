"""Say what a weight file is: an expert or any LoRA, a fusion gate, a transformer, or another part of a model.

python -m train.inspect mn.safetensors
python -m train.inspect lora.safetensors --base models/Wan2.1-I2V-14B-480P    # does it fit this model?
python -m train.inspect gate.safetensors --json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import torch

from fantasy_core.errors import UserError, report, some
from fantasy_core.expert_files import audio_twin
from fantasy_core.experts import load_expert
from fantasy_core.fusion.hosts import AUDIO_LINEARS, LINEARS, Host, host_of, split_address
from fantasy_core.gate_files import base_fingerprint
from fantasy_core.wan import WanDiT
from fantasy_core.weights import Lora, TensorSet, dit_config, find_wan, open_lora, open_tensors
from fantasy_core.weights.kinds import kind
from fantasy_core.weights.lora import lora_file, misfits
from fantasy_core.weights.lora_names import family, reasons
from fantasy_core.weights.wan import open_dit

Report = dict[str, object]


def inspect(path: str | Path, base: str | Path | None = None) -> Report:
    """What a file or folder is, as plain values that JSON can hold. `base`: a transformer that it should fit.

    Only headers are read, and the values of LoRAs for their hash. What keeps a LoRA from being used is told under
    `problems`. Raises UserError for a file that cannot be opened and for a base that is no Wan transformer.
    """
    path, host = Path(path), base_host(base) if base else None
    tensors = _open(path)
    found = kind(tensors.entries) or ("a Wan transformer" if _is_diffusers(tensors) else "unknown")
    about: Report = {"file": str(path), "kind": found}
    if found == "a LoRA":
        about |= about_lora(path, tensors, host)
    elif found == "a fusion gate":
        about |= about_gate(tensors, host)
    elif found == "a Wan transformer":
        about |= {"sizes": asdict(dit_config(open_dit(tensors.path)))}
    elif found == "unknown":
        about |= {"problems": [f"no known layout; its tensors begin with {some(tensors.entries, 3)}"]}
    return about | about_tensors(tensors)


def about_tensors(tensors: TensorSet) -> Report:
    """dtypes, counts, bytes and metadata, tlpo.* first."""
    entries = tensors.entries.values()
    counts = [(str(lazy.dtype).removeprefix("torch."), torch.Size(lazy.shape).numel(), lazy.dtype) for lazy in entries]
    return {
        "dtype": dict(Counter(dtype for dtype, _, _ in counts).most_common()),
        "tensors": len(counts),
        "parameters": sum(number for _, number, _ in counts),
        "bytes": sum(number * dtype.itemsize for _, number, dtype in counts),
        "metadata": dict(sorted(tensors.metadata.items(), key=lambda item: (not item[0].startswith("tlpo."), item))),
    }


def about_lora(path: Path, tensors: TensorSet, host: Host | None) -> Report:
    """Naming, ranks, alphas, blocks, linears, what an expert cannot hold, and the expert's hash."""
    try:
        lora = open_lora(path)
    except UserError as error:
        about: Report = {"unsupported": reasons(tensors.entries), "problems": [_line(error)]}
        return about | ({"model": other} if (other := family(tensors.entries)) else {})
    names = Counter(split_address(address)[1] for address in lora.pairs)
    about = {
        "dialect": lora.dialect,
        "rank": sorted({pair.rank for pair in lora.pairs.values()}),
        "alpha": sorted({float(f"{pair.rank * pair.scale:.6g}") for pair in lora.pairs.values()}),
        "blocks": len({split_address(address)[0] for address in lora.pairs}),
        "linears": {name: names[name] for name in LINEARS + AUDIO_LINEARS if name in names},
        "unsupported": reasons(lora.unsupported),
    }
    if path.is_file() and audio_twin(path).is_file():
        about["audio"] = audio_twin(path).name
    try:
        about["hash"] = load_expert(path, ignore_unsupported=True).hash
    except UserError as error:
        about["problems"] = [_line(error)]
    return about | ({"mismatch": mismatch(lora, host)} if host else {})


def mismatch(lora: Lora, host: Host) -> list[str]:
    """What of a LoRA does not fit a model, and what of the model it leaves alone."""
    shapes, theirs = lora.shapes(), host.shapes()
    absent, wrong = misfits(shapes, theirs)
    silent = not any(address.endswith(AUDIO_LINEARS) for address in theirs)
    audio = [address for address in absent if silent and address.endswith(AUDIO_LINEARS)]
    unknown = [address for address in absent if address not in audio]
    untouched = Counter(split_address(address)[1] for address in theirs if address not in shapes)
    lines = [f"{len(audio)} audio linears need FantasyTalking's weights beside this base"] * bool(audio)
    lines += [f"linears that the base lacks: {some(unknown)}"] * bool(unknown)
    told = (f"{a} is {_arrow(shapes[a])}, the base's {_arrow(theirs[a])}" for a in wrong)
    lines += [f"other widths: {some(told, 3)}"] * bool(wrong)
    lines += [f"not changed: {', '.join(f'{name} ({count})' for name, count in untouched.items())}"] * bool(untouched)
    return lines


def about_gate(tensors: TensorSet, host: Host | None) -> Report:
    """Form, granularity, experts with their hashes and the base of a gate, as its metadata tells them."""
    told = {key.removeprefix("gate."): text for key, text in tensors.metadata.items() if key.startswith("gate.")}
    try:
        experts = {str(name): str(digest) for name, digest in json.loads(told.get("experts", "[]"))}
        linears = [str(name) for name in json.loads(told.get("linears", "[]"))]
    except (ValueError, TypeError) as error:
        return {"problems": [f"its metadata is damaged: {error}"]}
    about: Report = {key: told.get(key, "not told") for key in ("form", "granularity", "timestep")}
    about |= {"experts": experts, "linears": linears or "all alike", "base": told.get("base") or "not told"}
    if "table" in tensors.entries:
        about["table"] = list(tensors.entries["table"].shape)
    if host is not None and told.get("base"):
        own = base_fingerprint(host)
        about["mismatch"] = [] if own == told["base"] else [f"made for the base {told['base']}, this one is {own}"]
    return about


def base_host(path: str | Path) -> Host:
    """A transformer as experts and gates see it: shapes alone, and the values of its time embedding."""
    tensors = open_dit(*find_wan(path).need("dit"))
    with torch.device("meta"):
        host = host_of(WanDiT(dit_config(tensors)))
    names = host.time_embedding.state_dict()
    values = {name: tensors.entries[f"time_embedding.{name}"].read() for name in names}
    host.time_embedding.load_state_dict(values, assign=True)
    return host


def _open(path: Path) -> TensorSet:
    """The tensors of a file, of a LoRA's folder, or of the transformer in a model's folder."""
    if not path.is_dir():
        return open_tensors(path)
    if (lora := lora_file(path)) is not None:
        return open_tensors(lora)
    return open_tensors(path if list(path.glob("model*.safetensors*")) else find_wan(path).need("dit")[0])


def _is_diffusers(tensors: TensorSet) -> bool:
    return any("condition_embedder." in name for name in tensors.entries)


def _arrow(shape: tuple[int, int]) -> str:
    return f"{shape[0]} -> {shape[1]}"


def _line(error: UserError) -> str:
    return f"{error.what}: got {error.got}; expected {error.expected}; {error.do}"


def as_text(about: Report) -> str:
    """The same for people: a line for each fact, lists and tables indented."""
    lines = []
    for key, value in about.items():
        if isinstance(value, dict) and value:
            lines += [f"{key}:", *(f"  {name}: {_shown(held)}" for name, held in value.items())]
        elif key in ("problems", "mismatch"):
            lines += [f"{key}:" + " none" * (not value), *(f"  {line}" for line in value)]
        else:
            lines.append(f"{key}: {_size(value) if key == 'bytes' else _shown(value)}")
    return "\n".join(lines)


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        listed = [str(item) for item in value[:3]]
        return ", ".join(listed) + (f" ({len(listed)} of {len(value)})" if len(value) > 3 else "")
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return "none" if value in ({}, "") else text if len(text) <= 200 else f"{text[:200]}... ({len(text)} characters)"


def _size(count: int) -> str:
    return f"{count:,} ({count / 1e6:.4g} MB)"


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="any weight file, or the folder of a model or of a peft adapter")
    parser.add_argument("--base", type=Path, help="transformer file or model folder that it should fit")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--debug", action="store_true", help="tracebacks")
    args = parser.parse_args(argv)

    def run() -> None:
        about = inspect(args.file, args.base)
        print(json.dumps(about, indent=2, ensure_ascii=False) if args.json else as_text(about))

    return report(run, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
