"""Text, image and video encoders of Wan2.1, from transformers and diffusers: loaded, used and freed in turn.

`encode_text` and `encode_clip` load their model for the one call. The VAE is an object, because a video is encoded
before sampling and decoded after it; drop it in between to free its memory (0.5 GB). Checked against the real classes
at small sizes and in every file layout; unverified with real weights.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import UserError
from .media.files import read_json
from .weights import WanFiles
from .weights.encoders import clip_sizes, open_clip, open_text, open_vae, text_sizes
from .weights.files import TensorSet
from .weights.strict import fill

TEXT_LENGTH = 512  # tokens with the end mark (Wan2.1)
END = 1  # UMT5's end of sequence
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def clean_prompt(prompt: str) -> str:
    """Mend the encoding, resolve HTML entities (twice), join white space: what Wan2.1 does before it tokenises."""
    import ftfy

    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(prompt)))).strip()


def encode_text(
    files: WanFiles,
    prompts: list[str],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """UMT5 embeddings of the prompts, [len(prompts), L <= 512, 4096] in `dtype`, zeros after each prompt's last token.

    L is the longest prompt's token count with the end mark (an empty prompt has that one token); longer ones are cut to
    512. Each prompt is encoded alone, so no padding is ever attended to. Raises UserError for absent or wrong files.
    """
    (path,) = files.need("text")
    tensors, spiece = open_text(path)
    tokenize = _tokenizer(files, spiece)
    ids = [tokenize(clean_prompt(prompt)) for prompt in prompts]
    model = load_text(tensors, device, dtype)
    _check_ids(ids, model.config.vocab_size, files)
    with torch.no_grad():
        rows = [model(input_ids=torch.tensor([row], device=device)).last_hidden_state[0] for row in ids]
    longest = max(map(len, ids))
    return torch.stack([F.pad(row, (0, 0, 0, longest - len(row))) for row in rows])


def load_text(tensors: TensorSet, device: str | torch.device, dtype: torch.dtype):
    """UMT5EncoderModel with these tensors, sizes read from their shapes."""
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.device("meta"):
        model = UMT5EncoderModel(UMT5Config(**text_sizes(tensors)))
    return fill(model, tensors, "text encoder", device=device, dtype=dtype)


def _tokenizer(files: WanFiles, spiece: bytes | None) -> Callable[[str], list[int]]:
    """Prompt -> token ids with the end mark, from the tokenizer's folder or the model inside ComfyUI's text encoder."""
    if files.tokenizer is None and spiece is not None:
        processor = _sentencepiece(spiece)
        return lambda prompt: [*processor.encode(prompt)[: TEXT_LENGTH - 1], END]
    from transformers import AutoTokenizer

    (path,) = files.need("tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise UserError(
            f"the tokenizer in {path} cannot be read",
            got=str(error).splitlines()[0],
            expected="tokenizer.json or spiece.model, with tokenizer_config.json",
            do="fetch the folder google/umt5-xxl of the Wan2.1 model again",
        ) from error
    return lambda prompt: tokenizer(prompt, truncation=True, max_length=TEXT_LENGTH)["input_ids"]


def _sentencepiece(model: bytes):
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise UserError(
            "this text encoder brings its tokenizer as a SentencePiece model",
            got="no package `sentencepiece`",
            expected="the package, or the tokenizer's folder",
            do="pip install sentencepiece, or give the folder google/umt5-xxl of the Wan2.1 model as tokenizer",
        ) from error
    return SentencePieceProcessor(model_proto=model)


def _check_ids(ids: list[list[int]], vocabulary: int, files: WanFiles) -> None:
    highest = max(map(max, ids))
    if highest >= vocabulary:
        raise UserError(
            "tokenizer and text encoder do not belong together",
            got=f"token {highest} of {files.tokenizer}",
            expected=f"tokens below {vocabulary}",
            do="use the tokenizer that came with this text encoder",
        )


def encode_clip(
    files: WanFiles,
    image: Tensor,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    heads: int | None = None,
    model=None,
) -> Tensor:
    """CLIP ViT-H/14 tokens of an image [1, 3, H, W] in [-1, 1]: [1, 257, 1280], the output of the last block but one.

    As Wan2.1 does it: bicubic without antialias to a square of 224, no crop, no post-norm. (diffusers' pipeline resizes
    with its CLIPImageProcessor instead, which antialiases: slightly other tokens.) `heads` overrides 80-wide heads;
    `model`: one that `load_clip` has loaded, else it is loaded here and freed again.
    """
    _check_shape("image", image, "[1, 3, H, W]", image.ndim == 4 and tuple(image.shape[:2]) == (1, 3))
    model = load_clip(files, device=device, dtype=dtype, heads=heads) if model is None else model
    side = model.config.image_size
    image = F.interpolate(image.to(device, torch.float32), size=(side, side), mode="bicubic", align_corners=False)
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    pixels = (image / 2 + 0.5 - mean) / std
    with torch.no_grad():
        return model(pixel_values=pixels.to(dtype), output_hidden_states=True).hidden_states[-2]


def load_clip(files: WanFiles, *, device="cpu", dtype: torch.dtype = torch.bfloat16, heads: int | None = None):
    """The image encoder, for `encode_clip` of many images."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    (path,) = files.need("clip")
    tensors = open_clip(path)
    sizes = clip_sizes(tensors)
    told = _config(path)
    sizes |= {name: told[name] for name in ("num_attention_heads", "hidden_act", "layer_norm_eps") if name in told}
    sizes |= {} if heads is None else {"num_attention_heads": heads}
    with torch.device("meta"):
        model = CLIPVisionModel(CLIPVisionConfig(**sizes))
    inner = getattr(model, "vision_model", model)  # transformers 4 nests the tower
    fill(inner, tensors, "image encoder", device=device, dtype=dtype)
    positions = inner.embeddings.position_embedding.num_embeddings
    inner.embeddings.position_ids = torch.arange(positions, device=device)[None]  # a buffer that no file holds
    return model.requires_grad_(False).eval()


