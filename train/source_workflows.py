"""Workflows that make candidates: ComfyUI graphs in API format in which what changes from video to video has a name.

    "text": "{prompt}"        a value that is a name alone becomes the named value, a number where it is one
    "text": "{prompt}, 4k"    inside a longer text it becomes text; other braces stay as they are

Names: {portrait} {audio} {seed} {prefix} must be there, {prefix} in the one node that saves the video; {prompt}
{negative_prompt} {text_scale} {audio_scale} {width} {height} {frames} {fps} may be. `NAME.toml` beside `NAME.json` says
what the graph alone does not: rate, longest and shortest video, ranges of the guidance scales, which files and packs it
needs and where they are published.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fantasy_core.errors import UserError, some
from train.run import read_toml

SHIPPED = Path(__file__).parent / "sources"
NEEDED = ("portrait", "audio", "seed", "prefix")
SCALES = ("text_scale", "audio_scale")
NAMES = (*NEEDED, "prompt", "negative_prompt", *SCALES, "width", "height", "frames", "fps")
SAVERS = ("SaveVideo", "SaveWEBM", "VHS_VideoCombine")  # named in an error only; any node may hold {prefix}
ALONE = re.compile(r"\{([a-z_]+)\}")
ANYWHERE = re.compile(r"\{(" + "|".join(NAMES) + r")\}")
SAFE = re.compile(r"[\w-][\w.-]*")  # of names that become parts of file names

Graph = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class ModelFile:
    """A file that a workflow names, the folder of `models` it belongs to, and where it is published."""

    folder: str
    name: str
    url: str


@dataclass(frozen=True)
class Source:
    """A way to make candidates. `frames` and `least_frames` bound a video, 4k + 1; `scales` holds the range of each
    guidance scale that the graph has a place for; `not_run` says what about it was never tried."""

    name: str
    graph: Graph
    about: str
    fps: float
    frames: int
    least_frames: int
    width: int
    height: int
    negative_prompt: str
    scales: Mapping[str, tuple[float, float]]
    files: tuple[ModelFile, ...]
    packs: tuple[str, ...]
    not_run: str

    @property
    def saver(self) -> str:
        """Id of the node that saves the video."""
        return next(key for key, name, _ in places(self.graph) if name == "prefix")


def shipped_sources() -> list[str]:
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


def load_source(name: str) -> Source:
    """A shipped source by its name, or one's own by the path of its .json. Raises UserError for anything about it that
    could go wrong later."""
    path = Path(name) if name.endswith(".json") else SHIPPED / f"{name}.json"
    if not path.is_file():
        raise UserError(
            f"there is no source {name}",
            got=f"no file {path}" if name.endswith(".json") else "a name that is not shipped",
            expected="one of " + ", ".join(shipped_sources()) + ", or the path of a workflow NAME.json",
            do="correct --source; in ComfyUI, a workflow is saved so by Export (API)",
        )
    if not SAFE.fullmatch(path.stem):
        raise _wrong(
            path, "its name", path.stem, "letters, digits, - and _", "rename it: the name is part of its videos'"
        )
    graph = _read_graph(path)
    found = _check_names(path, graph)
    return _described(path, graph, found)


def places(graph: Graph) -> Iterator[tuple[str, str, str]]:
    """(node's id, a name, its input) for every place; names that stand alone need not be known ones."""
    for key, node in graph.items():
        for field, value in node["inputs"].items():
            if isinstance(value, str):
                alone = ALONE.fullmatch(value)
                for name in [alone[1]] if alone else ANYWHERE.findall(value):
                    yield key, name, field


def fill(graph: Graph, values: Mapping[str, Any]) -> Graph:
    """The graph with values for its names. `values` may have more names than the graph has places for."""
    return {
        key: {**node, "inputs": {field: _filled(value, values) for field, value in node["inputs"].items()}}
        for key, node in graph.items()
    }


def _filled(value: Any, values: Mapping[str, Any]) -> Any:
    if not isinstance(value, str):
        return value
    alone = ALONE.fullmatch(value)
    if alone:
        return values[alone[1]]
    return ANYWHERE.sub(lambda name: str(values[name[1]]), value)


def title(graph: Graph, key: str) -> str:
    """What a person calls a node: its title and, if that says something else, its type."""
    node = graph.get(key, {})
    kind = node.get("class_type", "unknown")
    named = node.get("_meta", {}).get("title", kind)
    return f"{named} (node {key})" if named == kind else f"{named} ({kind}, node {key})"


def _read_graph(path: Path) -> Graph:
    try:
        graph = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read", got=str(error), expected="a workflow as JSON", do="export it again: Export (API)"
        ) from error
    if isinstance(graph, dict) and "nodes" in graph and "links" in graph:
        do = "open it in ComfyUI and choose Export (API)"
        raise _wrong(path, "its format", "a workflow as the page saves it", "API format", do)
    whole = isinstance(graph, dict) and all(
        isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)
        for node in graph.values()
    )
    if not whole or not graph:
        do = "export it again: Export (API)"
        raise _wrong(path, "its nodes", "something else", "nodes with class_type and inputs", do)
    return graph


