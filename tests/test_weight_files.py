"""Bad weight files, each answered by a four-part error; nothing is run, nothing half-written. The tensor hash."""

from __future__ import annotations

import json
import os
import pickle
import resource
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layout_names import official_vae_names
from layouts import fantasytalking_state, tiny_dit, write_comfy_dit, write_official_dit, write_shards
from safetensors.torch import load_file, save_file

from fantasy_core.errors import UserError
from fantasy_core.weights import find_wan, load_dit, load_fantasytalking, open_tensors, save_tensors, tensors_hash


@pytest.fixture(scope="module")
def dit():
    return tiny_dit(audio=False)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A safetensors file of two tensors, 200-odd bytes."""
    file = tmp_path_factory.mktemp("small") / "small.safetensors"
    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}, file, {"note": "x"})
    return file


def rejects(call, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in:\n{caught.value}"


class Attack:
    """What a hostile checkpoint does: its pickle calls a function when it is opened."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("name", ["evil.ckpt", "evil.pth", "evil.safetensors", "evil.bin"])
@pytest.mark.parametrize("container", ["zip", "bare"])
def test_hostile_pickles_are_refused_and_not_run(tmp_path, dit, name, container):
    marker, path = tmp_path / "pwned", tmp_path / name
    content = {"proj_model": Attack(marker), "weight": torch.ones(2)}
    torch.save(content, path) if container == "zip" else path.write_bytes(pickle.dumps(content, protocol=2))
    rejects(lambda: open_tensors(path), name)
    rejects(lambda: load_fantasytalking(path, dit), name)
    assert not marker.exists()
    function, arguments = Attack(marker).__reduce__()
    function(*arguments)
    assert marker.exists(), "the attack itself works"


@given(st.data())
def test_truncated_files_are_refused(small, tmp_path_factory, data):
    """Cut anywhere: an error that names the file and its size."""
    content = small.read_bytes()
    keep = data.draw(st.integers(0, len(content) - 1))
    cut = small.with_name("cut.safetensors")
    cut.write_bytes(content[:keep])
    rejects(lambda: open_tensors(cut), "cut.safetensors", f"{keep} bytes")


@given(st.data())
def test_damaged_headers_never_escape(small, data):
    """Any byte of the header changed: the file opens (a letter of a name) or a UserError says why; nothing else."""
    content = bytearray(small.read_bytes())
    header = int.from_bytes(content[:8], "little")
    content[data.draw(st.integers(0, 8 + header - 1))] = data.draw(st.integers(0, 255))
    damaged = small.with_name("damaged.safetensors")
    damaged.write_bytes(content)
    try:
        for lazy in open_tensors(damaged).entries.values():
            assert lazy.read().shape == lazy.shape
    except UserError as error:
        assert "damaged.safetensors" in str(error)


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 not a zip", b"\x80\x02}q\x00."])
def test_other_files_are_no_weights(tmp_path, content):
    (tmp_path / "file.pth").write_bytes(content)
    rejects(lambda: open_tensors(tmp_path / "file.pth"), "file.pth")


