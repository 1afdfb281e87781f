"""SD and BD: planted movements through real optical flow, masks of every kind, and what says None."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui import inside_comfyui
from drawn_faces import face
from PIL import Image

from fantasy_core.errors import UserError
from fantasy_core.manifest import sha256
from fantasy_core.media import VideoWriter
from fantasy_core.metrics.contract import Metric, ReadsBeside, Unfit, Video
from fantasy_core.metrics.dynamics import Dynamics, fitted, longest, scaled, summed
from fantasy_core.metrics.flow_backends import DisFlow, RaftFlow
from fantasy_core.metrics.sampling import at_rate
from fantasy_core.metrics.subject_masks import FaceBox, GivenMasks, Sam2, body, filled

SIDE = 512
BOX = (160, 128, 352, 384)  # left, top, right, bottom of the subject in its first frame


def texture(seed: int, height: int, width: int) -> np.ndarray:
    """Noise [height, width, 3] of every size down to about three pixels."""
    rng = np.random.default_rng(seed)
    layers = [rng.random((1, 3, height // size + 2, width // size + 2)) for size in (3, 8, 24)]
    grown = [
        torch.nn.functional.interpolate(torch.from_numpy(layer), (height, width), mode="bicubic").clamp(0, 1)
        for layer in layers
    ]
    return (sum(grown) / 3 * 255).byte()[0].movedim(0, -1).numpy()


def pasted(steps: int, move: tuple[int, int], fps: float = 8.0, name: str = "a.mp4") -> Video:
    """A textured subject in BOX that goes `move` (x, y) pixels from frame to frame over a still textured background."""
    back, subject = texture(0, SIDE, SIDE), texture(1, BOX[3] - BOX[1], BOX[2] - BOX[0])
    frames = np.repeat(back[None], steps, 0)
    for n, frame in enumerate(frames):
        left, top = BOX[0] + n * move[0], BOX[1] + n * move[1]
        frame[top : top + subject.shape[0], left : left + subject.shape[1]] = subject
    return Video(Path(name), frames, np.arange(steps) / fps)


class Following:
    """The true mask of `pasted`, without a band of `edge` pixels, where flow is neither one's nor the other's."""

    settings, verified = {"mask": "truth"}, True

    def __init__(self, move: tuple[int, int]):
        self.move = move

    def of(self, video, indices):
        for n in indices:
            x, y = n * self.move[0], n * self.move[1]
            yield filled((BOX[0] + x, BOX[1] + y, BOX[2] + x, BOX[3] + y), SIDE, SIDE)


def dis() -> DisFlow:
    pytest.importorskip("cv2")
    return DisFlow()


@pytest.mark.parametrize("move", [(3, 4), (-6, 0), (1, -1)])
def test_a_planted_translation(move):
    """SD is its length within 0.2 px. BD is about nothing: what the flow smears over the subject's edge, less than a
    tenth of the length."""
    found = Dynamics(dis(), Following(move)).measure(pasted(4, move))
    length = np.hypot(*move)
    assert found.values["sd"] == pytest.approx(length, abs=0.2)
    assert 0 <= found.values["bd"] < 0.1 * length and not found.reasons
    assert found.values["flow_top5"] == pytest.approx(length, abs=0.3)


def test_a_still_picture_has_no_motion():
    values = Dynamics(dis(), Following((0, 0))).measure(pasted(3, (0, 0))).values
    assert values == pytest.approx({"sd": 0, "bd": 0, "flow_top5": 0}, abs=0.02)


def test_what_a_cut_changes_has_not_moved():
    """Two still pictures, one after the other: the pair over the cut is left out, so that nothing moves. A cut in every
    pair leaves nothing to say."""
    first, second = pasted(4, (0, 0)), pasted(4, (0, 0))
    frames = np.concatenate([first.frames // 4, 255 - second.frames // 4])
    values = Dynamics(dis(), Following((0, 0))).measure(Video(Path("a"), frames, np.arange(8) / 8)).values
    assert values == pytest.approx({"sd": 0, "bd": 0, "flow_top5": 0}, abs=0.02)
    found = Dynamics(dis(), None).measure(Video(Path("a"), frames[3:5], np.arange(2) / 8))
    assert found.values == {"flow": None, "flow_top5": None} and "scene cut" in found.reasons["flow"]


def test_frames_are_taken_at_8_a_second():
    """The subject goes 1 px a frame at 24 frames a second: 3 px from one eighth of a second to the next."""
    found = Dynamics(dis(), Following((1, 0))).measure(pasted(10, (1, 0), fps=24))
    assert found.values["sd"] == pytest.approx(3, abs=0.2)


def test_a_varying_frame_rate():
    """The subject goes 24 px a second, in frames shown for 20 to 60 ms: 3 px in an eighth, give or take a frame, whose
    place is its time's, rounded."""
    seconds = np.concatenate([[0], np.cumsum(np.random.default_rng(1).uniform(0.02, 0.06, 14))])
    still, places = pasted(1, (0, 0)), np.round(24 * seconds).astype(int)
    frames = np.stack([np.roll(still.frames[0], place, 1) for place in places])
    found = Dynamics(dis(), None).measure(Video(Path("a"), frames, seconds))
    steps = np.diff(places[at_rate(Video(Path("a"), frames, seconds), 8)])
    assert found.values["flow_top5"] == pytest.approx(steps.mean(), abs=1.0)
    assert found.values["flow"] == pytest.approx(steps.mean(), abs=0.2)