def _check_names(path: Path, graph: Graph) -> set[str]:
    """The names that a graph has places for. Raises UserError for unknown and for missing ones."""
    found = list(places(graph))
    for key, name, field in found:
        if name not in NAMES:
            expected = ", ".join(f"{{{known}}}" for known in NAMES)
            what = f"node {title(graph, key)}, input {field}"
            raise _wrong(path, what, f"{{{name}}}", expected, "correct the name, or write another value")
    missing = [name for name in NEEDED if name not in {name for _, name, _ in found}]
    if missing:
        savers = [title(graph, key) for key, node in graph.items() if node["class_type"] in SAVERS]
        do = "write them as values: {portrait} in Load Image, {audio} in Load Audio, {seed} in the sampler, {prefix} as"
        do += f" filename_prefix of {' or '.join(savers) or 'the node that saves the video'}"
        raise _wrong(path, "its names", "no " + ", ".join(f"{{{n}}}" for n in missing), "each of them", do)
    saving = [title(graph, key) for key, name, _ in found if name == "prefix"]
    if len(saving) > 1:
        do = "leave {prefix} in the one whose video is the candidate"
        raise _wrong(path, "the node that saves", "{prefix} in " + " and ".join(saving), "one node", do)
    return {name for _, name, _ in found}


KINDS = {"about": str, "fps": float, "frames": int, "least_frames": int, "width": int, "height": int,
         "negative_prompt": str, "scales": dict, "files": list, "packs": list, "not_run": str}  # fmt: skip
DEFAULTS = {"about": "", "least_frames": 5, "width": 512, "height": 512, "negative_prompt": "", "scales": {},
            "files": [], "packs": [], "not_run": ""}  # fmt: skip


def _described(path: Path, graph: Graph, found: set[str]) -> Source:
    """A source of its graph and its TOML. Raises UserError for what is missing, unknown or of another type."""
    beside = path.with_suffix(".toml")
    told = read_toml(beside)
    unknown, missing = told.keys() - KINDS.keys(), KINDS.keys() - DEFAULTS.keys() - told.keys()
    if unknown or missing:
        got = f"unknown: {some(unknown) or 'none'}; missing: {some(missing) or 'none'}"
        raise _wrong(beside, "its keys", got, ", ".join(KINDS), "see train/sources/fantasytalking.toml")
    told = {**DEFAULTS, **told}
    told["fps"] = float(told["fps"]) if type(told["fps"]) is int else told["fps"]
    for name, kind in KINDS.items():
        if type(told[name]) is not kind:
            raise _wrong(beside, name, repr(told[name]), kind.__name__, "correct the line")
    _check_frames(beside, told)
    scales = {name: _range(beside, name, given) for name, given in told.pop("scales").items()}
    if scales.keys() != found & set(SCALES):
        got = f"ranges for {some(scales) or 'none'}, places for {some(found & set(SCALES)) or 'none'}"
        raise _wrong(
            beside, "its scales", got, "a range for each scale that the graph has a place for", "make them agree"
        )
    files = tuple(_model_file(beside, file) for file in told.pop("files"))
    packs = tuple(map(str, told.pop("packs")))
    return Source(path.stem, graph, scales=scales, files=files, packs=packs, **told)


def _check_frames(path: Path, told: Mapping[str, Any]) -> None:
    for name in ("least_frames", "frames"):
        if told[name] < 5 or told[name] % 4 != 1:
            raise _wrong(path, name, str(told[name]), "4k + 1 frames, 5 or more", "correct the line")
    if told["least_frames"] > told["frames"] or not 1 <= told["fps"] <= 120:
        got = f"least_frames {told['least_frames']}, frames {told['frames']}, fps {told['fps']}"
        raise _wrong(path, "its length", got, "least_frames up to frames, 1 to 120 fps", "correct the lines")


def _range(path: Path, name: str, given: Any) -> tuple[float, float]:
    numbers = isinstance(given, list) and len(given) == 2 and all(type(one) in (int, float) for one in given)
    if name not in SCALES or not numbers or not given[0] <= given[1]:
        expected = f"{' or '.join(SCALES)} = [lowest, highest]"
        raise _wrong(path, "its scales", f"{name} = {given}", expected, "correct the line")
    return float(given[0]), float(given[1])


def _model_file(path: Path, given: Any) -> ModelFile:
    try:
        return ModelFile(**given)
    except TypeError:
        raise _wrong(path, "its files", str(given), "folder, name and url for each", "correct the table") from None


def _wrong(path: Path, what: str, got: str, expected: str, do: str) -> UserError:
    return UserError(f"{path} cannot make candidates: {what}", got=got, expected=expected, do=do)
