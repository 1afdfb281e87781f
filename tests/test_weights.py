"""Wan2.1 and FantasyTalking in every published layout: the same weights come back, exactly, and mapped, not copied."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from layouts import (
    CONFIG,
    fantasytalking_state,
    tiny_dit,
    write_comfy_dit,
    write_diffusers_dit,
    write_fantasytalking_ckpt,
    write_official_dit,
)
from safetensors.torch import save_file

from fantasy_core.audio import AudioTokens
from fantasy_core.errors import UserError
from fantasy_core.wan import WanDiT
from fantasy_core.weights import (
    dit_config,
    find_wan,
    load_dit,
    load_fantasytalking,
    load_projection,
    open_tensors,
    save_tensors,
)

T2V = replace(CONFIG, in_dim=16, clip_dim=0)


@pytest.fixture(scope="module")
def dit() -> WanDiT:
    return tiny_dit(audio=False)


@pytest.fixture(scope="module")
def talking() -> WanDiT:
    """The same sizes with audio linears."""
    return tiny_dit()


def same(model: torch.nn.Module, expected: dict[str, torch.Tensor]) -> None:
    state = model.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state[name].float(), tensor.float()), name


@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("config", [CONFIG, T2V], ids=["i2v", "t2v"])
def test_official_folder(tmp_path, config, shards):
    """config.json tells the heads (3 of width 32 here: the shapes alone would say one of 96)."""
    dit = tiny_dit(config, audio=False)
    write_official_dit(tmp_path, dit, shards)
    files = find_wan(tmp_path)
    assert files.layout == "official" and files.dit == tmp_path and files.vae is None
    loaded = load_dit(files, dtype=torch.float32)
    assert loaded.config == dit.config == dit_config(files)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    same(loaded, dit.state_dict())


def test_shards_without_an_index(tmp_path, dit):
    write_official_dit(tmp_path, dit, 3)
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").unlink()
    same(load_dit(tmp_path, dtype=torch.float32), dit.state_dict())


@pytest.mark.parametrize("config", [CONFIG, T2V], ids=["i2v", "t2v"])
def test_diffusers_folder(tmp_path, config):
    """Saved by diffusers' own class: names, swapped norms, config.json and shards are really diffusers'."""
    dit = tiny_dit(config, audio=False)
    write_diffusers_dit(tmp_path / "transformer", dit)
    assert len(list((tmp_path / "transformer").glob("*-of-*.safetensors"))) > 1
    files = find_wan(tmp_path)
    assert files.layout == "diffusers"
    loaded = load_dit(files, dtype=torch.float32)
    assert loaded.config == dit.config
    same(loaded, dit.state_dict())
    same(load_dit(tmp_path / "transformer", dtype=torch.float32), dit.state_dict())


@pytest.mark.parametrize("prefix", ["diffusion_model.", "model.diffusion_model.", ""])
@pytest.mark.parametrize("form", ["fp32", "fp16", "bf16", "fp8", "e5m2", "scaled", "comfy_quant", "rows"])
def test_single_file(tmp_path, dit, form, prefix):
    """Every stored form gives back exactly stored value times scale; num_heads comes from ComfyUI's metadata."""
    file = tmp_path / "wan.safetensors"
    truth = write_comfy_dit(file, dit, form, prefix)
    loaded = load_dit(find_wan(file), dtype=torch.float32)
    assert loaded.config == dit.config
    same(loaded, truth)


def test_single_file_without_metadata_needs_the_heads(tmp_path):
    """128 wide heads are assumed; other widths must be told."""
    dit = tiny_dit(replace(CONFIG, dim=128, num_heads=4), audio=False)
    save_file(dit.state_dict(), tmp_path / "wan.safetensors")
    assert load_dit(tmp_path / "wan.safetensors").config.num_heads == 1
    assert load_dit(tmp_path / "wan.safetensors", num_heads=4).config == dit.config


def test_one_shard_stands_for_its_folder(tmp_path, dit):
    write_official_dit(tmp_path, dit, 2)
    assert find_wan(tmp_path / "diffusion_pytorch_model-00002-of-00002.safetensors") == find_wan(tmp_path)


