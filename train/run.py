"""What every stage of training has in common: settings from a TOML file and flags, and files of rows.

A stage describes its settings as a dataclass. Every field is a key of its TOML (`--config run.toml`) and a flag of the
same name. Flags win over the TOML, which wins over a preset (`--preset`, where a stage has any). Unknown keys, wrong
types and missing values are errors before anything is computed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fantasy_core.errors import UserError, report, some
from fantasy_core.manifest import sha256
from fantasy_core.media import check_file
from fantasy_core.media.files import replacing

Settings = TypeVar("Settings")
Given = dict[str, Any]
Preset = Callable[[str, Mapping[str, Any]], Given]  # its name, and the settings that win over it -> its settings


def setting(
    default: Any = dataclasses.MISSING,
    help: str = "",
    choices: tuple[str, ...] | None = None,
    least: float | None = None,
    most: float | None = None,
    instead_of: str | None = None,
) -> Any:
    """A field of a stage's settings with its line of --help; without a default it must be given. Text, or each of
    several, is one of `choices`, a number from `least` to `most`. `instead_of` names the setting that this one stands
    for: the one that is given later wins, and both at one place are an error."""
    about = {"help": help, "choices": choices, "least": least, "most": most, "instead_of": instead_of}
    told = {"metadata": about}
    return dataclasses.field(**told) if default is dataclasses.MISSING else dataclasses.field(default=default, **told)


def command(
    kind: type[Settings],
    about: str,
    run: Callable[[Settings, bool], None],
    argv: list[str] | None,
    preset: Preset | None = None,
) -> int:
    """Parse, run `run(settings, dry_run)`, and report errors: the exit code. `preset` reads what the setting of that
    name asks for."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, metavar="TOML", help="settings; flags win over it")
    parser.add_argument("--dry-run", action="store_true", help="check everything, say what would be done, and stop")
    parser.add_argument("--debug", action="store_true", help="tracebacks")
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        default = "required" if field.default is dataclasses.MISSING else f"{_shown(field.default)}"
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", dest=field.name, default=None, metavar=field.name.upper(),
            **_arguments(hints[field.name]),
            help=f"{field.metadata.get('help', '')} ({default})",
        )  # fmt: skip
    flags = vars(parser.parse_args(argv))
    config, dry_run, debug = (flags.pop(name) for name in ("config", "dry_run", "debug"))

    def go() -> None:
        given = {name: text for name, text in flags.items() if text is not None}
        run(read_settings(kind, config, given, preset), dry_run)

    return report(go, debug=debug)


def check_folder(out: Path) -> None:
    """Raise UserError for a folder of results that cannot be made: a file is in its place, or may not be written to."""
    there = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(
            f"{out} cannot be a folder of results",
            got=f"{there} is a file" if not there.is_dir() else f"{there} may not be written to",
            expected="a folder, or a place where one can be made",
            do="give another --out",
        )


def _arguments(hint: Any) -> dict[str, Any]:
    """How many words a flag takes: of a tuple one or more, of a yes or no none too, which is a yes."""
    if typing.get_origin(hint) is tuple:
        return {"nargs": "+"}
    return {"nargs": "?", "const": "true"} if hint is bool else {}


def read_settings(kind: type[Settings], config: Path | None, flags: Given, preset: Preset | None = None) -> Settings:
    """The settings of a preset, of a TOML file and of flags (texts), each over the one before. Raises UserError."""
    given = read_toml(config) if config is not None else {}
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = given.keys() - fields.keys()
    if unknown:
        raise UserError(
            f"{config} has settings that this command does not know",
            got=some(unknown),
            expected=", ".join(fields),
            do="correct the names, or take them out",
        )
    named, hints = flags.get("preset", given.get("preset")), typing.get_type_hints(kind)
    begun = preset(str(named), given | flags) if preset and named not in (None, "", "none") else {}
    values = {}
    for layer, from_text in ((begun, False), (given, False), (flags, True)):
        told = {n: _value(n, v, hints[n], fields[n], from_text=from_text) for n, v in layer.items()}
        values = _laid_over(values, told, fields)
    missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in values]
    if missing:
        raise UserError(
            "some settings are missing",
            got="no " + ", ".join(missing),
            expected="a value for each of them",
            do="give " + ", ".join(f"--{name.replace('_', '-')}" for name in missing) + ", or write them into --config",
        )
    return kind(**values)


def _laid_over(below: Given, above: Given, fields: Mapping[str, dataclasses.Field]) -> Given:
    """Settings over others; of two that stand for each other only the one above is kept."""
    for name, other in ((n, f.metadata.get("instead_of")) for n, f in fields.items()):
        if other is None:
            continue
        here = [one for one in (name, other) if above.get(one) is not None]
        if len(here) == 2:
            raise UserError(
                f"{name} and {other} are given together",
                got=f"{name} {above[name]}, {other} {above[other]}",
                expected="one of them: each says what the other is",
                do=f"leave out --{name.replace('_', '-')} or --{other.replace('_', '-')}",
            )
        if here:
            below = {one: value for one, value in below.items() if one not in (name, other)}
    return below | above


