"""A real ComfyUI server with this pack, in a base folder of its own; small files under the names of the big ones."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui import COMFYUI, PYTHON, SCRIPTS, need_comfyui
from layout_names import official_vae
from layouts import tiny_vae
from native_wan import CONFIG, METADATA, NAMES, base_state, native_bank, native_dit, native_gate, scaled_down
from safetensors.torch import save_file
from small_experts import random_expert
from sounds import encode
from talking import openings, voice, write_footage

from fantasy_core.audio import AudioProjection
from fantasy_core.expert_files import save_expert
from fantasy_core.gate_files import save_gate
from fantasy_core.miniature.render import render
from fantasy_core.miniature.world import draw_identity
from fantasy_core.wan import WanDiT
from train.miniature_thinker import save_thinker

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("diffusion_models", "vae", "model_patches", "loras", "fantasytalking2/gates", "text_encoders", "clip_vision",
           "audio_encoders", "detection", "LLM")  # fmt: skip
LATE = 3  # frames, of the lips in input/example.mp4


class Server:
    """ComfyUI, from `with` to its end: prompts in, history out."""

    def __init__(self, base: Path):
        self.base, self.log = base, base / "server.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Server:
        need_comfyui()
        for folder in ("custom_nodes", "input", "output", "user", "temp", *(f"models/{name}" for name in FOLDERS)):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        (self.base / "custom_nodes" / "fantasytalking2").symlink_to(ROOT)
        (self.base / "custom_nodes" / "stand_ins").symlink_to(SCRIPTS / "stand_ins")
        command = [PYTHON, SCRIPTS / "serve.py", COMFYUI, self.base, str(self.port)]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            self._wait(240)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.5)
        pytest.fail(f"ComfyUI did not start:\n{self.log.read_text(errors='replace')[-3000:]}", pytrace=False)

    def get(self, path: str):
        with urllib.request.urlopen(self.url + path, timeout=60) as reply:
            return json.loads(reply.read())

    def post(self, path: str, content: dict) -> tuple[int, dict]:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(content).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.status, json.loads(reply.read() or b"{}")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"{}")

    def run(self, prompt: dict, seconds: float = 300) -> dict:
        """The history of a prompt in API format, when it is done; `error` is what a node raised."""
        status, reply = self.post("/prompt", {"prompt": prompt})
        if status != 200:
            pytest.fail(f"the prompt was refused: {json.dumps(reply)[:3000]}", pytrace=False)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            history = self.get(f"/history/{reply['prompt_id']}")
            if history:
                (told,) = history.values()
                raised = [data for kind, data in told["status"]["messages"] if kind == "execution_error"]
                return {**told, "error": raised[0]["exception_message"] if raised else None}
            time.sleep(0.2)
        pytest.fail(f"a prompt took longer than {seconds} s", pytrace=False)

    def page(self, workflow: Path, *flags: str | Path) -> dict:
        """What the page says of a workflow (`workflows/frontend.py`)."""
        command = [PYTHON, ROOT / "workflows" / "frontend.py", self.url, workflow, *flags]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr[-3000:]
        return json.loads(result.stdout)

    def videos(self, history: dict) -> list[Path]:
        """The files that a prompt saved."""
        saved = [item for output in history["outputs"].values() for item in output.get("images", [])]
        return [
            self.base / item["type"] / item["subfolder"] / item["filename"] for item in saved if item.get("filename")
        ]


def write_stand_ins(base: Path) -> None:
    """Every file that the shipped workflows name: tiny models in the real layouts, a portrait, a voice of 8 s, a video
    of 6 s."""
    models, dit = base / "models", native_dit()
    for folder in FOLDERS:
        (models / folder).mkdir(parents=True, exist_ok=True)
    for kind, dtype in (("fp16", torch.float16), ("fp8_e4m3fn", torch.float8_e4m3fn)):
        file = models / f"diffusion_models/wan2.1_i2v_480p_14B_{kind}.safetensors"
        save_file(scaled_down(base_state(dit), dtype), file, METADATA)
    save_file(official_vae(tiny_vae()), models / "vae" / "wan_2.1_vae.safetensors")
    save_file(adapter_state(dit), models / "model_patches" / "fantasytalking_fp16.safetensors")
    bank = native_bank(dit)
    for name in NAMES:
        save_expert(models / "loras" / f"fantasytalking2_{name}.safetensors", bank.expert(name))
    gate = models / "fantasytalking2/gates/fantasytalking2_gate.safetensors"
    save_gate(gate, native_gate(dit), hashes=bank.hashes, host=dit)
    for seed, name in enumerate(("first_lora", "second_lora")):
        save_expert(models / "loras" / f"{name}.safetensors", random_expert(dit, name, 3, seed=seed))
    for name in ("text_encoders/umt5_xxl_fp8_e4m3fn_scaled", "clip_vision/clip_vision_h",
                 "audio_encoders/wav2vec2-base-960h", "detection/mediapipe_face_fp32"):  # fmt: skip
        save_file({"stand_in": torch.zeros(1)}, models / f"{name}.safetensors")
    save_thinker(models / "LLM" / "Qwen2.5-Omni-7B")
    (base / "input").mkdir(exist_ok=True)
    shutil.copy(ROOT / "fantasy_core/miniature/assets/portrait.png", base / "input" / "example.png")
    time_s = np.arange(8 * 44100) / 44100
    hum = 0.4 * np.sin(2 * np.pi * 150 * time_s) * np.sin(2 * np.pi * 1.5 * time_s) ** 2
    encode(base / "input" / "voice.wav", np.stack([hum, 0.5 * hum]), 44100)
    write_speaker(base / "input" / "example.mp4")


def write_speaker(path: Path) -> None:
    """6 s of somebody of the miniature's world, 64 x 64 at 25 fps, whose mouth follows a real voice LATE frames late:
    long enough for a verdict on it."""
    sound, pose = voice(6), torch.tensor([0.0, 0.0, 0.0, 0.5, 1.0]).repeat(150, 1)
    pose[:, 2] = torch.from_numpy(np.roll(openings(sound, 150, most=0.7), LATE))
    identity = draw_identity(np.random.default_rng(4))
    write_footage(path, render(identity[None], pose[None])[0].clamp(0, 1), sound)


def of_miniature(prompt: dict) -> dict:
    """A prompt of the portrait's graph with the miniature in place of all files; two steps, 17 frames of 64 pixels."""
    outputs = ("UNETLoader", "VAELoader", "CLIPTextEncode", "FT2LoadFantasyTalkingAudio", "AudioEncoderLoader",
               "LoadImage", "LoadAudio")  # fmt: skip
    place = {key: outputs.index(n["class_type"]) for key, n in prompt.items() if n["class_type"] in outputs}
    gone = {*place, *(key for key, n in prompt.items() if n["class_type"].startswith("CLIP"))}
    found = {key: json.loads(json.dumps(node)) for key, node in prompt.items() if key not in gone}
    small = {"WanImageToVideo": {"width": 64, "height": 64}, "FT2AudioToFrames": {"most_frames": 17},
             "FT2TLPOSampler": {"steps": 2, "shift": 12.0}}  # fmt: skip
    for node in found.values():
        node["inputs"].pop("clip_vision_output", None)
        node["inputs"] |= small.get(node["class_type"], {})
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] in place:
                node["inputs"][name] = ["miniature", place[value[0]]]
    return {"miniature": {"class_type": "FT2LoadMiniature", "inputs": {}}, **found}


