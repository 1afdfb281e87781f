"""Run a WanDiT whose blocks do not fit on the device: they wait in host memory and pass through two slots there.

While block n computes in one slot, the next one is copied into the other, which waits until the block before has
finished. On CUDA the host side is page-locked and the copies have a stream of their own, so that they hide behind the
computation; elsewhere they are plain copies. Weights arrive as they are: results are bit-identical.

In training the blocks are frozen and computed again in the backward pass (`WanDiT.checkpointing`), for which they
come by once more, from last to first. All that autograd keeps of a weight is then made in that second visit and used
up before the next block's begins: autograd runs what was recorded last first, and a block is not computed again before
the gradient of its output is there. Nothing is ever copied back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .errors import UserError
from .wan import WanDiT

ALIGN = 256  # bytes: every tensor begins where CUDA kernels like it
PAGE = 4096  # bytes: blocks share no page, which cannot be locked twice


class Packed:
    """The parameters of one block side by side in one buffer of bytes, so that a block is one copy.

    `places` are the parameters' shapes and types over the buffer at home and over each of the two slots.
    """

    def __init__(self, block: nn.Module):
        _make_ordinary(block)
        self.parameters = list(block.parameters())
        self.offsets, self.size = [], 0
        for parameter in self.parameters:
            self.offsets.append(self.size)
            self.size += -(-parameter.nbytes // ALIGN) * ALIGN
        self.size = -(-self.size // PAGE) * PAGE
        room = torch.empty(self.size + PAGE, dtype=torch.uint8)
        self.home = room[-room.data_ptr() % PAGE :][: self.size]
        self.places = [self.views(self.home)]
        for parameter, view in zip(self.parameters, self.places[0], strict=True):
            view.copy_(parameter.data)
        self.move(0)

    def views(self, buffer: Tensor) -> list[Tensor]:
        return [
            buffer[offset : offset + parameter.nbytes].view(parameter.dtype).view(parameter.shape)
            for parameter, offset in zip(self.parameters, self.offsets, strict=True)
        ]

    def move(self, place: int) -> None:
        """Let the parameters be those at home (0) or in slot `place` - 1."""
        for parameter, view in zip(self.parameters, self.places[place], strict=True):
            parameter.data = view


class BlockOffload:
    """Passes the blocks through two slots on the device, so at most two are there.

    A block's parameters are those in its slot from its forward on until another is sent for into that slot: a backward
    pass may hold the parameters themselves.
    `resident` tells which block each slot holds, `copied` how many blocks were copied to the device so far.
    """

    def __init__(self, dit: WanDiT, device: torch.device):
        self.dit, self.packed = dit, [Packed(block) for block in dit.blocks]
        size = max(packed.size for packed in self.packed)
        self.slots = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)]
        for packed in self.packed:
            packed.places += [packed.views(slot) for slot in self.slots]
        self.resident: list[int | None] = [None, None]
        self.active = 1  # the slot that computes
        self.last = 0  # the block that was entered last
        self.copied = 0
        self.cuda = device.type == "cuda"
        if self.cuda:
            self.stream = torch.cuda.Stream(device)
            self.stream.wait_stream(torch.cuda.current_stream(device))  # the slots' memory may still be read there
            self.arrived = [torch.cuda.Event() for _ in self.slots]
        self.locked: list[Tensor] = []
        for packed in self.packed if self.cuda else ():
            _page_lock(packed.home)
            self.locked.append(packed.home)

    def fetch(self, index: int) -> int:
        """Begin to copy a block into the slot that does not compute, unless it is there. Returns its slot."""
        if index in self.resident:
            return self.resident.index(index)
        slot, home = 1 - self.active, self.packed[index].home
        if (gone := self.resident[slot]) is not None:
            self.packed[gone].move(0)
        target = self.slots[slot][: len(home)]
        if self.cuda:
            # all that reads this slot has been launched by now: the pass of the block before, or its whole backward
            self.stream.wait_stream(torch.cuda.current_stream(target.device))
            with torch.cuda.stream(self.stream):
                target.copy_(home, non_blocking=True)
            self.arrived[slot].record(self.stream)
        else:
            target.copy_(home)
        self.resident[slot] = index
        self.copied += 1
        return slot

    def enter(self, index: int) -> None:
        """Before a block's forward, in a backward pass too: its weights are those in its slot, and the block that
        comes next is sent for."""
        if torch.is_grad_enabled():
            check_training(self.dit.checkpointing, any(p.requires_grad for p in self.packed[index].parameters))
        self.active = self.fetch(index)
        if self.cuda:
            torch.cuda.current_stream(self.slots[0].device).wait_event(self.arrived[self.active])
        self.packed[index].move(1 + self.active)
        self.fetch(self._next(index) % len(self.packed))
        self.last = index

    def _next(self, index: int) -> int:
        """The block after; where gradients are recorded, the passes turn at the last block and at the first, and a
        block below the one before is on the way back."""
        if not torch.is_grad_enabled() or index == 0:
            return index + 1
        return index - 1 if index < self.last or index == len(self.packed) - 1 else index + 1

    def close(self) -> None:
        """Wait for copies under way, let every weight be the one at home, free the slots."""
        if self.cuda:
            torch.cuda.synchronize(self.slots[0].device)
        for packed in self.packed:
            packed.move(0)
        for home in self.locked:
            torch.cuda.cudart().cudaHostUnregister(home.data_ptr())
        self.packed, self.slots, self.locked = [], [], []


def check_training(checkpointing: str, trained: bool = False) -> None:
    """Raise UserError where a backward pass would not find offloaded weights, or they would be `trained` themselves."""
    if checkpointing == "none" or trained:
        raise UserError(
            "blocks cannot be offloaded in this training",
            got="blocks that are trained themselves" if trained else "checkpointing none: their weights would be kept",
            expected="frozen blocks that are computed again in the backward pass",
            do="run without offload, or under torch.no_grad()"
            if trained
            else "add --checkpointing blocks (or attention)",
        )


def _make_ordinary(module: nn.Module) -> None:
    """Replace parameters that were made in inference mode: their data cannot be exchanged outside of it."""
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if parameter.is_inference():
                owner.register_parameter(name, nn.Parameter(parameter.detach().clone(), requires_grad=False))


def _page_lock(buffer: Tensor) -> None:
    """Lock it where it is: torch's own pinned memory is rounded up to powers of two, 6 GB more for 40 blocks of 14B."""
    if int(torch.cuda.cudart().cudaHostRegister(buffer.data_ptr(), buffer.nbytes, 0)):
        raise UserError(
            "the system refused to page-lock memory for block offload",
            got=f"an error for {buffer.nbytes / 2**20:.0f} MiB more",
            expected="free host memory for all blocks of the model, and no limit on locked memory",
            do="free host memory, raise `ulimit -l`, or run without offload",
        )


