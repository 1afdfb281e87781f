"""The page of an evaluation in a real browser: it loads without a fault, videos play together, tables sort."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from headless import Page, program
from plain_metrics import COLOURS, PLAIN, write_grey

from fantasy_core.miniature.components import WEIGHTS
from train.evaluate import main
from train.report_page import address, embedded

EVIL = "<img src><b>&\"'"  # as a method's name
STEM = "a&amp;&'\"<script>alert(2)<b>#?%41"  # as a file's
SHADES = {EVIL: (0.6, 0.5, 0.4), "plain": (0.3, 0.7, 0.2), "third": (0.1, 0.2, 0.9)}


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """Three methods with names that are markup, a broken file, missing weights, a reference, a gate, a study."""
    folder = tmp_path_factory.mktemp("page")
    for place, shades in enumerate(SHADES.values()):
        for stem, shade in zip(("00", STEM, "02"), shades, strict=True):
            write_grey(folder / str(place) / f"{stem}.mp4", shade, frames=30, size=(48, 64), sound=True)
    write_grey(folder / "real" / "00.mp4", 0.5, size=(48, 64))
    (folder / "2" / "02.mp4").write_bytes(b"</script><b>no video" * 9)
    (folder / "study.csv").write_text("rater,clip,method,mn,ls,vq\n<i>a</i>,c,m1,5,6,7\n<i>a</i>,c,m2,4,5,9\n")
    methods = [f"{name}={folder / str(place)}" for place, name in enumerate(SHADES)]
    files = ["--reference", folder / "real", "--gate", WEIGHTS / "gate.safetensors", "--ratings", folder / "study.csv"]
    metrics = ["--metrics", PLAIN, COLOURS, "fid"]
    told = ["--out", folder / "out", "--workers", 0, "--method", *methods, *files, *metrics]
    assert main(list(map(str, told))) == 0
    return folder / "out" / "report.html"


@pytest.fixture(scope="module")
def page(report):
    program()
    with Page(report.as_uri()) as page:
        yield page


def column(page: Page, table: str, place: int) -> list[str]:
    """What a column of a table shows, from top to bottom."""
    cells = f"[...document.querySelectorAll('[data-table={table}] tbody tr')].map(line => line.children[{place}])"
    return page.js(f"{cells}.map(cell => (cell.querySelector('.mean') ?? cell).textContent)")


def test_it_loads_without_a_fault(page):
    """No error on the console and no word of the policy; every section is there; the broken file is named."""
    page.wait("[...document.querySelectorAll('video')].every(video => video.readyState >= 2)")
    assert page.errors == []
    titles = page.js("[...document.querySelectorAll('h2')].map(h => h.textContent)")
    assert titles[:3] == ["Before you believe a number", "Results", "User study"]
    assert {"Every video", "Side by side", "Worst and best", "Tests", "What failed", "The gate", "Settings"} <= set(
        titles
    )
    assert page.js("document.querySelectorAll('.plot').length") == 3  # brightness, loudness, frames
    assert page.js("document.querySelector('img.gate').naturalWidth") > 500
    assert any(text.startswith("no weights: pt_inception") for text in column(page, "results", 5))


def test_names_are_text_and_never_markup(page, report):
    assert page.js("document.querySelectorAll('img:not(.gate), b, i').length") == 0
    assert page.js("document.querySelectorAll('script').length") == 2
    assert column(page, "results", 0) == list(SHADES)
    assert page.js("[...document.querySelector('#input').options].map(o => o.value)") == sorted(["00", STEM, "02"])
    assert report.read_text("utf-8").count("</script>") == 2


def test_a_click_and_a_key_sort(page):
    """Brightness: the mean of 0.6, 0.5, 0.4; of 0.3, 0.7, 0.2; of 0.1 and 0.2 (one file is broken): 0.5, 0.4, 0.15,
    less the fall over 30 frames. Downwards first, since more is better; then upwards; then names, by the Enter key."""
    heads = "document.querySelectorAll('[data-table=results] thead button')"
    page.js(f"{heads}[1].click()")
    assert column(page, "results", 0) == [EVIL, "plain", "third"]
    page.js(f"{heads}[1].click()")
    assert column(page, "results", 0) == ["third", "plain", EVIL]
    assert page.js(f"{heads}[1].parentElement.getAttribute('aria-sort')") == "ascending"
    page.js(f"{heads}[0].focus()")
    page.key("Enter")
    assert column(page, "results", 0) == [EVIL, "plain", "third"]
    assert page.js("document.querySelectorAll('[data-table=results] [aria-sort]').length") == 1


def test_all_videos_play_from_one_button(page):
    """Time advances in every player, within a quarter of a second of each other; one of them is heard; Pause stops."""
    page.js("document.querySelector('#play').click()")
    page.wait("[...document.querySelectorAll('video')].every(video => video.currentTime > 0.3)")
    page.js("document.querySelector('#play').click()")
    times = page.js("[...document.querySelectorAll('video')].map(video => video.currentTime)")
    assert len(times) == 3 and max(times) - min(times) < 0.25
    page.js("new Promise(done => setTimeout(done, 200))")
    assert page.js("[...document.querySelectorAll('video')].every(video => video.paused)")
    assert page.js("[...document.querySelectorAll('video')].map(video => video.muted)") == [False, True, True]
    page.js("document.querySelectorAll('.hear')[2].click()")
    assert page.js("[...document.querySelectorAll('video')].map(video => video.muted)") == [True, True, False]
    assert page.errors == []


def test_another_input_is_opened(page):
    """By the arrow, then from the list of worst clips: the worst of the first method is its darkest, 02."""
    page.js("document.querySelector('[aria-label=\"Next input\"]').click()")
    assert page.js("document.querySelector('#input').value") == "02"
    page.wait("document.querySelectorAll('video').length === 2")  # the third is the broken file
    assert "cannot be read" in page.js("document.querySelector('.fault').textContent")
    page.js("open('00')")
    page.js("document.querySelector('.ends li button').click()")
    assert page.js("document.querySelector('#input').value") == "02"
    page.js(f"open({json.dumps(STEM)})")
    page.wait("[...document.querySelectorAll('video')].every(video => video.readyState >= 2)")
    assert page.js("document.querySelectorAll('video').length") == 3 and page.errors == []


def test_it_can_be_dark(page):
    page.js("document.querySelector('#theme').click()")
    dark = page.js("getComputedStyle(document.body).backgroundColor")
    page.js("document.querySelector('#theme').click()")
    assert dark != page.js("getComputedStyle(document.body).backgroundColor")


def test_videos_can_be_in_the_page(report, tmp_path):
    """With --embed the page alone, in another place, plays; without it, it is light."""
    assert report.stat().st_size < 500_000
    methods = [f"{name}={report.parents[1] / str(place)}" for place, name in enumerate(SHADES)]
    told = ["--out", tmp_path / "out", "--workers", 0, "--method", *methods, "--metrics", PLAIN, "--embed", "true"]
    assert main(list(map(str, told))) == 0
    alone = (tmp_path / "out" / "report.html").rename(tmp_path / "alone.html")
    program()
    with Page(alone.as_uri()) as page:
        page.wait("[...document.querySelectorAll('video')].every(video => video.readyState >= 2)")
        assert page.js("document.querySelectorAll('video').length") == 3 and page.errors == []


def test_a_study_alone_has_a_page(report, tmp_path):
    assert main(["--ratings", str(report.parents[1] / "study.csv"), "--out", str(tmp_path)]) == 0
    program()
    with Page((tmp_path / "report.html").as_uri()) as page:
        assert column(page, "study", 0) == ["m1", "m2"] and page.errors == []
        assert column(page, "gains", 1) == ["+25.0 %", "+25.0 %"]


# ---- without a browser ----


def test_json_cannot_leave_its_element():
    told = embedded({"x": "</script><!--\u2028&"})
    assert not re.search("[<>&\u2028]", told) and json.loads(told) == {"x": "</script><!--\u2028&"}


def test_addresses_are_relative_and_quoted(tmp_path):
    assert address(tmp_path / "a b" / "50%#?.mp4", tmp_path / "out") == "../a%20b/50%25%23%3F.mp4"


def test_what_is_no_gate_is_refused(tmp_path, capsys):
    told = ["--ratings", str(tmp_path / "s.csv"), "--out", str(tmp_path / "out")]
    (tmp_path / "s.csv").write_text("rater,clip,method,mn,ls,vq\na,c,m,1,2,3\n")
    assert main([*told, "--gate", str(WEIGHTS / "codec.safetensors")]) == 2
    assert "is no gate" in capsys.readouterr().err
