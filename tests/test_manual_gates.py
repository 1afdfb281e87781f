"""Gates made by hand: every form against weights worked out in the docstring, and what cannot be read."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fantasy_core.errors import UserError
from fantasy_core.flow import schedule, timestep
from fantasy_core.gate_plot import draw_gate, save_plot
from fantasy_core.manual_gates import manual_gate

NAMES, BLOCKS = ("mn", "ls"), 4
SIGMAS = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0], dtype=torch.float64)  # four steps: timesteps 1000, 750, 500, 250


def weights(text: str, *timesteps: float) -> torch.Tensor:
    """[S, J, E]"""
    return manual_gate(text, NAMES, BLOCKS, SIGMAS)(None, torch.tensor(timesteps))[:, :, 0]


def test_constant():
    for text in ("constant:0.3,1", "constant:mn=0.3", "constant:mn=0.3,ls=1"):
        assert torch.allclose(weights(text, 1000, 0), torch.tensor([0.3, 1.0]).expand(2, BLOCKS, 2))


def test_steps():
    """mn has a weight for each of the four steps, ls two, stretched: 0, 1/3, 2/3, 1. At timestep 625, half way between
    steps 1 and 2, mn is (2 + 4) / 2 and ls 1/2; before the first and after the last step nothing changes."""
    w = weights("steps:mn=1,2,4,8;ls=0,1", 1000, 750, 500, 250, 625, 0)
    assert torch.allclose(w[:, 0, 0], torch.tensor([1.0, 2, 4, 8, 3, 8]))
    assert torch.allclose(w[:, 3, 1], torch.tensor([0, 1 / 3, 2 / 3, 1, 0.5, 1]))


def test_blocks():
    """From 0 in block 0 to 3 in block 3 are 0, 1, 2, 3; ls is left out: 1."""
    w = weights("blocks:mn=0..3", 1000)
    assert torch.allclose(w[0], torch.tensor([[0.0, 1], [1, 1], [2, 1], [3, 1]]))


def test_table_in_a_file_and_as_text(tmp_path):
    """Blocks 0-1 go from mn 0 at step 0 to 1 at step 2 (timestep 500), 0.5 half way; blocks 2 and 3 stay."""
    text = "step, block, ls, mn\n0, 0-1, 5, 0\n2, 0-1, 5, 1\n0, 2, 6, 7\n\n3, 3, 8, 9\n"
    (tmp_path / "t.csv").write_text(text)
    for source in (text, str(tmp_path / "t.csv"), text.replace(",", " "), text.replace(",", ";")):
        w = weights(f"table:{source}", 1000, 750, 500)
        assert torch.allclose(w[:, 1, 0], torch.tensor([0.0, 0.5, 1.0])) and (w[:, :2, 1] == 5).all()
        assert (w[:, 2] == torch.tensor([7.0, 6.0])).all() and (w[:, 3] == torch.tensor([9.0, 8.0])).all()


def test_tables_of_spreadsheets(tmp_path):
    """The mark at the beginning, cells in quotes, semicolons with decimal commas, tabs, comments."""
    for text in (
        '\ufeff"step","mn","ls"\r\n"0","0.5","2"\r\n"2","1.5","2"\r\n',
        "\ufeffstep;mn;ls\n0;0,5;2\n2;1,5;2\n",
        "# mine\nstep\tmn\tls\n0\t0.5\t2\n# the end\n2\t1.5\t2\n",
    ):
        (tmp_path / "t.csv").write_text(text, "utf-8")
        w = weights(f"table:{tmp_path}/t.csv", 1000, 750, 500)
        assert torch.allclose(w[:, 0, 0], torch.tensor([0.5, 1.0, 1.5])) and (w[:, :, 1] == 2).all(), text


def test_table_of_timesteps_or_of_none():
    assert torch.allclose(weights("table:timestep mn ls\n900 1 0\n100 0 1", 500)[0], torch.tensor([0.5, 0.5]))
    assert torch.allclose(weights("table:mn ls\n2 3", 500)[0], torch.tensor([2.0, 3.0]))


@given(st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=30), st.floats(1, 12))
def test_every_step_gets_its_weight(values, shift):
    """Where a list has as many weights as there are steps, each step's timestep reads its own exactly."""
    sigmas = schedule(len(values), shift)
    text = "steps:mn=" + ",".join(repr(value) for value in values)
    times = torch.tensor([timestep(sigma) for sigma in sigmas.tolist()[:-1]])
    found = manual_gate(text, NAMES, BLOCKS, sigmas)(None, times)[:, 2, 0, 0]
    assert torch.allclose(found, torch.tensor(values), atol=1e-6)


@pytest.mark.parametrize("text", [
    "0.3,0.5", "constant:0.3,1,1", "constant:0.3,x", "constant:0.3,nan", "constant:vq=1", "steps:",
    "steps:mn=1,2,3,4,5",
    "blocks:mn=0..x", "table:nowhere.csv", "table:mn\n1", "table:mn ls\n", "table:mn ls\n1", "table:step mn ls\n4 1 1",
    "table:", "table:step,mn,ls\n0,,1", "table:timestep mn ls\n5000 1 1", "table:timestep mn ls\n-7 1 1",
    "constant:1e39", "table:block mn ls\n4 1 1", "table:block mn ls\n0-2 1 1", "table:mn ls\n1 1\n2 2",
    "table:block mn ls\n3-1 1 1",
])  # fmt: skip
def test_what_cannot_be_read_is_refused(text):
    with pytest.raises(UserError) as error:
        manual_gate(text, NAMES, BLOCKS, SIGMAS)
    assert error.value.got and "constant:" in error.value.do


def test_plot_shows_every_expert(tmp_path):
    """Two maps side by side; weights that rise with the block make the upper (last) block's row brighter in viridis."""
    w = manual_gate("blocks:mn=0..1;ls=1", NAMES, BLOCKS, SIGMAS)(None, torch.tensor([1000.0, 750, 500, 250]))
    picture = draw_gate(w, NAMES, SIGMAS)
    assert picture.width > 1.5 * picture.height
    column = [sum(picture.getpixel((picture.width // 4, y))) for y in (picture.height // 4, picture.height * 7 // 10)]
    assert column[0] > column[1] + 100
    save_plot(tmp_path / "g.png", w, NAMES, SIGMAS)
    assert [path.name for path in tmp_path.iterdir()] == ["g.png"]
    with pytest.raises(UserError, match="PNG"):
        save_plot(tmp_path / "g.pdf", w, NAMES, SIGMAS)
