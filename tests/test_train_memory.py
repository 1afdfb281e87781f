"""Training that keeps less: checkpointing, offloaded blocks, what autograd saves of a block."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from eq4 import random_gate
from small_dits import TINY, audio_tokens, inputs, random_dit
from small_experts import random_bank
from test_estimate import LiveBytes
from test_train_preferences import data, expert_arguments, log_of, same_expert  # noqa: F401
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from fantasy_core import offload
from fantasy_core.audio import AudioTokens
from fantasy_core.errors import UserError
from fantasy_core.estimate import pass_flops
from fantasy_core.fusion import AUDIO_LINEARS, LINEARS, Tokens, attach, build_plan
from fantasy_core.wan import WanConfig, rope_angles
from train import expert as expert_stage

FIVE = replace(TINY, num_layers=5)
ATEN = torch.ops.aten
CPU_ATTENTION = {  # which torch does not count by itself
    ATEN._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: lambda *s, **_: sdpa_backward_flop_count(*s[:4]),
}


class Training:
    """A frozen DiT with attached experts; the gate is trained, or one expert on all 14 linears."""

    def __init__(self, trained: str, checkpointing: str, dtype=torch.float32, config: WanConfig = FIVE, size=(3, 4, 6)):
        torch.manual_seed(0)
        self.dit = random_dit(config).requires_grad_(False).to(dtype)
        self.dit.checkpointing = checkpointing
        names = ("mn", "ls", "vq") if trained == "gate" else ("mn",)
        self.bank = random_bank(self.dit, (4,) * len(names), names, linears=LINEARS + AUDIO_LINEARS)
        self.gate = random_gate(self.dit, self.bank, "block").requires_grad_(trained == "gate")
        self.bank.requires_grad_(trained == "expert")
        self.parameters = [p for part in (self.gate, self.bank) for p in part.parameters() if p.requires_grad]
        self.given = inputs(config, 1, size) | {"audio": audio_tokens(config, 1)}

    def attached(self):
        return attach(self.dit, self.bank, self.gate, "stacked")

    def loss(self) -> Tensor:
        return self.dit(**self.given).square().mean()

    def gradients(self, offloaded: bool = False) -> list[Tensor]:
        """Two iterations with a pass without gradients before each, as the reference's."""
        found = []
        with ExitStack() as stack:
            if offloaded:
                stack.enter_context(offload.blocks(self.dit, "cpu"))
            stack.enter_context(self.attached())
            for _ in range(2):
                with torch.no_grad():
                    reference = self.loss()
                loss = self.loss()
                assert torch.equal(reference, loss)
                found += torch.autograd.grad(loss, self.parameters)
        return found


# ---- checkpointing and offload ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trained", ["gate", "expert"])
def test_gradients_are_those_of_everything_kept(trained, dtype):
    """Blocks computed again, with and without their attention, resident or passing through two slots: the same bits."""
    config = replace(TINY, num_layers=3)
    expected = Training(trained, "none", dtype, config).gradients()
    assert all(gradient.any() for gradient in expected)
    for checkpointing in ("blocks", "attention"):
        for offloaded in (False, True):
            found = Training(trained, checkpointing, dtype, config).gradients(offloaded)
            assert all(map(torch.equal, found, expected)), (checkpointing, offloaded)


def counted(training: Training) -> int:
    """FLOPs of forward and backward; everything that is asked for is computed again, to the end of a block."""
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    with training.attached(), set_checkpoint_early_stop(False), counter:
        training.loss().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("trained", ["gate", "expert"])
