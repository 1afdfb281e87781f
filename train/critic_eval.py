"""How often a critic says what people said: Table 2 of the paper, from files.

    python -m train.critic eval --annotations annotations/annotations.jsonl --scores scores \\
        --base-scores base_scores --metrics metrics.csv --out runs/critic_eval

Accuracy on the labels of split `test`, with Wilson's 95 % intervals. `--scores` are train.score's by the critic,
`--base-scores` by its base; in one folder of both, `--critic` and `--base-critic` choose. `metrics.csv` has
`video,metric,value` with SD, Sync-C, IQA, AES, judged by their best threshold, in sample as in the paper and out of
fold. Prints the table; OUT/report.md and report.json have all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from train.critic_report import evaluate, write
from train.critic_report_text import accuracies
from train.run import command, setting
from train.score_files import Source


@dataclass(frozen=True)
class EvalSettings:
    annotations: Path = setting(help="annotations.jsonl of train.annotate")
    scores: Path = setting(help="scores by the critic: a file, or train.score's folder")
    out: Path = setting(help="folder for the report")
    base_scores: Path | None = setting(None, "scores by its base, to compare with")
    metrics: Path | None = setting(
        None, "CSV of video,metric,value and, if it tells, sha256: train.evaluate's metrics.csv"
    )
    critic: str | None = setting(None, "hash, or its beginning, of the critic, where --scores are of several")
    views: str | None = setting(None, "hash, or its beginning, of what it was shown")
    base_critic: str | None = setting(None, "hash, or its beginning, of the base, where --base-scores are of several")
    base_views: str | None = setting(None, "hash, or its beginning, of what the base was shown")


def run(settings: EvalSettings, dry_run: bool) -> None:
    ours, base = Source(settings.scores, settings.critic, settings.views), None
    if settings.base_scores is not None:
        base = Source(settings.base_scores, settings.base_critic, settings.base_views, "base-")
    report = evaluate(settings.annotations, ours, base, settings.metrics)
    if dry_run:
        print(f"dry run: all files can be used; {settings.out} would get a report on {settings.scores}")
    else:
        write(report, settings.out)
        print(f"{accuracies(report)}{settings.out / 'report.md'}")


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command(EvalSettings, __doc__, run, argv)
