"""Clips in memory shown to the critic: as the files' path shows them, faces in boxes, hashes; folders of critics."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch

from fantasy_core.critic.asked import read_views
from fantasy_core.critic.folders import adapter_folders, omni_folders, stamp
from fantasy_core.critic.in_memory import Clip, as_bytes, digest, face_of_landmarks, face_of_mask, show_clip
from fantasy_core.critic.shown import show
from fantasy_core.lips import MESH, OUTER_LIPS

VIEWS = read_views("separate")


def clip(seed: int = 0, seconds: float = 1.0, loud: float = 0.1) -> tuple[torch.Tensor, torch.Tensor, Clip]:
    """uint8 frames [T, 3, H, W] and 16 kHz sound [n] at 25 fps; the same as ComfyUI holds them."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (round(25 * seconds), 3, 60, 90), dtype=torch.uint8, generator=generator)
    sound = loud * torch.randn(round(16000 * seconds), generator=generator)
    return frames, sound, Clip(frames.movedim(1, -1) / 255, 25.0, sound.expand(2, -1), 16000)


def test_frames_and_sound_arrive_as_from_a_file():
    """The same windows, bit by bit, as `show` makes of bytes and 16 kHz, for the views of what is asked alone."""
    frames, sound, held = clip()
    face = (4, 10, 40, 40)
    expected = show([(n / 25, frame) for n, frame in enumerate(frames)], 1.0, sound.numpy(), VIEWS, face)
    found = show_clip(held, VIEWS, ["ls", "vq"], face)
    assert found.keys() == {"face", "picture"}
    for view, windows in found.items():
        for one, other in zip(windows, expected[view], strict=True):
            assert torch.equal(one.frames, other.frames) and one.fps == other.fps and not one.silent
            np.testing.assert_array_equal(one.sound, other.sound)


@pytest.mark.parametrize("case", ["none", "silence", "too short"])
def test_a_clip_without_a_voice_is_silent(case):
    _, sound, held = clip()
    quiet = {"none": None, "silence": torch.zeros(1, 16000), "too short": sound[None, :100]}[case]
    (one,) = show_clip(Clip(held.images, 25.0, quiet, 16000), VIEWS, ["ls"])["face"]
    assert one.silent and not one.sound.any() and len(one.sound) == 16000


def test_colours_are_rounded_and_alpha_is_dropped():
    """0.5 is 127.5, to even 128; -1 and 2 are cut."""
    image = torch.tensor([[[0.5, -1.0, 2.0, 0.3]]])
    assert as_bytes(image).flatten().tolist() == [128, 0, 255]


def test_a_digest_tells_whatever_the_critic_could():
    """A pixel, a sample, the frame rate, the box, silence: each has a digest of its own; a copy has the same."""
    frames, sound, held = clip()
    louder, brighter = sound.clone(), held.images.clone()
    louder[8000] += 0.5
    brighter[0, 30, 45] = 1 - brighter[0, 30, 45].round()
    variants = [
        held,
        Clip(held.images, 25.0, louder[None], 16000),
        Clip(brighter, 25.0, held.sound, 16000),
        Clip(held.images, 24.0, held.sound, 16000),
        Clip(held.images, 25.0),
    ]
    told = [digest(show_clip(one, VIEWS, ["mn", "ls"])) for one in variants]
    told.append(digest(show_clip(held, VIEWS, ["mn", "ls"], (0, 0, 40, 40))))
    assert len(set(told)) == len(told)
    assert digest(show_clip(clip()[2], VIEWS, ["mn", "ls"])) == told[0]


def face(x: float, y: float, side: float) -> np.ndarray:
    """Landmarks [MESH, 2] that fill a square around a middle, with the mouth in it."""
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (MESH, 2))
    points[:2] = [[-0.5, -0.5], [0.5, 0.5]]
    points[OUTER_LIPS[2:]] = 0.0
    return np.array([x, y]) + side * points


