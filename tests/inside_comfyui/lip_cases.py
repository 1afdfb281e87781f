"""Runs inside ComfyUI: Lip Sync Check; files: given.pt, then videos whose sound begins late, early, and one of varying
frame rate."""

import start
from fractions import Fraction

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import InputImpl, Types
from pack import load_pack

given_file, late, early, uneven, rates, thirty, packetless = start.files
pack = load_pack()
Check = pack("nodes.lip_sync_node").LipSyncCheck
UserError = pack("fantasy_core.errors").UserError
given = torch.load(given_file, weights_only=True)
found, told = {}, {}
images = torch.full((len(given["landmarks"]), 16, 16, 3), 0.5)
audio = {"waveform": given["sound"][None, None], "sample_rate": 16000}
points = {"frames": [[{"landmarks_xy": face.numpy()}] for face in given["landmarks"]], "image_size": (128, 128)}


def video(sound=audio):
    return InputImpl.VideoFromComponents(Types.VideoComponents(images, Fraction(25), sound))


def placed(times) -> dict:
    """The landmarks of frames shown at `times` [T] seconds, from those of 25 a second."""
    at = (times * 25).clamp(max=len(given["landmarks"]) - 1)
    below = at.long().clamp(max=len(given["landmarks"]) - 2)
    between = (at - below)[:, None, None]
    faces = given["landmarks"][below] * (1 - between) + given["landmarks"][below + 1] * between
    return {"frames": [[{"landmarks_xy": face.numpy()}] for face in faces], "image_size": (128, 128)}


def check(name: str, **inputs) -> None:
    *numbers, told[name], plot = Check.execute(**{"fps": 25.0, **inputs}).result
    found[name] = torch.tensor(numbers, dtype=torch.float64)
    found[f"{name}, plot"] = plot


def refused(name: str, **inputs) -> None:
    try:
        check(name, **inputs)
    except UserError as error:
        told[name] = str(error)


with torch.inference_mode():
    check("video", video=video(), face_landmarks=points)
    check("images", images=images, audio=audio, face_landmarks=points)
    check("masks", video=video(), lip_mask=given["masks"])
    check("both", video=video(), images=images[:3], face_landmarks=points, lip_mask=given["masks"])
    check("silent", video=video(None), face_landmarks=points)
    check("no face", video=video(), face_landmarks={**points, "frames": [[]] * len(images)})
    stereo = {"waveform": torch.stack([given["sound"], 0 * given["sound"]])[None], "sample_rate": 16000}
    check("stereo", images=images, audio=stereo, face_landmarks=points)
    check("file, late sound", video=InputImpl.VideoFromFile(str(late)), face_landmarks=points)
    check("file, early sound", video=InputImpl.VideoFromFile(str(early)), face_landmarks=points)
    trimmed = InputImpl.VideoFromFile(str(late), start_time=0.4, duration=5.2)
    check("file, trimmed", video=trimmed, face_landmarks={**points, "frames": points["frames"][10:140]})
    check("file, uneven", video=InputImpl.VideoFromFile(str(uneven)), face_landmarks=placed(given["uneven"]))
    part = InputImpl.VideoFromFile(str(rates), start_time=1.0)
    check("file, part", video=part, face_landmarks=placed(given["rates"][20:]))
    check("no packet", video=InputImpl.VideoFromFile(str(packetless)), face_landmarks=points)
    part = InputImpl.VideoFromFile(str(thirty), start_time=1 / 30, duration=24 / 30)
    clip = pack("nodes.video_clip").clip_of(part, None, None, 0.0)
    found["trim"] = torch.tensor([len(clip.images), clip.times[-1], clip.sound[0, 0], clip.sound.shape[1]])
    refused("damaged", images=images, audio={**audio, "waveform": audio["waveform"] * torch.nan}, face_landmarks=points)
    refused("no lips", video=video())
    refused("other frames", video=video(), lip_mask=given["masks"][:1])
    refused("nothing", face_landmarks=points)

    seen = []

    def interrupt(value, total, preview, node_id=None):
        seen.append((value, total))
        comfy.model_management.interrupt_current_processing(True)
        comfy.model_management.throw_exception_if_processing_interrupted()

    comfy.utils.set_progress_bar_global_hook(interrupt)
    try:
        check("interrupted", video=video(), face_landmarks=points)
    except comfy.model_management.InterruptProcessingException:
        found["interrupted"] = torch.tensor(seen[-1])
found["told"] = told
start.leave(found)
