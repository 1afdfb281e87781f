"""Gate files: safetensors in fp32, with the experts and the base they were made for.

| granularity | tensors |
|---|---|
| `block`  | `blocks.N.gate.weight` [E, d], `blocks.N.gate.bias` [E] |
| `expert` | `gate.weight`, `gate.bias` |
| `module` | `blocks.N.<linear>.gate.weight`, `.bias` |

Without timestep `.logits` [E] stands for `.weight`, in form `linear` `.slope` [E]; form `table` has no such tensors.
Every file has `table` [1001, J, M, E], the weights at timestep 0..1000, for hosts without t_emb.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from .errors import UserError, some
from .fusion.hosts import AUDIO_LINEARS, LINEARS, Host, host_of
from .gate import GRID, FusionGate, TableGate, coefficient_table
from .weights import TensorSet, kinds, open_tensors, save_tensors, tensors_hash
from .weights.strict import check

MOST_BLOCKS, MOST_DIM = 1000, 100_000  # of a gate: more is damage
ORDER = LINEARS + AUDIO_LINEARS  # of the M linears of a block


def base_fingerprint(host: nn.Module | Host) -> str:
    """Blocks, width and hash of the time embedding: what a trained gate has seen of its base."""
    host = host_of(host)
    time = {name: tensor.float() for name, tensor in sorted(host.time_embedding.state_dict().items())}
    return f"{host.num_blocks}x{host.dim}:{tensors_hash({str(i): t for i, t in enumerate(time.values())})[:16]}"


def save_gate(
    path: str | Path, gate: nn.Module, *, hashes: Mapping[str, str], host: nn.Module | Host | None = None
) -> None:
    """Write a FusionGate or a TableGate with the hash of every expert it was made for, by name and in its order.

    `host` gives the base's fingerprint and the table of a gate that reads t_emb.
    """
    fusion, host = isinstance(gate, FusionGate), None if host is None else host_of(host)
    metadata = {
        "gate.form": gate.form if fusion else "table",
        "gate.granularity": gate.granularity if fusion else "module" if gate.num_linears > 1 else "block",
        "gate.timestep": str(not fusion or gate.timestep).lower(),
        "gate.linears": json.dumps(ORDER[: gate.num_linears] if gate.num_linears > 1 else []),
        "gate.experts": json.dumps([[name, hashes[name]] for name in gate.names]),
        "gate.blocks": str(gate.num_blocks),
        "gate.dim": str(gate.dim) if fusion else "",
        "gate.base": "" if host is None else base_fingerprint(host),
    }
    tensors = {"table": coefficient_table(gate, host and host.time_embedding)}
    if fusion:
        for name, parameter in gate.named_parameters():
            tensors |= {f"{prefix}gate.{name}": parameter[place] for prefix, place in _places(gate)}
    save_tensors(path, {name: tensor.float() for name, tensor in tensors.items()}, metadata)


def load_gate(
    path: str | Path, *, hashes: Mapping[str, str], host: nn.Module | Host | None = None, as_table: bool = False
) -> FusionGate | TableGate:
    """The gate of a file, its experts in the order and under the names of `hashes` (see `ExpertBank.hashes`).

    Experts are told by the hash of their tensors, whatever their names here. Raises UserError for a file that is no
    gate or not whole, for experts that are not those it was made for, and for a host of another depth or width (which
    may be on the meta device). Whether it is the same base, `base_warning` tells. as_table: the weights of the file's
    table, for which no t_emb is needed.
    """
    tensors = open_tensors(path)
    if "gate.experts" not in tensors.metadata or "table" not in tensors.entries:
        raise UserError(
            f"{path} is no gate",
            got=kinds.kind(tensors.entries) or "other tensors",
            expected="a gate file with `table` and its experts in the metadata",
            do="give the gate's file; LoRAs are loaded as experts",
        )
    told = _told(tensors)
    order = _match(Path(path), told["experts"], hashes)
    gate = _build(tensors, told, as_table)
    with torch.no_grad():
        _reorder(gate, order)
    gate.names = tuple(hashes)
    gate.base = tensors.metadata.get("gate.base", "")
    if host is not None:
        _check_size(Path(path), gate, host_of(host))
    return gate.requires_grad_(False)


def base_warning(gate: nn.Module, host: nn.Module | Host) -> str | None:
    """What to tell a user whose base is not the one the gate was trained on; None where it is, or is not known."""
    trained = getattr(gate, "base", "")
    if not trained or (own := base_fingerprint(host)) == trained:
        return None
    return (
        f"the gate was trained on a base with another time embedding ({trained}, here {own}). Quantised files of the "
        "same base differ harmlessly; on another base the gate means nothing"
    )


def _told(tensors: TensorSet) -> dict:
    """What the metadata says, parsed. Raises UserError when it is damaged."""
    try:
        said = {key.removeprefix("gate."): text for key, text in tensors.metadata.items() if key.startswith("gate.")}
        experts = [(str(name), str(digest)) for name, digest in json.loads(said["experts"])]
        linears = len(json.loads(said["linears"])) or 1
        sizes = int(said["blocks"]), int(said["dim"] or 0)
        if not (experts and 1 <= sizes[0] <= MOST_BLOCKS and 0 <= sizes[1] <= MOST_DIM):
            raise ValueError(f"{len(experts)} experts, {sizes[0]} blocks, width {sizes[1]}")
        return {**said, "experts": experts, "num_linears": linears, "blocks": sizes[0], "dim": sizes[1]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the metadata of {tensors.path} is damaged",
            got=f"{type(error).__name__}: {error}",
            expected="what save_gate writes: gate.form, gate.experts, gate.linears, gate.blocks, gate.dim",
            do="make or fetch the gate again",
        ) from error


def _build(tensors: TensorSet, told: dict, as_table: bool) -> FusionGate | TableGate:
    """The gate with the values of the file, all tensors there and none left over, every number finite."""
    count, names = len(told["experts"]), tuple(name for name, _ in told["experts"])
    sizes = told["blocks"], told["num_linears"], count
    expected = {"table": torch.empty(GRID, *sizes, device="meta")}
    gate: FusionGate | None = None
    if told["form"] != "table":
        gate = FusionGate(
            told["blocks"], told["dim"], count, told["granularity"], told["timestep"] == "true", told["num_linears"],
            form=told["form"], names=names,
        )  # fmt: skip
        for name, parameter in gate.named_parameters():
            expected |= {f"{prefix}gate.{name}": parameter[place] for prefix, place in _places(gate)}
    check(expected, tensors, "gate")
    values = {name: lazy.read().float() for name, lazy in tensors.entries.items()}
    broken = [name for name, value in values.items() if not value.isfinite().all()]
    if broken:
        raise UserError(
            f"{tensors.path} holds weights that are no numbers",
            got=some(broken),
            expected="finite weights",
            do="use an earlier checkpoint of this gate",
        )
    if gate is None or as_table:
        return TableGate(values["table"], names)
    with torch.no_grad():
        for name, parameter in gate.named_parameters():
            for prefix, place in _places(gate):
                parameter[place] = values[f"{prefix}gate.{name}"]
    return gate


def _places(gate: FusionGate) -> list[tuple[str, tuple[int, int]]]:
    """(beginning of the name, index [block, linear]) of every gate in the stacked parameters."""
    if gate.granularity == "expert":
        return [("", (0, 0))]
    linears = [f"{ORDER[m]}." for m in range(gate.num_linears)] if gate.granularity == "module" else [""]
    return [(f"blocks.{j}.{name}", (j, m)) for j in range(gate.num_blocks) for m, name in enumerate(linears)]


def _match(path: Path, experts: list[tuple[str, str]], hashes: Mapping[str, str]) -> list[int]:
    """For every expert at hand, which of the gate's it is."""
    place = {digest: i for i, (_, digest) in enumerate(experts)}
    unknown = [f"{name} ({digest[:8]})" for name, digest in hashes.items() if digest not in place]
    absent = [f"{name} ({digest[:8]})" for name, digest in experts if digest not in hashes.values()]
    if unknown or absent or len(hashes) != len(experts):
        raise UserError(
            f"{path} was made for other experts",
            got=f"not the gate's: {', '.join(unknown) or 'none'}; missing: {', '.join(absent) or 'none'}",
            expected=", ".join(f"{name} ({digest[:8]})" for name, digest in experts),
            do="give the experts that this gate was trained with (and their .audio files), or another gate",
        )
    return [place[digest] for digest in hashes.values()]


def _reorder(gate: FusionGate | TableGate, order: list[int]) -> None:
    """Put the experts into another order."""
    for name, tensor in [*gate.named_parameters(), *gate.named_buffers()]:
        if name != "knots":
            axis = 2 if name == "weight" else tensor.ndim - 1  # weight [J, M, E, d], all others [..., E]
            tensor.copy_(tensor.index_select(axis, torch.tensor(order)))


def _check_size(path: Path, gate: nn.Module, host: Host) -> None:
    width = getattr(gate, "dim", 0) or host.dim
    if (gate.num_blocks, width) != (host.num_blocks, host.dim):
        raise UserError(
            f"{path} was made for another base model",
            got=f"a gate for {gate.num_blocks} blocks of width {width}",
            expected=f"{host.num_blocks} blocks of width {host.dim}",
            do="use the gate of this base model",
        )
