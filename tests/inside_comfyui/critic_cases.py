"""Runs inside ComfyUI: the nodes around Talking-Critic; files: a models folder, given.pt, where peft lies."""

import start
import importlib.util
import json
import os
import sys
from fractions import Fraction
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import InputImpl, Types
from pack import load_pack

models, given_file, peft_in = start.files
folder_paths.models_dir = models
pack = load_pack()
critic_nodes, critic_rank, critic_model = (pack(f"nodes.{n}") for n in ("critic_nodes", "critic_rank", "critic_model"))
UserError = pack("fantasy_core.errors").UserError
given = torch.load(given_file, weights_only=True)
Loader, Score, Rank = critic_nodes.TalkingCriticLoader, critic_nodes.TalkingCriticScore, critic_rank.TalkingCriticRank
BASE, ADAPTER, OWN = "Qwen2.5-Omni-7B", "run/adapter", critic_nodes.OWN_VIEWS
management, found, told = comfy.model_management, {}, {}


def options(name: str) -> list[str]:
    return next(i for i in Loader.define_schema().inputs if i.id == name).options


def load(base=BASE, adapter="none", views=OWN, dtype="float32"):
    return Loader.execute(base, adapter, views, dtype).result[0]


def images(take: int) -> torch.Tensor:
    return given["frames"][take].movedim(1, -1) / 255


def audio(take: int) -> dict:
    return {"waveform": given["sounds"][take][None, None], "sample_rate": 16000}


def video(take: int, sound: bool = True):
    heard = audio(take) if sound else None
    return InputImpl.VideoFromComponents(Types.VideoComponents(images(take), Fraction(25), heard))


def score(critic, ask=(True, True, True), fps=25.0, **clip) -> torch.Tensor:
    *values, told["report"] = Score.execute(critic, *ask, fps, **clip).result
    return torch.tensor(values, dtype=torch.float64)


def rank(critic, takes: dict, rule="weighted sum", weights=(1.0, 1.0, 1.0), least=(0.5, 0.5, 0.5)) -> dict:
    numbers = {f"{name}_weight": w for name, w in zip(critic_rank.NAMED, weights, strict=True)}
    numbers |= {f"{name}_least": w for name, w in zip(critic_rank.NAMED, least, strict=True)}
    best, index, ranking = Rank.execute(critic, takes, rule, **numbers).result
    assert best is takes[f"take{index}"]
    return json.loads(ranking)


def refused(name: str, call) -> None:
    try:
        call()
        told[name] = "nothing was raised"
    except UserError as error:
        told[name] = str(error)


def loaded() -> list:
    return [one.model for one in management.current_loaded_models]


