"""The two models that experts hang on, told apart by their names: our WanDiT and diffusers' WanTransformer3DModel.

A host answers where the linears of a block are (by their official addresses, `blocks.3.self_attn.q`), which module
makes t_emb, and how wide and deep it is. ComfyUI's native model is reached by `nodes/patcher.py` instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ..errors import UserError, some
from ..weights.names import to_diffusers

LINEARS = (
    "self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o",
    "cross_attn.q", "cross_attn.k", "cross_attn.v", "cross_attn.o", "cross_attn.k_img", "cross_attn.v_img",
    "ffn.0", "ffn.2",
)  # fmt: skip
AUDIO_LINEARS = ("cross_attn.processor.k_proj", "cross_attn.processor.v_proj")


@dataclass(frozen=True)
class Host:
    """A model as experts see it: `linears` by address, the module whose output is t_emb [B, d], blocks and width."""

    model: nn.Module
    linears: Mapping[str, nn.Linear]
    time_embedding: nn.Module
    blocks: tuple[nn.Module, ...]

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)

    @property
    def dim(self) -> int:
        """d, the width of t_emb and of the blocks."""
        return next(iter(self.linears.values())).out_features

    def shapes(self) -> dict[str, tuple[int, int]]:
        """(in, out) of every linear, by address."""
        return {address: (linear.in_features, linear.out_features) for address, linear in self.linears.items()}


def host_of(model: nn.Module | Host) -> Host:
    """Recognise a WanDiT or a diffusers WanTransformer3DModel, compiled or not. Raises UserError for other models."""
    if isinstance(model, Host):
        return model
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    modules = dict(model.named_modules())
    for rename, time_embedding in ((str, "time_embedding"), (to_diffusers, "condition_embedder.time_embedder")):
        if rename("blocks.0.self_attn.q") in modules and time_embedding in modules:
            _refuse_fused(modules)
            blocks = tuple(modules["blocks"])
            addresses = [f"blocks.{n}.{name}" for n in range(len(blocks)) for name in LINEARS + AUDIO_LINEARS]
            linears = {address: modules[rename(address)] for address in addresses if rename(address) in modules}
            return Host(model, linears, modules[time_embedding], blocks)
    raise UserError(
        "experts cannot be attached to this model",
        got=type(model).__name__,
        expected="a WanDiT, or WanTransformer3DModel of diffusers",
        do="load a Wan model",
    )


def _refuse_fused(modules: Mapping[str, nn.Module]) -> None:
    """diffusers can fuse q, k and v into a linear of its own: those that experts know would never be called."""
    fused = [name for name, module in modules.items() if getattr(module, "fused_projections", False)]
    if fused:
        raise UserError(
            "experts cannot be attached to this model",
            got=f"fused projections in {some(fused)}",
            expected="linears of their own for queries, keys and values",
            do="call unfuse_qkv_projections() on it first",
        )


def split_address(address: str) -> tuple[int, str]:
    """`blocks.3.self_attn.q` -> (3, "self_attn.q")."""
    _, block, name = address.split(".", 2)
    return int(block), name


def weight_format(linear: nn.Module) -> str:
    """`float`: an ordinary linear. `stored`: its weight lies in fp8 and is dequantised at each use. `own`: whatever
    else computes it (another LoRA, int8 or fp4 products, a wrapper that fetches the weight); its result can be added
    to, its weight cannot be merged."""
    weight = getattr(linear, "weight", None)
    plain = isinstance(weight, Tensor) and type(weight) in (Tensor, nn.Parameter) and weight.dtype.is_floating_point
    if not plain or type(linear).forward is not nn.Linear.forward or not _wraps_nothing(linear):
        return "own"
    return "stored" if weight.dtype.itemsize == 1 else "float"


def _wraps_nothing(linear: nn.Module) -> bool:
    """Whether the linear's forward is its class's, or that within diffusers' layerwise casting, which only stores the
    weight in another dtype, and nothing else."""
    forward = vars(linear).get("forward")
    hooks = getattr(vars(linear).get("_diffusers_hook"), "hooks", {})
    if forward is None or set(hooks) != {"layerwise_casting"}:
        return forward is None
    outermost = getattr(getattr(forward, "func", None), "__module__", "") == "diffusers.hooks.hooks"
    inner = getattr(hooks["layerwise_casting"].fn_ref.forward, "__func__", None)
    return outermost and inner is nn.Linear.forward
