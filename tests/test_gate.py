"""The fusion gate against Eq. 3 written out, its table, and its files."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_dits import TINY, random_dit

from fantasy_core.errors import UserError
from fantasy_core.fusion.hosts import LINEARS
from fantasy_core.gate import Beside, FusionGate, TableGate, coefficient_table, embed_times, step_strengths, weights_at
from fantasy_core.gate_files import base_fingerprint, base_warning, load_gate, save_gate

HASHES = {"mn": "a" * 64, "ls": "b" * 64, "vq": "c" * 64}
KINDS = [
    {"granularity": "block"}, {"granularity": "expert"}, {"granularity": "module", "num_linears": 12},
    {"timestep": False}, {"form": "linear"}, {"form": "linear", "granularity": "expert"},
]  # fmt: skip


def random_gate(dim: int = TINY.dim, blocks: int = TINY.num_layers, **kind) -> FusionGate:
    gate = FusionGate(blocks, dim, 3, names=tuple(HASHES), **kind)
    for parameter in gate.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return gate


def test_weights_are_eq_3_written_out():
    """One expert, block and sample at a time: w_i = exp(z_i) / sum exp(z) + b_i with z = W t_emb."""
    gate, t_emb = random_gate().double(), torch.randn(2, TINY.dim, dtype=torch.float64)
    w = gate(t_emb)
    for sample in range(2):
        for block in range(TINY.num_layers):
            z = [(gate.weight[block, 0, i] * t_emb[sample]).sum() for i in range(3)]
            total = sum(value.exp() for value in z)
            expected = torch.stack([value.exp() / total for value in z]) + gate.bias[block, 0]
            assert torch.allclose(w[sample, block, 0], expected, atol=1e-12)


def test_a_new_gate_averages():
    """softmax(0) + 0 = 1/3 for each of three experts, at every timestep and in every block."""
    w = FusionGate(4, 8, 3)(torch.randn(5, 8), torch.rand(5))
    assert w.shape == (5, 4, 1, 3) and torch.allclose(w, torch.full_like(w, 1 / 3))


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_of_every_kind(kind):
    gate = random_gate(**kind)
    w = gate(torch.randn(2, TINY.dim), torch.tensor([0.0, 900.0]))
    assert w.shape == (2, TINY.num_layers, kind.get("num_linears", 1), 3) and w.dtype == torch.float32
    same_blocks = torch.equal(w, w[:, :1].expand_as(w))
    assert same_blocks == (kind.get("granularity") == "expert")
    same_times = torch.equal(w[0], w[1])
    assert same_times == (kind.get("timestep") is False)


def test_linear_form_by_hand():
    """w = b + slope (2 sigma - 1): at timestep 1000 b + slope, at 500 b, at 0 b - slope."""
    gate = random_gate(form="linear")
    w = gate(None, torch.tensor([1000.0, 500.0, 0.0]))
    b, slope = gate.bias, gate.slope
    assert torch.allclose(w, torch.stack([b + slope, b, b - slope]), atol=1e-6)


def test_gate_is_fp32_under_autocast():
    gate, t_emb = random_gate(), torch.randn(1, TINY.dim)
    with torch.autocast("cpu", torch.bfloat16):
        w = gate(t_emb)
    assert w.dtype == torch.float32 and torch.equal(w, gate(t_emb))


def test_impossible_gates_are_refused():
    for kind in ({"granularity": "row"}, {"form": "cubic"}, {"num_linears": 12}):
        with pytest.raises(UserError, match="no such gate"):
            FusionGate(2, 8, 3, **kind)


# ---- tables ----


def test_table_interpolates_within_its_bound():
    """Linear interpolation between neighbours errs by at most max|w''| / 8 (the interval is 1). The second derivative
    is taken from differences over an interval, which fp32 resolves to 1e-6 or so; it may be larger between: 10 %."""
    dit = random_dit(TINY)
    gate = random_gate()
    table = TableGate(coefficient_table(gate, dit.time_embedding), gate.names)
    fine = torch.arange(0, 4001, dtype=torch.float64) / 4
    exact = weights_at(gate, fine, dit.time_embedding).double()
    curvature = (exact[8:] - 2 * exact[4:-4] + exact[:-8]).abs().max()
    error = (table(None, fine.float()) - exact).abs().max()
    assert 0 < error < 1.1 * curvature / 8 + 1e-6


def test_table_holds_beyond_its_ends_and_hits_its_knots():
    table = TableGate(torch.arange(6.0).view(3, 1, 1, 2), ("a", "b"), torch.tensor([100.0, 400.0, 500.0]))
    w = table(None, torch.tensor([0.0, 100.0, 250.0, 400.0, 475.0, 1000.0]))[:, 0, 0]
    expected = [[0, 1], [0, 1], [1, 2], [2, 3], [3.5, 4.5], [4, 5]]
    assert torch.allclose(w, torch.tensor(expected))


def test_embedded_times_are_the_models():
    dit, timesteps = random_dit(TINY), torch.tensor([999.5, 3.25])
    assert torch.equal(embed_times(dit.time_embedding, timesteps), dit.embed_time(timesteps)[0])


def test_fixed_loras_beside_a_gate():
    gate = random_gate()
    both = Beside(gate, {"turbo": 0.8, "style": -1.0}, TINY.num_layers)
    t_emb, timestep = torch.randn(2, TINY.dim), torch.zeros(2)
    w = both(t_emb, timestep)
    assert both.names == ("mn", "ls", "vq", "turbo", "style")
    assert torch.equal(w[..., :3], gate(t_emb)) and torch.allclose(w[..., 3:], torch.tensor([0.8, -1.0]))
    alone = Beside(None, {"turbo": 0.5}, 4)
    assert alone(None, timestep).shape == (2, 4, 1, 1)


def test_strengths_by_step_only_where_blocks_agree():
    timesteps = torch.tensor([1000.0, 400.0])
    uniform = weights_at(random_gate(form="linear", granularity="expert"), timesteps)
    assert torch.equal(step_strengths(uniform), uniform[:, 0, 0])
    with pytest.raises(UserError, match="one strength a step"):
        step_strengths(weights_at(random_gate(form="linear"), timesteps))


# ---- files ----


@pytest.mark.parametrize("kind", KINDS)
def test_files_come_back_exactly(tmp_path, kind):
    dit, gate = random_dit(TINY), random_gate(**kind)
    save_gate(tmp_path / "g.safetensors", gate, hashes=HASHES, host=dit)
    again = load_gate(tmp_path / "g.safetensors", hashes=HASHES, host=dit)
    for (name, ours), (same, theirs) in zip(gate.named_parameters(), again.named_parameters(), strict=True):
        assert name == same and torch.equal(ours, theirs)
    timesteps = torch.tensor([1000.0, 123.4])
    read, written = (weights_at(g, timesteps, dit.time_embedding) for g in (again, gate))
    assert torch.equal(read, written)
    assert again.names == tuple(HASHES) and base_warning(again, dit) is None


def test_names_and_metadata_of_the_contract(tmp_path):
    dit = random_dit(TINY)
    save_gate(tmp_path / "g.safetensors", random_gate(), hashes=HASHES, host=dit)
    tensors = load_file(tmp_path / "g.safetensors")
    expected = {f"blocks.{n}.gate.{kind}" for n in range(TINY.num_layers) for kind in ("weight", "bias")} | {"table"}
    assert tensors.keys() == expected and tensors["table"].shape == (1001, TINY.num_layers, 1, 3)
    assert tensors["blocks.1.gate.weight"].shape == (3, TINY.dim) and tensors["blocks.1.gate.bias"].shape == (3,)
    with safe_open(tmp_path / "g.safetensors", "pt") as file:
        metadata = file.metadata()
    assert (metadata["gate.form"], metadata["gate.granularity"], metadata["gate.timestep"]) == (
        "softmax", "block", "true")  # fmt: skip
    assert json.loads(metadata["gate.experts"]) == [[name, digest] for name, digest in HASHES.items()]
    assert metadata["gate.base"] == base_fingerprint(dit)
    save_gate(tmp_path / "m.safetensors", random_gate(granularity="module", num_linears=12), hashes=HASHES, host=dit)
    names = load_file(tmp_path / "m.safetensors").keys()
    assert {f"blocks.0.{linear}.gate.weight" for linear in LINEARS} <= names
    save_gate(tmp_path / "e.safetensors", random_gate(granularity="expert", timestep=False), hashes=HASHES)
    assert load_file(tmp_path / "e.safetensors").keys() == {"gate.logits", "gate.bias", "table"}


def test_experts_are_told_by_their_tensors(tmp_path):
    """Given in another order and under other names, every expert keeps its own weights."""
    dit, gate = random_dit(TINY), random_gate()
    save_gate(tmp_path / "g.safetensors", gate, hashes=HASHES, host=dit)
    mine = {"voice": HASHES["ls"], "picture": HASHES["vq"], "head": HASHES["mn"]}
    again = load_gate(tmp_path / "g.safetensors", hashes=mine, host=dit)
    t_emb = torch.randn(1, TINY.dim)
    assert again.names == ("voice", "picture", "head")
    assert torch.allclose(again(t_emb), gate(t_emb)[..., [1, 2, 0]])


def test_a_gate_for_other_experts_is_refused_by_name(tmp_path):
    save_gate(tmp_path / "g.safetensors", random_gate(form="linear"), hashes=HASHES)
    with pytest.raises(UserError) as error:
        load_gate(tmp_path / "g.safetensors", hashes={**HASHES, "ls": "d" * 64})
    assert "not the gate's: ls (dddddddd)" in error.value.got and "missing: ls (bbbbbbbb)" in error.value.got


def test_a_gate_for_another_base(tmp_path):
    """Another width or depth is refused; another time embedding only told, since quantised bases differ harmlessly."""
    dit, other = random_dit(TINY), random_dit(TINY, seed=1)
    path = tmp_path / "g.safetensors"
    save_gate(path, random_gate(), hashes=HASHES, host=dit)
    assert "another time embedding" in base_warning(load_gate(path, hashes=HASHES, host=other), other)
    save_gate(path, random_gate(blocks=5, form="linear"), hashes=HASHES)
    with pytest.raises(UserError, match="another base model"):
        load_gate(path, hashes=HASHES, host=dit)
    wide = random_dit(replace(TINY, dim=108))
    save_gate(path, random_gate(dim=108), hashes=HASHES, host=wide)
    with pytest.raises(UserError, match="another base model"):
        load_gate(path, hashes=HASHES, host=dit)


DAMAGED = {
    "experts": "[3]",
    "experts ": "[]",
    "blocks": "-1",
    "blocks ": "1000000000",
    "dim": "-5",
    "linears": "banana",
}


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape", "nan", *DAMAGED, "lora"])
def test_damaged_files_are_refused(tmp_path, fault):
    path = tmp_path / "g.safetensors"
    save_gate(path, random_gate(), hashes=HASHES, host=random_dit(TINY))
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    if fault == "missing":
        del tensors["blocks.1.gate.bias"]
    elif fault == "unexpected":
        tensors["blocks.7.gate.bias"] = torch.zeros(3)
    elif fault == "shape":
        tensors["table"] = tensors["table"][:, :1].contiguous()
    elif fault == "nan":
        tensors["blocks.0.gate.weight"][0, 0] = float("nan")
    elif fault in DAMAGED:
        metadata[f"gate.{fault.strip()}"] = DAMAGED[fault]
    else:
        tensors, metadata = {"blocks.0.self_attn.q.lora_A.weight": torch.zeros(2, 3)}, {}
    save_file(tensors, path, metadata)
    with pytest.raises(UserError) as error:
        load_gate(path, hashes=HASHES)
    assert error.value.do and error.value.expected