def test_pictures_of_half_the_size_move_as_far():
    """256 pixels become 512: 2 px are 4."""
    video = pasted(3, (4, 0))
    small = np.stack([scaled(frame, 256) for frame in video.frames])
    assert small.shape == (3, 256, 256, 3)
    found = Dynamics(dis(), None).measure(Video(video.path, small, video.times))
    whole = Dynamics(dis(), None).measure(video)
    assert found.values["flow_top5"] == pytest.approx(whole.values["flow_top5"], abs=0.3)


def test_without_a_mask_it_is_called_flow():
    metric = Dynamics(dis(), None)
    assert isinstance(metric, Metric) and metric.columns == ("flow", "flow_top5") and metric.settings["mask"] == "none"
    assert metric.better.keys() == set(metric.columns) and metric.settings["flow"] == "dis"
    assert metric.measure(pasted(3, (2, 0))).values.keys() == set(metric.columns)


def test_sums_by_hand():
    """2 x 10 pixels of length 5 in the left half, 0 in the right, then all 1: SD (5 + 1) / 2, BD (0 + 1) / 2; the top
    5 % are one pixel of 20, 5 and 1. The mask is of half the size."""
    first, second = np.zeros((2, 10, 2)), np.zeros((2, 10, 2))
    first[:, :5], second[..., 1] = (3, -4), 1
    left = np.array([[True, False]])
    assert fitted(left, (2, 10)).tolist() == [[True] * 5 + [False] * 5] * 2
    assert summed([first, second], [left, left]).values == {"sd": 3.0, "bd": 0.5, "flow_top5": 3.0}
    assert summed([first, second], None).values == {"flow": 1.75, "flow_top5": 3.0}
    assert summed([first, second], [None, left]).values["sd"] == 1.0
    assert longest(np.arange(100.0).reshape(10, 10)) == 97.0  # of 95 to 99


def test_no_subject_and_nothing_beside_it():
    flows, everywhere = [np.ones((2, 2, 2))] * 3, np.ones((2, 2), bool)
    found = summed(flows, [None, None, everywhere])
    assert found.values["sd"] is None and found.reasons["bd"] == "a subject in 1 of 3 frames, 50% are needed"
    found = summed(flows, [everywhere] * 3)
    assert found.values["sd"] == pytest.approx(np.sqrt(2)) and found.reasons == {"bd": "the subject fills the frame"}


@pytest.mark.parametrize(
    "frames,fps,word", [(1, 8, "1 frame, no video"), (9, 4, "4 frames a second, 8"), (2, 25, "two frames at 8")]
)
def test_too_little_to_see(frames, fps, word):
    found = Dynamics(dis(), None).measure(
        Video(Path("a"), np.zeros((frames, 64, 64, 3), np.uint8), np.arange(frames) / fps)
    )
    assert found.values == {"flow": None, "flow_top5": None} and word in found.reasons["flow"]


# ---- masks ----


def drawn_face(frame: np.ndarray) -> list[np.ndarray]:
    """The drawn face at (60, 50), of radius 20, in any frame that is not black, and in no window of it."""
    return [face(60, 50, 20)] if frame.any() and frame.shape[0] != 384 else []


def test_the_box_of_a_body():
    """A face of 40 x 40 px from (40, 30): 120 wide around 60, 160 high from 10 on; clipped at the frame's edges."""
    assert body((40, 30, 80, 70), 300, 300) == (0, 10, 120, 170)
    assert body((140, 130, 180, 170), 200, 200) == (100, 110, 200, 200)
    assert filled((1, 0, 3, 1), 2, 4).tolist() == [[False, True, True, False], [False] * 4]


def test_the_body_of_a_drawn_face():
    """Its points lie 40 px wide and, on a spiral, 39 high. Frames without a face between others are bridged; a video
    without one has no subject at all."""
    frames = np.full((6, 200, 200, 3), 90, np.uint8)
    frames[2] = 0
    boxes, indices = FaceBox(detect=drawn_face), np.arange(6)
    masks = list(boxes.of(Video(Path("a"), frames, indices / 8), indices))
    left, top, right, bottom = boxes.boxes(Video(Path("a"), frames, indices / 8), indices)[0]
    assert right - left == pytest.approx(120, abs=4) and bottom - top == pytest.approx(160, abs=6)
    assert all((mask == masks[0]).all() for mask in masks)
    assert masks[0].sum() == pytest.approx((right - left) * (bottom - top), rel=0.03)
    dark = np.zeros_like(frames)
    assert list(boxes.of(Video(Path("a"), dark, indices / 8), indices)) == [None] * 6