def _config(path: Path) -> dict:
    """config.json of a part in the layout of diffusers; empty for single files."""
    file = path / "config.json"
    return read_json(file, "configuration") if file.is_file() else {}


def load_vae(
    files: WanFiles,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    tiling: bool = False,
) -> VideoVAE:
    """The Wan2.1 VAE, in fp32 by default (official). `tiling`: tiles of 256 pixels, less memory, faint seams."""
    from diffusers import AutoencoderKLWan

    (path,) = files.need("vae")
    tensors = open_vae(path)
    shapes = {name: lazy.shape for name, lazy in tensors.entries.items()}
    sizes = {"base_dim": shapes["encoder.conv_in.weight"][0], "z_dim": shapes["post_quant_conv.weight"][0]}
    told = {name: value for name, value in _config(path).items() if not name.startswith("_")}
    with torch.device("meta"):
        model = AutoencoderKLWan.from_config({**sizes, **told})
    fill(model, tensors, "Wan2.1 VAE", device=device, dtype=dtype)
    if tiling:
        model.enable_tiling()
    return VideoVAE(model)


class VideoVAE:
    """AutoencoderKLWan with Wan's normalised latents: (posterior mean - mean) / std, by channel.

    F = 1 + (T-1)/4 latent frames; h, w = H/8, W/8. Everything runs without gradients.
    """

    def __init__(self, model):
        self.model = model
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.mean, self.std = (
            torch.tensor(values, device=self.device).view(1, -1, 1, 1, 1)
            for values in (model.config.latents_mean, model.config.latents_std)
        )

    @torch.no_grad()
    def encode_video(self, video: Tensor) -> Tensor:
        """video [1, 3, T, H, W] in [-1, 1], T = 4k+1, H and W multiples of 8 -> latents [1, 16, F, h, w] fp32."""
        fits = video.ndim == 5 and video.shape[1] == 3 and video.shape[2] % 4 == 1
        fits = fits and not (video.shape[3] % 8 or video.shape[4] % 8)
        _check_shape("video", video, "[1, 3, 4k+1, 8m, 8n]", fits)
        latents = self.model.encode(video.to(self.device, self.dtype)).latent_dist.mode()
        return (latents.float() - self.mean) / self.std

    @torch.no_grad()
    def decode_frames(self, latents: Tensor | Iterable[Tensor]) -> Iterator[Tensor]:
        """Frames of latents [1, 16, F, h, w], or of pieces of one long video, as chunks [t, 3, H, W] in [-1, 1], fp32.

        The first latent frame gives one frame, every later one four; only that chunk and the decoder's cache of past
        activations are held, so memory does not grow with the length. The frames are those of `vae.decode`. With tiling
        a piece is decoded whole before its first chunk comes out, and pieces are independent videos.
        """
        pieces = [latents] if isinstance(latents, Tensor) else latents
        if self.model.use_tiling:
            yield from chain.from_iterable(map(self._decode_tiled, pieces))
            return
        cache = [None] * _causal_convolutions(self.model.decoder)
        first = True
        for piece in pieces:
            for frame in self._raw(piece).split(1, dim=2):
                hidden = self.model.post_quant_conv(frame)
                yield _frames(self.model.decoder(hidden, feat_cache=cache, feat_idx=[0], first_chunk=first))
                first = False

    def _raw(self, latents: Tensor) -> Tensor:
        _check_shape("latents", latents, f"[1, {self.mean.shape[1]}, F, h, w]", latents.ndim == 5 and len(latents) == 1)
        return (latents.to(self.device, torch.float32) * self.std + self.mean).to(self.dtype)

    def _decode_tiled(self, latents: Tensor) -> Iterator[Tensor]:
        frames = _frames(self.model.decode(self._raw(latents)).sample)
        yield frames[:1]
        yield from frames[1:].split(4) if len(frames) > 1 else ()


