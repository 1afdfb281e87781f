"""Nodes that stand for encoders too large for a test: text, CLIP vision, wav2vec2 of the real widths, random values;
and for the weights of a detector of faces, which finds the one that the miniature draws."""

import comfy.clip_vision
import numpy as np
import torch
from comfy_api.latest import ComfyExtension, io


def drawn(text: str, *shape: int) -> torch.Tensor:
    """Normal values that depend on the text alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(text.encode())))


class StandInPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        inputs = [io.String.Input("text", multiline=True)]
        return io.Schema(node_id="StandInPrompt", inputs=inputs, outputs=[io.Conditioning.Output()])

    @classmethod
    def execute(cls, text):
        return io.NodeOutput([[drawn(text, 1, 7, 64), {"pooled_output": None}]])


class StandInVision(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        inputs = [io.Image.Input("image")]
        return io.Schema(node_id="StandInVision", inputs=inputs, outputs=[io.ClipVisionOutput.Output()])

    @classmethod
    def execute(cls, image):
        seen = comfy.clip_vision.Output()
        seen["penultimate_hidden_states"] = drawn(str(image.shape), 1, 257, 1280)
        return io.NodeOutput(seen)


class Encoder:
    def __init__(self, width):
        self.width = width

    def encode_audio(self, audio, sample_rate):
        features = drawn("voice", 1, (audio.shape[-1] - 400) // 320 + 1, self.width)
        return {"encoded_audio": features, "encoded_audio_all_layers": (features,), "audio_samples": audio.shape[-1]}


class StandInEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        inputs = [io.Int.Input("width", default=768, max=2048)]
        return io.Schema(node_id="StandInEncoder", inputs=inputs, outputs=[io.AudioEncoder.Output()])

    @classmethod
    def execute(cls, width):
        return io.NodeOutput(Encoder(width))


class Faces:
    """In the place of a loaded MediaPipe, for frames of the miniature's world whose head stands still: points on a
    disc, the inner lips as far apart as the mouth is dark."""

    connection_sets = {}

    def __init__(self):
        radius, angle = np.sqrt(np.arange(478) / 478), np.arange(478) * 2.399963  # spread evenly
        self.points = np.stack([radius * np.cos(angle), radius * np.sin(angle), 0.3 * radius], 1)
        self.points[33], self.points[263] = (-0.5, -0.3, 0), (0.5, -0.3, 0)  # outer corners of the eyes
        weights = {"procrustes_indices": np.arange(478), "procrustes_weights": np.ones(478)}
        self.canonical_data = {"canonical_vertices": self.points, **weights}

    def detect_batch(self, images, num_faces, score_thresh, variant):
        return [[self.face(image)] for image in images]

    def face(self, image):
        size = len(image)
        lips = image[size * 5 // 8 : size * 7 // 8, size * 3 // 8 : size * 5 // 8].astype(np.float32)
        points = self.points.copy()
        for upper, lower in ((13, 14), (82, 87), (312, 317)):
            points[upper], points[lower] = (0, 0.5, 0), (0, 0.5 + (255 - lips.mean()) / 255, 0)
        xy = (0.5 + 0.4 * points[:, :2]) * size
        box = np.concatenate([xy.min(0), xy.max(0)])
        return {"bbox_xyxy": box, "blendshapes": {}, "landmarks_xy": xy, "landmarks_3d": points * 96 + 96,
                "presence": 1.0, "score": 1.0}  # fmt: skip


class StandInFaces(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        outputs = [io.Custom("FACE_DETECTION_MODEL").Output()]
        return io.Schema(node_id="StandInFaces", inputs=[], outputs=outputs)

    @classmethod
    def execute(cls):
        return io.NodeOutput(Faces())


class StandIns(ComfyExtension):
    async def get_node_list(self):
        return [StandInPrompt, StandInVision, StandInEncoder, StandInFaces]


async def comfy_entrypoint():
    return StandIns()
