"""Several processes that train one model: who this one is, what they add up, and the base's blocks spread over them.

`accelerate launch` or `torchrun` start one process for each device; accelerate joins them (NCCL on GPUs, gloo on CPUs).
Without a launcher there is one, and nothing here does anything. Data parallel: every process takes its share of an
iteration's units, with the draws that one process would give them, and the gradients are summed once an iteration.

The trained parameters are whole on every process: one all-reduce an iteration does, every process takes the same step,
and a checkpoint is one file for any number of processes. That costs 16 bytes a number (an expert of rank 128 on the 14B
has 0.8 billion, a gate next to none); sharded, they would have to be gathered in every pass as well. What does not fit
is the frozen base: `shard_blocks` leaves each process its part of every block (FSDP2), and a block is gathered when a
pass comes by it. accelerate's own plug-ins are not used: they want to prepare model and optimizer, and on CPUs its FSDP
silently is DDP.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from fantasy_core.components import check_device
from fantasy_core.errors import UserError
from fantasy_core.wan import WanDiT

SHARDS = ("none", "blocks")
PLUGINS = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")
BUCKET = 2**26  # numbers of a gradient that are summed at once: 256 MB


@dataclass(frozen=True)
class World:
    """The processes that train together, as one of them sees it.

    sharded: the base's blocks are gathered in every pass, so that no process may make a pass without the others.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    sharded: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this process writes and tells: log, checkpoints, result, progress."""
        return self.rank == 0

    def share(self, iteration: int, batch: int) -> range:
        """Which units of the endless stream this process takes in an iteration of `batch` units."""
        own = batch // self.size
        first = iteration * batch + self.rank * own
        return range(first, first + own)

    def check(self, batch: int, form: str) -> None:
        """Raise UserError for settings that so many processes cannot run."""
        if batch % self.size:
            raise UserError(
                "the batch cannot be split over the processes",
                got=f"batch {batch}, {self.size} processes",
                expected="as many units for each process",
                do=f"give --batch {max(self.size, batch // self.size * self.size)}, or launch fewer processes",
            )
        if self.sharded and (self.size == 1 or form == "prepass"):
            raise UserError(
                "blocks cannot be sharded here",
                got="one process" if self.size == 1 else "--form prepass, which leaves out passes that do not count",
                expected="several processes, which make every pass together",
                do="start them with accelerate launch or torchrun and give --form buffers, or leave --shard none",
            )

    def agree(self, *facts: object) -> None:
        """Raise UserError unless all processes come with the same facts."""
        if self.size == 1:
            return
        told: list = [None] * self.size
        dist.all_gather_object(told, facts)
        if told.count(facts) < self.size:
            raise UserError(
                "the processes of this training do not agree",
                got="; ".join(f"process {rank}: {', '.join(map(str, one))}" for rank, one in enumerate(told)),
                expected="the same run and the same checkpoint on all of them",
                do="give all machines the same command, files and --out on a file system that all of them see",
            )

    def passes(self, videos: int) -> int:
        """How many passes a unit of so many videos takes here: where blocks are sharded, the most of any process."""
        if not self.sharded:
            return videos
        most = torch.tensor(videos, device=self.device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most)

    def mean(self, lines: Sequence[dict[str, float]], count: int) -> dict[str, float]:
        """The mean over `count` lines of all processes, key by key; every process has as many of them."""
        sums = [sum(line[key] for line in lines) for key in lines[0]]
        if self.size > 1:
            together = torch.tensor(sums, dtype=torch.float64, device=self.device)
            dist.all_reduce(together)
            sums = together.tolist()
        return {key: total / count for key, total in zip(lines[0], sums, strict=True)}

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Let `.grad` be the sum over the processes; what no process has a gradient of keeps none."""
        if self.size == 1:
            return
        present = torch.tensor([parameter.grad is not None for parameter in parameters], device=self.device).int()
        dist.all_reduce(present, dist.ReduceOp.MAX)
        found = [parameter for parameter, there in zip(parameters, present.tolist(), strict=True) if there]
        for parameter in found:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in buckets([parameter.grad for parameter in found]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def places(self, count: int) -> list[int]:
        """Which of `count` things this process takes; as many on each, so the last may be taken more than once."""
        return [min(place, count - 1) for place in range(self.rank, -(-count // self.size) * self.size, self.size)]

    def gather(self, rows: Tensor, count: int) -> Tensor:
        """What all processes made of their `places`, rows [n, ...], in order and once: [count, ...]."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.stack(parts, 1).flatten(0, 1)[:count]

    @contextmanager
    def together(self) -> Iterator[None]:
        """A process that is gone becomes a UserError of those that wait for it."""
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and "gloo/transport" not in str(error):
                raise
            raise UserError(
                "another process of this training is gone",
                got=str(error).splitlines()[0],
                expected=f"{self.size} processes until the end",
                do="see what the others said; the same command goes on from the last checkpoint",
            ) from error

    def meet(self) -> None:
        """Wait for the other processes; from here on they can sum."""
        if self.size > 1:
            from accelerate import PartialState

            with self.together():
                PartialState(cpu=self.device.type == "cpu")

    def leave(self) -> None:
        """The work is done on all processes: none ends well where another could not write the result."""
        if self.size > 1:
            with self.together():
                dist.barrier()
            dist.destroy_process_group()


def join(device: str, shard: str = "none") -> World:
    """The world that a launcher told of, on `cpu` or each process on a GPU of its own, cuda:LOCAL_RANK. Nobody is
    waited for: a dry run finds on every process what does not fit. What all would print, the first prints. Raises
    UserError for a device that is not there, and for accelerate's plug-ins."""
    rank, local, size = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    sharded = shard == "blocks"
    if size <= 1:
        return World(check_device(device), sharded=sharded)
    _check_launch(device)
    if rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    return World(check_device(device if device == "cpu" else f"{device}:{local}"), rank, size, sharded)


def _check_launch(device: str) -> None:
    plugins = [name for name in PLUGINS if os.environ.get(name, "false").lower() == "true"]
    if plugins:
        raise UserError(
            "a plug-in of accelerate was asked for that does nothing here",
            got=", ".join(plugins),
            expected="a launch as in train/accelerate/ddp.yaml or fsdp2.yaml",
            do="launch with one of these; --shard blocks shards the base",
        )
    if ":" in device:
        raise UserError(
            "several processes cannot share one device",
            got=f"--device {device}",
            expected="cpu, or cuda: each process takes a GPU of its own",
            do=f"give --device {device.partition(':')[0]}",
        )


def buckets(tensors: Sequence[Tensor], most: int = BUCKET) -> Iterator[list[Tensor]]:
    """The tensors in order, in groups of at most `most` numbers; a larger one is a group by itself."""
    group: list[Tensor] = []
    for tensor in tensors:
        if group and sum(map(Tensor.numel, group)) + tensor.numel() > most:
            yield group
            group = []
        group.append(tensor)
    if group:
        yield group


def shard_blocks(dit: WanDiT, world: World) -> None:
    """Leave this process its part of every block of a frozen DiT, brought over block by block where it is still on the
    CPU. The rest of it goes to the device whole (0.9 GB of the 14B): the gate reads its time embedding."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    for name, child in dit.named_children():
        if name != "blocks":
            child.to(world.device)
    for block in dit.blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    whole = {parameter for name, parameter in dit.named_parameters() if not name.startswith("blocks.")}
    fully_shard(dit, mesh=mesh, ignored_params=whole)  # nothing more is sharded, but blocks are fetched ahead
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)  # never written to
