"""Makes the workflows that ComfyUI lists as templates, from those in api/, with ComfyUI's own page.

    python workflows/build.py URL [NAME ...]

URL is a running ComfyUI with this pack. For each api/NAME.json: NAME.json in UI format, laid out in columns, with the
note of notes/NAME.md and the places of its model files; and NAME.jpg, its thumbnail.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
REPACKAGED = "https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
MEDIAPIPE = "https://huggingface.co/Comfy-Org/mediapipe/resolve/main"
SOURCES = {  # name: folder of models, where it is published
    "wan2.1_i2v_480p_14B_fp16.safetensors": ("diffusion_models", f"{REPACKAGED}/diffusion_models"),
    "wan2.1_i2v_480p_14B_fp8_e4m3fn.safetensors": ("diffusion_models", f"{REPACKAGED}/diffusion_models"),
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors": ("text_encoders", f"{REPACKAGED}/text_encoders"),
    "wan_2.1_vae.safetensors": ("vae", f"{REPACKAGED}/vae"),
    "clip_vision_h.safetensors": ("clip_vision", f"{REPACKAGED}/clip_vision"),
    "fantasytalking_fp16.safetensors": ("model_patches", "https://huggingface.co/Kijai/WanVideo_comfy/resolve/main"),
    "mediapipe_face_fp32.safetensors": ("detection", f"{MEDIAPIPE}/detection"),
}
WAV2VEC = {
    "name": "wav2vec2-base-960h.safetensors",
    "directory": "audio_encoders",
    "url": "https://huggingface.co/facebook/wav2vec2-base-960h/resolve/main/model.safetensors",
}
COLUMNS = (  # where a node stands, by type
    ("UNETLoader", "CLIPLoader", "VAELoader", "CLIPVisionLoader", "AudioEncoderLoader", "FT2LoadFantasyTalkingAudio",
     "FT2LoadMiniature", "LoadVideo"),
    ("LoadImage", "LoadAudio", "CLIPTextEncode", "GetVideoComponents", "LoadMediaPipeFaceLandmarker"),
    ("FT2AudioToFrames", "CLIPVisionEncode", "WanImageToVideo", "MediaPipeFaceLandmarker"),
    ("FT2LoadExperts", "FT2LoadGate", "FT2ManualGate", "FT2LipSyncCheck"),
    ("FT2ApplyFantasyTalkingAudio", "WanContextWindowsManual", "FT2ApplyGatedExperts", "FT2GatePlot"),
    ("FT2TLPOSampler", "VAEDecode", "VAEDecodeTiled", "ImageScaleBy", "PreviewImage", "PreviewAny"),
    ("ImageFromBatch", "ImageBatch", "CreateVideo", "SaveVideo"),
    ("FT2TalkingCriticLoader", "FT2TalkingCriticRank"),
)  # fmt: skip
SIZES = {
    "LoadImage": (320, 380), "LoadAudio": (320, 140), "CLIPTextEncode": (320, 140), "SaveVideo": (420, 480),
    "PreviewImage": (420, 260), "FT2ManualGate": (340, 260), "UNETLoader": (380, 0), "CLIPLoader": (380, 0),
    "LoadVideo": (320, 480), "PreviewAny": (420, 260),
}  # fmt: skip
FILES = """**Model files** (ComfyUI offers the download of those it can; put them in `ComfyUI/models/...`)

- `diffusion_models/UNET`
- `text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors`
- `vae/wan_2.1_vae.safetensors`
- `clip_vision/clip_vision_h.safetensors`
- `model_patches/fantasytalking_fp16.safetensors` (Kijai/WanVideo_comfy; it may stay in `diffusion_models`)
- `audio_encoders/wav2vec2-base-960h.safetensors`: `model.safetensors` of facebook/wav2vec2-base-960h, renamed.
  The *large* encoder of Wan2.2-S2V does not fit."""
TAKES = ("best_of_four_takes",)  # each take a row: what comes behind the sampler has columns of its own
BEHIND_TAKES = {"VAEDecode": 6, "PreviewAny": 8, "SaveVideo": 8}
TAKE_SIZES = {"CreateVideo": (320, 210), "PreviewAny": (420, 480)}  # together with VAEDecode as high as a sampler
NOTE_HEIGHTS = {"miniature": 320, "lip_sync_check": 440}  # of the others 680: they list more files
TWO_CLIPS = ("continue_from_the_last_frame",)  # the second half stands right of the first


def columns(graph: dict, name: str) -> list[list[int]]:
    """Ids of the nodes, column by column."""
    place = {kind: i for i, column in enumerate(COLUMNS) for kind in column}
    place |= BEHIND_TAKES if name in TAKES else {}
    found: dict[int, list[int]] = {}
    seconds = 0
    for key, node in graph.items():
        kind = node["class_type"]
        if name in TWO_CLIPS and kind == "ImageFromBatch":
            seconds = len(COLUMNS) - 2  # from the last frame on
        found.setdefault(place[kind] + (seconds if place[kind] > 1 else 0), []).append(int(key))
    return [found[i] for i in sorted(found)]


def models(graph: dict) -> dict[str, list[dict]]:
    """Which files the loaders of a graph name, for ComfyUI's offer to fetch them."""
    named = {
        node["class_type"]: [{"name": value, "directory": SOURCES[value][0], "url": f"{SOURCES[value][1]}/{value}"}]
        for node in graph.values()
        for value in node["inputs"].values()
        if isinstance(value, str) and value in SOURCES
    }
    return {**named, "AudioEncoderLoader": [WAV2VEC]}


def build(url: str, name: str) -> None:
    """One workflow and its thumbnail."""
    source = HERE / "api" / f"{name}.json"
    graph = json.loads(source.read_text("utf-8"))
    title, _, text = (HERE / "notes" / f"{name}.md").read_text("utf-8").removeprefix("# ").partition("\n\n")
    unet = next((node["inputs"]["unet_name"] for node in graph.values() if node["class_type"] == "UNETLoader"), "")
    text = text.strip().replace("{files}", FILES.replace("UNET", unet))
    note = {"title": title, "text": text, "columns": columns(graph, name), "models": models(graph), "sizes": SIZES}
    note["sizes"] = {**SIZES, **(TAKE_SIZES if name in TAKES else {})}
    bottom = 0.8 if name in TAKES else 0.625  # the graph lies at the top
    note["height"] = NOTE_HEIGHTS.get(name, 680)
    with tempfile.TemporaryDirectory() as folder:
        told, shot = Path(folder, "note.json"), Path(folder, "shot.png")
        told.write_text(json.dumps(note), "utf-8")
        command = [
            sys.executable,
            HERE / "frontend.py",
            url,
            source,
            "--note",
            told,
            "--ui",
            HERE / f"{name}.json",
            "--size",
            "3000,1750",
        ]
        subprocess.run([*command, "--shot", shot], check=True)
        picture = Image.open(shot).convert("RGB")
        picture = picture.crop((90, 75, picture.width, int(picture.height * bottom)))
        picture.resize((960, 960 * picture.height // picture.width)).save(HERE / f"{name}.jpg", quality=85)


def main(argv: list[str] | None = None) -> int:
    url, *names = sys.argv[1:] if argv is None else argv
    for name in names or sorted(path.stem for path in (HERE / "api").glob("*.json")):
        print(name, flush=True)
        build(url, name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
