"""The candidates' stage against a small server that speaks ComfyUI's endpoints: what it makes, what it makes again, and
what it says of servers and files that let it down."""

from __future__ import annotations

import json
import threading

import pytest
from candidate_files import COLUMNS, arguments, failures_of, files, rows_of, video, wait_for  # noqa: F401
from comfy_peer import Peer

from train import candidates as stage


def test_every_input_in_every_variant_and_only_once(files, video):  # noqa: F811
    """Two inputs, two variants: four videos of nine frames (a second at 10 fps holds 4k + 1 = 9). The graph that the
    server gets has numbers where numbers belong; the files are there byte for byte; asked again, nothing is made."""
    with Peer(video) as peer:
        assert stage.main(arguments(files, peer)) == 0
        rows = rows_of(files)
        assert [row["video"] for row in rows] == ["i0_toy_0", "i0_toy_1", "i1_toy_0", "i1_toy_1"]
        assert all(set(row) == COLUMNS for row in rows)
        told = {"source": "toy", "fps": 10.0, "frames": 9, "width": 64, "height": 64, "audio_scale": None}
        assert told.items() <= rows[0].items() and [row["split"] for row in rows] == ["train"] * 2 + ["test"] * 2
        for row in rows:
            assert (files / "out" / row["path"]).read_bytes() == video and len(row["sha256"]) == 64
        by_seed = {prompt["3"]["inputs"]["seed"]: prompt for prompt in peer.prompts()}
        sent = by_seed[rows[3]["seed"]]
        toy = {"text": "person 1, sharp", "width": 64, "height": 64, "length": 9, "cfg": rows[3]["text_scale"]}
        assert toy.items() <= sent["3"]["inputs"].items() and type(sent["3"]["inputs"]["length"]) is int
        folder, name = sent["2"]["inputs"]["audio"].split("/")
        assert folder == "fantasytalking2" and peer.uploads[name] == (files / "a1.wav").read_bytes()
        assert stage.main(arguments(files, peer)) == 0
        assert len(peer.jobs) == 4 and rows_of(files) == rows


def test_what_changed_is_made_again_and_nothing_else(files, video):  # noqa: F811
    """One prompt changes: the two videos of that input. A lost file: that one. A third variant: two more."""
    with Peer(video) as peer:
        stage.main(arguments(files, peer))
        before = rows_of(files)
        text = (files / "inputs.jsonl").read_text()
        (files / "inputs.jsonl").write_text(text.replace("person 0", "someone"))
        stage.main(arguments(files, peer))
        assert [p["3"]["inputs"]["text"] for p in peer.prompts()[4:]] == ["someone, sharp"] * 2
        assert [row["seed"] for row in rows_of(files)] == [row["seed"] for row in before]
        (files / "out" / before[2]["path"]).unlink()
        stage.main(arguments(files, peer))
        assert len(peer.jobs) == 7
        stage.main(arguments(files, peer, variants=3))
        assert len(peer.jobs) == 9 and len(rows_of(files)) == 6


def test_sources_can_be_added_day_by_day(files, video, capsys):  # noqa: F811
    """A second command by another source adds its four videos to the list; with fewer variants of it, two of them go,
    and one whose file is lost."""
    with Peer(video) as peer:
        stage.main(arguments(files, peer))
        assert stage.main(arguments(files, peer, source=("second",))) == 0
        assert "4 videos of earlier commands stay" in capsys.readouterr().out
        both = [f"i{k}_{source}_{v}" for k in (0, 1) for source in ("second", "toy") for v in (0, 1)]
        assert [row["video"] for row in rows_of(files)] == both
        (files / "out" / rows_of(files)[2]["path"]).unlink()
        assert stage.main(arguments(files, peer, source=("second",), variants=1)) == 0
        assert [row["video"] for row in rows_of(files)] == ["i0_second_0", "i0_toy_1", "i1_second_0", *both[6:]]
        assert len(peer.jobs) == 8


