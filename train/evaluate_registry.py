"""The metrics that `train.evaluate --metrics` knows: where each is, and which file of weights it needs.

A metric is a line here. Besides these, `package.module:Class` is a metric of your own, anything that does what
fantasy_core/metrics/contract.py says. Files come by --weights NAME=PATH, other settings by --options NAME.key=value:
keyword arguments of the class.
"""

from __future__ import annotations

import importlib
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fantasy_core.errors import UserError, some
from fantasy_core.metrics.contract import Metric


@dataclass(frozen=True)
class Entry:
    """place: module:Class, or a function that makes one. weights: its file and where to get it, "" where it needs none.
    argument: the keyword of that file. by_name: it looks at a file's name, so that equal content may score differently;
    not kept."""

    place: str
    weights: str = ""
    argument: str = "weights"
    by_name: bool = False


METRICS = {
    "lips": Entry(
        "fantasy_core.metrics.lip_offset:LipOffset", "face_landmarker.task of mediapipe (4 MB, Apache-2.0)", "task"
    ),
    "hands": Entry(
        "fantasy_core.metrics.chosen:hands",
        "a folder with DWPose's yolox_l.onnx and dw-ll_ucoco_384.onnx, or mediapipe's hand_landmarker.task (no HKC)",
    ),
    "dynamics": Entry("fantasy_core.metrics.chosen:dynamics", argument="task"),
    "sync": Entry(
        "fantasy_core.metrics.syncnet:SyncNet", "syncnet_v2.model, from joonson/syncnet_python (download_model.sh)"
    ),
    "fid": Entry(
        "fantasy_core.metrics.inception:Fid",
        "pt_inception-2015-12-05-6726825d.pth, from the release fid_weights of mseitzer/pytorch-fid",
    ),
    "fvd": Entry(
        "fantasy_core.metrics.i3d:Fvd", "i3d_pretrained_400.pt of songweige/TATS, or StyleGAN-V's i3d_torchscript.pt"
    ),
    "qalign": Entry(
        "fantasy_core.metrics.chosen:qalign", "a folder of q-future/one-align (16 GB), whose code runs with trust=true"
    ),
    "scores": Entry(
        "fantasy_core.metrics.score_file:ScoreFile",
        "scores of Q-Align (q-future/one-align) as rows of video, metric, value",
        "path",
        by_name=True,
    ),
    "judge": Entry("train.miniature_metric:Judge"),
}


@dataclass(frozen=True)
class Spec:
    """A metric that can be built in any process: its name, its class, its keyword arguments."""

    name: str
    place: str
    keywords: Mapping[str, Any] = field(default_factory=dict)
    by_name: bool = False

    def build(self) -> Metric:
        return class_of(self.place)(**self.keywords)


@dataclass(frozen=True)
class Absent:
    """A metric that cannot be measured: why, and the columns that are not there."""

    reason: str
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Wanted:
    """The metrics that can be measured, and those that cannot, by name."""

    specs: list[Spec]
    absent: dict[str, Absent]


def wanted(names: Sequence[str], weights: Sequence[str], options: Sequence[str]) -> Wanted:
    """What --metrics, --weights and --options ask for. Raises UserError for names that nothing has."""
    names = list(dict.fromkeys(part for name in names for part in name.split(",") if part))
    entries = {name: _entry(name) for name in names}
    files, told = _by_metric(weights, "weights", names), _by_option(options, names)
    specs, absent = [], {}
    for name, entry in entries.items():
        keywords = dict(told.get(name, {}))
        if name in files:
            keywords[entry.argument] = Path(files[name]).expanduser()
        spec = Spec(name, entry.place, _typed(name, entry.place, keywords), entry.by_name)
        if entry.weights and entry.argument not in keywords:
            absent[name] = Absent(f"no weights: {entry.weights}", columns_of(spec))
        else:
            specs.append(spec)
    return Wanted(specs, absent)


def columns_of(spec: Spec) -> tuple[str, ...]:
    """The main columns of a metric that could not be built: those with a better side, or its name."""
    make = class_of(spec.place)
    made = make if inspect.isclass(make) else typing.get_type_hints(make).get("return")
    better = getattr(made, "better", {})
    return tuple(column for column, side in dict(better).items() if side) or (spec.name,)


def class_of(place: str) -> Any:
    """The class or function at `package.module:Class`. Raises UserError where there is none."""
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"the metric {place} cannot be imported",
            got=f"{type(error).__name__}: {error}",
            expected="module:Class that Python finds",
            do="check the name, and PYTHONPATH",
        ) from error


def _entry(name: str) -> Entry:
    if ":" in name:
        return Entry(name)
    if name not in METRICS:
        raise UserError(
            "there is no such metric",
            got=name,
            expected=", ".join(METRICS) + ", or package.module:Class",
            do="correct --metrics",
        )
    return METRICS[name]


def _by_metric(given: Sequence[str], what: str, names: Sequence[str]) -> dict[str, str]:
    """{metric: value} of texts METRIC=value."""
    pairs = [text.partition("=") for text in given]
    wrong = [text for text, (name, equals, value) in zip(given, pairs, strict=True) if not (name and equals and value)]
    strangers = [name for name, _, _ in pairs if name not in names]
    if wrong or strangers:
        raise UserError(
            f"--{what} cannot be understood",
            got=some(wrong or strangers),
            expected=f"NAME=value of a metric that is measured: {', '.join(names) or 'none is'}",
            do=f"correct --{what}, or add the metric to --metrics",
        )
    return {name: value for name, _, value in pairs}


def _by_option(given: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, str]]:
    """{metric: {key: value}} of texts METRIC.key=value; the metric may have dots itself."""
    found: dict[str, dict[str, str]] = {}
    for text in given:
        place, equals, value = text.partition("=")
        name, dot, key = place.rpartition(".")
        if not (equals and dot and key) or name not in names:
            raise UserError(
                "--options cannot be understood",
                got=text,
                expected="NAME.key=value of a metric that is measured, as fid.every=4",
                do="correct --options",
            )
        found.setdefault(name, {})[key] = value
    return found


def _typed(name: str, place: str, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Texts as the constructor's annotations want them. Raises UserError for keywords that it does not have."""
    made = class_of(place)
    make = made.__init__ if inspect.isclass(made) else made
    known = [key for key in inspect.signature(make).parameters if key != "self"]
    if strangers := [key for key in keywords if key not in known]:
        raise UserError(
            f"{name} has no such setting",
            got=some(strangers),
            expected=some(known) or "none",
            do="correct --options, or leave out --weights for a metric that needs none",
        )
    hints = typing.get_type_hints(make)
    return {key: _as_kind(name, key, value, hints.get(key, str)) for key, value in keywords.items()}


def _as_kind(name: str, key: str, value: Any, hint: Any) -> Any:
    if isinstance(value, Path):
        return value
    if typing.get_origin(hint) is Sequence:
        return tuple(part.strip() for part in value.split(","))
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    readers = {bool: lambda text: {"true": True, "false": False}[text.lower()], int: int, float: float, str: str}
    kind = next((kind for kind in kinds if kind in readers), str)
    try:
        return readers[kind](value)
    except (ValueError, KeyError):
        do, got = "correct --options", f"{name}.{key}={value}"
        raise UserError("a setting has a wrong value", got=got, expected=kind.__name__, do=do) from None