def adapter_state(dit: WanDiT) -> dict[str, torch.Tensor]:
    """FantasyTalking's file for this transformer, with features 768 wide as wav2vec2-base's, in fp16."""
    projection = AudioProjection(768, CONFIG.audio_token_dim)
    state = {f"proj_model.{name}": tensor for name, tensor in projection.state_dict().items()}
    state |= {
        name.replace(".processor", ""): tensor for name, tensor in dit.state_dict().items() if ".processor." in name
    }
    return {name: tensor.half() for name, tensor in state.items()}


def stood_in(prompt: dict) -> dict:
    """A prompt with stand-ins for the large encoders and the detector of faces, two steps, small pictures and a fifth
    of the frames: windows and clips of 17 for 81. Nothing else is changed."""
    prompt, gone = json.loads(json.dumps(prompt)), ("CLIPLoader", "CLIPVisionLoader")
    for node in prompt.values():
        inputs, kind = node["inputs"], node["class_type"]
        if kind == "CLIPTextEncode":
            node |= {"class_type": "StandInPrompt", "inputs": {"text": inputs["text"]}}
        elif kind == "CLIPVisionEncode":
            node |= {"class_type": "StandInVision", "inputs": {"image": inputs["image"]}}
        elif kind == "AudioEncoderLoader":
            node |= {"class_type": "StandInEncoder", "inputs": {"width": 768}}
        elif kind == "LoadMediaPipeFaceLandmarker":
            node |= {"class_type": "StandInFaces", "inputs": {}}
        elif kind == "WanImageToVideo":
            inputs |= {"width": 64, "height": 64}
        elif kind == "FT2TLPOSampler":
            inputs["steps"] = 2
        elif kind == "FT2AudioToFrames":
            inputs["most_frames"] = {0: 45, 49: 17, 81: 17, 161: 33}[inputs["most_frames"]]
            inputs["first_frame"] //= 5
        elif kind == "WanContextWindowsManual":
            inputs |= {"context_length": 17, "context_overlap": 8}
        elif kind == "FT2ManualGate":
            inputs["weights"] = inputs["weights"].replace("0-19 ", "0    ").replace("20-39", "1-2  ")  # of three blocks
    return {key: node for key, node in prompt.items() if node["class_type"] not in gone}