def test_flops_that_are_done_twice(trained):
    """`blocks` repeats the forward of all blocks: a pass less what lies outside of them (num_layers 0), and for every
    linear the experts' 2 N R (in + out). `attention` repeats all but 4 S^2 D a block, here S = 3 * 4 * 4 tokens."""
    flops = {how: counted(Training(trained, how, size=(3, 8, 8))) for how in ("none", "blocks", "attention")}
    training, grid = Training(trained, "none", size=(3, 8, 8)), (3, 4, 4)
    outside = replace(FIVE, num_layers=0)
    base = pass_flops(FIVE, grid, audio_rows=7).total - pass_flops(outside, grid, audio_rows=7).total
    tokens = Tokens(video=48, text=TINY.text_len, image=257, audio=3 * 7)
    plan = build_plan(training.dit, training.bank, tokens=tokens, strategy="stacked")
    repeated = base + sum(int(linear.flops) for linear in plan.linears.values())
    assert flops["blocks"] - flops["none"] == repeated
    assert flops["attention"] - flops["none"] == repeated - 5 * 4 * 48**2 * TINY.dim


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_bytes_that_are_kept(dtype, size):
    """Alive between forward and backward: `attention` has 5 blocks' results [S, D] and their fp32 log-sums [S, N] more
    than `blocks`."""
    kept = {}
    for how in ("none", "blocks", "attention"):
        training = Training("gate", how, dtype, size=(3, 8, 8))
        with training.attached():
            training.loss()  # the table of rotary angles is made once
            with LiveBytes() as live:
                loss = training.loss()
                kept[how] = live.now
            del loss
    assert kept["attention"] - kept["blocks"] == 5 * 48 * (TINY.dim * size + TINY.num_heads * 4)
    assert kept["none"] > kept["attention"]


def test_another_word_is_refused():
    with pytest.raises(UserError, match="no such checkpointing"):
        Training("gate", "all").loss()


class Reads(TorchDispatchMode):
    """Every operation but the copies reads blocks' weights from the slots alone."""

    def __init__(self, running: offload.BlockOffload):
        super().__init__()
        self.homes = {packed.home.untyped_storage().data_ptr() for packed in running.packed}
        self.slots = {slot.untyped_storage().data_ptr() for slot in running.slots}
        self.read: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        places = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
        if func is not ATEN.copy_.default:
            assert not places & self.homes, func
            self.read |= places & self.slots
        return func(*args, **(kwargs or {}))


def test_two_blocks_are_resident_in_both_passes():
    """Five blocks. Forward: five copies, less those that are there; backward begins with blocks 4 and 3, which are
    there, and fetches 2, 1, 0; the next forward finds 0 and 1. Homes are read by copies alone, and never written."""
    training = Training("expert", "attention")
    with offload.blocks(training.dit, "cpu") as running, training.attached():
        before, copied = [packed.home.clone() for packed in running.packed], []
        with Reads(running) as reads:
            for _ in range(2):
                loss = training.loss()
                copied.append(running.copied)
                loss.backward()
                copied.append(running.copied)
                assert set(running.resident) == {0, 1}
        assert copied == [5, 8, 11, 14] and reads.read == reads.slots and len(reads.slots) == 2
        assert all(torch.equal(packed.home, old) for packed, old in zip(running.packed, before, strict=True))


def test_two_graphs_before_their_backward_passes():
    """A pair at once, whose graphs go back one after the other and together: no block is overwritten while another
    graph's is at work."""
    found = []
    for offloaded in (False, True):
        training = Training("gate", "blocks")
        with ExitStack() as stack:
            if offloaded:
                stack.enter_context(offload.blocks(training.dit, "cpu"))
            stack.enter_context(training.attached())
            later = {**training.given, "timestep": torch.tensor([55.0])}
            parts = [[training.loss(), training.dit(**later).square().mean()] for _ in range(2)]
            orders = [*reversed(parts[0]), sum(parts[1])]
            found.append([gradient for loss in orders for gradient in torch.autograd.grad(loss, training.parameters)])
    assert all(map(torch.equal, *found))


# ---- what autograd saves of a block ----

# A sixteenth of 14B: width 320, ffn 864, ranks 8; tokens of video 1024, text 16, image 8, audio 4 frames of 5 rows
SIXTEENTH = WanConfig(320, 864, 2, 1, 36, 16, 256, 64, 16, (1, 2, 2), 80, 48, 128, 1e-6)
VIDEO, TEXT, IMAGE, AUDIO, D = 1024, 16, 8, 20, 320