def test_a_foreign_config_beside_a_file_is_not_read(tmp_path):
    dit = tiny_dit(replace(CONFIG, dim=128, num_heads=1), audio=False)
    save_file(dit.state_dict(), tmp_path / "wan.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps({"_class_name": "FluxTransformer2DModel", "num_attention_heads": 8})
    )
    assert load_dit(tmp_path / "wan.safetensors").config.num_heads == 1


def test_types_are_those_of_a_cast_model(tmp_path, dit):
    """bf16, but time path, norms, modulation and head in fp32: what `WanDiT.to(bfloat16)` gives."""
    write_official_dit(tmp_path, dit, 2)
    loaded = load_dit(tmp_path)
    expected = WanDiT(dit.config).to(torch.bfloat16)
    assert {n: p.dtype for n, p in loaded.named_parameters()} == {n: p.dtype for n, p in expected.named_parameters()}
    assert loaded.time_embedding[0].weight.dtype == torch.float32
    assert torch.equal(loaded.time_embedding[0].weight, dit.time_embedding[0].weight)
    assert torch.equal(loaded.blocks[1].ffn[0].weight, dit.blocks[1].ffn[0].weight.bfloat16())


def mapped_ranges(file: Path) -> list[tuple[int, int]]:
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(file))]
    return [tuple(int(end, 16) for end in line[0].split("-")) for line in lines]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="memory maps are listed on Linux only")
@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_unconverted_tensors_stay_in_the_file(tmp_path, dit, kind):
    """No second copy: every parameter's memory lies inside the mapping of its file."""
    file = (tmp_path / f"wan.{kind}").resolve()
    save_file(dit.state_dict(), file) if kind == "safetensors" else torch.save(dit.state_dict(), file)
    loaded = load_dit(file, dtype=torch.float32, num_heads=3)
    ranges = mapped_ranges(file)
    for name, parameter in loaded.named_parameters():
        assert any(low <= parameter.data_ptr() < high for low, high in ranges), name


def test_writing_into_a_loaded_tensor_leaves_the_file_alone(tmp_path, dit):
    file = tmp_path / "wan.safetensors"
    save_file(dit.state_dict(), file)
    before = file.read_bytes()
    load_dit(file, dtype=torch.float32, num_heads=3).blocks[0].self_attn.q.weight.fill_(7)
    assert file.read_bytes() == before


def test_parts_are_found_beside_a_single_file(tmp_path, dit):
    """ComfyUI's folders, whatever the case; of two text encoders the larger, which is the less quantised."""
    models = tmp_path / "models"
    (models / "diffusion_models" / "Wan").mkdir(parents=True)
    file = models / "diffusion_models" / "Wan" / "wan2.1_i2v.safetensors"
    write_comfy_dit(file, dit)
    for name, size in {
        "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors": 10,
        "text_encoders/umt5_xxl_fp16.safetensors": 20,
        "clip_vision/clip_vision_h.safetensors": 5,
        "vae/Wan2_1_VAE_bf16.safetensors": 5,
        "vae/ae.safetensors": 50,
    }.items():
        (models / name).parent.mkdir(exist_ok=True)
        (models / name).write_bytes(b"0" * size)
    files = find_wan(file)
    assert files.text.name == "umt5_xxl_fp16.safetensors"
    assert files.clip.name == "clip_vision_h.safetensors" and files.vae.name == "Wan2_1_VAE_bf16.safetensors"
    assert find_wan(file, text=models / "vae" / "ae.safetensors").text.name == "ae.safetensors"


FLAT = {"official": "official", "bare linears": "official", "without processor": "without processor"}


def write_fantasytalking(folder: Path, dialect: str, talking: WanDiT) -> Path:
    if dialect == "ckpt":
        return write_fantasytalking_ckpt(folder / "fantasytalking_model.ckpt", talking)
    path = folder / "fantasytalking.safetensors"
    save_file(fantasytalking_state(talking, dialect), path)
    return path


