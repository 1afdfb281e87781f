"""UMT5, CLIP and the VAE: every layout gives the outputs of the real classes; decoding streams; the image condition."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from layouts import Tiny, as_fp8, spiece_model, write_tokenizer
from safetensors.torch import load_file, save_file

from fantasy_core.encoders import clean_prompt, encode_clip, encode_text, image_condition, load_text, load_vae
from fantasy_core.errors import UserError
from fantasy_core.weights import TensorSet, WanFiles, find_wan
from fantasy_core.weights.encoders import clip_sizes, open_text, text_sizes
from fantasy_core.weights.files import Lazy

PROMPTS = ["a woman is talking", "", "a man   with a hat &amp;amp; a song"]
LAYOUTS = ["official", "diffusers", "comfy"]


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return Tiny.make()


@pytest.fixture(scope="module")
def layouts(tiny, tmp_path_factory) -> dict[str, WanFiles]:
    folder = tmp_path_factory.mktemp("layouts")
    paths = [tiny.write_official(folder / "official"), tiny.write_diffusers(folder / "diffusers")]
    return dict(zip(LAYOUTS, map(find_wan, [*paths, tiny.write_comfy(folder / "models")]), strict=True))


@pytest.fixture(scope="module")
def vae(layouts):
    return load_vae(layouts["official"])


def picture(*size: int) -> torch.Tensor:
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(3)) * 2 - 1


def official_text_encoding(model, prompts: list[str]) -> list[torch.Tensor]:
    """Wan2.1's way: ids padded with 0 to 512, a mask, and the rows of the real tokens kept."""
    from sentencepiece import SentencePieceProcessor

    processor, rows = SentencePieceProcessor(model_proto=spiece_model()), []
    for prompt in prompts:
        ids = torch.tensor([processor.encode(prompt) + [1]])
        padded = F.pad(ids, (0, 512 - ids.shape[1]))
        mask = (torch.arange(512) < ids.shape[1]).long()[None]
        rows.append(model(input_ids=padded, attention_mask=mask).last_hidden_state[0, : ids.shape[1]])
    return rows


@pytest.mark.parametrize("layout", LAYOUTS)
def test_text(tiny, layouts, layout):
    """Equal to the padded and masked official way within 1e-5; zeros after the last token; "" is the end mark alone."""
    got = encode_text(layouts[layout], PROMPTS, dtype=torch.float32)
    expected = official_text_encoding(tiny.text, ["a woman is talking", "", "a man with a hat & a song"])
    lengths = list(map(len, expected))
    assert lengths[1] == 1 and got.shape == (3, max(lengths), 32)
    for row, want in zip(got, expected, strict=True):
        torch.testing.assert_close(row[: len(want)], want, rtol=1e-5, atol=1e-5)
        assert not row[len(want) :].any()


def test_long_prompts_are_cut_to_512_tokens(layouts):
    """The end mark stays the last token, by tokenizer folder and by SentencePiece model alike."""
    prompt = ["a woman is talking " * 200]
    rows = [encode_text(layouts[layout], prompt, dtype=torch.float32) for layout in LAYOUTS]
    assert rows[0].shape == (1, 512, 32)
    assert torch.equal(rows[0], rows[1]) and torch.equal(rows[0], rows[2])


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("  a \n\t b  ", "a b"),
        ("Tom &amp;amp; Ann &lt;3", "Tom & Ann <3"),
        ("schÃ¶n â€” ja", "schön — ja"),
        ("一个女人，在说话", "一个女人,在说话"),  # full-width punctuation becomes ASCII: ftfy's default
        ("", ""),
    ],
)
def test_prompts_are_cleaned(prompt, cleaned):
    assert clean_prompt(prompt) == cleaned


