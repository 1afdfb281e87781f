"""Experts and their gate on a native MODEL (Eq. 3, 4): the core's strategies through ComfyUI's patcher.

The gate is asked once a call of the model, in a wrapper around it. `merged` computes D = sum_i w_i B_i A_i and lends
`w -> w + D` to the linear's weight functions for that one call, so that W is cast, dequantised, offloaded and patched
by LoRAs as ever; where the linear multiplies in a quantised format or few tokens pass, `stacked` adds to its result.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import comfy.model_management
import comfy.ops
import torch
import torch.nn.functional as F
from comfy.ldm.wan.model import sinusoidal_embedding_1d
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ..fantasy_core.errors import UserError
from ..fantasy_core.experts import ExpertBank
from ..fantasy_core.fusion.coefficients import RankPlaces
from ..fantasy_core.fusion.hosts import AUDIO_LINEARS, LINEARS, split_address
from ..fantasy_core.fusion.plan import break_even, choose, kind_of
from ..fantasy_core.fusion.strategies import accumulating, compress, expand, weighed
from .audio_patch import AUDIO_EXPERTS
from .patcher import Injector, kept_linear, lent, managed

STRATEGIES = ("auto", "stacked", "merged")


class Factors(nn.Module):
    """down [R, in] and up [R, out] of one linear, as modules that ComfyUI's memory manager knows how to move."""

    def __init__(self, down: Tensor, up: Tensor):
        super().__init__()
        self.down, self.up = kept_linear(down), kept_linear(up)
        self.sizes = down.shape[1], up.shape[1]  # (in, out)

    def add(self, y: Tensor, x: Tensor, c: Tensor) -> Tensor:
        """y + ((x down^T) * c) up, `stacked`; y is this call's own."""
        with lent(self.down, y.dtype, y.device) as down:
            u = compress(x.to(y.dtype), down, c)
        with lent(self.up, y.dtype, y.device) as up:
            return expand(y, u, up, fresh=True)

    def delta(self, c: Tensor, x: Tensor) -> Tensor:
        """D [out, in] in the dtype of x, complete before the linear's own weight is cast."""
        wide = accumulating(x)
        with lent(self.up, wide, x.device) as up:
            left = weighed(up, c, wide)
        with lent(self.down, wide, x.device) as down:
            return (left @ down).to(x.dtype)


class Weighing:
    """What the gate said for the call under way, on one instance of the model."""

    def __init__(self, patch: ExpertPatch, device: torch.device):
        self.gate, self.addresses = copy.deepcopy(patch.gate).to(device), patch.addresses
        self.places, self.strengths = patch.places.to(device), patch.strengths.to(device)
        self.coefficients: dict[str, Tensor] | None = None

    def weigh(self, transformer: nn.Module, x: Tensor, timestep: Tensor) -> None:
        """Eq. 3, from timestep [B], or one for each latent frame [B, F]."""
        t = timestep.flatten()
        w = self.gate(embed_times(transformer, t, x.dtype), t.float()) * self.strengths  # [B or B*F, J, M, E]
        if timestep.ndim > 1 and timestep.shape[1] > 1:
            w = w.unflatten(0, timestep.shape)  # [B, F, J, M, E]
        elif _alike(t):
            w = w[0]
        self.coefficients = dict(zip(self.addresses, self.places.coefficients(w), strict=True))

    def at(self, address: str, x: Tensor) -> Tensor:
        """c of a linear for input x [B, L, in]: [R], a row for each sample [B, R] or for each token [B, L, R]."""
        if self.coefficients is None:
            raise UserError(
                "a linear with experts was run outside of its model",
                got=f"{address}, and no weights from the gate",
                expected="a call of the whole model, which asks the gate first",
                do="take the node that runs parts of the model by itself out of the graph",
            )
        c = self.coefficients[address]
        return over_tokens(c, x.shape[1], kind_of(split_address(address)[1])) if c.ndim == 3 else c


