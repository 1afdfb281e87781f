"""The candidates' stage with real ComfyUI servers: shipped graphs are what they take, and the miniature's whole run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from comfy_server import ROOT, Server
from comfyui import need_comfyui
from sounds import encode, whole

from fantasy_core.manifest import sha256
from fantasy_core.media import read_video
from train import cache
from train import candidates as stage
from train.comfy_client import ComfyServer
from train.shards import Cache
from train.source_checks import lacks
from train.source_workflows import SHIPPED, fill, load_source, shipped_sources

pytestmark = pytest.mark.comfy
ASSETS = ROOT / "fantasy_core" / "miniature" / "assets"


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Two servers, started side by side; the second is there to be killed."""
    need_comfyui()
    both = [Server(tmp_path_factory.mktemp(name)) for name in ("steady", "doomed")]
    with ThreadPoolExecutor() as pool:
        started = [pool.submit(server.__enter__) for server in both]
        try:
            yield [one.result() for one in started]
        finally:
            for server in both:
                if hasattr(server, "process"):
                    server.__exit__()


@pytest.fixture
def files(tmp_path) -> Path:
    """Two inputs: the miniature's portrait with two parts of its voice, 0.45 s each: 9 frames at 23 a second. And the
    shipped workflow with two steps for twelve."""
    shutil.copy(ASSETS / "portrait.png", tmp_path)
    sound, rate = whole(ASSETS / "voice.flac")
    lines = []
    for n in range(2):
        encode(tmp_path / f"a{n}.wav", sound[:, n * rate : n * rate + int(0.45 * rate)], rate)
        lines.append(json.dumps({"input": f"i{n}", "portrait": "portrait.png", "audio": f"a{n}.wav"}) + "\n")
    (tmp_path / "inputs.jsonl").write_text("".join(lines))
    graph = json.loads((SHIPPED / "miniature.json").read_text("utf-8"))
    graph["5"]["inputs"]["steps"] = 2
    (tmp_path / "miniature.json").write_text(json.dumps(graph))
    shutil.copy(SHIPPED / "miniature.toml", tmp_path)
    return tmp_path


def arguments(files: Path, out: str, *servers: Server, variants: int = 2) -> list[str]:
    flags = ["--inputs", f"{files}/inputs.jsonl", "--out", str(files / out), "--source", f"{files}/miniature.json"]
    return [*flags, "--variants", str(variants), "--patience", "20", "--server", *(server.url for server in servers)]


def started(*words: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "train.candidates", *words], cwd=ROOT, env=environment)


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "videos.jsonl").read_text().splitlines()]


def wait_for_log(folder: Path, lines: int) -> None:
    log, deadline = folder / "log.jsonl", time.monotonic() + 120
    while not log.exists() or log.read_text().count("\n") < lines:
        assert time.monotonic() < deadline, "nothing was made"
        time.sleep(0.02)


@pytest.mark.parametrize("name", [name for name in shipped_sources() if name != "hunyuan_avatar"])
def test_the_server_takes_a_shipped_graph(servers, files, name):
    """Every node, input, link and choice is right: all that the server complains of are the model files that are not
    there, each by the node and input that names it; and the stage's own check had said the same."""
    server, source = servers[0], load_source(name)
    client = ComfyServer(server.url)
    place = {
        n: client.upload(files / f, sha256(files / f)) for n, f in (("portrait", "portrait.png"), ("audio", "a0.wav"))
    }
    values = {
        "seed": 1,
        "text_scale": 3.0,
        "audio_scale": 1.0,
        "width": 64,
        "height": 64,
        "frames": 9,
        "fps": source.fps,
    }
    graph = fill(source.graph, {**values, **place, "prompt": "p", "negative_prompt": "n", "prefix": f"taken/{name}"})
    named = {
        (key, field)
        for key, node in graph.items()
        for field, value in node["inputs"].items()
        if value in [file.name for file in source.files]
    }
    status, told = server.post("/prompt", {"prompt": graph})
    found = [
        (key, error["extra_info"].get("input_name"), error["type"])
        for key, node in dict(told.get("node_errors") or {}).items()
        for error in node["errors"]
    ]
    assert status == (400 if named else 200), told
    assert {error[:2] for error in found} == named and {error[2] for error in found} <= {"value_not_in_list"}, told
    said = lacks(client, source)
    assert len(said) == len(source.files) and all("no file models/" in one for one in said)


