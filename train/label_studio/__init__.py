"""Label Studio as the place where people label: its projects (the XML files here), its tasks, its exports.

labels.xml asks the three questions of a video, arbiter.xml one of them, study.xml for three numbers from 0 to 10. A
task's data are `video`, `url`, `sha256`, and for the arbiter `dimension` and `question`: neither the model that made a
video nor what others said of it. The JSON export is a list of tasks, each with its data and with annotations by person
(labelstud.io/guide/task_format).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fantasy_core.critic.asked import read_questions
from fantasy_core.errors import UserError, some
from fantasy_core.media.files import replacing
from train.run import write_json

FOLDER = Path(__file__).parent
PROJECTS = ("labels", "arbiter", "study")
LOCAL_FILES = "/data/local-files/?d="  # what Label Studio serves from its LOCAL_FILES_DOCUMENT_ROOT
ANSWER = "answer"  # the name of arbiter.xml's only question; the task says which one that is
LAST_WORDS = " Answer with one word: Yes or No."  # for a model; people press a button


@dataclass(frozen=True)
class Answer:
    """What a person said: `name` is that of the question in the XML, `value` a choice's text or a number. Answers that
    were given together share the number of their `annotation`."""

    video: str
    sha256: str
    by: str
    name: str
    value: Any
    annotation: int


@dataclass(frozen=True)
class Export:
    """Answers, and how many annotations were skipped by the person."""

    answers: list[Answer]
    skipped: int


# ---- tasks ----


def question(dimension: str) -> str:
    """What people are asked: what Talking-Critic is asked."""
    return read_questions().questions[dimension].removesuffix(LAST_WORDS)


def addresses(files: Mapping[str, Path], root: Path, prefix: str) -> dict[str, str]:
    """Where a browser finds each video: `prefix` and the path below `root`. Raises UserError for files outside."""
    base, found, outside = root.resolve(), {}, []
    for video, path in files.items():
        real = path.resolve()
        if real.is_relative_to(base):
            found[video] = prefix + quote(real.relative_to(base).as_posix())
        else:
            outside.append(str(path))
    if outside:
        raise UserError(
            f"not all videos are below {root}",
            got=some(outside),
            expected="files that Label Studio serves: below its LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT",
            do="give that folder as --root, or move the videos",
        )
    return found


def task(video: str, url: str, sha256: str, dimension: str | None = None) -> dict[str, Any]:
    """A task for all questions or, for the arbiter, for one."""
    data = {"video": video, "url": url, "sha256": sha256}
    return {"data": data | ({"dimension": dimension, "question": question(dimension)} if dimension else {})}


def shuffled(tasks: Iterable[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """In an order that tells nothing: the videos of an input or of a model do not follow one another."""

    def place(one: dict[str, Any]) -> bytes:
        return hashlib.sha256(f"{seed} {one['data']['video']} {one['data'].get('dimension')}".encode()).digest()

    return sorted(tasks, key=place)


def write_project(folder: Path, project: str, tasks: list[dict[str, Any]]) -> None:
    """PROJECT.xml for the labeling interface, PROJECT_tasks.json for the import."""
    write_json(folder / f"{project}_tasks.json", tasks)
    with replacing(folder / f"{project}.xml") as beside:
        beside.write_bytes((FOLDER / f"{project}.xml").read_bytes())


# ---- exports ----


def read_export(path: Path) -> Export:
    """The answers in a JSON export. Raises UserError for another file, naming what is wrong with which task."""
    try:
        tasks = json.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise _no_export(path, [str(error)]) from error
    if not isinstance(tasks, list):
        raise _no_export(path, [f"a {type(tasks).__name__}"])
    answers, skipped, seen, problems = [], 0, 0, []
    for number, one in enumerate(tasks, 1):
        try:
            for annotation in one["annotations"]:
                seen += 1
                if annotation.get("was_cancelled"):
                    skipped += 1
                else:
                    answers += _answers(one["data"], annotation, seen)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problems.append(f"task {number}: {_told(error)}")
    if problems:
        raise _no_export(path, problems)
    return Export(answers, skipped)


def _answers(data: Mapping[str, Any], annotation: Mapping[str, Any], number: int) -> list[Answer]:
    found, by = [], _person(annotation["completed_by"])
    for item in annotation["result"]:
        kind, name = item["type"], item["from_name"]
        name = data["dimension"] if name == ANSWER else name
        value = item["value"][kind]
        if kind == "choices":
            (value,) = value
        found.append(Answer(str(data["video"]), str(data.get("sha256", "")), by, name, value, number))
    names = [answer.name for answer in found]
    if len(set(names)) < len(names):
        raise ValueError(f"{by} answered a question twice: {some(names)}")
    return found


def _person(told: Any) -> str:
    """Exports name a person by a number, or by a record with number and e-mail."""
    if isinstance(told, Mapping):
        told = told.get("email") or told["id"]
    if not isinstance(told, str | int) or told == "":
        raise ValueError(f"completed_by is {told!r}")
    return str(told)


def _told(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)


def _no_export(path: Path, problems: list[str]) -> UserError:
    return UserError(
        f"{path} is no export of these projects",
        got=some(problems),
        expected="Label Studio's JSON export (not JSON-MIN or CSV) of tasks that train.annotate wrote",
        do="export the project again as JSON",
    )
