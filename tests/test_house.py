"""The house rules, read from syntax trees and texts: who may import whom, what may load when, how long files are."""

from __future__ import annotations

import ast
import re
import socket
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
from source_tree import ROOT, at_import, enters, imports, sources, targets, tracked, tree

HEAVY = {
    *("transformers", "diffusers", "peft", "accelerate", "mediapipe"),
    *("librosa", "soundfile", "av", "scipy", "matplotlib", "pyarrow"),
}
MAX_LINES = {"fantasy_core/wan.py": 450}  # 300 everywhere else
FORBIDDEN = {"fantasy_core": ("nodes", "train", "tests"), "nodes": ("train", "tests"), "train": ("nodes", "tests")}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_import_directions(package):
    """nodes -> fantasy_core <- train: the core imports neither, nodes and train never meet, nobody imports tests."""
    for name in sources(package):
        for target in targets(name, ast.walk(tree(name))):
            assert not any(enters(target, other) for other in FORBIDDEN[package]), f"{name} imports {target}"


@pytest.mark.parametrize("package", ["nodes", "fantasy_core"])
def test_pack_imports_are_relative(package):
    """ComfyUI names the pack by its path: an absolute import of our own packages would load a second copy or fail."""
    for name in sources(package):
        absolute = {module.split(".")[0] for level, module in imports(ast.walk(tree(name))) if not level}
        assert not absolute & {"nodes", "fantasy_core"}, f"{name}: absolute import of {absolute}"


@pytest.mark.parametrize("folder", ["train", "tests"])
def test_train_and_tests_import_absolutely(folder):
    """`python -m train.gate` has no package above it: a relative import fails there."""
    for name in sources(folder):
        relative = [module for level, module in imports(ast.walk(tree(name))) if level]
        assert not relative, f"{name}: relative imports {relative}"


def test_only_animate_knows_the_miniature():
    """Inside the core only the animate command imports the miniature, and lazily, in the function that needs it."""
    for name in sources("fantasy_core"):
        if name.startswith("fantasy_core/miniature/"):
            continue
        nodes = at_import(tree(name)) if name == "fantasy_core/animate.py" else ast.walk(tree(name))
        meets = [target for target in targets(name, nodes) if enters(target, "fantasy_core.miniature")]
        assert not meets, f"{name} imports {meets}"


@pytest.mark.parametrize("package", ["fantasy_core", "nodes", "train"])
def test_no_heavy_import_at_module_level(package):
    for name in [*sources(package), "__init__.py"]:
        eager = {module.split(".")[0] for level, module in imports(at_import(tree(name))) if not level}
        assert not eager & HEAVY, f"{name} imports {sorted(eager & HEAVY)} when it is imported"


IMPORT_PROBE = """
import importlib, importlib.util, sys
root, route, names, heavy = sys.argv[1], sys.argv[2], sys.argv[3].split(), set(sys.argv[4].split())
if route == "pack":  # as ComfyUI does: __init__.py under a name made of the path, the folder not on sys.path
    package = root.replace(".", "_x_") + "_pack"
    spec = importlib.util.spec_from_file_location(package, root + "/__init__.py", submodule_search_locations=[root])
    module = importlib.util.module_from_spec(spec)
    sys.modules[package] = module
    spec.loader.exec_module(module)
    names = [package + "." + name for name in names]
    try:
        module.comfy_entrypoint().send(None)
    except ModuleNotFoundError as error:
        assert error.name.startswith("comfy_api"), error
    else:
        raise AssertionError("the entry point answered although ComfyUI is not here")
for name in names:
    importlib.import_module(name)
loaded = sorted(heavy & set(sys.modules))
assert not loaded, f"importing loads {loaded}"
if route == "pack":
    assert "fantasy_core" not in sys.modules, "a second copy of the core was imported by its absolute name"
print(len(names))
"""


