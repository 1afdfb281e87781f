"""People label videos, and their votes become labels: for Talking-Critic, and for user studies (paper, 4.1, 4.2).

    python -m train.annotate tasks --videos videos.jsonl --out labelling           # --project study: ratings, 0 to 10
    python -m train.annotate adjudicate --videos videos.jsonl --labels export.json --out annotations
    python -m train.annotate adjudicate --videos videos.jsonl --labels export.json --arbiter fourth.json \\
        --out annotations

`tasks` writes a project for Label Studio (labelstud.io): labels.xml is its labeling interface, labels_tasks.json its
import. Label Studio must be started with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and with
LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT at --root, and the project needs a folder below it, the one with the videos, as
source storage "Local files" (added, not synchronised). Three people label every video; export as JSON.

A study is blind: raters get copies of the videos, one of each method (`source`) for each clip (`input`), in the folder
study_videos of --out, by names that tell neither (--root is --out there, if it is not given). study_videos.jsonl
tells them apart again: keep it to yourself and give it to `train.evaluate --ratings export.json --videos` later.

`adjudicate` takes that export, or a CSV `video,dimension,a1,a2,a3,arbiter` with 0, 1 or nothing. Three equal votes are
a label; all else waits, in todo.jsonl and as arbiter_tasks.json with arbiter.xml, for a fourth person, whose vote
decides alone; give the export of that project as --arbiter. Written are annotations.jsonl, a row for each video and
dimension, and report.json: agreement, and how often the arbiter went against the majority. train and test are split by
`input`, never by video. Settings of either command (--project --root --prefix --seed --test-share ...) are in the
--help of that command.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from fantasy_core.errors import UserError, some
from fantasy_core.media import check_file
from fantasy_core.pair_rules import DIMENSIONS
from train.annotations import VOTES, Annotation, Vote, adjudicate, agreement, bad_votes, problem_of
from train.label_studio import LOCAL_FILES, write_project
from train.run import command, made_from, setting, write_json, write_rows
from train.shown_videos import Listed, Videos, blinded, write_blinded
from train.splits import split_of
from train.votes import Votes, read_votes


@dataclass(frozen=True)
class Todo:
    """What a video lacks in a dimension: `needs` the arbiter, or votes (it has so many)."""

    video: str
    dimension: str
    needs: str
    votes: int


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Settings of both commands: what people are shown, and where."""

    videos: Path = setting(help="videos.jsonl: video, input, path, source")
    out: Path = setting(help="folder for the result")
    root: Path | None = setting(
        None, "Label Studio's LOCAL_FILES_DOCUMENT_ROOT (default: where videos.jsonl is; --out for a study)"
    )
    prefix: str = setting(LOCAL_FILES, "what comes before a path below --root; https://... where a web server has them")
    seed: int = setting(0, "of the order of tasks, and of the split")


@dataclass(frozen=True, kw_only=True)
class TaskSettings(Shown):
    project: str = setting("labels", "what people are asked: three questions, or ratings", choices=("labels", "study"))


@dataclass(frozen=True, kw_only=True)
class AdjudicateSettings(Shown):
    labels: Path = setting(help="JSON export of Label Studio, or a CSV video,dimension,a1,a2,a3,arbiter")
    arbiter: Path | None = setting(None, "JSON export of the arbiter's project")
    test_share: float = setting(0.1, "of inputs whose source has no `split`; paper: 1K of 10K", least=0, most=1)


# ---- tasks ----


def write_tasks(settings: TaskSettings, dry_run: bool) -> None:
    study = settings.project == "study"
    videos = Videos.of(settings.videos, believed=not study)
    for path in videos.files.values():
        check_file(path, "video")
    shown = blinded(videos, settings.out, settings.seed) if study else videos
    root = settings.root or (settings.out if study else settings.videos.parent)
    tasks = shown.tasks([(name, None) for name in shown.rows], root, settings.prefix, settings.seed)
    print(f"{len(tasks)} tasks, the first is {tasks[0]['data']['url']}")
    if dry_run:
        print(f"dry run: nothing was written to {settings.out}")
        return
    if study:
        key = write_blinded(videos, shown, settings.out)
        print(f"whose videos they are is in {key}: keep it from the raters, it is train.evaluate's --videos")
    write_project(settings.out, settings.project, tasks)
    print(settings.out / f"{settings.project}_tasks.json")


# ---- adjudicate ----


def labelled(videos: Videos, votes: Votes, share: float, seed: int) -> tuple[list[Annotation], list[Todo]]:
    """Rows of all that three people voted on, and what is to be done. Raises UserError for votes that make no label;
    fewer than three are no error, but work."""
    _check_known(videos, votes)
    rows, todo, problems, split = [], [], [], splits(videos.rows.values(), share, seed)
    for key in product(videos.rows, DIMENSIONS):
        own, arbiters = votes.votes.get(key, []), votes.arbiters.get(key, [])
        distinct = len({vote.by for vote in own}) == len(own)
        problem = f"{len(arbiters)} arbiters" if len(arbiters) > 1 else problem_of(own, *arbiters)
        if len(own) < VOTES and distinct and not arbiters:
            todo.append(Todo(*key, "votes", len(own)))
        elif problem:
            problems.append(f"{' '.join(key)}: {problem}")
        else:
            listed = videos.rows[key[0]]
            arbiter = next(iter(arbiters), None)
            rows.append(_row(listed, key[1], own, arbiter, split[listed.input]))
    if problems:
        raise bad_votes(problems)
    return rows, todo + [Todo(row.video, row.dimension, "arbiter", VOTES) for row in rows if row.label is None]