def test_truncated_torch_file(tmp_path):
    torch.save({"a": torch.ones(1000)}, tmp_path / "a.pth")
    content = (tmp_path / "a.pth").read_bytes()
    for keep in (40, len(content) // 2, len(content) - 30):
        (tmp_path / "a.pth").write_bytes(content[:keep])
        rejects(lambda: open_tensors(tmp_path / "a.pth"), "a.pth")


def test_torch_files_nested_wrapped_and_old(tmp_path):
    """Dicts in dicts join their names with dots; a lone `state_dict` adds none; the format before zip is read too."""
    tensors = {"x": {"y": torch.ones(2)}, "z": torch.zeros(3)}
    torch.save({"state_dict": tensors}, tmp_path / "new.pth")
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("new.pth", "old.pth"):
        entries = open_tensors(tmp_path / name).entries
        assert {key: lazy.read().sum().item() for key, lazy in entries.items()} == {"x.y": 2, "z": 0}


def test_gguf_lfs_and_missing_files(tmp_path):
    (tmp_path / "wan.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(64))
    rejects(lambda: load_dit(tmp_path / "wan.gguf"), "GGUF", "ComfyUI")
    (tmp_path / "wan.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    rejects(lambda: load_dit(tmp_path / "wan.safetensors"), "git lfs pull")
    rejects(lambda: open_tensors(tmp_path / "nothing.safetensors"), "not found")
    rejects(lambda: find_wan(tmp_path / "nowhere"), "not found")
    rejects(lambda: find_wan(tmp_path / "wan.gguf", vae=tmp_path / "no.pth"), "vae")


def test_shards(tmp_path):
    """A missing shard, absent or unnamed tensors, an index that leaves its folder, an index that is no JSON."""
    state = {name: torch.ones(2) for name in "abcd"}
    write_shards(tmp_path, "model", state, 2)
    index = tmp_path / "model.safetensors.index.json"
    told = json.loads(index.read_text())
    first, second = sorted(set(told["weight_map"].values()))
    assert open_tensors(tmp_path).entries.keys() == state.keys()
    index.write_text(json.dumps({"weight_map": told["weight_map"] | {"ghost": first}}))
    rejects(lambda: open_tensors(tmp_path), "disagree", "ghost")
    index.write_text(json.dumps({"weight_map": {n: f for n, f in told["weight_map"].items() if n != "b"}}))
    rejects(lambda: open_tensors(tmp_path), "disagree", "not named: b")
    index.write_text(json.dumps({"weight_map": {"a": "../other/model.safetensors"}}))
    rejects(lambda: open_tensors(tmp_path), "outside")
    for text in ("{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": ["x"]}}'):
        index.write_text(text)
        rejects(lambda: open_tensors(tmp_path), index.name)
    index.write_text(json.dumps(told))
    (tmp_path / second).unlink()
    rejects(lambda: open_tensors(tmp_path), "1 of 2 shards", second)
    index.unlink()
    rejects(lambda: open_tensors(tmp_path), "1 of 2 shards", second)


def test_unknown_layouts_and_missing_parts(tmp_path, dit):
    """An empty or foreign folder lists what is known; one without a transformer complains when asked for it."""
    (tmp_path / "foreign").mkdir()
    rejects(lambda: find_wan(tmp_path / "foreign"), "no known layout", "empty", "official", "diffusers", "ComfyUI")
    (tmp_path / "foreign" / "readme.txt").touch()
    rejects(lambda: find_wan(tmp_path / "foreign"), "readme.txt")
    rejects(lambda: open_tensors(tmp_path / "foreign"), "no weights")
    (tmp_path / "foreign" / "Wan2.1_VAE.pth").touch()
    files = find_wan(tmp_path / "foreign")
    assert files.vae is not None
    rejects(lambda: load_dit(files), "lacks dit", "diffusion_pytorch_model")
    rejects(lambda: files.need("vae", "text", "clip"), "lacks text, clip", "models_t5", "models_clip")
    models = tmp_path / "models" / "diffusion_models"
    models.mkdir(parents=True)
    for name in ("wan_a.safetensors", "wan_b.safetensors"):
        write_comfy_dit(models / name, dit)
    rejects(lambda: find_wan(tmp_path / "models"), "several", "wan_a", "wan_b")


LORA = {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.ones(2, 4)}
MISTAKES = {
    "a LoRA": LORA,
    "UMT5": {"token_embedding.weight": torch.ones(3, 2)},
    "CLIP": {"visual.cls_embedding": torch.ones(1, 1, 2), "visual.patch_embedding.weight": torch.ones(2, 3, 1, 1)},
    "VAE": {name: torch.ones(1) for name in official_vae_names()},
    "its tensors begin with double_blocks": {"double_blocks.0.img_attn.qkv.weight": torch.ones(2)},
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_the_wrong_file_is_named(tmp_path, dit, kind):
    """A LoRA, an encoder or another model in place of the transformer or of FantasyTalking is called by its name."""
    save_file(MISTAKES[kind], tmp_path / "wrong.safetensors")
    rejects(lambda: load_dit(tmp_path / "wrong.safetensors"), kind, "official names")
    rejects(lambda: load_fantasytalking(tmp_path / "wrong.safetensors", dit), kind)


def test_fantasytalking_is_no_transformer_and_the_reverse(tmp_path, dit):
    save_file(fantasytalking_state(tiny_dit()), tmp_path / "f.safetensors")
    rejects(lambda: load_dit(tmp_path / "f.safetensors"), "FantasyTalking's audio weights")
    save_file(dit.state_dict(), tmp_path / "w.safetensors")
    rejects(lambda: load_fantasytalking(tmp_path / "w.safetensors", dit), "a Wan transformer")


def test_incomplete_transformers(tmp_path, dit):
    """Missing, unexpected, wrongly shaped, quantised, doubled tensors; scales without weights; other quantisations."""
    whole, file = dit.state_dict(), tmp_path / "wan.safetensors"
    name = "blocks.1.ffn.2.weight"
    layer = name.removesuffix(".weight")
    nvfp4 = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)
    for change, words in (
        ({name: None}, ("missing: " + name,)),
        ({"blocks.1.ffn.2.extra": torch.ones(1)}, ("unexpected: blocks.1.ffn.2.extra",)),
        ({name: torch.ones(96, 161)}, (f"{name} [96, 161]", f"{name} [96, 160]")),
        ({name: torch.ones(96, 160, dtype=torch.int8)}, ("quantised", name, "int8")),
        ({f"diffusion_model.{name}": whole[name].clone()}, ("two tensors", name)),
        ({f"{layer}.scale_weight": torch.ones(1), name: None}, ("scales without weights", name)),
        ({f"{layer}.comfy_quant": nvfp4}, ("quantised", "nvfp4")),
    ):
        state = {key: tensor for key, tensor in (whole | change).items() if tensor is not None}
        save_file(state, file)
        rejects(lambda: load_dit(file, num_heads=3), *words)


def test_broken_configuration(tmp_path, dit):
    write_official_dit(tmp_path, dit, 1)
    (tmp_path / "config.json").write_text("{")
    rejects(lambda: load_dit(tmp_path), "configuration")


def test_save_round_trip_and_replacement(tmp_path):
    file = tmp_path / "out.safetensors"
    tensors = {"a": torch.randn(3, 4).T, "b": torch.arange(5)}  # a is not contiguous
    save_tensors(file, {"old": torch.ones(1)})
    save_tensors(file, tensors, {"tlpo.rank": "8"})
    assert os.listdir(tmp_path) == ["out.safetensors"]
    opened = open_tensors(file)
    assert opened.metadata == {"tlpo.rank": "8"}
    assert all(torch.equal(load_file(file)[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("obstacle", ["size limit", "no folder", "a folder in the way"])
def test_a_failed_write_leaves_nothing(tmp_path, obstacle):
    """Beyond RLIMIT_FSIZE (as on a full disk) the old file stays, no part remains, and the error names the space."""
    file = tmp_path / ("none/out.safetensors" if obstacle == "no folder" else "out.safetensors")
    if obstacle == "a folder in the way":
        file.mkdir()
    elif obstacle == "size limit":
        save_tensors(file, {"old": torch.ones(1)})
    before = sorted(tmp_path.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if obstacle == "size limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        rejects(
            lambda: save_tensors(file, {"a": torch.ones(300_000)}), "out.safetensors", "1.2 MB", "nothing half-written"
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(tmp_path.iterdir()) == before
    assert obstacle != "size limit" or open_tensors(file).entries.keys() == {"old"}


def sparse_file(path, count: int, width: int) -> None:
    """`count` fp32 tensors of `width` zeros as a hole in the file: 512 MB that take no room on the disk."""
    size, told = 4 * width, {"dtype": "F32", "shape": [width]}
    header = {str(n): {**told, "data_offsets": [n * size, (n + 1) * size]} for n in range(count)}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + count * size)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the limit on private memory is Linux's")
def test_files_larger_than_the_memory_open(tmp_path):
    """With 128 MB of private memory left, a file of 512 MB opens and gives its tensors of 16 MB one by one."""
    file = tmp_path / "large.safetensors"
    sparse_file(file, 32, 2**22)
    status = Path("/proc/self/status").read_text().split("VmData:")[1]
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (int(status.split()[0]) * 1024 + 2**27, hard))
        entries = open_tensors(file).entries
        assert [entries[str(n)].read()[-1].item() for n in range(32)] == [0.0] * 32
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


NAMES = st.lists(st.text("abc.", min_size=1, max_size=4), min_size=2, max_size=5, unique=True)


@given(NAMES, st.randoms(use_true_random=False))
def test_hash_depends_on_the_tensors_alone(tmp_path_factory, names, random):
    """Order, metadata, container and sharding do not matter; a value, a name, a type or a shape does."""
    folder = tmp_path_factory.mktemp("hash")
    state = {name: torch.tensor([float(i), -0.5]) for i, name in enumerate(names)}
    truth = tensors_hash(state)
    shuffled = dict(random.sample(sorted(state.items()), len(state)))
    assert tensors_hash(shuffled) == truth
    save_tensors(folder / "a.safetensors", shuffled, {"made": "today"})
    torch.save(state, folder / "a.pth")
    write_shards(folder, "model", state, 2)
    for source in (folder / "a.safetensors", folder / "a.pth", folder):
        assert tensors_hash(open_tensors(source)) == truth
    name = names[0]
    tensor = state[name]
    for other in ({name: tensor + 1}, {name: tensor.double()}, {name: tensor[None]}, {name + "d": tensor}):
        assert tensors_hash({**{n: t for n, t in state.items() if n != name}, **other}) != truth