def test_a_refusal_names_the_node_and_stops_that_source_alone(files, video, capsys):  # noqa: F811
    with Peer(video, faults={0: "refuse"}) as peer:
        assert stage.main(arguments(files, peer, source=("toy", "second"))) == 2
    assert {row["source"] for row in rows_of(files)} == {"toy"} and len(rows_of(files)) == 4
    assert [one["of"] for one in failures_of(files)] == ["i0_second_0", "i0_second_1", "i1_second_0", "i1_second_1"]
    assert "The sampler (Toy, node 3): Value not in list: model: 'toy.safetensors'" in failures_of(files)[0]["why"]
    assert len(peer.jobs) == 5 and "The sampler" in capsys.readouterr().err


def test_a_job_that_is_refused_for_its_own_values_is_alone(files, video):  # noqa: F811
    """The first of four jobs has a size that no node takes, in all three tries (the 1st, 5th and 6th that the server
    gets, since it goes to the end): that one is not made, and the other three are."""
    with Peer(video, faults=dict.fromkeys((0, 4, 5), "odd")) as peer:
        assert stage.main(arguments(files, peer)) == 2
    assert [row["video"] for row in rows_of(files)] == ["i0_toy_1", "i1_toy_0", "i1_toy_1"] and len(peer.jobs) == 6
    (fault,) = failures_of(files)
    assert fault["of"] == "i0_toy_0" and "bigger than max of 8192" in fault["why"] and "tried 3 times" in fault["why"]


def test_a_server_whose_input_folder_is_emptied_gets_the_files_again(files, video):  # noqa: F811
    """While the first job runs: the second is refused for its portrait, the files are sent again, and all are made."""
    with Peer(video, seconds=0.2) as peer:
        emptied = threading.Thread(target=lambda: (wait_for(lambda: len(peer.jobs) == 1), peer.uploads.clear()))
        emptied.start()
        assert stage.main(arguments(files, peer)) == 0
        emptied.join()
    assert len(peer.jobs) == 5 and len(rows_of(files)) == 4


def test_what_fails_on_one_server_is_made_on_another(files, video):  # noqa: F811
    """Everything fails on the first; the second makes all, and no video is tried twice on the first."""
    with Peer(video, faults=dict.fromkeys(range(99), "fail")) as bad, Peer(video) as good:
        assert stage.main(arguments(files, bad, good)) == 0
    assert len(rows_of(files)) == 4 and failures_of(files) == []
    seeds = [prompt["3"]["inputs"]["seed"] for prompt in bad.prompts()]
    assert len(seeds) == len(set(seeds)) and len(good.jobs) == 4


@pytest.mark.parametrize(
    ("fault", "told"),
    [("fail", "The sampler (Toy, node 3): OutOfMemoryError: no memory left"), ("junk", "the video cannot be used")],
)
def test_what_fails_everywhere_is_recorded_and_the_rest_goes_on(files, video, fault, told):  # noqa: F811
    """Of two tries each, the first job fails as the 1st and the 5th that the server gets (it goes to the end)."""
    with Peer(video, faults={0: fault, 4: fault}) as peer:
        assert stage.main(arguments(files, peer, tries=2)) == 2
        assert len(rows_of(files)) == 3 and told in failures_of(files)[0]["why"]
        assert not list((files / "out").rglob("*.part"))
        assert stage.main(arguments(files, peer)) == 0, "the same command again"
    assert len(rows_of(files)) == 4 and len(peer.jobs) == 6


def test_a_video_that_takes_too_long_is_given_up_and_taken_off_the_server(files, video):  # noqa: F811
    with Peer(video, seconds=60) as one, Peer(video, seconds=60) as other:
        assert stage.main(arguments(files, one, other, variants=1, tries=1, timeout=1)) == 2
    assert [fault["why"].split(" on ")[0] for fault in failures_of(files)] == ["not done within 1 s"] * 2
    for peer in (one, other):
        assert peer.cancelled == [(way, job) for job in peer.jobs for way in ("queue", "interrupt")] and peer.jobs


def test_a_download_that_breaks_off_is_begun_again(files, video, capsys):  # noqa: F811
    with Peer(video, faults={0: "cut"}) as peer:
        assert stage.main(arguments(files, peer, patience=20)) == 0
    assert "broke off a download" in capsys.readouterr().err
    assert all((files / "out" / row["path"]).read_bytes() == video for row in rows_of(files))


