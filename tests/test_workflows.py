"""The shipped workflows in a real server, through its real page: they open, convert, run with small files in place of
the big ones, and what comes out has picture and sound, or the verdict that was planted."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
import torch
from comfy_server import LATE, ROOT, Server, of_miniature, stood_in, write_stand_ins
from comfyui import need_comfyui
from safetensors.torch import load_file
from sounds import whole

from fantasy_core.audio import load_voice, trim, window_at
from fantasy_core.encoders import image_condition
from fantasy_core.flow import guided, sample, schedule
from fantasy_core.media import fit_image, read_image, read_video
from fantasy_core.miniature import load_components

pytestmark = pytest.mark.comfy
WORKFLOWS = ROOT / "workflows"
CHECK = "lip_sync_check"  # the one that makes no video
NAMES = sorted(path.stem for path in (WORKFLOWS / "api").glob("*.json"))
FRAMES = {"miniature": 81, "continue_from_the_last_frame": 33, "long_audio_context_windows": 45}  # of `stood_in`; 17


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    need_comfyui()
    base = tmp_path_factory.mktemp("comfyui")
    write_stand_ins(base)
    with Server(base) as server:
        yield server


def graph(name: str) -> dict:
    return json.loads((WORKFLOWS / "api" / f"{name}.json").read_text("utf-8"))


def frames_of(video: Path) -> torch.Tensor:
    return torch.stack([frame for _, frame in read_video(video)])


def opened(server: Server, name: str, folder: Path) -> dict:
    """The prompt that the page makes of a workflow: it knows all of its nodes, logs no error, and gives what is in
    api/."""
    told = server.page(WORKFLOWS / f"{name}.json", "--api", folder / "prompt.json")
    assert told["missing"] == [] and told["errors"] == []
    prompt, source = json.loads((folder / "prompt.json").read_text("utf-8")), graph(name)
    assert prompt.keys() == source.keys()
    for key, node in source.items():
        assert prompt[key]["class_type"] == node["class_type"]
        for name_of_input, value in node["inputs"].items():
            assert prompt[key]["inputs"][name_of_input] == value, f"{node['class_type']}.{name_of_input}"
    return prompt


@pytest.mark.parametrize("name", [name for name in NAMES if name != CHECK])
def test_a_workflow_opens_converts_and_runs(server, name, tmp_path):
    prompt = opened(server, name, tmp_path)
    history = server.run(prompt if name == "miniature" else stood_in(prompt))
    assert history["error"] is None, history["error"]
    (video,) = [path for path in server.videos(history) if path.suffix == ".mp4"]
    frames, (sound, rate) = frames_of(video), whole(video)
    expected = FRAMES.get(name, 17)
    assert len(frames) == expected and frames.std() > 0.01
    assert sound.shape[1] / rate == pytest.approx(expected / 23, abs=0.1) and abs(sound).max() > 0.1


def test_the_check_tells_the_planted_offset(server, tmp_path):
    """From a video file on, through the core's nodes: lips of LATE = 3 frames at 25 fps are 120 ms late. Only the
    weights of the detector are stood in for. The plot is drawn as a picture of 9 x 5.2 inches at 100 dpi."""
    history = server.run(stood_in(opened(server, CHECK, tmp_path)))
    assert history["error"] is None, history["error"]
    (report,) = [output["text"][0] for output in history["outputs"].values() if "text" in output]
    assert f"lips are {LATE} frames (120 ms) late" in report and "seen in 100% of 150 frames at 25 fps" in report
    (plot,) = [path for path in server.videos(history) if path.suffix == ".png"]
    assert read_image(plot).shape[-2:] == (520, 900)


def test_the_best_take_is_the_one_that_is_saved(server):
    """Four takes of the miniature, each saved beside the best: the best is the take that the ranking names; then the
    best by motion alone."""
    prompt = of_miniature(graph("best_of_four_takes"))
    kinds = {node["class_type"]: key for key, node in prompt.items()}
    rank, save = prompt[kinds["FT2TalkingCriticRank"]]["inputs"], prompt[kinds["SaveVideo"]]["inputs"]
    for take in range(4):
        told = {**save, "video": rank[f"takes.take{take}"], "filename_prefix": f"take{take}"}
        prompt[f"take{take}"] = {"class_type": "SaveVideo", "inputs": told}
    history = server.run(prompt)
    assert history["error"] is None, history["error"]
    ranking = json.loads(history["outputs"][kinds["PreviewAny"]]["text"][0])
    videos = {path.name.partition("_0")[0]: frames_of(path) for path in server.videos(history)}
    assert sorted(row["take"] for row in ranking["takes"]) == [0, 1, 2, 3] and len(videos) == 5
    same = [torch.equal(videos["best_of_four_takes"], videos[f"take{take}"]) for take in range(4)]
    assert same == [take == ranking["best"] for take in range(4)]

    rank["lip_sync_weight"] = rank["visual_quality_weight"] = 0.0
    rank["rule"] = "Pareto first"
    history = server.run(prompt)
    assert history["error"] is None, history["error"]
    first, *_ = json.loads(history["outputs"][kinds["PreviewAny"]]["text"][0])["takes"]
    assert first["z"]["mn"] == max(row["z"]["mn"] for row in ranking["takes"]) and "ls" not in first["z"]


def test_run_is_pressed_on_the_page(server):
    """The first template as a newcomer has it: opened, Run, and a video of 3.5 s is shown."""
    told = server.page(WORKFLOWS / "miniature.json", "--run")
    assert told["run"]["status"] == "success" and told["errors"] == []
    (video,) = told["run"]["videos"]
    assert video["seconds"] == pytest.approx(81 / 23, abs=0.1) and video["width"] == 256


def test_the_servers_latents_are_the_cores(server):
    """The miniature's graph in the server, four steps, s = 4 and a = 2, against the core from portrait and voice on:
    ComfyUI's noise is a CPU generator's, and its LATENTs are scaled as the Wan2.1 VAE's."""
    from diffusers import AutoencoderKLWan

    prompt = graph("miniature")
    kinds = {node["class_type"]: key for key, node in prompt.items()}
    prompt[kinds["FT2TLPOSampler"]]["inputs"] |= {"seed": 3, "steps": 4, "text_scale": 4.0, "audio_scale": 2.0}
    save = {"samples": [kinds["FT2TLPOSampler"], 0], "filename_prefix": "miniature"}
    prompt = {key: node for key, node in prompt.items() if int(key) <= int(kinds["FT2TLPOSampler"])}
    history = server.run({**prompt, "99": {"class_type": "SaveLatent", "inputs": save}})
    assert history["error"] is None, history["error"]
    saved = load_file(next((server.base / "output").glob("miniature*.latent")))["latent_tensor"]
    config = AutoencoderKLWan(base_dim=4).config
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))

    components, assets = load_components(), ROOT / "fantasy_core" / "miniature" / "assets"
    portrait = fit_image(read_image(assets / "portrait.png"), (64, 64))[None] * 2 - 1
    condition = image_condition(components.encode, portrait, 81)
    voice = window_at(components.voice(trim(load_voice(assets / "voice.flac"), 81, 23)), 81, fps=23)
    text, noise = components.text([""]), torch.randn(1, 16, 21, 8, 8, generator=torch.Generator().manual_seed(3))
    with components.dit() as dit, torch.no_grad():
        fn = guided(dit, text, voice, condition=condition, text_scale=4.0, audio_scale=2.0)
        expected = sample(fn, noise, schedule(4, 12.0))
    assert ((saved - mean) / std - expected).abs().max() < 5e-5 * expected.abs().max()


