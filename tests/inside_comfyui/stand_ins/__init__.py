"""Nodes that stand for encoders too large for a test: text, CLIP vision, wav2vec2 of the real widths, random values."""

import comfy.clip_vision
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


class StandIns(ComfyExtension):
    async def get_node_list(self):
        return [StandInPrompt, StandInVision, StandInEncoder]


async def comfy_entrypoint():
    return StandIns()