def test_the_largest_face_is_followed_and_scaled():
    """A face of 20 pixels that moves from 50, 40 to 60, 40, beside one of 10 at 90, 90: the box of 40..70 x 30..50
    is 30 wide, so a square of 39 around 55, 40. On pictures of twice the size 78 around 110, 80."""
    faces = [[face(90, 90, 10), face(50, 40, 20)], [], [face(60, 40, 20), face(90, 90, 10)]]
    assert face_of_landmarks(faces, (100, 100), (100, 100)) == (20, 35, 40, 40)  # 20.5..59.5 x 35.5..74.5, outwards
    assert face_of_landmarks(faces, (100, 100), (200, 200)) == (41, 71, 78, 78)
    assert face_of_landmarks([[], []], (100, 100), (100, 100)) is None


def test_the_box_of_a_mask_by_hand():
    """Rows 20..29 and columns 40..59 of 100 x 100 in two frames: 20 wide, a square of 26 around 50, 25. Faint parts do
    not count; an empty mask has no face."""
    mask = torch.zeros(2, 100, 100)
    mask[0, 20:30, 40:50], mask[1, 20:30, 50:60], mask[0, 90, 90] = 1.0, 0.7, 0.4
    assert face_of_mask(mask, (100, 100)) == (12, 37, 26, 26)
    assert face_of_mask(mask.amax(0), (200, 50)) == face_of_mask(mask, (200, 50))
    assert face_of_mask(torch.zeros(4, 4), (10, 10)) is None


# ---- folders ----


def base_in(folder, kind: str = "qwen2_5_omni") -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))


def test_bases_are_found_by_their_configuration(tmp_path):
    """Directly, below an owner, in a download cache; not another model, a broken file, a hidden folder, or what is too
    deep. Of two folders of one name that of the first root counts."""
    first, second = tmp_path / "first", tmp_path / "second"
    base_in(first / "Qwen2.5-Omni-7B")
    base_in(first / "Qwen" / "Qwen2.5-Omni-3B", "qwen2_5_omni_thinker")
    base_in(first / "models--Qwen" / "snapshots" / "c0ffee")
    base_in(first / "Florence-2", "florence2")
    base_in(first / ".cache" / "omni")
    base_in(first / "a" / "b" / "c" / "too-deep")
    base_in(second / "Qwen2.5-Omni-7B")
    base_in(second / "another")
    (first / "broken").mkdir()
    (first / "broken" / "config.json").write_text("[1, 2")
    (first / "loop").symlink_to(first)
    found = omni_folders([first, second, tmp_path / "absent"])
    assert {name: folder for name, folder in found.items() if not name.startswith("loop/")} == {
        "another": second / "another",
        "models--Qwen/snapshots/c0ffee": first / "models--Qwen" / "snapshots" / "c0ffee",
        "Qwen/Qwen2.5-Omni-3B": first / "Qwen" / "Qwen2.5-Omni-3B",
        "Qwen2.5-Omni-7B": first / "Qwen2.5-Omni-7B",
    }


def test_adapters_are_found_and_a_changed_file_is_seen(tmp_path):
    folder = tmp_path / "mine" / "adapter"
    folder.mkdir(parents=True)
    (folder / "critic.json").write_text("{}")
    (tmp_path / "mine" / "log.jsonl").write_text("")
    assert adapter_folders([tmp_path]) == {"mine/adapter": folder}
    before = stamp(folder)
    assert stamp(folder) == before
    os.utime(folder / "critic.json", ns=(1, 1))
    assert stamp(folder) != before


def test_a_clip_lasts_as_long_as_its_frames_say():
    """30 frames shown every 0.1 s are 3 s, whatever rate their file states; without times the rate tells."""
    images = torch.zeros(30, 8, 8, 3)
    assert Clip(images, 25.0, times=np.arange(30) / 10).seconds == pytest.approx(3.0)
    assert Clip(images, 25.0).seconds == pytest.approx(1.2)