def test_masks_that_are_given(tmp_path):
    """One picture for all frames beside the video; in another folder a video of masks, that changes after a second."""
    video = Video(tmp_path / "a.mp4", np.zeros((16, 64, 96, 3), np.uint8), np.arange(16) / 8)
    indices = np.array([0, 4, 8, 12])
    with pytest.raises(Unfit, match=r"a\.mask\.png"):
        GivenMasks().of(video, indices)
    left = np.zeros((32, 48), np.uint8)
    left[:, :24] = 255
    Image.fromarray(left).save(tmp_path / "a.mask.png")
    assert all((mask == (left > 0)).all() for mask in GivenMasks().of(video, indices))
    (tmp_path / "masks").mkdir()
    with VideoWriter(tmp_path / "masks" / "a.mask.mp4", 8) as writer:
        shown = torch.from_numpy(np.kron(left, np.ones((2, 2))) / 255).float().expand(3, -1, -1)
        writer.write(torch.stack([shown if n < 8 else 1 - shown for n in range(16)]))
    found = GivenMasks(tmp_path / "masks").of(video, indices)
    share = [mask[:, :48].mean() for mask in found]
    assert share == pytest.approx([1, 1, 0, 0], abs=0.03)
    Image.fromarray(left[:, :32]).save(tmp_path / "a.mask.png")
    with pytest.raises(UserError, match="96 x 64"):
        GivenMasks().of(video, indices)


def test_a_mask_is_told_by_its_hash(tmp_path):
    """And where there is none, that too: a number is of one mask. A box that is found needs no telling."""
    path = tmp_path / "a.mp4"
    given = Dynamics(DisFlow(), GivenMasks())
    assert isinstance(given, ReadsBeside) and given.beside(path) == {"mask_file": None, "mask_sha256": None}
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.mask.png")
    assert given.beside(path) == {"mask_file": "a.mask.png", "mask_sha256": sha256(tmp_path / "a.mask.png")}
    assert Dynamics(DisFlow(), FaceBox(detect=drawn_face)).beside(path) == {}


@pytest.fixture(scope="module")
def sam2(tmp_path_factory) -> Path:
    """A tiny random Sam2Model, saved as transformers saves the real one."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    backbone = {
        "hidden_size": 8, "image_size": [128, 128], "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64], "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [4, 4, 4, 4], "global_attention_blocks": [3],
        "window_positional_embedding_background_size": [4, 4],
    }  # fmt: skip
    vision = {
        "backbone_config": {"model_type": "sam2_hiera_det_model", **backbone}, "fpn_hidden_size": 32,
        "backbone_channel_list": [64, 32, 16, 8], "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
    }  # fmt: skip
    config = transformers.Sam2Config(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 32, "image_size": 128, "patch_size": 16},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 32},
    )
    folder = tmp_path_factory.mktemp("sam2")
    transformers.Sam2Model(config).save_pretrained(folder)
    return folder


def test_sam2_by_a_folder(sam2):
    """Random weights know no subject, but another box is another prompt, and the mask has the frame's size."""
    masks = Sam2(sam2, FaceBox(detect=drawn_face))
    frames = np.repeat(texture(0, 96, 128)[None], 3, 0)
    found = list(masks.of(Video(Path("a"), frames, np.arange(3) / 8), np.arange(3)))
    assert all(mask.shape == (96, 128) and mask.dtype == bool for mask in found) and (found[0] == found[2]).all()
    assert masks.settings["mask"] == "sam2" and masks.settings["sam2_sha256"] and not masks.verified
    picture = torch.zeros(1, 3, 128, 128)
    with torch.inference_mode():
        near, far = (
            masks._model(pixel_values=picture, input_boxes=torch.tensor([[box]]), multimask_output=False).pred_masks
            for box in ([1.0, 1, 40, 40], [60.0, 60, 120, 120])
        )
    assert (near - far).abs().max() > 1e-4


def test_a_folder_without_sam2(tmp_path):
    with pytest.raises(UserError, match="SAM 2 not found"):
        Sam2(tmp_path, FaceBox(detect=drawn_face))
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(UserError, match="is no SAM 2"):
        Sam2(tmp_path, FaceBox(detect=drawn_face))


def test_raft_needs_torchvision(tmp_path):
    if importlib.util.find_spec("torchvision"):
        with pytest.raises(UserError):
            RaftFlow(tmp_path / "raft.pth")
    else:
        with pytest.raises(UserError, match="or use dis"):
            RaftFlow(tmp_path / "raft.pth")


@pytest.mark.comfy
def test_raft_is_torchvisions(tmp_path):
    """With random weights in the layout of torchvision's file, where ComfyUI's interpreter has it: the flow of frames
    whose sides are no multiples of eight is the network's own; weights of another model are refused."""
    found = inside_comfyui("raft_cases", tmp_path, tmp_path / "raft_large.pth")
    assert found["ours"].shape == (132, 141, 2)
    torch.testing.assert_close(found["ours"], found["expected"], rtol=1e-4, atol=1e-4)
    assert "RAFT large" in found["told"] and found["settings"]["flow"] == "raft_large"
