"""Models and linears on one and the same set of weights, with experts run in every way: peft's and ours."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from fantasy_core.experts import ExpertBank, LowRank, Rows
from fantasy_core.fusion import STRATEGIES, Attached, attach, host_of
from fantasy_core.fusion.plan import choose
from fantasy_core.gate import FusionGate
from fantasy_core.wan import WanDiT

OURS = ("naive", "stacked", "merged", "auto")
DIMENSIONS = ("mn", "ls", "vq")
CHANGE = 0.01  # of the output, by one expert of weight 1


def random_rows(size_in: int, size_out: int, rank: int, like: Tensor) -> Rows:
    """Three experts of this rank for one linear, on the device and in the dtype of `like`."""
    pairs = [
        LowRank(
            like.new_empty(rank, size_in).normal_() * size_in**-0.5, like.new_empty(size_out, rank).normal_() * size
        )
        for size in [CHANGE * rank**-0.5] * len(DIMENSIONS)
    ]
    return Rows.stack(pairs, size_in, size_out).to(like.device)


def random_bank(dit: WanDiT, rank: int) -> ExpertBank:
    host = host_of(dit)
    like = dit.patch_embedding.weight
    rows = {address: random_rows(*sizes, rank, like) for address, sizes in host.shapes().items()}
    return ExpertBank(DIMENSIONS, rows, {}, dict.fromkeys(DIMENSIONS, ""))


def random_gate(dit: WanDiT) -> FusionGate:
    gate = FusionGate(len(dit.blocks), dit.config.dim, len(DIMENSIONS), names=DIMENSIONS)
    nn.init.normal_(gate.weight, std=dit.config.dim**-0.5)
    return gate.to(dit.patch_embedding.weight.device)


def twin(dit: WanDiT) -> WanDiT:
    """Another model on the same weights."""
    with torch.device("meta"):
        other = WanDiT(dit.config)
    other.load_state_dict(dit.state_dict(), assign=True)
    return other.eval().requires_grad_(False)


def with_peft(model: nn.Module, rows: Mapping[str, Rows], weights: Mapping[str, Tensor]) -> nn.Module:
    """Give linears of a model (by name) three active adapters of peft, scaled by weights [E]. Changes the model."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    rank = next(iter(rows.values())).ranks[0]
    for name in DIMENSIONS:
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(rows))
        with warnings.catch_warnings():  # more than one adapter is what is wanted
            warnings.simplefilter("ignore")
            inject_adapter_in_model(config, model, name, low_cpu_mem_usage=True)
    layers = {address: layer for address, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    assert layers.keys() == rows.keys(), "peft must run the same linears"
    for address, layer in layers.items():
        layer.set_adapter(list(DIMENSIONS))
        for i, (name, (first, last)) in enumerate(zip(DIMENSIONS, pairwise(rows[address].offsets), strict=True)):
            layer.lora_A[name].weight = frozen(rows[address].down[first:last])
            layer.lora_B[name].weight = frozen(rows[address].up[first:last].T.contiguous())
            layer.scaling[name] = weights[address][i].item()
    return model


def frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=False)


def linear_variants(linear: nn.Linear, rows: Rows, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """One linear in every way; the experts weigh 0.5, 0.3 and 0.2."""
    w = torch.tensor([0.5, 0.3, 0.2], device=x.device)
    twin_linear = nn.Linear(linear.in_features, linear.out_features, device="meta")
    twin_linear.load_state_dict(linear.state_dict(), assign=True)
    peft = with_peft(nn.ModuleDict({"linear": twin_linear}), {"linear": rows}, {"linear": w})["linear"]
    tokens = x.numel() // x.shape[-1]
    auto = choose(linear.in_features, linear.out_features, tokens).strategy
    run = {name: partial(strategy, x, linear.weight, linear.bias, rows, rows.coefficients(w))
           for name, strategy in STRATEGIES.items()}  # fmt: skip
    return {"base": partial(linear, x), "peft": partial(peft, x), **run, "auto": run[auto]}


@dataclass
class GatedModels:
    """The same DiT with no experts, with peft's and with ours: `models` by variant, and the weights that they share.

    A context: ours are attached while it is open.
    """

    dit: WanDiT
    bank: ExpertBank
    timestep: Tensor  # [B], the same for all samples
    models: dict[str, WanDiT] = field(default_factory=dict)
    attached: dict[str, Attached] = field(default_factory=dict)
    stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> GatedModels:
        gate = random_gate(self.dit)
        self.models = {"base": self.dit, "peft": twin(self.dit), **{name: twin(self.dit) for name in OURS}}
        for name in OURS:
            context = attach(self.models[name], self.bank, gate, name, per_sample=False)
            self.attached[name] = self.stack.enter_context(context)
        self.weigh()
        w = self.attached["naive"].w[0]  # [J, 1, E]
        weights = {address: w[int(address.split(".")[1]), 0] for address in self.bank.rows}
        with_peft(self.models["peft"], self.bank.rows, weights)
        return self

    def __exit__(self, *error) -> None:
        self.stack.close()

    def weigh(self) -> None:
        """Ask the gate, which a forward of the whole model does by itself and blocks on their own need."""
        for attached in self.attached.values():
            attached.weigh(self.dit.embed_time(self.timestep)[0], self.timestep)

    def whole(self, given: dict) -> dict[str, Callable[[], Tensor]]:
        """A forward of the whole model, by variant."""
        return {name: partial(model, **given) for name, model in self.models.items()}

    def block(self, given: dict) -> dict[str, Callable[[], Tensor]]:
        """The first block alone, by variant, on what it is called with in a forward of the base."""
        seen: list[tuple] = []
        with self.dit.blocks[0].register_forward_pre_hook(lambda block, args: seen.append(args)):
            self.dit(**given)
        self.weigh()
        return {name: partial(model.blocks[0], *seen[0]) for name, model in self.models.items()}