@pytest.mark.parametrize("route", ["plain", "pack"])
def test_importing_everything_stays_light(route):
    """In a fresh interpreter every core module imports without a heavy package, by its name and by ComfyUI's route."""
    names = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in sources("fantasy_core")]
    probe = [sys.executable, "-c", IMPORT_PROBE, str(ROOT), route, " ".join(names), " ".join(HEAVY)]
    result = subprocess.run(probe, cwd=ROOT.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == len(names) > 1


def test_door_holds_only_the_lazy_entry_point():
    """The root __init__.py imports nothing at module level: pytest and every tool outside ComfyUI can import it."""
    body = tree("__init__.py").body
    assert not imports(at_import(tree("__init__.py")))
    assert [ast.unparse(node).split("=")[0].strip() for node in body[1:-1]] == ["WEB_DIRECTORY"]  # where help lies
    assert isinstance(body[-1], ast.AsyncFunctionDef) and body[-1].name == "comfy_entrypoint"


@pytest.mark.parametrize("name", sources())
def test_file_length_and_docstring(name):
    """A file fits one reading (300 lines, wan.py 450), has its purpose in the first lines, and a name that says it."""
    lines = len((ROOT / name).read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES.get(name, 300), f"{name}: {lines} lines"
    assert ast.get_docstring(tree(name)), f"{name} has no docstring"
    assert Path(name).stem not in ("utils", "util", "helpers", "misc", "common"), f"{name}: name the thing"


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from `def` to its end, without the docstring."""
    first = function.body[0]
    docstring = first.end_lineno - first.lineno + 1 if ast.get_docstring(function) else 0
    return function.end_lineno - function.lineno + 1 - docstring


def test_functions_are_short(record_property):
    """The median function of the product has at most ten lines."""
    lengths = {
        f"{name}:{node.lineno} {node.name}": code_lines(node)
        for name in sources("fantasy_core", "nodes", "train")
        for node in ast.walk(tree(name))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    record_property("median function length", median(lengths.values()))
    longest = sorted(lengths.items(), key=lambda item: -item[1])[:5]
    assert median(lengths.values()) <= 10, f"median {median(lengths.values())} of {len(lengths)}, longest: {longest}"


def test_errors_have_four_parts():
    """Exceptions that the product defines are UserErrors: what, got, expected, what to do."""
    for name in sources("fantasy_core", "nodes", "train"):
        for node in ast.walk(tree(name)):
            bases = [ast.unparse(base) for base in node.bases] if isinstance(node, ast.ClassDef) else []
            if any(base.endswith(("Error", "Exception")) for base in bases):
                assert node.name == "UserError" or "UserError" in bases, f"{name}: {node.name} is no UserError"


def test_commands_can_be_called_from_a_test():
    """A module that runs as a command has `main(argv=None)` and hands its exit code to the shell."""
    commands = [name for name in sources("fantasy_core", "train") if '"__main__"' in (ROOT / name).read_text("utf-8")]
    assert commands
    for name in commands:
        mains = [node for node in tree(name).body if isinstance(node, ast.FunctionDef) and node.name == "main"]
        assert mains, f"{name} has no main"
        arguments = mains[0].args
        assert [a.arg for a in arguments.args][:1] == ["argv"] and arguments.defaults, f"{name}: main(argv=None)"
        guard = ast.unparse(tree(name).body[-1])
        assert re.search(r"(sys\.exit|raise SystemExit)\(main\(\)\)", guard), f"{name}: {guard}"


def texts() -> list[tuple[str, str]]:
    """Every tracked text file but this one, which has to spell out what it forbids."""
    suffixes = {".png", ".jpg", ".flac", ".wav", ".mp4", ".safetensors", ".gif", ".webp"}
    names = [name for name in tracked() if Path(name).suffix not in suffixes and name != "tests/test_house.py"]
    return [(name, (ROOT / name).read_text(encoding="utf-8")) for name in names]


UNWANTED = {
    "a path of one machine": r"(^|[^a-zA-Z0-9_.-])/(work|farm|tmp/w|root|opt|home)/",
    "a package registry's address": r"https?://[^\s\"')]*(pypi|pythonhosted|artifactory|nexus|mirror|simple/)",
    "the making of the project": r"(?i)\bissue #?\d+\b|\bthe lead\b|\bai[- ]generated\b|\bas an ai\b",
    "code that runs on loading": r"weights_only\s*=\s*False|pickle\.loads?\(|torch\.load\((?![^)]*weights_only=True)",
    "an unfinished place": r"\b(TODO|FIXME|XXX|HACK)\b|raise NotImplementedError",
    "a left-over placeholder": r"<<[A-Z ]+>>|@@[A-Z ]+@@",
}


@pytest.mark.parametrize("kind", UNWANTED)
def test_texts_are_clean(kind):
    for name, text in texts():
        if kind in ("code that runs on loading", "an unfinished place") and not name.endswith(".py"):
            continue
        hit = re.search(UNWANTED[kind], text, re.MULTILINE)
        assert not hit, f"{name} holds {kind}: {text[max(0, hit.start() - 40) : hit.end() + 40]!r}"


def test_tests_have_no_network():
    """What conftest's audit hook is for: a connection that leaves the machine fails at once, by address and by name."""
    with pytest.raises(PermissionError, match="network"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(PermissionError, match="network"):
        socket.getaddrinfo("example.invalid", 80)