def test_templates_help_and_names_are_served(server):
    assert sorted(server.get("/workflow_templates")["fantasytalking2"]) == NAMES
    nodes = {name: told for name, told in server.get("/object_info").items() if name.startswith("FT2")}
    for language in ("en", "de"):
        named = server.get("/i18n")[language]["nodeDefs"]
        for name, told in nodes.items():
            inputs = [key for group in told["input"].values() for key in group]
            assert set(inputs) == set(named[name].get("inputs", {})), name
            page = urllib.request.urlopen(f"{server.url}/extensions/fantasytalking2/docs/{name}.md").read().decode()
            assert [key for key in inputs if key not in page] == [], name


def test_schemas_are_append_only(server):
    """Inputs and outputs of every node, in order, are those of tests/node_schemas.json: saved workflows name inputs by
    id and outputs by position. New ones are appended there; nothing is renamed, moved or removed."""
    golden = json.loads((ROOT / "tests" / "node_schemas.json").read_text("utf-8"))
    assert node_schemas(server) == golden


def node_schemas(server: Server) -> dict:
    """{node: {required, optional: [[id, type], ...], output: [[name, type], ...]}} as the server tells it."""
    schemas = {}
    for name, told in sorted(server.get("/object_info").items()):
        if name.startswith("FT2"):
            groups = {
                group: [[key, told["input"][group][key][0]] for key in keys]
                for group, keys in told["input_order"].items()
            }
            kinds = {
                key: [[i, k if isinstance(k, str) else "COMBO"] for i, k in group] for key, group in groups.items()
            }
            schemas[name] = {
                **kinds,
                "output": [list(o) for o in zip(told["output_name"], told["output"], strict=True)],
            }
    return schemas


def broken(change) -> dict:
    """The talking portrait with something changed by `change(nodes by type)`."""
    prompt = stood_in(graph("talking_portrait"))
    change({node["class_type"]: node for node in prompt.values()})
    return prompt


MISTAKES = {
    "a wav2vec2-large": (lambda n: n["StandInEncoder"]["inputs"].update(width=1024), ["1024", "wav2vec2-base-960h"]),
    "another length": (lambda n: n["FT2ApplyFantasyTalkingAudio"]["inputs"].update(length=41), ["11 latent", "of 5"]),
    "no voice": (lambda n: n["FT2ApplyFantasyTalkingAudio"]["inputs"].pop("audio"), ["audio_encoder and audio"]),
    "a voice that is too short": (lambda n: n["FT2AudioToFrames"]["inputs"].update(first_frame=183), ["at least 5"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_answered_in_four_parts(server, mistake):
    change, words = MISTAKES[mistake]
    error = server.run(broken(change))["error"]
    assert error, "nothing was raised"
    for word in [*words, "got:", "expected:", "do:"]:
        assert word in error, error
