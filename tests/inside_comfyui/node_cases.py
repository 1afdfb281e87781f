"""Runs inside ComfyUI: single nodes with chosen inputs; files: a folder with native files and wav2vec2-base."""

import start
from pathlib import Path

import comfy.audio_encoders.audio_encoders
import comfy.sd
import comfy.utils
import torch
from pack import load_pack

pack = load_pack()
folder = Path(start.files[0])
audio_nodes, expert_nodes, audio_patch = (pack(f"nodes.{n}") for n in ("audio_nodes", "expert_nodes", "audio_patch"))
sampling_nodes, UserError = pack("nodes.sampling_nodes"), pack("fantasy_core.errors").UserError
given = torch.load(folder / "given.pt", weights_only=True)
found, told = {}, {}


def refused(name, call):
    try:
        call()
        told[name] = "nothing was raised"
    except UserError as error:
        told[name] = str(error)


with torch.inference_mode():
    # Audio to Frames
    for name, fps, rule, most, first in (
        ("within", 23.0, "within the voice", 0, 0), ("official", 23.0, "FantasyTalking's", 0, 0),
        ("most", 23.0, "within the voice", 30, 0), ("first", 23.0, "within the voice", 0, 20),
        ("25", 25.0, "within the voice", 0, 0),
    ):  # fmt: skip
        sound = {"waveform": given["stereo"], "sample_rate": 44100}
        frames, cut, told_fps, seconds = audio_nodes.AudioToFrames.execute(sound, fps, rule, most, first).result
        found[f"frames {name}"] = torch.tensor(
            [frames, cut["waveform"].shape[-1], told_fps, seconds], dtype=torch.float64
        )
        found[f"sound {name}"] = cut["waveform"]

    found["face"] = audio_nodes.face_over_frames(given["mask"], 9)
    found["face, one"] = audio_nodes.face_over_frames(given["mask"][0], 9)
    found["face, short"] = audio_nodes.face_over_frames(given["mask"][:3], 9)

    # wav2vec2, by ComfyUI's own class
    state = comfy.utils.load_torch_file(str(folder / "wav2vec2" / "model.safetensors"))
    encoder = comfy.audio_encoders.audio_encoders.load_audio_encoder_from_sd(dict(state))
    stock = encoder.encode_audio(given["speech"], 22050)
    encoder.model.float().load_state_dict(state, strict=False)  # it stored fp16, whose rounding is not the question
    speech = {"waveform": given["speech"], "sample_rate": 22050}
    found["features"] = audio_nodes.voice_features(encoder, speech, None, 33, 23.0)
    found["encoded"] = audio_nodes.voice_features(None, None, stock, 33, 23.0)

    class Convolution:
        """An encoder with the hop and reach of wav2vec2, and no context beyond: pieces must equal the whole."""

        weight = torch.randn(3, 1, 400, generator=torch.Generator().manual_seed(1))

        def encode_audio(self, audio, rate):
            return {"encoded_audio": torch.nn.functional.conv1d(audio, self.weight, stride=320).transpose(1, 2)}

    long = torch.randn(16000 * 75, generator=torch.Generator().manual_seed(2))
    whole = Convolution().encode_audio(long[None, None], 16000)["encoded_audio"]
    found["pieces"] = (audio_nodes.encoded_in_pieces(Convolution(), long) - whole).abs().max() / whole.abs().max()

    # gates by hand
    experts = tuple(
        expert_nodes.ChosenExpert(pack("fantasy_core.experts").load_expert(folder / f"{n}.safetensors", n), 1.0)
        for n in ("mn", "ls", "vq")
    )
    base = comfy.sd.load_diffusion_model(str(folder / "base.safetensors"), model_options={"dtype": torch.float32})
    host = pack("nodes.patcher").native_host(base)
    bank, _ = expert_nodes.stack(experts, host)
    times = torch.tensor([1000.0, 500.0, 0.0])

    def weights(form, text, **kw):
        (source,) = expert_nodes.ManualGate.execute(form, text, kw.pop("steps", 4), kw.pop("shift", 1.0), **kw).result
        return source.build(bank.hashes, host)(None, times)[:, :, 0]

    found["constant"] = weights("constant", "0.3, 0.5, 0.2")
    found["constant, one for all"] = weights("constant", "0.4")
    found["constant, by line"] = weights("constant", "mn = 0.3\nls = 0.5")
    found["constant, with its name"] = weights("constant", "constant:0.3,0.5,0.2")
    found["curve"] = weights("per-step curve", "mn = 1, 0\nvq = 0.5")
    found["curve, sigmas"] = weights("per-step curve", "mn=1,0", sigmas=torch.tensor([1.0, 0.5, 0.0]))
    found["ramp"] = weights("per-block ramp", "mn=1..0\nls=0..1")
    found["table"] = weights("table", "step block mn ls vq\n0 * 1 0 0\n3 * 0 0 1")
    refused("one line", lambda: weights("table", "step block mn ls vq"))
    refused("nonsense", lambda: weights("constant", "a lot"))

    # what does not fit
    adapter = audio_patch.AudioAdapter(folder / "adapter.safetensors")
    other = comfy.sd.load_diffusion_model(str(folder / "shallow.safetensors"), model_options={"dtype": torch.float32})
    refused("adapter of another depth", lambda: adapter.hang(other))
    refused("experts of another depth", lambda: expert_nodes.ApplyGatedExperts.execute(other, experts, "auto"))
    gate = expert_nodes.GateSource(str(folder / "gate.safetensors"))
    refused("gate of other experts", lambda: expert_nodes.ApplyGatedExperts.execute(base, experts[:2], "auto", gate))
    refused("twice the same", lambda: expert_nodes.ApplyGatedExperts.execute(base, experts[:1] * 2, "auto"))
    refused("no voice", lambda: audio_nodes.voice_features(encoder, None, None, 33, 23.0))
    silence = {"waveform": torch.zeros(1, 1, 9000), "sample_rate": 16000}
    refused("silence", lambda: audio_nodes.voice_features(encoder, silence, None, 9, 23.0))
    refused("a LoRA as adapter", lambda: audio_patch.AudioAdapter(folder / "mn.safetensors"))
    refused("a file that went", lambda: audio_nodes.find_file(("loras", "vae"), "gone.safetensors"))
    encoder.patcher.model.diffusion_model = encoder.model.encoder  # a MODEL of another kind
    refused("no Wan", lambda: adapter.hang(encoder.patcher))
    masked = {"samples": torch.zeros(1, 16, 5, 8, 8), "noise_mask": torch.ones(1, 5, 8, 8)}
    refused(
        "a mask over two models",
        lambda: sampling_nodes.TLPOSampler.execute(
            base, [], [], [], masked, seed=0, steps=2, shift=5.0, text_scale=1.0, audio_scale=1.0, sampler_name="euler",
            low_noise_model=base,
        ),
    )  # fmt: skip
found["told"] = told
start.leave(found)