def _causal_convolutions(decoder: torch.nn.Module) -> int:
    """How many entries the decoder's cache has: one for each causal convolution."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

    return sum(isinstance(module, WanCausalConv3d) for module in decoder.modules())


def _frames(video: Tensor) -> Tensor:
    return video[0].transpose(0, 1).float().clamp(-1, 1)  # [t, 3, H, W]


def image_condition(encode: Callable[[Tensor], Tensor], image: Tensor, frames: int) -> Tensor:
    """The image condition of Wan2.1 I2V: [1, 4 + C, F, h, w] fp32 for an image [1, 3, H, W] in [-1, 1].

    Four mask channels first (1 at latent frame 0, where the image is known), then the C latents of the video
    [image, grey, grey, ...] of `frames` = 4k+1 frames. `encode` maps a video [1, 3, T, H, W] in [-1, 1] to latents
    [1, C, F, h, w]. Source: Wan2.1. Raises UserError for other shapes or numbers of frames.
    """
    _check_shape("image", image, "[1, 3, H, W]", image.ndim == 4 and tuple(image.shape[:2]) == (1, 3))
    if frames < 1 or frames % 4 != 1:
        what = "the number of frames does not fit the VAE"
        raise UserError(what, got=str(frames), expected="4k+1: 1, 5, 9, ...", do="round it")
    video = image.new_zeros(1, 3, frames, *image.shape[2:])
    video[:, :, 0] = image
    latents = encode(video).float()
    mask = torch.zeros_like(latents[:, :1]).repeat(1, 4, 1, 1, 1)
    mask[:, :, 0] = 1
    return torch.cat([mask, latents], dim=1)


def _check_shape(name: str, tensor: Tensor, expected: str, fits: bool) -> None:
    if not fits:
        raise UserError(
            f"the {name} does not fit the encoder",
            got=f"shape {list(tensor.shape)}",
            expected=f"shape {expected}",
            do=f"reshape or resize the {name}",
        )
