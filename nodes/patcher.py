"""Puts layers of our own around the modules of ComfyUI's native model, for as long as a MODEL with them is loaded.

A layer is a function (call, x, ...) -> y, where `call` is what the module would have done. All layers of a module hang
in one chain, which stands for the module's `forward`: ComfyUI takes injections off in the order they were put on, so
whoever saves and restores `forward` by himself leaves somebody else's stale one behind. A plain attribute, because
torch.compile guards it, while it ignores hooks that were added after the first compilation.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from comfy.patcher_extension import PatcherInjection
from torch import Tensor, nn

from ..fantasy_core.errors import UserError
from ..fantasy_core.fusion import Host, host_of

Layer = Callable[..., Tensor]
_numbers = itertools.count()


class ForwardChain:
    """Stands for a module's `forward`: its layers around what was there before, low priority innermost."""

    def __init__(self, module: nn.Module):
        self.inner = module.forward  # the class's, or an override of somebody else
        self.layers: dict[str, tuple[int, Layer]] = {}

    def __call__(self, *args, **kwargs) -> Tensor:
        call = self.inner
        for _, layer in self.layers.values():
            call = _bound(layer, call)
        return call(*args, **kwargs)


def _bound(layer: Layer, call: Callable) -> Callable:
    return lambda *args, **kwargs: layer(call, *args, **kwargs)


def add_layer(module: nn.Module, key: str, layer: Layer, priority: int = 0) -> ForwardChain:
    """Hang `layer` on the module under a key of its own."""
    chain = vars(module).get("forward")
    if not isinstance(chain, ForwardChain):
        chain = module.forward = ForwardChain(module)
    layers = {**chain.layers, key: (priority, layer)}
    chain.layers = dict(sorted(layers.items(), key=lambda item: item[1][0]))
    return chain


def drop_layer(module: nn.Module, key: str, chain: ForwardChain) -> None:
    """Take a layer off, in any order: an empty chain lets everything pass, and goes when it is the outermost."""
    chain.layers = {name: layer for name, layer in chain.layers.items() if name != key}
    if not chain.layers and vars(module).get("forward") is chain:
        del module.forward
        if getattr(chain.inner, "__func__", None) is not type(module).forward:
            module.forward = chain.inner  # the override that was there before us


class Injector:
    """Hangs layers on every model instance that comes by, once, and takes them off again.

    layers(patcher) yields (module, layer). The clone of a MODEL that is garbage collected ejects what it believes to
    have injected; only the one that did is heard.
    """

    def __init__(
        self,
        layers: Callable[[Any], Iterable[tuple[nn.Module, Layer]]],
        priority: int = 0,
        forget: Callable[[Any], None] | None = None,
    ):
        self.key = f"fantasytalking2.{next(_numbers)}"
        self.layers, self.priority, self.forget = layers, priority, forget
        self.live: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # model -> (who injected, what)

    def inject(self, patcher) -> None:
        if patcher.model not in self.live:
            hung = []
            for n, (module, layer) in enumerate(self.layers(patcher)):  # a module may get several: later ones outside
                key = f"{self.key}.{n}"
                hung.append((module, key, add_layer(module, key, layer, self.priority)))
            self.live[patcher.model] = (weakref.ref(patcher), hung)

    def eject(self, patcher) -> None:
        owner, hung = self.live.get(patcher.model, (None, []))
        if owner is None or owner() not in (patcher, None):
            return
        del self.live[patcher.model]
        for module, key, chain in hung:
            drop_layer(module, key, chain)
        if self.forget is not None:
            self.forget(patcher)

    @property
    def injections(self) -> list[PatcherInjection]:
        return [PatcherInjection(self.inject, self.eject)]


def native_host(model) -> Host:
    """The Wan transformer in a MODEL as experts see it. Raises UserError for another kind of model."""
    transformer = model.get_model_object("diffusion_model")
    try:
        return host_of(transformer)
    except UserError as error:
        raise UserError(
            "this MODEL is no Wan video model",
            got=type(transformer).__name__,
            expected="a model that ComfyUI loads as Wan: Wan2.1, Wan2.2 or the miniature",
            do="connect Load Diffusion Model with a Wan file",
        ) from error


def managed(module: nn.Module):
    """A patcher for weights of ours beside those of a MODEL, moved and offloaded by ComfyUI's memory manager."""
    comfy.model_management.archive_model_dtypes(module)
    return comfy.model_patcher.CoreModelPatcher(
        module.requires_grad_(False).eval(),
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def kept_linear(weight: Tensor) -> nn.Module:
    """A linear of ComfyUI's that holds this weight and casts it at every call."""
    sizes = {"bias": False, "device": "meta", "dtype": weight.dtype}
    linear = comfy.ops.manual_cast.Linear(weight.shape[1], weight.shape[0], **sizes)
    linear.load_state_dict({"weight": weight.detach()}, assign=True)
    return linear


@contextmanager
def lent(module: nn.Module, dtype: torch.dtype, device: torch.device) -> Iterator[Tensor]:
    """The weight of a module of ComfyUI's, on a device and in a dtype, wherever the memory manager keeps it.

    Never one within another: casts take turns in two buffers, and a third would overwrite the first.
    """
    weight, bias, stream = comfy.ops.cast_bias_weight(
        module, dtype=dtype, device=device, bias_dtype=dtype, offloadable=True
    )
    try:
        yield weight
    finally:
        comfy.ops.uncast_bias_weight(module, weight, bias, stream)
