"""Images in and out: upright, on white, sides that fit the VAE, broken files in four parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fantasy_core.errors import UserError
from fantasy_core.media import contact_sheet, fit_image, parse_size, read_image


def test_image_is_upright_and_on_white(tmp_path):
    """EXIF orientation 6 says: turn 90 degrees clockwise to view; transparent pixels become white."""
    picture = np.zeros((4, 6, 3), np.uint8)
    picture[0, 0] = 255  # top left as stored -> top right as seen
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture).save(tmp_path / "turned.png", exif=exif)
    seen = read_image(tmp_path / "turned.png")
    assert seen.shape == (3, 6, 4)
    assert seen[:, 0, 3].tolist() == [1, 1, 1] and seen.sum() == 3
    Image.fromarray(np.array([[[255, 0, 0, 0], [255, 0, 0, 255]]], np.uint8)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png")[:, 0].T.tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize("mode", ["L", "P", "LA", "CMYK", "1", "I;16"])
def test_image_modes(tmp_path, mode):
    """Every mode gives the same mid grey, 128 of 255 (16 bit: 128 * 257; one bit: white)."""
    if mode == "I;16":
        image = Image.fromarray(np.full((3, 5), 128 * 257, np.uint16))
    else:
        image = Image.new("L", (5, 3), 255 if mode == "1" else 128).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    expected = 1.0 if mode == "1" else 128 / 255
    assert (read_image(path) - expected).abs().max() < 0.01


def test_broken_images(tmp_path):
    whole_file = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(whole_file)
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole_file.read_bytes()[:2000])
    (tmp_path / "empty.png").touch()
    for path, got in [(cut, "truncated"), (tmp_path, "a folder"), (tmp_path / "no.png", "no such file")]:
        with pytest.raises(UserError, match=got):
            read_image(path)
    with pytest.raises(UserError, match="empty file"):
        read_image(tmp_path / "empty.png")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(min_size=1, max_size=200),
    head=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a"]),
)
def test_random_bytes_are_no_image(tmp_path, data, head):
    path = tmp_path / "noise"
    path.write_bytes(head + data)
    with pytest.raises(UserError):
        read_image(path)


@settings(max_examples=30, deadline=None)
@given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(1, 6).map(lambda k: 16 * k))
def test_longest_edge(width, height, size):
    """Longest edge exactly `size`; the other the official int() truncation rounded up, so less than 17 pixels more."""
    fitted = fit_image(torch.rand(3, height, width), size)
    assert max(fitted.shape[1:]) == size
    assert all(side % 16 == 0 for side in fitted.shape[1:])
    for side, source in zip(fitted.shape[1:], (height, width), strict=True):
        assert -1 < side - source * size / max(width, height) <= 16


def test_exact_size_crops_the_centre():
    """A 96 x 32 picture, red left, green middle, blue right, fitted to 32 x 32, is the green middle third."""
    picture = torch.eye(3).repeat_interleave(32, dim=1)[:, None].expand(3, 32, 96)  # [3, 32, 96]
    assert fit_image(picture, (32, 32)).mean((1, 2)).tolist() == [0, 1, 0]


@pytest.mark.parametrize("text", ["500", "0", "-16", "", "x", "16x", "832x481", "1x2x3", "big"])
def test_bad_sizes(text):
    with pytest.raises(UserError, match="size"):
        parse_size(text)


def test_good_sizes():
    assert parse_size("512") == 512 and parse_size("832X480") == (832, 480)


def test_contact_sheet(tmp_path):
    """Frames of constant grey k / 4 lie row by row; the empty last place is white."""
    frames = (torch.arange(5) / 4)[:, None, None, None].expand(5, 3, 2, 4)
    contact_sheet(frames, tmp_path / "s.png", columns=3)
    sheet = read_image(tmp_path / "s.png")
    assert sheet.shape == (3, 4, 12)
    assert torch.allclose(sheet[0, ::2, ::4], torch.tensor([[0, 0.25, 0.5], [0.75, 1, 1]]), atol=1 / 255)