def embed_times(transformer: nn.Module, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
    """t_emb [B, d] of timesteps [B], computed as the native model does in dtype; fp32."""
    return transformer.time_embedding(sinusoidal_embedding_1d(transformer.freq_dim, timesteps).to(dtype)).float()


def _alike(timesteps: Tensor) -> bool:
    """Whether all samples have one timestep; a compiled graph does not ask, and weighs sample by sample."""
    return len(timesteps) == 1 or (not torch.compiler.is_compiling() and bool((timesteps == timesteps[0]).all()))


def over_tokens(c: Tensor, tokens: int, kind: str) -> Tensor:
    """c [B, F, R] of latent frames -> [B, L, R] of the video's tokens, spread as Wan spreads its modulation, and of the
    voice's, window by window; text and image tokens, which belong to no frame, get the mean [B, R]."""
    if kind in ("text", "image"):
        return c.mean(1)
    each = tokens // c.shape[1]
    return c.repeat_interleave(each + (each * c.shape[1] != tokens), 1)[:, :tokens]


class ExpertPatch:
    """A bank with its gate, hung on clones of a MODEL. Any number of them may hang on one model."""

    def __init__(self, bank: ExpertBank, gate: nn.Module, strengths: Tensor, strategy: str):
        self.gate, self.strengths, self.strategy = gate, strengths, strategy
        self.addresses, self.places = tuple(bank.rows), RankPlaces(bank, torch.device("cpu"))
        held = {address.replace(".", "/"): Factors(rows.down, rows.up) for address, rows in bank.rows.items()}
        self.factors = nn.ModuleDict(held)
        self.patcher = managed(self.factors)
        self.weighings: dict[int, Weighing] = {}  # by id of the transformer, while it is injected
        self.injector = Injector(self.layers, forget=self.forget)
        self.key = self.injector.key

    def hang(self, model):
        """A clone of the MODEL that runs with these experts."""
        model = model.clone()
        model.set_additional_models(self.key, [self.patcher])
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, self.key, self.run)
        model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, self.key, self.announce)
        model.set_injections(self.key, self.injector.injections)
        return model

    def run(self, executor, x, timestep, context, clip_fea=None, time_dim_concat=None, transformer_options=None, **kw):
        """Around the model: ask the gate, and leave word for the audio linears, which are not the model's own."""
        transformer, options = executor.class_obj, transformer_options or {}
        weighing = self.weighings[id(transformer)]
        weighing.weigh(transformer, x, timestep)
        if any(address.endswith(AUDIO_LINEARS) for address in self.addresses):
            options = {**options, AUDIO_EXPERTS: (*options.get(AUDIO_EXPERTS, ()), self.heard(weighing))}
        try:
            return executor(x, timestep, context, clip_fea, time_dim_concat, options, **kw)
        finally:
            weighing.coefficients = None

    def heard(self, weighing: Weighing):
        """(address, x, y) -> y with the experts of an audio linear."""

        def add(address: str, x: Tensor, y: Tensor) -> Tensor:
            key = address.replace(".", "/")
            if key not in self.factors:
                return y
            c = weighing.at(address, x)
            return self.factors[key].add(y, x, c)

        return add

    def layers(self, patcher) -> Iterator[tuple[nn.Module, object]]:
        """(module, layer) of every linear that some expert changes."""
        transformer = patcher.model.diffusion_model
        weighing = self.weighings[id(transformer)] = Weighing(self, patcher.load_device)
        for address in self.addresses:  # ffn.0 comes before ffn.2, whose layers see what it makes with its experts
            block, name = split_address(address)
            if name == "ffn.2":
                yield from self.ffn_layers(address, transformer.blocks[block].ffn, weighing)
            elif name in LINEARS:
                module = transformer.blocks[block].get_submodule(name)
                yield module, self.layer(address, module, weighing)

    def forget(self, patcher) -> None:
        self.weighings.pop(id(patcher.model.diffusion_model), None)

    def layer(self, address: str, module: nn.Module, weighing: Weighing):
        """y = W x + sum_i w_i B_i A_i x (Eq. 4) of one linear."""
        factors = cast(Factors, self.factors[address.replace(".", "/")])

        def call_with_experts(call, x: Tensor, *args, **kwargs) -> Tensor:
            c = weighing.at(address, x)
            if self.choose(module, factors, x, c) == "stacked":
                return factors.add(call(x, *args, **kwargs), x, c)
            added = AddDelta(factors.delta(c, x))
            with lending(module, added):
                y = call(x, *args, **kwargs)
            return y if added.used else factors.add(y, x, c)  # a linear of another pack, deaf to weight functions

        return call_with_experts

    def ffn_layers(self, address: str, ffn: nn.Module, weighing: Weighing):
        """Layers for ffn.2. Int8 files fold GELU into its product and never call it as a module: what goes in is then
        known from ffn.0, and the experts act on the whole ffn's result."""
        down, hidden, factors = self.layer(address, ffn[2], weighing), {}, self.factors[address.replace(".", "/")]

        def first(call, x: Tensor) -> Tensor:
            hidden["h"] = h = call(x)
            return h

        def second(call, h: Tensor) -> Tensor:
            hidden.clear()
            return down(call, h)

        def whole(call, x: Tensor) -> Tensor:
            y = call(x)
            h = hidden.pop("h", None)
            return y if h is None else factors.add(y, F.gelu(h, approximate="tanh"), weighing.at(address, h))

        yield ffn[0], first
        yield ffn[2], second
        yield ffn, whole

    def choose(self, module: nn.Module, factors: Factors, x: Tensor, c: Tensor) -> str:
        """`merged` or `stacked`, by the core's rule."""
        tokens, possible = x.numel() // x.shape[-1], mergeable(module) and c.ndim == 1
        if torch.compiler.is_compiling():  # the rule puts its reasons into words, which a graph cannot
            wanted = self.strategy == "merged" or (self.strategy == "auto" and tokens >= break_even(*factors.sizes))
            return "merged" if possible and wanted else "stacked"
        weights = "float" if mergeable(module) else "own"
        facts = {"strategy": self.strategy, "weights": weights, "per_sample": c.ndim > 1}
        return choose(*factors.sizes, tokens, **facts).strategy

    def announce(self, executor, model, noise_shape, conds, *args, **kwargs):
        """Tell the memory estimate what merging needs for a moment: D, the cast W, and their sum."""
        largest = max(math.prod(rows.sizes) for rows in self.factors.values())
        transient = 3 * largest * comfy.model_management.dtype_size(model.model.get_dtype_inference())
        noise_shape = list(noise_shape)
        if self.strategy != "stacked" and len(noise_shape) == 5:  # frames are what the estimate is linear in
            per_frame = model.model.memory_required(noise_shape) / noise_shape[2]
            noise_shape[2] += math.ceil(transient / max(per_frame, 1))
        return executor(model, noise_shape, conds, *args, **kwargs)


def mergeable(module: nn.Module) -> bool:
    """Whether the linear multiplies in floating point and asks weight functions for its weight. A function would
    switch off the product of a quantised format."""
    quantised = isinstance(module.weight, comfy.ops.QuantizedTensor) or isinstance(module, comfy.ops.fp8_ops.Linear)
    return hasattr(module, "weight_function") and not quantised


class AddDelta:
    """A weight function: W + D. Not in place, for W may be the resident weight itself."""

    def __init__(self, delta: Tensor):
        self.delta, self.used = delta, False

    def __call__(self, weight: Tensor) -> Tensor:
        self.used = True
        return weight + self.delta


@contextmanager
def lending(module: nn.Module, function) -> Iterator[None]:
    """The function is the last of the module's weight functions. The list is replaced, never changed: the default one
    lies on the class, and all linears share it."""
    own, before = "weight_function" in vars(module), module.weight_function
    module.weight_function = [*before, function]
    try:
        yield
    finally:
        if own:
            module.weight_function = before
        else:
            del module.weight_function