@pytest.mark.parametrize("dialect", ["ckpt", *FLAT])
def test_fantasytalking_dialects(tmp_path, talking, dialect):
    """A plain Wan file and a FantasyTalking file of any dialect make the transformer with audio, tensor for tensor."""
    path = write_fantasytalking(tmp_path, dialect, talking)
    plain = {name: tensor for name, tensor in talking.state_dict().items() if ".processor." not in name}
    save_file(plain, tmp_path / "wan.safetensors")
    loaded = load_dit(tmp_path / "wan.safetensors", dtype=torch.float32, num_heads=3)
    projection, report = load_fantasytalking(path, loaded)
    assert (report.dialect, report.tensors) == (FLAT.get(dialect, "official"), 3 + 2 * 2)
    assert loaded.config == replace(talking.config, audio_dim=24)
    same(loaded, talking.state_dict())
    expected = fantasytalking_state(talking, "split")
    same(projection, expected)
    same(load_projection(path), expected)
    inputs = torch.randn(1, 16, 2, 4, 4), torch.tensor([500.0]), torch.randn(1, 3, 16)
    more = {"condition": torch.randn(1, 20, 2, 4, 4), "audio": AudioTokens(torch.randn(1, 2, 5, 48), None)}
    with torch.no_grad():
        got, expected = loaded(*inputs, **more), talking(*inputs, **more)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)  # other alignment, other order of summation


def test_fantasytalking_split_with_a_merged_transformer(tmp_path, talking):
    """The linears come with the transformer's file; the bare projection adds its three tensors."""
    save_file({f"diffusion_model.{n}": t for n, t in talking.state_dict().items()}, tmp_path / "merged.safetensors")
    path = write_fantasytalking(tmp_path, "split", talking)
    loaded = load_dit(tmp_path / "merged.safetensors", dtype=torch.float32, num_heads=3)
    _, report = load_fantasytalking(path, loaded)
    assert (report.dialect, report.tensors) == ("split", 3)
    same(loaded, talking.state_dict())
    assert loaded.config == talking.config


def test_fantasytalking_follows_the_type_of_the_transformer(tmp_path, dit, talking):
    """bf16 linears in a bf16 transformer, the projection in fp32: 1.6 M parameters that every token passes."""
    path = write_fantasytalking(tmp_path, "official", talking)
    write_official_dit(tmp_path, dit, 1)
    loaded = load_dit(tmp_path)
    projection, _ = load_fantasytalking(path, loaded)
    assert {p.dtype for n, p in loaded.named_parameters() if ".processor." in n} == {torch.bfloat16}
    assert {p.dtype for p in projection.parameters()} == {torch.float32}


def spoil(state: dict, how: str) -> dict:
    linear = "audio_processor.blocks.1.cross_attn.processor.v_proj.weight"
    if how == "missing":
        return {name: tensor for name, tensor in state.items() if name != linear}
    if how == "another block":
        return state | {linear.replace("blocks.1", "blocks.2"): state[linear].clone()}
    if how == "shape":
        return state | {linear: torch.zeros(96, 47)}
    if how == "a stranger":
        return state | {"proj_model.proj.bias": torch.zeros(48)}
    return {name: tensor for name, tensor in state.items() if not name.startswith("proj_model.")}


@pytest.mark.parametrize("how", ["missing", "another block", "shape", "a stranger", "no projection"])
def test_fantasytalking_is_strict(tmp_path, talking, dit, how):
    """Exactly 3 + 2 * blocks tensors of the right shapes; otherwise the transformer stays as it was."""
    save_file(spoil(fantasytalking_state(talking), how), tmp_path / "spoilt.safetensors")
    write_official_dit(tmp_path, dit, 1)
    loaded = load_dit(tmp_path, dtype=torch.float32)
    with pytest.raises(UserError):
        load_fantasytalking(tmp_path / "spoilt.safetensors", loaded)
    assert loaded.config == dit.config
    same(loaded, dit.state_dict())


def test_the_projection_alone_is_not_enough(tmp_path, talking, dit):
    path = write_fantasytalking(tmp_path, "split", talking)
    write_official_dit(tmp_path, dit, 1)
    with pytest.raises(UserError, match="projection alone"):
        load_fantasytalking(path, load_dit(tmp_path))


def test_the_same_content_gives_the_same_file(tmp_path):
    """Twenty metadata entries: one order of 20! by chance, so equal bytes mean that they are sorted; and they are read
    back as they were given, quotes and umlauts too."""
    told = {f"key {n}": f'"ä{n}"\n' for n in range(20)}
    for name in ("one", "two"):
        save_tensors(tmp_path / name, {"a": torch.arange(3)}, told)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert dict(open_tensors(tmp_path / "one").metadata) == told
    assert open_tensors(tmp_path / "one").entries["a"].read().tolist() == [0, 1, 2]
