"""Makes candidate videos: every input by every source, in variants with seeds and guidance scales of their own.

    python -m train.candidates --inputs inputs.jsonl --source fantasytalking infinitetalk --fps 23 \\
        --server http://127.0.0.1:8188 http://gpu2:8188 --out candidates
    python -m train.candidates --inputs inputs.jsonl --from-folder omniavatar=my_videos --out candidates
    python -m train.candidates --real-clips clips/videos.jsonl --source fantasytalking infinitetalk \\
        --server http://127.0.0.1:8188 --out rivals

A source is a ComfyUI workflow: one that is shipped (train/sources), or the path of your own NAME.json with a NAME.toml
beside it (`train.source_workflows` says how). `inputs.jsonl` has a line for each portrait and voice: input, portrait,
audio and, if wanted, prompt and split; paths are relative to it. `--from-folder` takes in what other programs made.
`--real-clips` makes from the first frame and the sound of each real clip a rival, by one of the sources that can, at
random. A rival has the frames and the rate of its clip; with `--fps` all videos of an input have one rate and one
length, which all sources can make. A source that only makes longer videos is given the voice with silence after it,
and what is kept is cut by timestamp and encoded again.

Writes videos.jsonl (what train.pairs and train.cache read), candidates/, log.jsonl and candidates.json, the report. The
same command again makes what is missing, and only that. With several servers, what fails on one is tried on another,
and one that goes away is left alone until it answers again.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fantasy_core.errors import UserError, some
from fantasy_core.progress import Progress
from train.candidate_jobs import Failures, Input, Job, Wishes, at_one_rate, plan, read_inputs
from train.candidate_maker import has_voice, maker
from train.candidate_rows import Log, VideoRow, earlier_rows
from train.comfy_client import ComfyServer, ServerGone
from train.dispatch import Dispatch, Rules
from train.import_videos import Found, Known, find_videos, folder_of, measured_rows
from train.real_clips import as_inputs, one_source_each, read_clips
from train.run import as_json, command, made_from, setting, write_json, write_rows
from train.source_checks import lacks
from train.source_workflows import Source, load_source, shipped_sources


@dataclass(frozen=True)
class CandidateSettings:
    out: Path = setting(help="folder for the candidates")
    inputs: Path | None = setting(None, "inputs.jsonl: input, portrait, audio, and prompt, split")
    real_clips: Path | None = setting(None, "instead: videos.jsonl of real clips, each to get a rival")
    source: tuple[str, ...] = setting((), "shipped: " + ", ".join(shipped_sources()) + "; or paths of NAME.json")
    server: tuple[str, ...] = setting((), "addresses of running ComfyUIs")
    from_folder: tuple[str, ...] = setting((), "NAME=DIR: videos INPUT_VARIANT.mp4, or videos.csv, of another program")
    variants: int | None = setting(None, "videos of an input by a source (4; of a real clip 1)", least=1)
    seed: int = setting(0, "of all that is drawn")
    width: int | None = setting(None, "of the videos, instead of the source's", least=16)
    height: int | None = setting(None, "of the videos, instead of the source's", least=16)
    fps: float | None = setting(None, "frame rate of all videos, with one length for all of an input", least=1)
    seconds: float | None = setting(None, "most of a voice that is used; the source has its own limit", least=0.1)
    tries: int = setting(3, "of a video before it counts as failed", least=1)
    timeout: float = setting(3600.0, "most seconds for one video", least=1)
    patience: float = setting(120.0, "seconds without any server before the run ends", least=0)


@dataclass
class Work:
    """All that a command is about: jobs to be made, rows that are there already, and what cannot be."""

    sources: list[Source]
    jobs: list[Job]
    rows: list[VideoRow]
    failures: Failures
    able: dict[str, int]  # of how many real clips each source can make a rival


def find_work(settings: CandidateSettings, log: Log, *, write: bool) -> Work:
    """Read and check everything that needs no server. Raises UserError."""
    _check_settings(settings)
    sources, failures = [load_source(name) for name in settings.source], Failures()
    rows, able = [], {}
    variants = settings.variants or (4 if settings.real_clips is None else 1)
    given = {name: getattr(settings, name) for name in ("seed", "width", "height", "seconds")}
    wishes = Wishes(variants, voices=settings.out / "voices", **given)
    if settings.real_clips is not None:
        rows = read_clips(settings.real_clips, log, failures)
        inputs = as_inputs(rows, settings.out, failures, write=write)
        pairs, able = one_source_each(inputs, sources, wishes, failures)
    else:
        inputs = read_inputs(settings.inputs, failures) if settings.inputs else []
        if settings.fps is not None and (sources or settings.seconds):
            inputs = at_one_rate(inputs, sources, settings.fps, wishes, failures)
        pairs = [(given, source) for given in inputs for source in sources]
    jobs = plan(pairs, wishes, failures)
    rows += measured_rows(_imported(settings, failures), _known(settings, inputs), log, failures, settings.fps)
    names = Counter([row.video for row in rows] + [job.video for job in jobs])
    if twice := [name for name, count in names.items() if count > 1]:
        raise UserError(
            "two videos would have one id", got=some(twice), expected="INPUT_SOURCE_VARIANT of its own for each",
            do="rename an input, a source or a folder",
        )  # fmt: skip
    return Work(sources, jobs, rows, failures, able)


def _check_settings(settings: CandidateSettings) -> None:
    given = settings.inputs is not None, settings.real_clips is not None
    names = [Path(name).stem for name in settings.source] + [flag.partition("=")[0] for flag in settings.from_folder]
    got = None
    if all(given):
        got, do = "--inputs and --real-clips", "run them one after the other, into two folders"
    elif settings.fps is not None and settings.real_clips is not None:
        got, do = "--fps with --real-clips", "leave --fps out: a rival has the rate of its clip"
    elif settings.source and not any(given):
        got, do = "--source, but nothing to animate", "give --inputs or --real-clips"
    elif any(given) and not (settings.source or settings.from_folder):
        got, do = "no --source", "give --source " + " ".join(shipped_sources()) + ", or some of them"
    elif not names:
        got, do = "no --source and no --from-folder", "give one of them"
    elif len(set(names)) < len(names):
        got, do = "a name twice: " + ", ".join(names), "rename one of the sources or folders"
    elif settings.source and not settings.server:
        got, do = "no --server", "start ComfyUI and give --server http://127.0.0.1:8188"
    if got:
        raise UserError("what to make is not clear", got=got, expected="inputs, sources and servers, or folders", do=do)


def _imported(settings: CandidateSettings, failures: Failures) -> list[Found]:
    named = [folder_of(flag) for flag in settings.from_folder]
    return [one for name, folder in named for one in find_videos(name, folder, failures)]


def _known(settings: CandidateSettings, inputs: Iterable[Input]) -> dict[str, Known] | None:
    """What imported videos can be of: anything, where no inputs are given."""
    if settings.inputs is None and settings.real_clips is None:
        return None
    return {given.input: Known(given.prompt, given.split, given.kept) for given in inputs}


def check_servers(servers: Sequence[ComfyServer], sources: Sequence[Source]) -> dict[tuple[str, str], str]:
    """(server, source): what it lacks there, told. Raises UserError for a source that no server can run, unless one
    does not answer."""
    found: dict[tuple[str, str], str] = {}
    away = []
    for server in servers:
        try:
            missing = {source.name: lacks(server, source) for source in sources}
        except ServerGone as gone:
            print(gone.got)
            away.append(server.url)
            continue
        for name, told in missing.items():
            print(f"{server.url}: {name}: " + ("\n    ".join(["lacks", *told]) if told else "ready"))
            if told:
                found[server.url, name] = "; ".join(told)
    nowhere = [s.name for s in sources if all((server.url, s.name) in found for server in servers)]
    if len(away) == len(servers) or nowhere:
        raise UserError(
            "no server answers" if not nowhere else f"no server can run {some(nowhere)}",
            got=", ".join(away) or found[servers[0].url, nowhere[0]],
            expected="a running ComfyUI with the nodes and files of each source",
            do="start it, or put there what it lacks (listed above), or leave the source out",
        )
    return found


def make_missing(settings: CandidateSettings, work: Work, log: Log) -> None:
    """Make what the log does not have; rows and failures are added to `work` as they come."""
    missing = []
    for job in work.jobs:
        row = log.find(job.video, job.made)
        if row is None:
            missing.append(job)
        else:
            work.rows.append(row)
    missing = [job for job in missing if has_voice(job, work.failures)]
    if not missing:
        return
    servers = [ComfyServer(url) for url in settings.server]
    wanted = {job.source for job in missing}
    unfit = check_servers(servers, [source for source in work.sources if source.name in wanted])
    with Progress("candidates", len(missing)) as progress:

        def done(job: Job, row: VideoRow) -> None:
            log.add(job.made, row)
            work.rows.append(row)
            progress.step(job.video)

        def failed(job: Job, why: str) -> None:
            log.fail(job.video, why)
            work.failures.add(job.video, why)
            progress.step(job.video)

        rules = Rules(settings.tries, patience=settings.patience)
        spread = Dispatch(
            servers,
            maker(settings.out, settings.timeout),
            done,
            failed,
            rules,
            lambda told: print(told, file=sys.stderr),
        )
        for server in servers:
            for source in wanted:
                if (why := unfit.get((server.url, source))) is not None:
                    spread.forbid(server, source, why)
        try:
            spread.run(missing)
        except ServerGone as gone:
            raise UserError(
                "no server is left",
                got=gone.got,
                expected=f"one of {', '.join(settings.server)} to answer within {settings.patience:g} s",
                do="start them and run the same command again: what was made is kept",
            ) from None


def write_results(settings: CandidateSettings, work: Work) -> list[VideoRow]:
    """videos.jsonl and the report, in an order that does not depend on who was done first. What commands before made of
    other inputs or by other sources stays in the list; of a real clip there is one rival."""
    asked = {(row.input, row.source) for row in work.rows} | {(job.given.input, job.source) for job in work.jobs}
    clips = {name for name, _ in asked} if settings.real_clips is not None else set()
    path = settings.out / "videos.jsonl"
    kept = earlier_rows(path, lambda row: (row.input, row.source) in asked or row.input in clips)
    if kept:
        print(f"{len(kept)} videos of earlier commands stay in {path}")
    rows = sorted([*work.rows, *kept], key=lambda row: (row.input, row.source != "real", row.source, row.variant))
    write_rows(path, rows)
    files = {"inputs": settings.inputs, "real_clips": settings.real_clips}
    graphs = {f"source {Path(n).stem}": Path(n) for n in settings.source if n.endswith(".json")}
    write_json(
        settings.out / "candidates.json",
        {
            "settings": as_json(vars(settings)),
            "made_from": made_from({name: path for name, path in files.items() if path is not None} | graphs),
            "videos": dict(sorted(Counter(row.source for row in rows).items())),
            "missing": len({job.video for job in work.jobs} - {row.video for row in rows}),
            "failures": [{"of": name, "why": why} for name, why in work.failures.told],
        },
    )
    return rows


def told_plan(work: Work, log: Log) -> str:
    """How many videos of which size there are to make."""
    missing = [job for job in work.jobs if log.find(job.video, job.made) is None]
    kinds = Counter((j.source, j.values["frames"], j.values["width"], j.values["height"]) for j in missing)
    lines = [f"  {n} by {name}, {t} frames, {w} x {h}" for (name, t, w, h), n in sorted(kinds.items())]
    untried = [f"  {source.name} was never run here: {source.not_run}" for source in work.sources if source.not_run]
    head = f"{len(missing)} videos to make, {len(work.jobs) - len(missing) + len(work.rows)} are there"
    clips = len({row.input for row in work.rows if row.source == "real"})
    able = [f"  {name} can make {count} of {clips} clips" for name, count in work.able.items()]
    return "\n".join([head, *able, *lines, *_rates(work), *untried])


def _rates(work: Work) -> list[str]:
    """What to do where the videos to be made have several rates."""
    rates = sorted({job.how.fps if job.kept is None else job.kept.fps for job in work.jobs})
    told = ", ".join(f"{rate:g}" for rate in rates)
    hint = f"  {told} frames a second: train.cache takes one rate, --fps {rates[0]:g} brings all to it" if rates else ""
    return [hint] if len(rates) > 1 and not work.able else []


def _check_dry(settings: CandidateSettings, work: Work) -> None:
    """Ask the servers; what they lack does not hide what else is wrong."""
    try:
        if work.sources:
            check_servers([ComfyServer(url) for url in settings.server], work.sources)
    except UserError as error:
        if not work.failures.told:
            raise
        work.failures.add("servers", error)


def run(settings: CandidateSettings, dry_run: bool) -> None:
    with Log(settings.out / "log.jsonl", kept=not dry_run) as log:
        work = find_work(settings, log, write=not dry_run)
        print(told_plan(work, log))
        if dry_run:
            _check_dry(settings, work)
            print(f"dry run: nothing was written to {settings.out}")
        else:
            try:
                make_missing(settings, work, log)
            finally:
                rows = write_results(settings, work)
            print(f"{len(rows)} videos in {settings.out / 'videos.jsonl'}")
    if told := [f"{name}: {why}" for name, why in work.failures.told]:
        raise UserError(
            f"{len(told)} failures" + ("" if dry_run else f"; all are in {settings.out / 'candidates.json'}"),
            got="\n            ".join(told[:20]),
            expected="every video that was asked for",
            do="mend what is said there and run the same command again: what was made is kept",
        )


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command(CandidateSettings, __doc__, run, argv)


if __name__ == "__main__":
    sys.exit(main())
