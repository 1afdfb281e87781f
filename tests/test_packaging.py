"""What is installed: declared where it is used, pinned, and nothing that ComfyUI brings itself."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import PurePosixPath

from packaging.requirements import Requirement
from source_tree import ROOT, imports, sources, tracked, tree

CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = CONFIG["project"]
EXTRAS = PROJECT["optional-dependencies"]
MODULES = {"pillow": "PIL", "flash-attn": "flash_attn"}  # where a distribution and its module differ


def requirement_lines(name: str) -> list[str]:
    """The requirements in a file, without comments."""
    return [line for line in (ROOT / name).read_text("utf-8").splitlines() if line and line[0] != "#"]


def test_every_code_folder_is_a_package():
    """setuptools finds what has an __init__.py; a folder without one works here and is missing once installed."""
    folders = {str(PurePosixPath(name).parent) for name in sources("fantasy_core", "nodes", "train")}
    assert not [folder for folder in folders if f"{folder}/__init__.py" not in sources()]


def test_data_files_are_declared():
    """What the package ships beside its code matches a pattern of package-data, or it would not be installed."""
    patterns = CONFIG["tool"]["setuptools"]["package-data"]
    globs = [f"{package.replace('.', '/')}/{glob}" for package, found in patterns.items() for glob in found]
    data = [name for name in tracked() if name.startswith(("fantasy_core/", "train/")) and not name.endswith(".py")]
    assert data
    assert not [name for name in data if not any(PurePosixPath(name).match(glob) for glob in globs)]


def test_versions_agree():
    """pyproject's version is the newest one in the changelog."""
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert PROJECT["version"] == newest[1]


def modules(requirements: list[str]) -> set[str]:
    """The modules that requirements such as `pillow>=10` install."""
    names = (Requirement(line).name for line in requirements)
    return {MODULES.get(name, name) for name in names}


def test_what_is_imported_is_declared():
    """Third-party modules of the core are its dependencies (all of them used), train's are in its extras.

    protobuf is imported by transformers, which does not ask for it, when it reads a SentencePiece tokenizer; cv2 comes
    with mediapipe, and a second OpenCV beside it would break both.
    """
    core = modules(PROJECT["dependencies"]) - {"protobuf"}
    extras = ("lips", "flash", "critic", "hands", "raft")
    optional = modules([line for extra in extras for line in EXTRAS[extra]]) | {"cv2"}
    allowed = {
        "fantasy_core": core | optional,
        "train": core | modules([*EXTRAS["train"], *EXTRAS["adam8bit"], *EXTRAS["vllm"]]),
    }
    ours = set(sys.stdlib_module_names) | {"fantasy_core", "train"}
    used = {}
    for package, names in allowed.items():
        absolute = [m for name in sources(package) for level, m in imports(ast.walk(tree(name))) if not level]
        used[package] = {module.split(".")[0] for module in absolute} - ours
        assert not used[package] - names, f"{package} imports undeclared {sorted(used[package] - names)}"
    assert not core - used["fantasy_core"], f"declared but not used: {sorted(core - used['fantasy_core'])}"


def test_pins_cover_what_is_declared():
    """constraints.txt pins every dependency that `make` installs, and each pin satisfies pyproject's lower bound."""
    declared = [Requirement(line) for line in [*PROJECT["dependencies"], *EXTRAS["train"], *EXTRAS["dev"]]]
    pins = dict(line.split("==") for line in requirement_lines("constraints.txt"))
    for requirement in declared:
        assert requirement.name in pins, f"{requirement.name} is not pinned"
        assert requirement.specifier.contains(pins[requirement.name]), f"{requirement}: pinned {pins[requirement.name]}"


def test_comfyui_requirements_leave_out_what_it_brings():
    """requirements.txt is a part of the core's dependencies and never reinstalls what ComfyUI brings."""
    lines = requirement_lines("requirements.txt")
    assert set(lines) <= {re.sub(r"\s+", "", line) for line in PROJECT["dependencies"]}
    assert not modules(lines) & {"torch", "torchaudio", "torchvision", "numpy", "PIL", "av"}
    assert not modules(lines) & {"safetensors", "transformers", "tqdm", "einops"}
