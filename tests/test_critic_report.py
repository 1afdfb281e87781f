"""Table 2's report: a small set whose every number is derived by hand, planted judges, files that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fantasy_core.critic.statistics import wilson
from fantasy_core.errors import UserError
from fantasy_core.pair_rules import DIMENSIONS
from train.annotations import Annotation, Vote
from train.critic_report import evaluate, make_report, markdown, write
from train.run import write_rows
from train.score_files import METRICS, Source, read_metrics, read_scores


def labelled(video: str, label: int | None, dimension: str = "mn", **more) -> Annotation:
    answers = (0, 1, 0) if label is None else (label,) * 3
    votes = [Vote(name, v) for name, v in zip("abc", answers, strict=True)]
    told = {"sha256": "", "input": video[0], "source": "omniavatar", "variant": None, "split": "test"} | more
    how = "needs_arbiter" if label is None else "unanimous"
    return Annotation(video=video, dimension=dimension, votes=votes, arbiter=None, label=label, how=how, **told)


# Two inputs, a and b. Motion only: three Yes, two No, and one that still waits for the arbiter.
LABELS = [
    labelled("a0", 1, source="real"),
    labelled("a1", 0),
    labelled("a2", 1),
    labelled("b0", 1),
    labelled("b1", 0),
    labelled("b2", None),
]
OURS = {"mn": {"a0": 2.0, "a1": -1.0, "a2": -0.5, "b0": 1.0, "b1": -3.0, "stranger": 1.0}}
BASE = {"mn": {"a0": 1.0, "a1": 2.0, "a2": 3.0, "b0": -1.0}}


def test_ours_by_hand():
    """Right on a0, a1, b0, b1, wrong on a2: 4 of 5; among Yes 2/3, among No 1: balanced 5/6. A Yes above a No in all 6
    pairs, but not all right: AUROC 1. Pairs of one input: a0 a1, a1 a2, b0 b1 apart, all right, a0 a2 equal."""
    told = make_report(LABELS, OURS)["judges"]["ours"]["mn"]
    low, high = wilson(4, 5)
    fixed = told["fixed"]
    assert (fixed["accuracy"], fixed["low"], fixed["high"], fixed["n"]) == (0.8, low, high, 5)
    assert fixed["balanced_accuracy"] == pytest.approx(5 / 6) and told["auroc"] == 1.0
    pairs = told["pairwise"]
    assert (pairs["pairs"], pairs["apart"], pairs["strict"]) == (4, 3, 1.0)
    assert told["calibrated"] is None and told["calibration"] is None, "there is nothing to fit it on"


def test_against_the_base_by_hand():
    """Both scored a0 to a2 and b0: ours right on a0, a1, b0, the base on a0, a2. Alone right: two against one; of three
    differences one side has two or more in 4 of 8, two-sided certainty, p 1."""
    told = make_report(LABELS, OURS, BASE)["against_base"]["mn"]
    assert told["fixed"] == {"n": 4, "only_ours": 2, "only_base": 1, "p": 1.0} and told["calibrated"] is None


def test_sources_and_what_is_missing():
    """Real is a0 alone; synthetic the other four, three of them right. b2 waits for its label, the base lacks b1, and
    nobody labelled the stranger or anything in ls."""
    report = make_report(LABELS, OURS, BASE)
    sources = report["by_source"]["ours"]
    assert (sources["real"]["mn"]["right"], sources["real"]["mn"]["n"]) == (1, 1)
    assert (sources["synthetic"]["mn"]["right"], sources["synthetic"]["mn"]["n"]) == (3, 4)
    assert sources["omniavatar"] == sources["synthetic"] and sources["real"]["ls"] is None
    missing = report["missing"]
    assert missing["unlabelled"]["mn"] == {"n": 1, "first": ["b2"]} and missing["unlabelled"]["ls"]["n"] == 6
    assert missing["unscored"]["base"]["mn"] == {"n": 1, "first": ["b1"]}
    assert missing["unscored"]["ours"]["mn"]["n"] == 0
    assert missing["not_annotated"]["ours"] == {"n": 1, "first": ["stranger"]}
    text = markdown(report)
    assert "- 1 labelled test videos without base in mn: b1" in text and "stranger" in text


def test_a_metric_is_judged_twice():
    """The metric is right by opposite directions on the two inputs. In sample: a0 5, b1 5, a1 1, b0 1, a2 5: Yes at 5
    has a0, a2, a1 right, 3 of 5, as many as Yes to all, which is the lower cut and no number. Trained on b alone (b0 1
    Yes, b1 5 No) it says Yes below 3: wrong on all of a; trained on a, wrong on all of b. Nobody
    labelled c0."""
    metrics = {"SD": {"a0": 5.0, "a1": 1.0, "a2": 5.0, "b0": 1.0, "b1": 5.0, "c0": 1.0}}
    report = make_report(LABELS, OURS, metrics=metrics)
    assert report["missing"]["not_annotated"]["SD"] == {"n": 1, "first": ["c0"]}
    told = report["metrics"]["SD"]["mn"]
    assert (told["in_sample"]["right"], told["out_of_fold"]["right"], told["out_of_fold"]["n"]) == (3, 0, 5)
    assert (told["threshold"], told["yes_above"]) == (None, True)


def world(rng: np.random.Generator, inputs: int = 100):
    """Labels in three dimensions, of 4 videos each of `inputs` inputs, every fifth test; a truth behind them by which
    scores can be made."""
    rows, truth = [], {d: {} for d in DIMENSIONS}
    for number in range(inputs):
        split = "test" if number % 5 == 0 else "train"
        for variant, d in ((v, d) for v in range(4) for d in DIMENSIONS):
            name, label = f"{number}-{variant}", int(rng.integers(0, 2))
            rows.append(
                labelled(name, label, d, input=str(number), split=split, source="real" if variant == 0 else "x")
            )
            truth[d][name] = 2.0 * label - 1
    return rows, truth


def test_calibration_mends_a_planted_bias():
    """The base says Yes by 6 too often: nearly all Yes, so as right as there are Yes; calibrated on the train split it
    is as right as what lies behind it. Its order, and so its AUROC, was right before."""
    rng = np.random.default_rng(0)
    rows, truth = world(rng, inputs=400)
    biased = {d: {v: 2 * t + 6 + 0.5 * rng.standard_normal() for v, t in of.items()} for d, of in truth.items()}
    report = make_report(rows, truth, biased)
    for d in DIMENSIONS:
        told, yes = report["judges"]["base"][d], report["test"]["labels"][d]
        assert told["fixed"]["right"] == yes["yes"] and told["auroc"] > 0.99
        assert told["calibrated"]["accuracy"] > 0.98 and told["calibrated"]["ece"] < 0.05 < told["fixed"]["ece"]
        assert report["against_base"][d]["fixed"]["p"] < 1e-6 < 0.05 < report["against_base"][d]["calibrated"]["p"]


def test_the_train_split_is_in_no_accuracy():
    rows, truth = world(np.random.default_rng(1), inputs=50)
    wrong_on_train = {
        d: {v: t if int(v.split("-")[0]) % 5 == 0 else -t for v, t in of.items()} for d, of in truth.items()
    }
    told = make_report(rows, wrong_on_train)["judges"]["ours"]
    assert [told[d]["fixed"]["accuracy"] for d in DIMENSIONS] == [1.0] * 3
    assert [told[d]["fixed"]["n"] for d in DIMENSIONS] == [40] * 3
    assert [told[d]["calibrated"]["accuracy"] for d in DIMENSIONS] == [0.0] * 3, "fitted on labels that are all wrong"


def test_who_only_knows_real_from_synthetic_is_found_out():
    """All real clips good, generated ones by chance: Yes to real alone looks better than a coin over all, and is none
    on synthetic clips."""
    rows = [labelled(f"a{i}", 1, source="real") for i in range(20)]
    rows += [labelled(f"b{i}", i % 2) for i in range(20)]
    told = make_report(rows, {"mn": {row.video: 1.0 if row.source == "real" else -1.0 for row in rows}})
    assert told["judges"]["ours"]["mn"]["fixed"]["accuracy"] == 0.75
    assert told["by_source"]["ours"]["synthetic"]["mn"]["accuracy"] == 0.5


# ---- files ----


@pytest.fixture
def files(tmp_path) -> Path:
    rows, truth = world(np.random.default_rng(2), inputs=30)
    write_rows(tmp_path / "annotations.jsonl", rows)
    lines = [{"video": v, "critic": "c", **{f"z_{d}": truth[d][v] for d in DIMENSIONS}} for v in truth["mn"]]
    (tmp_path / "scores").mkdir()
    for part in (0, 1):
        text = "".join(json.dumps(line) + "\n" for line in lines[part::2])
        (tmp_path / "scores" / f"part-0000{part}.jsonl").write_text(text)
    weaker = [line | {"z_ls": 1.0, "critic": "base"} for line in lines]
    (tmp_path / "base.jsonl").write_text("".join(json.dumps(line) + "\n" for line in weaker))
    values = [f"{v},{name},{truth[d][v] * 3}\n" for name, d in reversed(METRICS.items()) for v in truth[d]]
    (tmp_path / "metrics.csv").write_text("video,metric,value\n" + "".join(values))
    return tmp_path


def test_files_become_a_report(files):
    """Ours is the truth: 24 of 24 (6 test inputs of 4). Single metrics are it too, each in its own column."""
    ours, base = Source(files / "scores"), Source(files / "base.jsonl")
    report = evaluate(files / "annotations.jsonl", ours, base, files / "metrics.csv")
    write(report, files / "out")
    assert list(report["metrics"]) == ["SD", "Sync-C", "IQA", "AES"], "in the order of Table 2"
    text = (files / "out" / "report.md").read_text()
    low = 100 * wilson(24, 24)[0]
    full = f"100.0 ({low:.1f} to 100.0)"
    assert f"| ours, fixed | {full} | {full} | {full} |" in text
    assert f"| Sync-C, out of fold | - | {full} | - |" in text and f"| AES, in sample | - | - | {full} |" in text
    assert "| SD, in sample | " + full in text and "Nothing.\n" in text
    kept = json.loads((files / "out" / "report.json").read_text(), parse_constant=pytest.fail)
    assert kept == report and set(kept["made_from"]) == {
        *("annotations", "part-00000.jsonl", "part-00001.jsonl", "base base.jsonl", "metrics"),
    }
    assert report["against_base"]["mn"]["fixed"]["p"] == 1.0 and report["against_base"]["ls"]["fixed"]["only_base"] == 0


def test_without_base_and_metrics(files):
    report = evaluate(files / "annotations.jsonl", Source(files / "scores"), None, None)
    write(report, files / "out")
    assert report["against_base"] is None and "Ours against the base" not in (files / "out" / "report.md").read_text()


def test_a_metric_that_is_all_equal_is_still_json(files):
    """One answer for all: the threshold is at no number."""
    rows = [labelled("0-0", 1), labelled("0-1", 1, input="1")]
    write_rows(files / "annotations.jsonl", rows)
    (files / "metrics.csv").write_text("video,metric,value\n0-0,SD,1\n0-1,SD,1\n")
    report = evaluate(files / "annotations.jsonl", Source(files / "scores"), None, files / "metrics.csv")
    write(report, files / "out")
    kept = json.loads((files / "out" / "report.json").read_text(), parse_constant=pytest.fail)
    assert kept["metrics"]["SD"]["mn"]["in_sample"]["accuracy"] == 1.0
    assert kept["metrics"]["SD"]["mn"]["threshold"] is None


WRONG_METRICS = {
    "no video of it is annotated: nobody": "nobody,SD,1\n",
    "metrics FID, bd": "0-0,FID,1\n0-0,bd,1\n",
    "line 2: value 'good'": "0-0,SD,good\n",
    "line 2: value 'nan'": "0-0,SD,nan\n",
    "line 3: 0-0 has SD twice": "0-0,SD,1\n0-0,SD,2\n",
    "video,metrik,value": None,
}


@pytest.mark.parametrize("case", WRONG_METRICS)
def test_metrics_that_cannot_be_used(tmp_path, case):
    rows = WRONG_METRICS[case]
    (tmp_path / "m.csv").write_text("video,metrik,value\n" if rows is None else "video,metric,value\n" + rows)
    with pytest.raises(UserError, match=case):
        read_metrics(tmp_path / "m.csv", {"0-0": ""})


def test_metrics_of_an_evaluation_are_read(tmp_path):
    """train.evaluate's metrics.csv: other names, other columns, other metrics, which are left out."""
    rows = "0-0,ours,sync_c,2.5\n0-0,ours,bd,1\n0-0,ours,sd,13\n"
    (tmp_path / "m.csv").write_text("video,method,metric,value\n" + rows)
    assert read_metrics(tmp_path / "m.csv", {"0-0": ""}) == {"Sync-C": {"0-0": 2.5}, "SD": {"0-0": 13.0}}