def test_scaled_fp8_text_encoder(tiny, tmp_path):
    """ComfyUI's fp8-scaled file equals the encoder whose linears are stored value times scale."""
    stored, truth = {}, dict(tiny.text.state_dict())
    for name, tensor in tiny.text.state_dict().items():
        if ".block." in name and tensor.ndim == 2 and "relative" not in name:
            extra, truth[name] = as_fp8(name, tensor, "scaled")
            stored |= extra
        elif "embed_tokens" not in name:
            stored[name] = tensor.half()
            truth[name] = tensor.half().float()
    truth["encoder.embed_tokens.weight"] = truth["shared.weight"]
    stored["scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    save_file(stored, tmp_path / "umt5_xxl_fp8_e4m3fn_scaled.safetensors")
    tokenizer = write_tokenizer(tmp_path / "umt5-xxl")
    files = WanFiles(
        "single file", tmp_path, text=tmp_path / "umt5_xxl_fp8_e4m3fn_scaled.safetensors", tokenizer=tokenizer
    )
    rounded = Tiny.make().text
    rounded.load_state_dict(truth)
    (expected,) = official_text_encoding(rounded, PROMPTS[:1])
    got = encode_text(files, PROMPTS[:1], dtype=torch.float32)[0]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_text_encoder_is_freed(layouts):
    from transformers import UMT5EncoderModel

    def alive() -> int:
        gc.collect()
        return sum(type(thing) is UMT5EncoderModel for thing in gc.get_objects())

    before = alive()
    encode_text(layouts["official"], ["a"])
    assert alive() == before


def test_tied_embeddings_stay_one_tensor(layouts):
    """`shared` and `embed_tokens` are 2 GB each in the real model: they must be one memory after the load."""
    for layout in LAYOUTS:
        model = load_text(open_text(layouts[layout].text)[0], "cpu", torch.bfloat16)
        assert model.shared.weight.data_ptr() == model.encoder.embed_tokens.weight.data_ptr()


def shapes_of(model: torch.nn.Module) -> TensorSet:
    entries = {name: Lazy(tuple(t.shape), t.dtype, lambda t=t: t) for name, t in model.state_dict().items()}
    return TensorSet(Path("meta"), {name.removeprefix("vision_model."): lazy for name, lazy in entries.items()})


def test_sizes_of_the_real_models():
    """UMT5-XXL (wan/modules/t5.py) and CLIP ViT-H/14 (wan/modules/clip.py), built without memory, are read from shapes.

    Parameters of the text encoder: 256384*4096 embeddings, 24 * (4*4096^2 + 3*4096*10240 + 32*64 + 2*4096), 4096.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

    text = {"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    clip = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
    clip |= {"patch_size": 14, "image_size": 224}
    with torch.device("meta"):
        umt5 = UMT5EncoderModel(UMT5Config(**text, feed_forward_proj="gated-gelu"))
        tower = CLIPVisionModel(CLIPVisionConfig(**clip))
    assert sum(parameter.numel() for parameter in umt5.parameters()) == 5_680_910_336
    assert text_sizes(shapes_of(umt5)).items() >= text.items()
    assert clip_sizes(shapes_of(tower)).items() >= clip.items()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_clip(tiny, layouts, layout):
    """The last block but one of the real class on the picture resized by hand: bicubic, no antialias, no crop."""
    image = picture(50, 34)
    got = encode_clip(layouts[layout], image, dtype=torch.float32)
    resized = F.interpolate(image, (28, 28), mode="bicubic", align_corners=False, antialias=False)
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = (resized * 0.5 + 0.5 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    expected = tiny.clip(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
    assert got.shape == (1, 5, 160)  # (28/14)^2 patches and the class token
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_clip_leaves_out_the_last_block_and_takes_heads(layouts, tmp_path):
    """Noise in the last block changes nothing, in the one before it does; another number of heads is another output."""
    official = torch.load(layouts["official"].clip, weights_only=True)
    image, outputs = picture(28, 28), {}
    for block in (1, 2):
        name = f"visual.transformer.{block}.mlp.2.bias"
        torch.save(official | {name: official[name] + 1}, tmp_path / "clip.pth")
        outputs[block] = encode_clip(
            replace(layouts["official"], clip=tmp_path / "clip.pth"), image, dtype=torch.float32
        )
    plain = encode_clip(layouts["official"], image, dtype=torch.float32)
    assert torch.equal(outputs[2], plain) and not torch.equal(outputs[1], plain)
    assert not torch.equal(encode_clip(layouts["official"], image, dtype=torch.float32, heads=4), plain)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_vae(tiny, layouts, layout):
    """Latents are (posterior mean - mean) / std by channel; frames are the real class's on latents * std + mean."""
    video = picture(9, 16, 24)
    codec = load_vae(layouts[layout])
    latents = codec.encode_video(video)
    mean, std = (
        torch.tensor(v).view(1, 16, 1, 1, 1) for v in (tiny.vae.config.latents_mean, tiny.vae.config.latents_std)
    )
    assert mean[0, 0].item() == pytest.approx(-0.7571) and std[0, 15].item() == pytest.approx(1.9160)
    with torch.no_grad():
        posterior = tiny.vae.encode(video).latent_dist.mode()
        frames = tiny.vae.decode(latents * std + mean).sample[0].transpose(0, 1)
    assert latents.shape == (1, 16, 3, 2, 3)
    torch.testing.assert_close(latents, (posterior - mean) / std, rtol=1e-5, atol=1e-5)
    chunks = list(codec.decode_frames(latents))
    assert [len(chunk) for chunk in chunks] == [1, 4, 4]
    torch.testing.assert_close(torch.cat(chunks), frames, rtol=1e-5, atol=1e-5)


def test_decoding_streams(vae):
    """Chunks come out before later latents are asked for; a video in pieces is the same video; two run side by side."""
    latents, asked = torch.randn(1, 16, 5, 2, 2), []

    def pieces():
        for first, last in ((0, 1), (1, 3), (3, 5)):
            asked.append(first)
            yield latents[:, :, first:last]

    stream, other = vae.decode_frames(pieces()), vae.decode_frames(latents)
    first = next(stream)
    assert asked == [0] and first.shape == (1, 3, 16, 16)
    assert torch.equal(first, next(other))
    for ours, theirs in zip(stream, other, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert asked == [0, 1, 3]


def test_tiling_is_the_librarys(layouts):
    """With tiles the frames are those of the library's tiled decode, still in chunks of 1, 4, 4."""
    tiled = load_vae(layouts["official"], tiling=True)
    tiled.model.enable_tiling(32, 32, 24, 24)
    latents = torch.randn(1, 16, 3, 6, 6)
    with torch.no_grad():
        expected = tiled.model.decode(latents * tiled.std + tiled.mean).sample[0].transpose(0, 1)
    chunks = list(tiled.decode_frames(latents))
    assert [len(chunk) for chunk in chunks] == [1, 4, 4]
    assert torch.equal(torch.cat(chunks), expected)
    assert not torch.equal(expected, torch.cat(list(load_vae(layouts["official"]).decode_frames(latents))))


def test_image_condition():
    """4 mask channels first, 1 at latent frame 0; the encoder sees the image, then grey (0 in [-1, 1])."""
    image, seen = picture(16, 8), []

    def encode(video: torch.Tensor) -> torch.Tensor:
        seen.append(video)
        return torch.arange(16.0).view(1, 16, 1, 1, 1).expand(1, 16, 3, 2, 1)

    condition = image_condition(encode, image, 9)
    assert condition.shape == (1, 20, 3, 2, 1)
    assert torch.equal(condition[:, :4, 0], torch.ones(1, 4, 2, 1)) and not condition[:, :4, 1:].any()
    assert torch.equal(condition[0, 4:, 2, 0, 0], torch.arange(16.0))
    assert seen[0].shape == (1, 3, 9, 16, 8)
    assert torch.equal(seen[0][:, :, 0], image) and not seen[0][:, :, 1:].any()


def test_image_condition_with_the_vae(vae):
    """Latent frame 0 depends on the image alone (the VAE is causal): the same for 1 and for 9 frames."""
    image = picture(16, 16)
    long, short = (image_condition(vae.encode_video, image, frames) for frames in (9, 1))
    torch.testing.assert_close(long[:, :, :1], short, rtol=0, atol=1e-5)


def test_shapes_are_checked(layouts, vae):
    for call in (
        lambda: vae.encode_video(torch.zeros(1, 3, 8, 16, 16)),
        lambda: vae.encode_video(torch.zeros(1, 3, 9, 16, 12)),
        lambda: list(vae.decode_frames(torch.zeros(2, 16, 1, 2, 2))),
        lambda: encode_clip(layouts["official"], torch.zeros(3, 8, 8)),
        lambda: image_condition(vae.encode_video, torch.zeros(1, 3, 8, 8), 8),
        lambda: image_condition(vae.encode_video, torch.zeros(1, 1, 8, 8), 9),
    ):
        with pytest.raises(UserError):
            call()


def test_wrong_and_absent_files(layouts, tmp_path: Path):
    """Each encoder names what it was given instead; a foreign, a broken and an absent tokenizer are told apart."""
    files = layouts["official"]
    with pytest.raises(UserError, match="not a UMT5 text encoder(.|\n)*VAE"):
        encode_text(replace(files, text=files.vae), ["a"])
    with pytest.raises(UserError, match="not a CLIP image encoder(.|\n)*UMT5"):
        encode_clip(replace(files, clip=files.text), picture(8, 8))
    with pytest.raises(UserError, match="not a Wan2.1 VAE(.|\n)*CLIP"):
        load_vae(replace(files, vae=files.clip))
    with pytest.raises(UserError, match="lacks tokenizer"):
        encode_text(replace(files, tokenizer=None), ["a"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="tokenizer"):
        encode_text(replace(files, tokenizer=tmp_path / "empty"), ["a"])
    state = load_file(layouts["comfy"].text)
    save_file(state | {"shared.weight": state["shared.weight"][:5].clone()}, tmp_path / "small_vocabulary.safetensors")
    with pytest.raises(UserError, match="do not belong together"):
        encode_text(replace(files, text=tmp_path / "small_vocabulary.safetensors"), ["a woman"])
    save_file(
        {name: t for name, t in state.items() if "1.layer.0.SelfAttention.k" not in name}, tmp_path / "cut.safetensors"
    )
    with pytest.raises(UserError, match="missing: encoder.block.1.layer.0.SelfAttention.k.weight"):
        encode_text(replace(files, text=tmp_path / "cut.safetensors"), ["a"])
