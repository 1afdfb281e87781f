"""Which videos are evaluated: a folder for each method, whose files with one stem are answers to one input."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fantasy_core.errors import UserError, some
from train.footage import in_folder


@dataclass(frozen=True)
class Method:
    """The videos of a method (or the reference) by input, in order."""

    name: str
    folder: Path
    videos: Mapping[str, Path]


MASK = ".mask"  # NAME.mask.mp4 is the mask of the video NAME, for metrics of one subject


def read_methods(given: Sequence[str], out: Path) -> list[Method]:
    """The methods of texts NAME=FOLDER. Raises UserError for a text that is none, for a name or a folder that comes
    twice or lies in another, for a folder without videos, and for two files of one stem in a folder."""
    named = [_named(text) for text in given]
    for what, values in (("name", [n for n, _ in named]), ("folder", [str(f.resolve()) for _, f in named])):
        if twice := sorted({value for value in values if values.count(value) > 1}):
            raise UserError(
                f"two methods have the same {what}",
                got=some(twice),
                expected=f"a {what} of its own for each method",
                do="correct --method; a method compared with itself says nothing",
            )
    _check_apart([folder for _, folder in named])
    return [read_folder(name, folder, out) for name, folder in named]


def read_reference(folder: Path, methods: Sequence[Method], out: Path) -> Method:
    """The reference, whose folder may be a method's, but not in one or around one. Raises UserError."""
    _check_apart([folder, *(method.folder for method in methods)])
    return read_folder("reference", folder, out)


def _check_apart(folders: Sequence[Path]) -> None:
    """Videos below a folder are all its method's: a method inside another would be compared with itself."""
    inside = [f"{one} in {other}" for one in folders for other in folders if other.resolve() in one.resolve().parents]
    if inside:
        raise UserError(
            "a folder lies in another one",
            got=some(inside),
            expected="folders beside one another: all videos below a folder are its method's",
            do="give the folder of its own videos to each --method, and to --reference",
        )


def read_folder(name: str, folder: Path, out: Path) -> Method:
    """The videos of a folder and of those below it; neither what lies in `out` nor a mask of one of them. Raises
    UserError."""
    found = defaultdict(list)
    for video in in_folder(folder, without=out):
        found[video.path.stem].append(video.path)
    for stem in [stem for stem in found if stem.endswith(MASK) and stem.removesuffix(MASK) in found]:
        del found[stem]
    if twice := {stem: paths for stem, paths in found.items() if len(paths) > 1}:
        stem, paths = next(iter(twice.items()))
        raise UserError(
            f"{folder} has several videos of one input",
            got=", ".join(str(path.relative_to(folder)) for path in paths) + f" ({len(twice)} inputs)",
            expected=f"one file with the stem {stem}: stems tell which videos belong together",
            do="move the others out of the folder, or rename them",
        )
    return Method(name, folder, {stem: paths[0] for stem, paths in sorted(found.items())})


def _named(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (equals and name.strip() and folder):
        raise UserError("a method without a name", got=text, expected="NAME=FOLDER", do=f"pass --method ours={text}")
    return name.strip(), Path(folder).expanduser()


def inputs_of(methods: Sequence[Method]) -> list[str]:
    """All inputs of all methods, in order."""
    return sorted({stem for method in methods for stem in method.videos})


def unpaired(methods: Sequence[Method]) -> dict[str, list[str]]:
    """The inputs that a method lacks and another has, by method; those that lack none are left out."""
    every = inputs_of(methods)
    lacking = {method.name: [stem for stem in every if stem not in method.videos] for method in methods}
    return {name: stems for name, stems in lacking.items() if stems}