def saved(kind: str, dtype: torch.dtype) -> int:
    """Bytes that autograd saves of one block whose input has a gradient, less weights and what comes from outside."""
    training = Training("expert" if kind == "expert" else "gate", "none", dtype, SIXTEENTH, (4, 32, 32))
    names = training.bank.names
    bank = random_bank(training.dit, (8,) * len(names), names, linears=LINEARS + AUDIO_LINEARS)
    bank = bank if kind == "expert" else bank.place("cpu", dtype)
    bank.requires_grad_(kind == "expert")
    dit, given = training.dit, training.given
    with torch.no_grad():
        t_emb, modulation = dit.embed_time(given["timestep"])
        audio = AudioTokens(torch.randn(1, 4, 5, 128), torch.tensor([[3, 5, 5, 5]]))
        context = dit.embed_context(given["text"].to(dtype), given["clip"][:, :IMAGE], audio, 1.0)
        rope = rope_angles((4, 16, 16), SIXTEENTH.head_dim, "cpu")
    x, found = torch.randn(1, VIDEO, D, dtype=dtype, requires_grad=True), {}
    outside = [*dit.parameters(), *bank.parameters(), x, modulation, *rope, *context[:4]]
    known = {tensor.untyped_storage()._cdata for tensor in outside}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            found[storage._cdata] = (storage.nbytes(), tensor)  # the tensor stays, so that no other gets its address
        return tensor

    with ExitStack() as stack:
        if kind != "base":
            strategy = "naive" if kind == "naive" else "stacked"
            stack.enter_context(attach(dit, bank, training.gate, strategy)).weigh(t_emb, given["timestep"])
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            dit.blocks[0](x, modulation, rope, context)
    return sum(size for size, _ in found.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gate_saves_its_ranks_alone(dtype):
    """Beside what a frozen block saves: R = 24 numbers for each token of 14 linears, 8 of them on the video and 2 on
    each of text, image and audio; the fp32 norm's input and root for keys of text and image, which now have gradients;
    14 R coefficients in fp32. No more than a tenth, where Eq. 4 taken literally saves more than once again as much."""
    base, gate = saved("base", dtype), saved("gate", dtype)
    ranks = 24 * dtype.itemsize * (8 * VIDEO + 2 * (TEXT + IMAGE + AUDIO))
    assert gate - base == ranks + (D + 1) * 4 * (TEXT + IMAGE) + 14 * 24 * 4
    assert gate <= 1.1 * base and saved("naive", dtype) > 2 * base


def test_an_expert_saves_what_its_linears_read():
    """A frozen linear does not need its input for its own backward pass, a trained one does: the inputs of q, k, v; of
    cross-attention's q and o; of ffn.0 (D wide) and ffn.2 (864). That of self-attention's o is saved by attention
    already. And R = 8 numbers a token as above, in fp32."""
    ranks = 8 * 4 * (8 * VIDEO + 2 * (TEXT + IMAGE + AUDIO))
    read = VIDEO * (4 * D + 864) * 4
    extra = saved("expert", torch.float32) - saved("base", torch.float32)
    assert extra == ranks + read + (D + 1) * 4 * (TEXT + IMAGE) + 14 * 8 * 4


# ---- through the command ----


def test_a_run_that_keeps_less_is_the_same_run(data, tmp_path):  # noqa: F811
    """bf16: with B = 0 the policy is the reference exactly, margin 0. An iteration with everything kept, then two more
    with attention kept and blocks offloaded, end as three in one go."""
    settings = {"dtype": "bf16", "save-every": 1}
    less = {"checkpointing": "attention", "offload": "blocks"}
    for out, parts in (("one", [(3, {})]), ("two", [(1, {}), (3, less)])):
        for iterations, more in parts:
            told = expert_arguments(data, tmp_path / out, iterations=iterations, **settings, **more)
            assert expert_stage.main(told) == 0
    log = log_of(tmp_path / "one")
    assert log[0]["margin"] == 0 and log[0]["grad_norm"] > 0 and log == log_of(tmp_path / "two")
    same_expert(tmp_path / "two", tmp_path / "one")


def test_a_dry_run_finds_memory_settings_that_cannot_be(data, tmp_path, capsys):  # noqa: F811
    for more, word in (
        ({"offload": "blocks"}, "checkpointing none"),
        ({"optimizer": "adamw8bit"}, "8-bit Adam"),
        ({"checkpointing": "true"}, "none, blocks, attention"),
        ({"dtype": "fp16"}, "bf16, fp32"),
    ):
        assert expert_stage.main([*expert_arguments(data, tmp_path / "run", **more), "--dry-run"]) == 2
        assert word in capsys.readouterr().err and not (tmp_path / "run").exists()
