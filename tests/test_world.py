"""What the processes of a training tell one another, and the base in parts, on two processes without a training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_dits import TINY, audio_tokens, inputs, random_dit
from small_experts import random_bank
from torch.distributed.tensor import DTensor
from two_processes import together

from fantasy_core.fusion import attach
from train import distributed
from train.distributed import World, buckets, join, shard_blocks

CONFIGS = Path(distributed.__file__).parent / "accelerate"
CPU = torch.device("cpu")


def sums() -> None:
    """Gradients r + 1 of process r sum to 3; what one process alone has counts, what none has stays without. Means are
    over the lines of both; places 0, 2, 2 | 1, 3, 2 of five are joined in order; other facts are noticed."""
    world = join("cpu")
    world.meet()
    numbers = [torch.zeros(3), torch.zeros(2, 2), torch.zeros(1), torch.zeros(5)]
    numbers[0].grad, numbers[1].grad = torch.full((3,), world.rank + 1.0), torch.full((2, 2), world.rank + 1.0)
    numbers[2].grad = torch.ones(1) if world.rank else None
    world.sum_gradients(numbers)
    assert [None if n.grad is None else n.grad.flatten().tolist() for n in numbers] == [
        [3.0] * 3,
        [3.0] * 4,
        [1.0],
        None,
    ]
    assert world.mean([{"loss": 1.0 + world.rank}, {"loss": 4.0}], 4) == {"loss": (1 + 4 + 2 + 4) / 4}
    rows = torch.tensor(world.places(5))[:, None] * torch.tensor([1, 10])
    assert world.gather(rows, 5).tolist() == [[n, 10 * n] for n in range(5)]
    assert world.passes(world.rank) == world.rank and World(CPU, world.rank, 2, sharded=True).passes(world.rank) == 1
    world.agree("the same")
    with pytest.raises(Exception, match="do not agree\n.*process 0: run, 0; process 1: run, 1"):
        world.agree("run", world.rank)
    world.leave()


def test_sums_and_means_of_two(tmp_path):
    together(tmp_path, sums)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_unit_has_one_process(size):
    """Shares are disjoint and cover the iterations; places cover what is looked at, as many on each process."""
    worlds = [World(CPU, rank, size) for rank in range(size)]
    units = [index for iteration in range(3) for world in worlds for index in world.share(iteration, 8)]
    assert units == list(range(24))
    for count in range(1, 9):
        places = [world.places(count) for world in worlds]
        assert len({len(own) for own in places}) == 1 and {n for own in places for n in own} == set(range(count))


def test_buckets_keep_the_order():
    """Of at most five numbers: 2 + 3, 4, 7 by itself, 1."""
    tensors = [torch.zeros(n) for n in (2, 3, 4, 7, 1)]
    assert [[len(t) for t in group] for group in buckets(tensors, 5)] == [[2, 3], [4], [7], [1]]
    assert list(buckets([])) == []


def test_passes_that_are_left_out_cannot_be_sharded():
    with pytest.raises(Exception, match="--form prepass"):
        World(CPU, 0, 2, sharded=True).check(2, "prepass")


# ---- the base in parts ----


def sharded_dit() -> None:
    """A DiT in parts equals the whole one bit for bit: errors, and gradients of the experts that hang on it."""
    world, found = join("cpu", "blocks"), []
    world.meet()
    for sharded in (False, True):
        dit = random_dit(TINY).requires_grad_(False)
        dit.checkpointing, bank = "blocks" if sharded else "none", random_bank(dit).requires_grad_()
        if sharded:
            whole = sum(parameter.nbytes for parameter in dit.blocks.parameters())
            shard_blocks(dit, world)
            parameters = list(dit.blocks.parameters())
            assert all(isinstance(parameter, DTensor) for parameter in parameters)
            kept = sum(parameter.to_local().untyped_storage().nbytes() for parameter in parameters)
            assert 0.5 <= kept / whole < 0.51, "modulations [1, 6, D] cannot be halved"
            assert not isinstance(dit.time_embedding[0].weight, DTensor)
        weights = torch.rand(1, TINY.num_layers, 1, 3, generator=torch.Generator().manual_seed(1))
        torch.manual_seed(world.rank)  # each process has an input of its own
        given = inputs(TINY, 1) | {"audio": audio_tokens(TINY, 1)}
        with attach(dit, bank, lambda t_emb, timestep, w=weights: w, "stacked") as attached:
            with torch.no_grad():
                plain = dit(**given)
            error = dit(**given).square().mean()
            found.append([plain, error, *torch.autograd.grad(error, list(bank.parameters()))])
            assert {choice.strategy for choice in attached.chosen.values()} == {"stacked"}
        assert not sharded or all(isinstance(parameter, DTensor) for parameter in parameters)
    assert len(found[0]) == 2 + 2 * 12 * TINY.num_layers
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    world.leave()


def test_each_process_holds_half_of_the_blocks(tmp_path):
    together(tmp_path, sharded_dit)


# ---- accelerate ----


@pytest.mark.parametrize(
    ("name", "kind", "processes"), [("one_gpu", "NO", 1), ("ddp", "MULTI_GPU", 2), ("fsdp2", "MULTI_GPU", 2)]
)
def test_accelerate_reads_the_configurations(name, kind, processes):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert (config.distributed_type.value, config.num_processes, config.mixed_precision) == (kind, processes, "no")
    assert not config.fsdp_config and not config.deepspeed_config  # plug-ins that would do nothing
