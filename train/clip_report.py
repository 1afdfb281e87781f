"""How much footage became clips, and which rule dropped the rest: for report.json and for people."""

from __future__ import annotations

from collections.abc import Sequence

from train.clip_file import Outcome

SAMPLE = 200  # footage files that a dry run lists
EXAMPLES = 3  # first ones of every reason
RULES = {
    "sound": "no sound track",
    "short": "left over from a scene, too short",
    "voice": "too little voice",
    "face": "no face, seen too seldom, or in profile",
    "small": "the face too small",
    "several": "another face",
    "sync": "lips and voice apart",
    "unsure": "no verdict on sync",
    "picture": "the picture smaller than asked for",
}


def report_of(outcomes: Sequence[Outcome], absent: Sequence[str]) -> dict:
    """Files, clips and seconds: kept, dropped by rule with the first examples, failed, absent; and how many of the kept
    clips have a verdict on sync."""
    kept = [row for one in outcomes for row in one.clips]
    dropped = {
        rule: [(one.origin, gone) for one in outcomes for gone in one.dropped if gone["rule"] == rule] for rule in RULES
    }
    failed = [{"origin": one.origin, "why": one.failed} for one in outcomes if one.failed is not None]
    return {
        "files": {"read": len(outcomes) - len(failed), "failed": len(failed), "absent": len(absent)},
        "footage_seconds": round(sum(one.seconds for one in outcomes), 3),
        "kept": {"clips": len(kept), "seconds": round(sum(row["frames"] / row["fps"] for row in kept), 3)},
        "kept_without_verdict": sum(row["offset"] is None for row in kept),
        "dropped": {rule: _told(found) for rule, found in dropped.items() if found},
        "failed": failed,
        "absent": list(absent[:EXAMPLES]),
    }


def _told(found: Sequence[tuple[str, dict]]) -> dict:
    examples = [{"origin": origin, "start": gone["start"], "why": gone["why"]} for origin, gone in found[:EXAMPLES]]
    return {"spans": len(found), "seconds": round(sum(gone["seconds"] for _, gone in found), 3), "examples": examples}


def print_report(report: dict) -> None:
    """A table of what was kept and dropped, each reason with its first example."""
    kept, files, unsure = report["kept"], report["files"], report["kept_without_verdict"]
    print(f"{'':10}{'spans':>7}{'seconds':>10}")
    print(f"{'kept':10}{kept['clips']:7}{kept['seconds']:10.1f}  {unsure} without a verdict on sync")
    for rule, told in report["dropped"].items():
        first = told["examples"][0]
        example = f"{first['origin']} at {first['start']:g} s: {first['why']}"
        print(f"{rule:10}{told['spans']:7}{told['seconds']:10.1f}  {RULES[rule]}; {example}")
    for gone in report["failed"]:
        print(f"failed: {gone['origin']}: {gone['why']}")
    read = f"{files['read']} files of {report['footage_seconds']:.1f} s read"
    print(f"{read}, {files['failed']} failed, {files['absent']} absent")