WRONG_SCORES = {
    "z_mn 'high'": [{"video": "v", "z_mn": "high"}],
    "z_mn nan": [{"video": "v", "z_mn": float("nan")}],
    "scored twice with different results": [{"video": "v", "z_mn": 1.0}, {"video": "v", "z_mn": 2.0}],
    "1 of critic a, views none, 1 of critic b, views none": [
        {"video": "v", "z_mn": 1.0, "critic": "a"},
        {"video": "w", "z_mn": 1, "critic": "b"},
    ],
}


@pytest.mark.parametrize("case", WRONG_SCORES)
def test_scores_that_cannot_be_compared(tmp_path, case):
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in WRONG_SCORES[case]))
    with pytest.raises(UserError, match=case):
        read_scores(Source(tmp_path / "s.jsonl"))


def test_a_failed_video_has_no_score(tmp_path):
    """A row without z is a video that could not be read; read at the second try, it has one."""
    rows = [{"video": "v", "z_mn": None, "failed": "?", "critic": "c"}, {"video": "v", "z_mn": 1, "critic": "c"}]
    rows.append({"video": "w", "z_mn": None, "failed": "?", "critic": "c"})
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_scores(Source(tmp_path / "s.jsonl")) == {"mn": {"v": 1}, "ls": {}, "vq": {}}