def test_without_any_server_left_what_is_done_stays(files, video, capsys):  # noqa: F811
    """The server dies after two videos: an error within the patience of a second, two rows; then another goes on."""
    peer = Peer(video, seconds=0.1).__enter__()
    stopped = threading.Thread(target=lambda: (wait_for(lambda: len(peer.jobs) == 3), peer.__exit__()))
    stopped.start()
    assert stage.main(arguments(files, peer)) == 2
    stopped.join()
    kept = rows_of(files)
    assert "no server is left" in capsys.readouterr().err and 2 <= len(kept) <= 3
    with Peer(video) as other:
        assert stage.main(arguments(files, other)) == 0
    assert len(other.jobs) == 4 - len(kept) and [r for r in rows_of(files) if r in kept] == kept


def test_a_job_that_the_server_forgot_goes_elsewhere(files, video):  # noqa: F811
    with Peer(video, faults={0: "forget"}) as peer:
        assert stage.main(arguments(files, peer, patience=20)) == 0
    assert len(rows_of(files)) == 4 and len(peer.jobs) == 5


# ---- before anything runs ----


def test_a_dry_run_says_what_lacks_where_and_writes_nothing(files, video, capsys):  # noqa: F811
    with Peer(video) as able, Peer(video) as poor:
        poor.files = []
        assert stage.main([*arguments(files, able, poor), "--dry-run"]) == 0
        told = capsys.readouterr().out
        assert "4 videos to make" in told and "4 by toy, 9 frames, 64 x 64" in told
        assert f"{able.url}: toy: ready" in told and f"{poor.url}: toy: lacks" in told
        assert "models/diffusion_models/toy.safetensors (published at https://example.invalid" in told
        assert not (files / "out").exists() and not able.jobs
        assert stage.main([*arguments(files, poor), "--dry-run"]) == 2
        assert "no server can run toy" in capsys.readouterr().err
        assert stage.main(arguments(files, poor, able)) == 0 and not poor.jobs and len(able.jobs) == 4


def test_inputs_that_cannot_be_used_are_failures_and_the_rest_is_made(files, video):  # noqa: F811
    (files / "p1.png").write_bytes(b"no picture")
    with Peer(video) as peer:
        assert stage.main(arguments(files, peer)) == 2
    assert [row["input"] for row in rows_of(files)] == ["i0", "i0"]
    assert failures_of(files)[0]["of"] == "input i1"


MISTAKES = {
    "nothing": ([], "no --source and no --from-folder"),
    "no server": (["--inputs", "{f}/inputs.jsonl", "--source", "{f}/toy.json"], "no --server"),
    "both": (["--inputs", "{f}/inputs.jsonl", "--real-clips", "{f}/inputs.jsonl"], "--inputs and --real-clips"),
    "no inputs": (["--source", "miniature", "--server", "http://127.0.0.1:1"], "nothing to animate"),
    "no address": (["--inputs", "{f}/inputs.jsonl", "--source", "miniature", "--server", "box:8188"], "http://"),
    "twice": (["--inputs", "{f}/inputs.jsonl", "--source", "toy", "{f}/toy.json"], "a name twice"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_of_the_command(files, mistake, capsys):  # noqa: F811
    flags, told = MISTAKES[mistake]
    assert stage.main(["--out", str(files / "out"), *(flag.format(f=files) for flag in flags)]) == 2
    assert told in capsys.readouterr().err and not (files / "out" / "candidates").exists()


@pytest.mark.parametrize("name", ["a/b", "../x", ".hidden", "i0"])
def test_ids_are_names_and_stand_once(files, video, name, capsys):  # noqa: F811
    row = {"input": name, "portrait": "p0.png", "audio": "a0.wav"}
    with (files / "inputs.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    with Peer(video) as peer:
        assert stage.main(arguments(files, peer)) == 2
    assert "cannot be told apart" in capsys.readouterr().err and not peer.jobs
