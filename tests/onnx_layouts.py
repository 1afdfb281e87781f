"""Small ONNX networks in the layouts of DWPose's files, with weights that find coloured marks: known truth.

Both layouts are those of yolox_l.onnx (images [1, 3, 640, 640], blue first -> [1, 8400, 85]) and dw-ll_ucoco_384.onnx
(input [1, 3, 384, 288], red first -> simcc_x [1, 133, 576], simcc_y [1, 133, 768]).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

WIDE, HIGH = 4, 6  # cells of 32 pixels, the box of a person without green; with full green 1.5 times as large
SHARE = 0.25  # a keypoint's score of what is seen, times `JOINT_SCORES`
JOINT_SCORES = 0.5 + np.arange(133) / 266


def save(file: Path, nodes, inputs, outputs, weights: dict[str, np.ndarray]) -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    told = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in side] for side in (inputs, outputs)]
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    made = [helper.make_node(kind, given, [to], **more) for kind, given, to, more in nodes]
    model = helper.make_model(helper.make_graph(made, "g", *told, stored), opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 9
    onnx.save(model, str(file))
    return file


def red_persons(file: Path, classes: int = 80, side: int = 640) -> Path:
    """A YOLOX that sees a person around the middle of every 32 x 32 cell whose red is above 180."""
    width, nodes, weights, parts = 5 + classes, [], {}, []
    for stride in (8, 16, 32):
        kernel, bias = np.zeros((width, 3, 1, 1), np.float32), np.zeros(width, np.float32)
        bias[:4] = 0.5, 0.5, np.log(WIDE), np.log(HIGH)
        kernel[2:4, 1] = np.log(1.5) / 255
        kernel[4, 2], bias[4] = 0.2, -0.2 * 180
        bias[5:], bias[5] = -50, 50
        if stride < 32:
            kernel[4], bias[4] = 0, -50
        weights |= {f"k{stride}": kernel, f"b{stride}": bias, f"s{stride}": np.array([1, width, -1], np.int64)}
        pool = {"kernel_shape": [stride, stride], "strides": [stride, stride]}
        nodes += [
            ("AveragePool", ["images"], f"p{stride}", pool),
            ("Conv", [f"p{stride}", f"k{stride}", f"b{stride}"], f"c{stride}", {}),
            ("Reshape", [f"c{stride}", f"s{stride}"], f"r{stride}", {}),
        ]
        parts.append(f"r{stride}")
    nodes += [
        ("Concat", parts, "all", {"axis": 2}),
        ("Transpose", ["all"], "rows", {"perm": [0, 2, 1]}),
        ("Sigmoid", ["rows"], "likely", {}),
        ("Slice", ["rows", "zero", "four", "two"], "boxes", {}),
        ("Slice", ["likely", "four", "end", "two"], "scores", {}),
        ("Concat", ["boxes", "scores"], "output", {"axis": 2}),
    ]
    weights |= {n: np.array([v], np.int64) for n, v in (("zero", 0), ("four", 4), ("end", width), ("two", 2))}
    cells = sum((side // stride) ** 2 for stride in (8, 16, 32))
    return save(file, nodes, [("images", [1, 3, side, side])], [("output", [1, cells, width])], weights)


def blue_joints(file: Path, height: int = 384, width: int = 288, points: int = 133) -> Path:
    """A SimCC network all of whose joints lie where the picture is bluest; y is twice as sure as x."""
    nodes, weights = [], {"blue": np.array([2], np.int64)}
    outputs = []
    for name, axis, length, share in (("simcc_x", 2, width, SHARE), ("simcc_y", 3, height, 2 * SHARE)):
        weights |= {
            f"to_{name}": (share * JOINT_SCORES[:points]).astype(np.float32).reshape(1, points, 1),
            f"pair_{name}": np.array([1, 1, length, 1], np.int64),
            f"line_{name}": np.array([1, 1, 2 * length], np.int64),
        }
        nodes += [
            ("Gather", ["input", "blue"], f"g_{name}", {"axis": 1}),
            ("ReduceMax", [f"g_{name}"], f"m_{name}", {"axes": [axis], "keepdims": 0}),
            ("Reshape", [f"m_{name}", f"pair_{name}"], f"c_{name}", {}),
            ("Concat", [f"c_{name}", f"c_{name}"], f"d_{name}", {"axis": 3}),
            ("Reshape", [f"d_{name}", f"line_{name}"], f"l_{name}", {}),
            ("Mul", [f"l_{name}", f"to_{name}"], name, {}),
        ]
        outputs.append((name, [1, points, 2 * length]))
    return save(file, nodes, [("input", [1, 3, height, width])], outputs, weights)
