"""Metrics whose backend is a choice, made from names and paths as a command line has them."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError, some
from ..lips import landmarker
from .dynamics import Dynamics
from .hands import HandMotion
from .quality import QAlign, RemoteScorer

FLOWS = ("dis", "raft")
MASKS = ("face-box", "sam2", "given", "none")
PERSONS, POSES = ("yolox_l.onnx", "yolox_m.onnx"), ("dw-ll_ucoco_384.onnx", "rtmw-x_384.onnx", "rtmpose-wholebody.onnx")


def hands(weights: Path, *, persons: str | None = None, pose: str | None = None, device: str = "cpu") -> HandMotion:
    """HKC and HKV. weights: a folder with DWPose's two networks, whose names are `persons` and `pose` where they are
    not the usual ones; or mediapipe's hand_landmarker.task, which gives no HKC. Raises UserError for anything else."""
    from .dwpose import DwPose
    from .hand_landmarks import MediapipeHands

    if weights.suffix == ".task":
        return HandMotion(MediapipeHands(weights))
    files = _named(weights, PERSONS, persons), _named(weights, POSES, pose)
    return HandMotion(DwPose(*files, device=device))


def qalign(weights: Path, *, trust: bool = False, device: str = "cuda") -> QAlign:
    """IQA and AES. weights: a folder of q-future/one-align, whose Python code runs with `trust`; never run here. Raises
    UserError without it."""
    scorer = RemoteScorer(weights, trust=trust, device=device)
    return QAlign(scorer, model=weights.name, about=scorer.about)


def dynamics(
    task: Path | None = None,
    *,
    flow: str = "dis",
    mask: str = "face-box",
    raft: str | None = None,
    sam2: str | None = None,
    masks: str | None = None,
    device: str = "cpu",
) -> Dynamics:
    """SD and BD. task: mediapipe's face_landmarker.task, for the masks that begin with a face (`face-box`, `sam2`).
    raft: weights of that flow; sam2: folder of that model; masks: folder of masks that are given (beside the videos
    otherwise). Raises UserError for names and files that there are not."""
    return Dynamics(_flow(flow, raft, device), _mask(mask, task, sam2, masks, device))


def _flow(name: str, raft: str | None, device: str):
    from .flow_backends import DisFlow, RaftFlow

    if name == "raft":
        return RaftFlow(_given(raft, "raft", "raft_large_C_T_SKHT_V2-ff5fadd5.pth of torchvision"), device=device)
    return DisFlow() if name == "dis" else _unknown("optical flow", name, FLOWS)


def _mask(name: str, task: Path | None, sam2: str | None, masks: str | None, device: str):
    from .subject_masks import FaceBox, GivenMasks, Sam2

    if name == "none":
        return None
    if name == "given":
        return GivenMasks(masks)
    if name not in MASKS:
        return _unknown("mask of the subject", name, MASKS)
    with landmarker(task):  # that it can be had is known before any video is opened
        faces = FaceBox(task)
    if name == "face-box":
        return faces
    return Sam2(_given(sam2, "sam2", "a folder of facebook/sam2.1-hiera-tiny"), faces, device=device)


def _named(folder: Path, usual: tuple[str, ...], name: str | None) -> Path:
    names = usual if name is None else (name,)
    found = next((folder / one for one in names if (folder / one).is_file()), None)
    if found is None:
        there = sorted(path.name for path in folder.glob("*.onnx")) if folder.is_dir() else []
        raise UserError(
            f"{folder} is not DWPose",
            got=some(there) if there else "no .onnx in it",
            expected=" or ".join(names),
            do="put both networks of DWPose there, name them (persons, pose), or give a hand_landmarker.task",
        )
    return found


def _given(path: str | None, setting: str, what: str) -> str:
    if path is None:
        raise UserError(f"{setting} needs its weights", got="none", expected=what, do=f"give the setting {setting}")
    return path


def _unknown(what: str, name: str, known: tuple[str, ...]):
    raise UserError(f"unknown {what}", got=name, expected=" or ".join(known), do="name one of these")
