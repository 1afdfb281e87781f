"""Block offload on the CPU: the same slots, hooks and order as on CUDA, with plain copies."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_experts import random_bank

from fantasy_core import offload
from fantasy_core.errors import UserError
from fantasy_core.fusion import attach
from fantasy_core.wan import PRESETS, WanDiT


def random_dit(num_layers: int) -> WanDiT:
    dit = WanDiT(replace(PRESETS["tiny"], num_layers=num_layers, clip_dim=0, audio_token_dim=0)).eval()
    for parameter in dit.parameters():
        parameter.data = torch.randn_like(parameter) * 0.1
    return dit


def inputs(seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"latents": (1, 16, 2, 4, 4), "timestep": (1,), "text": (1, 3, 16), "condition": (1, 20, 2, 4, 4)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def storages(block: torch.nn.Module) -> set[int]:
    return {parameter.untyped_storage().data_ptr() for parameter in block.parameters()}


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("making", [torch.enable_grad, torch.inference_mode])
def test_bit_identical_and_two_slots(num_layers, mode, making):
    """In every block's forward its own weights lie in one of two slots, where no other block's do, and all but one of
    the other blocks' at home; three passes."""
    with making():
        dit = random_dit(num_layers).bfloat16()
    seen, checked = set(), []

    def look(module, args, out):
        own, slots = storages(module), {slot.untyped_storage().data_ptr() for slot in running.slots}
        assert len(slots) == 2 and len(own) == 1 and own <= slots
        assert not any(storages(block) & own for block in dit.blocks if block is not module)
        assert sum(bool(storages(block) & slots) for block in dit.blocks) <= 2
        assert len(running.resident) == 2
        checked.append(module)
        seen.update(own)

    with mode():
        expected = [dit(**inputs(seed)) for seed in range(3)]
        watching = [block.register_forward_hook(look) for block in dit.blocks]  # runs before offload's own
        with offload.blocks(dit, "cpu") as running:
            results = [dit(**inputs(seed)) for seed in range(3)]
    assert all(map(torch.equal, results, expected))
    assert len(checked) == 3 * num_layers and len(seen) == min(2, num_layers)
    for hook in watching:
        hook.remove()


@torch.no_grad()
def test_each_block_is_copied_once_a_pass():
    """Five blocks, two passes: ten copies, and one for the block that a third pass would begin with."""
    dit = random_dit(5)
    with offload.blocks(dit, "cpu") as running:
        dit(**inputs())
        assert running.copied == 6 and 0 in running.resident
        dit(**inputs())
        assert running.copied == 11


def test_everything_is_restored_also_after_a_failure():
    dit = random_dit(3)
    before = {name: tensor.clone() for name, tensor in dit.state_dict().items()}
    with torch.no_grad(), pytest.raises(RuntimeError, match="stop"), offload.blocks(dit, "cpu") as running:
        hook = dit.blocks[1].ffn.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("stop")))
        dit(**inputs())
    hook.remove()
    assert not running.slots
    after = dit.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in dit.blocks)
    dit(**inputs()).sum().backward()  # an ordinary model again
    assert dit.blocks[2].self_attn.q.weight.grad.any()


def test_refuses_what_it_cannot_train_and_blocks_that_are_elsewhere():
    """Gradients of the blocks themselves, and weights that would have to stay for a backward pass (training that works
    is in test_train_memory)."""
    dit = random_dit(2)
    for trained, told in ((True, "that are trained"), (False, "checkpointing none")):
        dit.requires_grad_(trained)
        with pytest.raises(UserError, match=told), offload.blocks(dit, "cpu"):
            dit(**inputs())
    with pytest.raises(UserError, match="blocks on meta"), offload.blocks(dit.to("meta"), "cpu"):
        pass


@pytest.mark.gpu
@torch.inference_mode()
def test_cuda_is_bit_identical_and_small():
    """On a GPU: equal results, and memory for two blocks of weights instead of twelve."""
    wide = replace(PRESETS["tiny"], dim=1024, num_heads=8, ffn_dim=4096, num_layers=12, clip_dim=0, audio_token_dim=0)
    dit = WanDiT(wide).eval()
    given = {name: tensor.cuda() for name, tensor in inputs().items()}
    torch.nn.init.normal_(dit.head.head.weight)
    expected = dit.cuda()(**given)
    dit.cpu()
    size = sum(parameter.nbytes for parameter in dit.blocks[0].parameters())
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with offload.blocks(dit, "cuda"):
        assert all(torch.equal(dit(**given), expected) for _ in range(5))
    assert torch.cuda.max_memory_allocated() < 5 * size


@pytest.mark.gpu
def test_cuda_training_is_bit_identical():
    """On a GPU: the gradient of experts on twelve blocks that come by twice, five times."""
    wide = replace(PRESETS["tiny"], dim=1024, num_heads=8, ffn_dim=4096, num_layers=12, clip_dim=0, audio_token_dim=0)
    dit = WanDiT(wide).eval().requires_grad_(False)
    torch.nn.init.normal_(dit.head.head.weight)
    dit.checkpointing = "attention"
    bank = random_bank(dit, (4,), ("mn",)).cuda().requires_grad_()
    given = {name: tensor.cuda() for name, tensor in inputs().items()}

    def gradients() -> list[torch.Tensor]:
        with attach(dit, bank, lambda t_emb, timestep: torch.ones(1, 12, 1, 1, device="cuda"), "stacked"):
            return list(torch.autograd.grad(dit(**given).square().mean(), list(bank.parameters())))

    dit.cuda()
    expected = gradients()
    dit.cpu()
    with offload.blocks(dit, "cuda"):
        assert all(all(map(torch.equal, gradients(), expected)) for _ in range(5))
