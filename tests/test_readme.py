"""README holds what is there: its commands exist and parse, its files exist, its map of the tree is complete."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess

import pytest
from source_tree import ROOT, tracked

README = (ROOT / "README.md").read_text("utf-8")


def commands(first: str) -> list[list[str]]:
    """The words of every command in README's bash blocks that starts with `first`, continued lines joined."""
    blocks = re.findall(r"^```bash\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith(first)]


def readme_map() -> dict[str, str]:
    """path -> description from the fenced block under README's "The tree"."""
    block = README.partition("## The tree")[2].split("```")[1].partition("\n")[2]
    return {line.split()[0]: " ".join(line.split()[1:]) for line in block.splitlines() if line.strip()}


def test_readme_maps_every_file():
    """Every Python file and every file at the top is in the map with a description; nothing in the map is gone."""
    wanted = {name for name in tracked() if "/" not in name or name.endswith(".py")}
    listed = readme_map()
    assert not wanted - set(listed), f"not in README's map: {sorted(wanted - set(listed))}"
    stale = [name for name in listed if not (ROOT / name).exists()]
    assert not stale, f"in README's map, but not in the tree: {stale}"
    assert all(listed.values()), "a file without its line"


def test_readme_starts_with_the_two_commands():
    targets = [words[1] for words in commands("make")]
    assert targets[:2] == ["demo", "test"]


@pytest.mark.parametrize("words", commands("make"), ids=" ".join)
def test_make_commands_exist(words):
    """`make --dry-run` accepts each of them: the target exists and its prerequisites can be made."""
    result = subprocess.run([*words, "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("words", commands("python -m") + commands("accelerate launch"), ids=" ".join)
def test_python_commands_parse(words, capsys):
    """The module has a command, and every flag that README shows is one that its --help explains."""
    name, *flags = words[1 + words.index("-m") :]
    module = importlib.import_module(name)
    with pytest.raises(SystemExit) as stop:
        module.main(["--help"])
    assert stop.value.code == 0
    explained = set(re.findall(r"--[a-z][a-z0-9-]*", capsys.readouterr().out))
    assert {word for word in flags if word.startswith("--")} <= explained


def test_files_that_readme_names_exist():
    """Paths in backticks or links that lie in our own folders exist."""
    named = re.findall(r"[`(]((?:fantasy_core|train|tests|nodes|assets)/[\w./-]+)[`)]", README)
    named += re.findall(r"--config_file (\S+)", README)
    assert named
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing, f"README names {missing}"