@pytest.mark.parametrize("frames", [49, 81, 85, 153])
def test_infinitetalk_goes_on_with_a_second_window(servers, files, frames):
    """The shipped graph with black pictures in place of what the first window decodes to, white ones for the second:
    as many frames as asked, the first 81 black, the others white (9 of its 81 repeat the first window's)."""
    client = ComfyServer(servers[0].url)
    names = ("portrait.png", "a0.wav")
    place = {"portrait": client.upload(files / names[0], "p" * 32), "audio": client.upload(files / names[1], "a" * 32)}
    told = dict.fromkeys(("prompt", "negative_prompt"), "") | {"prefix": f"windows/{frames}", "fps": 25.0}
    told |= {"seed": 1, "text_scale": 3.0, "audio_scale": 1.0, "width": 64, "height": 64, "frames": frames}
    graph = fill(load_source("infinitetalk").graph, {**told, **place})
    empty = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 81, "color": 0xFFFFFF}}
    graph["20"] = {"class_type": "EmptyImage", "inputs": {**empty["inputs"], "batch_size": ["23", 1], "color": 0}}
    graph["31"], graph["32"]["inputs"]["batch_index"] = empty, 9
    saved = client.wait(graph, client.queue(graph), "22", most=60, stop=lambda: False)
    with (files / "v.mp4").open("wb") as file:
        client.download(saved, file)
    shades = [round(float(frame.mean())) for _, frame in read_video(files / "v.mp4")]
    assert shades == [0] * min(frames, 81) + [1] * max(frames - 81, 0)


def test_a_pack_that_is_missing_is_named(servers):
    said = lacks(ComfyServer(servers[0].url), load_source("hunyuan_avatar"))
    assert len(said) == 3 and all("not installed (of https://github.com/smthemex" in one for one in said)


def test_killed_and_resumed_it_is_what_it_would_have_been(servers, files):
    """Two inputs, two variants on one server, SIGKILL after the first video; then the same command. The other server
    makes the same in one go: the same rows, hashes of the files among them, and 9 frames with sound in each. What
    was made is what train.cache takes."""
    steady, other = servers
    process = started(*arguments(files, "parts", steady))
    wait_for_log(files / "parts", 1)
    process.kill()
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in (files / "parts" / "candidates").glob("*.mp4")}
    assert kept
    assert stage.main(arguments(files, "parts", steady)) == 0
    assert stage.main(arguments(files, "whole", other)) == 0
    rows = rows_of(files / "parts")
    assert rows == rows_of(files / "whole") and len(rows) == len({row["sha256"] for row in rows}) == 4
    assert all(path.stat().st_mtime_ns == at for path, at in kept.items())
    for row in rows:
        video = files / "parts" / row["path"]
        frames = [frame for _, frame in read_video(video)]
        assert (len(frames), row["frames"], row["fps"], row["width"]) == (9, 9, 23.0, 64)
        assert frames[0].std() > 0.05 and abs(whole(video)[0]).max() > 0.01
    cached = ["--videos", str(files / "parts" / "videos.jsonl"), "--out", str(files / "cache"), "--model", "miniature"]
    assert cache.main(cached) == 0 and len(Cache(files / "cache").videos) == 4


def test_a_server_that_is_killed_does_not_stop_the_run(servers, files, capfd):
    """Eight videos on two servers, one killed after the second: all are made, and it is said which server went."""
    steady, doomed = servers
    process = started(*arguments(files, "out", steady, doomed, variants=4))
    wait_for_log(files / "out", 2)
    doomed.process.kill()
    assert process.wait(120) == 0
    rows = rows_of(files / "out")
    assert len(rows) == len({row["sha256"] for row in rows}) == 8
    assert f"{doomed.url} " in capfd.readouterr().err