with torch.inference_mode():
    told["bases"], told["adapters"] = options("base"), options("adapter")
    critic = load()

    # scores, by every way in
    found["video"] = score(critic, video=video(0))
    told["video"] = told["report"]
    patcher, size = critic.patcher, critic.patcher.model_size()
    found["loaded"] = torch.tensor([patcher in loaded(), patcher.loaded_size() == size > 0])
    critic_model._answers.clear()
    found["images"] = score(critic, images=images(0), audio=audio(0))
    found["both"] = score(critic, video=video(0), images=images(1), audio=audio(1))
    told["both"] = told["report"]
    found["only the picture"] = score(critic, (False, False, True), video=video(0))
    found["nothing"] = score(critic, (False, False, False), video=video(0))
    found["silent"] = score(critic, video=video(0, sound=False))
    told["silent"] = told["report"]
    points = {"frames": [[{"landmarks_xy": given["landmarks"].numpy()}]], "image_size": (60, 90)}
    found["landmarks"] = score(critic, video=video(0), face_landmarks=points)
    told["landmarks"] = told["report"]
    found["mask"] = score(critic, video=video(0), face_mask=given["mask"])
    found["no face"] = score(critic, video=video(0), face_landmarks={**points, "frames": [[]]})
    told["no face"] = told["report"]
    found["shared"] = score(load(views="shared"), video=video(0))

    # the memory manager
    management.unload_all_models()
    found["unloaded"] = torch.tensor([patcher not in loaded(), patcher.loaded_size() == 0])
    found["remembered"] = score(critic, video=video(0))
    score(critic, (False, True, True), video=video(0))  # views of its own: a part is remembered, too
    found["remembered, not loaded"] = torch.tensor([patcher not in loaded()])
    critic_model._answers.clear()
    found["reloaded"] = score(critic, video=video(0))
    found["reloaded, loaded"] = torch.tensor([patcher in loaded(), patcher.loaded_size() == size])
    patcher.load(torch.device("cpu"), lowvram_model_memory=1)  # a byte is free: all of it is loaded all the same
    found["whole"] = torch.tensor([patcher.loaded_size() == size, patcher.partially_unload("cpu", 1) == 0])
    found["memory"] = torch.tensor([critic_model.memory_for(critic.critic.model, 4300)])

    # an interruption after the first window: the rest is not read, nothing is remembered, the next run is whole
    critic_model._answers.clear()
    seen = []

    def interrupt(value, total, preview, node_id=None):
        seen.append(value / total)
        management.interrupt_current_processing(True)

    comfy.utils.set_progress_bar_global_hook(interrupt)
    try:
        score(critic, video=video(0))
        told["interrupted"] = "it went on"
    except management.InterruptProcessingException:
        told["interrupted"] = f"{len(seen)} of it, {len(critic_model._answers)} remembered"
    progress = []
    comfy.utils.set_progress_bar_global_hook(lambda value, total, preview, node_id=None: progress.append(value / total))
    found["after it"] = score(critic, video=video(0))
    comfy.utils.set_progress_bar_global_hook(None)
    found["progress"] = torch.tensor(progress)

    # ranks
    takes = {f"take{n}": video(n) for n in range(4)}
    told["ranks"] = {
        name: rank(critic, takes, *how)
        for name, how in {
            "sum": (), "lips": ("weighted sum", (0.0, 1.0, 0.0)), "picture": ("weighted sum", (0.5, 0.0, 3.0)),
            "pareto": ("Pareto first",), "pass": ("must pass", (1.0, 1.0, 1.0), (0.0, 0.5, 0.0)),
        }.items()
    }  # fmt: skip
    told["a silent take"] = rank(critic, {"take0": video(0, sound=False), "take3": video(1)})
    management.unload_all_models()
    rank(critic, takes)
    found["ranked from memory"] = torch.tensor([patcher not in loaded()])

    # adapters
    arguments = {"base": BASE, "adapter": ADAPTER, "views": OWN, "dtype": "float32"}
    before = Loader.fingerprint_inputs(**arguments)
    adapter = Path(models, "fantasytalking2", "critics", ADAPTER)
    same = Loader.fingerprint_inputs(**arguments) == before
    os.utime(adapter / "adapter_model.safetensors", ns=(1, 1))
    found["fingerprint"] = torch.tensor([same, Loader.fingerprint_inputs(**arguments) != before])
    if importlib.util.find_spec("peft") is None:
        refused("no peft", lambda: load(adapter=ADAPTER))
    if Path(peft_in).is_dir():
        sys.path.append(peft_in)
        found["adapter"] = score(load(adapter=ADAPTER), video=video(0))
        told["adapter"] = told["report"]
        refused("other views", lambda: load(adapter=ADAPTER, views="separate"))

    # what does not fit
    refused("nothing to judge", lambda: score(critic))
    refused("nothing to rank", lambda: rank(critic, {"take0": None}))
    refused("no weights", lambda: rank(critic, takes, "must pass", (0.0, 0.0, 0.0)))
    refused("a base that went", lambda: load("gone"))
    refused("an adapter that went", lambda: load(adapter="gone"))
found["told"] = told
start.leave(found)