def read_toml(path: Path) -> Given:
    """A TOML file as it is. Raises UserError."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(
            f"{path} cannot be read", got=str(error), expected="a TOML file", do="check the path and the line"
        ) from error


def _value(name: str, given: Any, hint: Any, field: dataclasses.Field, *, from_text: bool) -> Any:
    """A value of the field's type. Raises UserError for one that is none."""
    if _optional(hint):
        if given in ("", "none"):
            return None
        hint = next(kind for kind in typing.get_args(hint) if kind is not types.NoneType)
    try:
        value = _several(given) if typing.get_origin(hint) is tuple else _converted(given, hint, from_text)
        _check_range(value, **{name: field.metadata.get(name) for name in ("choices", "least", "most")})
        return value
    except (ValueError, KeyError):
        raise UserError(
            f"the setting {name} has a wrong value",
            got=repr(given),
            expected=_wanted(hint, field.metadata),
            do=f"correct --{name.replace('_', '-')} or the line in --config",
        ) from None


def _several(given: Any) -> tuple[str, ...]:
    """A list of texts, or the only one; `none` alone is an empty list."""
    given = [given] if isinstance(given, str) else given
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise ValueError
    return () if given in (["none"], [""]) else tuple(given)


def _check_range(value: Any, choices: tuple[str, ...] | None, least: float | None, most: float | None) -> None:
    if choices and not set(value if isinstance(value, tuple) else (value,)) <= set(choices):
        raise ValueError
    endless = isinstance(value, float) and not math.isfinite(value)
    if endless or (least is not None and value < least) or (most is not None and value > most):
        raise ValueError


def _wanted(hint: Any, about: Mapping[str, Any]) -> str:
    choices, least, most = about.get("choices"), about.get("least"), about.get("most")
    if choices:
        return ", ".join(choices)
    kind = "a path" if hint is Path else getattr(hint, "__name__", str(hint))
    return kind if least is None else f"{kind}, {least:g} " + ("or more" if most is None else f"to {most:g}")


def _converted(given: Any, kind: type, from_text: bool) -> Any:
    """A flag's text, or a TOML value, as `kind`: nothing is guessed, 1.5 is no int and "1" in a TOML no number."""
    if from_text and kind is bool:
        return {"true": True, "false": False}[given.lower()]
    if from_text or (kind is Path and isinstance(given, str)):
        return kind(given)
    if kind is float and type(given) is int:
        return float(given)
    if type(given) is not kind:  # a tuple's kind is none of these
        raise ValueError
    return given


def _optional(hint: Any) -> bool:
    return types.NoneType in typing.get_args(hint)


def _shown(default: Any) -> str:
    return "none" if default in (None, ()) else str(default).lower() if isinstance(default, bool) else str(default)


# ---- rows ----


def read_rows(path: Path, kind: type[Settings]) -> Iterator[Settings]:
    """The rows of a JSON-lines file as dataclasses; other columns are ignored. Raises UserError with the line."""
    try:
        lines = path.read_text("utf-8").split("\n")  # splitlines would break at characters that JSON may hold
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read", got=str(error), expected="a JSON-lines file", do="check the path"
        ) from error
    names = {field.name for field in dataclasses.fields(kind)}
    needed = {f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING}
    hints = typing.get_type_hints(kind)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            absent = needed - row.keys()
        except (ValueError, AttributeError) as error:
            absent, row = {str(error)}, {}
        if absent:
            raise UserError(
                f"line {number} of {path} is not a row of this file",
                got=f"missing: {some(absent)}",
                expected=f"a JSON object with {', '.join(sorted(needed))}",
                do="correct the line, or make the file again",
            )
        told = {name: value for name, value in row.items() if name in names}
        if wrong := [name for name, value in told.items() if not _fits(value, hints[name])]:
            raise UserError(
                f"line {number} of {path} is not a row of this file",
                got=", ".join(f"{name} {told[name]!r}" for name in wrong),
                expected=", ".join(f"{name}: {getattr(hints[name], '__name__', hints[name])}" for name in wrong),
                do="correct the line, or make the file again",
            )
        yield kind(**told)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value can be a field's; lists, objects and `Any` are left to who reads them."""
    kinds = typing.get_args(hint) if _optional(hint) else (hint,)
    plain = {str, int, float, bool, types.NoneType}
    if not set(kinds) <= plain:
        return True
    return type(value) in kinds or (float in kinds and type(value) is int)


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    """Dataclasses as JSON lines, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside:
        lines = (json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n" for row in rows)
        beside.write_text("".join(lines), "utf-8")


def write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside:
        beside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def as_json(settings: Mapping[str, Any]) -> Given:
    """Settings as JSON can hold them: paths are texts."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}


def made_from(files: Mapping[str, Path]) -> dict[str, str]:
    """The hash of every file that a result was made from, by what it is. Raises UserError for one that is not there."""
    return {name: sha256(check_file(path, name)) for name, path in files.items()}