def splits(rows: Iterable[Listed], share: float, seed: int) -> dict[str, str]:
    """train or test, by input. Sources that the list has split already (train.clips does, by footage file, of which
    many clips may come) stay as they are, an input with a test video is for tests, others fall by their names."""
    rows = list(rows)
    tests = {row.input for row in rows if row.split == "test"}
    divided = {row.source for row in rows if row.split == "test"}
    kept = {row.input for row in rows if row.split and row.source in divided}
    return {
        name: "test" if name in tests else "train" if name in kept else split_of(name, share, seed)
        for name in dict.fromkeys(row.input for row in rows)
    }


def _row(video: Listed, dimension: str, votes: list[Vote], arbiter: Vote | None, split: str) -> Annotation:
    label, how = adjudicate(votes, arbiter)
    about = (video.video, video.sha256, video.input, video.source, video.variant, dimension)
    return Annotation(*about, votes=votes, arbiter=arbiter, label=label, how=how, split=split)


def _check_known(videos: Videos, votes: Votes) -> None:
    strangers = votes.videos - videos.rows.keys()
    changed = [
        name for name, seen in votes.hashes.items() if name in videos.rows and seen != {videos.rows[name].sha256}
    ]
    if strangers or changed:
        raise UserError(
            "the labels are of other videos",
            got=f"not in the list: {some(strangers)}" if strangers else f"another file than labelled: {some(changed)}",
            expected="labels of the videos in videos.jsonl",
            do="give the videos.jsonl that the tasks were made from",
        )


def run_adjudicate(settings: AdjudicateSettings, dry_run: bool) -> None:
    files = {"videos": settings.videos, "labels": settings.labels}
    files |= {"arbiter": settings.arbiter} if settings.arbiter else {}
    origin, videos, votes = made_from(files), Videos.of(settings.videos), read_votes(settings.labels)
    if settings.arbiter:
        votes.add_arbiter(settings.arbiter)
    rows, todo = labelled(videos, votes, settings.test_share, settings.seed)
    report = agreement(rows)
    waiting = [(one.video, one.dimension) for one in todo if one.needs == "arbiter"]
    tasks = videos.tasks(waiting, settings.root or settings.videos.parent, settings.prefix, settings.seed)
    print_report(report, todo, votes.skipped)
    inputs = inputs_by_split(rows)
    print("inputs: " + (", ".join(f"{number} {name}" for name, number in sorted(inputs.items())) or "none"))
    if "test" not in inputs:
        print("warning: no input is for tests, so train.critic eval has nothing to judge by; see --test-share")
    if dry_run:
        print(f"dry run: nothing was written to {settings.out}")
        return
    write_project(settings.out, "arbiter", tasks)
    write_rows(settings.out / "todo.jsonl", todo)
    split = {"test_share": settings.test_share, "seed": settings.seed, "inputs": inputs}
    needs = dict(Counter(one.needs for one in todo))
    told = {"made_from": origin, "split": split, "todo": needs, "skipped": votes.skipped, "agreement": report}
    write_json(settings.out / "report.json", told)
    write_rows(settings.out / "annotations.jsonl", rows)
    print(settings.out / "annotations.jsonl")


def inputs_by_split(rows: Sequence[Annotation]) -> dict[str, int]:
    return dict(Counter({row.input: row.split for row in rows}.values()))


def print_report(report: dict[str, dict[str, Any]], todo: Sequence[Todo], skipped: int) -> None:
    """A line a dimension, and what is to be done."""
    for dimension, told in report.items():
        shown = {name: "-" if told[name] is None else f"{told[name]:.3f}" for name in ("kappa", "reversal_rate", "yes")}
        print(
            f"{dimension}: {told['rows']} rows, kappa {shown['kappa']}, arbiter {told['arbiter']} times, against the "
            f"majority {shown['reversal_rate']}, Yes {shown['yes']}"
        )
    needs = Counter(one.needs for one in todo)
    print(
        f"to do: {needs['arbiter']} need the arbiter, {needs['votes']} lack votes; {skipped} annotations were skipped"
    )


COMMANDS = {"tasks": (TaskSettings, write_tasks), "adjudicate": (AdjudicateSettings, run_adjudicate)}


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS, help="its own --help lists its settings")
    settings, run = COMMANDS[parser.parse_args(argv[:1]).command]
    return command(settings, __doc__ or "", run, argv[1:])


if __name__ == "__main__":
    sys.exit(main())