@contextmanager
def blocks(dit: WanDiT, device: torch.device | str) -> Iterator[BlockOffload]:
    """Within the context `dit` runs on `device` with at most two of its blocks there; the rest of it moves there whole.

    Afterwards all of it is in host memory. Raises UserError for blocks that do not begin there, and in a forward pass
    that records gradients for blocks that are trained or not checkpointed.
    """
    device = torch.device(device)
    places = sorted({str(parameter.device) for parameter in dit.blocks.parameters()})
    if places != ["cpu"]:
        raise UserError(
            "block offload needs the blocks in host memory",
            got=f"blocks on {', '.join(places)}",
            expected="blocks on cpu",
            do="load the model on the CPU before offloading it",
        )
    with torch.inference_mode(False):  # the weights outlive an inference mode around this context
        offload = BlockOffload(dit, device)
    hooks = []
    for index, block in enumerate(dit.blocks):
        hooks.append(block.register_forward_pre_hook(lambda module, args, index=index: offload.enter(index)))
    try:
        _move_others(dit, device)
        yield offload
    finally:
        for hook in hooks:
            hook.remove()
        offload.close()
        _move_others(dit, torch.device("cpu"))


def _move_others(dit: WanDiT, device: torch.device) -> None:
    with torch.inference_mode(False):
        for name, child in dit.named_children():
            if name != "blocks":
                _make_ordinary(child)
                child.to(device)
