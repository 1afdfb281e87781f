"""S3FD: the published layout, what syncnet_python's detector gives on the same weights, boxes by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fantasy_core.errors import UserError
from fantasy_core.metrics.networks import Network
from fantasy_core.metrics.s3fd import MEAN, S3fdModel, boxes_of, likeliest, s3fd_faces
from tests.planted_weights import layout, planted_file, planted_state


def test_layout_is_the_published_one():
    """Names and shapes of syncnet_python's S3FDNet, hashed from its own code."""
    state = planted_state(S3fdModel)
    assert len(state) == 65 and layout(state) == "09f6192edba61a324f33eedbe15d6704d95f269e21b744187386ab319f2d7a47"


def test_it_finds_what_syncnet_pythons_detector_finds(tmp_path):
    """Likelihood and box, as shares of width and height, of the five likeliest of syncnet_python's detector; 99 x 133
    has odd edges at every pool."""
    network = Network(S3fdModel, planted_file(S3fdModel, tmp_path / "sfd_face.pth"), "S3FD").open()
    rows, columns = np.mgrid[:99, :133]
    frame = np.stack([rows * 3 + columns, rows + columns * 2, rows * columns]) % 256
    with torch.inference_mode():
        told = network(torch.from_numpy(frame)[None].float() - torch.tensor(MEAN)[:, None, None])
    boxes, scores = boxes_of(*told)
    first = likeliest(boxes, scores, 0.3)[:5]
    found = np.column_stack([scores[first], boxes[first] / [133, 99, 133, 99]])
    expected = [
        [0.59384835, -0.10558859, -0.40049779, 0.89129603, 0.80123854],
        [0.53208745, -0.38157481, 0.15736383, 0.65148526, 1.47131348],
        [0.52716231, -1.51626074, -1.92084527, 2.39600039, 3.16964936],
        [0.51167965, 0.69508934, 0.61286438, 0.93111646, 0.93103242],
        [0.50902963, 0.21478455, 0.69453740, 0.44995099, 1.01263714],
    ]
    assert found == pytest.approx(np.array(expected), abs=2e-4)


def test_a_box_by_hand():
    """Cell (row 2, column 1) of the grid of 32 pixels: its middle is (48, 80), its prior 128 wide. Places (5, -5) move
    it by half a side (0.1 x 5 x 128 = 64) to (112, 16); a logarithm of 2 in width, times five, doubles it."""
    places = [torch.zeros(4, 1, 1) for _ in range(6)]
    likely = [torch.zeros(1, 1) for _ in range(6)]
    places[3], likely[3] = torch.zeros(4, 4, 4), torch.zeros(4, 4)
    places[3][:, 2, 1] = torch.tensor([5.0, -5.0, 5 * np.log(2), 0.0])
    likely[3][2, 1] = 0.97
    boxes, scores = boxes_of(places, likely)
    assert boxes == pytest.approx(np.array([[112 - 128, 16 - 64, 112 + 128, 16 + 64]])) and scores == pytest.approx(
        [0.97]
    )


def test_of_boxes_that_overlap_the_likeliest_stays():
    """The second shares 50 of 150 with the first (1/3), the third 25 of 175 (1/7), the last nothing."""
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [5, 5, 15, 15], [40, 0, 50, 10]], float)
    scores = np.array([0.9, 0.8, 0.7, 0.95])
    assert likeliest(boxes, scores, 0.3).tolist() == [3, 0, 2]
    assert likeliest(boxes, scores, 0.1).tolist() == [3, 0]
    assert likeliest(np.zeros((0, 4)), np.zeros(0), 0.3).tolist() == []


def seeing() -> dict[str, torch.Tensor]:
    """Weights by which a red cell of 32 pixels is a face: the first channel of every layer is red above its mean, and
    the grid of 32 pixels says yes where that is more than 100."""
    state = {name: torch.zeros(tensor.shape) for name, tensor in planted_state(S3fdModel).items()}
    for name, tensor in state.items():
        if name.startswith("vgg") and name.endswith("weight"):
            tensor[0, 0, tensor.shape[2] // 2, tensor.shape[3] // 2] = 1
        elif name.startswith("conf") and name.endswith("bias"):
            tensor[-1] = -10
    state["conf.3.weight"][1, 0, 1, 1] = 0.2
    state["conf.3.bias"][1] = -20
    return state


def test_a_face_in_a_frame_four_times_as_large(tmp_path):
    """Red in columns 256 to 384, rows 128 to 256 is cell (row 1, column 2) of the quarter: a box 128 wide around
    (80, 48) there, in the frame 512 around (320, 192). Red is 132 above its mean: 0.2 x 132 - 20 = 6.4, and of that the
    sigmoid, less the background's -10, is near 1."""
    torch.save(seeing(), tmp_path / "sfd_face.pth")
    frame = np.zeros((384, 640, 3), np.uint8)
    with s3fd_faces(tmp_path / "sfd_face.pth") as faces:
        assert faces(frame) == []
        frame[128:256, 256:384, 0] = 255
        assert faces(frame) == [pytest.approx((64, -64, 576, 448), abs=1e-3)]


def test_weights_of_another_model(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not a complete"), s3fd_faces(tmp_path / "other.pth"):
        pass
