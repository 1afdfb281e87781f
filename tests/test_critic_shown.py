"""What the critic is shown: windows, frames by timestamp, sizes, crops, sound; and the numbers its model reads."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_thinker import thinker, tokenizer

from fantasy_core.critic.asked import View, Views, read_questions, read_views
from fantasy_core.critic.front_end import FrontEnd, audio_tokens, interleave, mel_bands, patchify
from fantasy_core.critic.shown import RATE, Shown, face_box, pick, sample_times, show, smart_size, sound_of, windows
from fantasy_core.errors import UserError
from fantasy_core.pair_rules import DIMENSIONS


def shown(seconds: float, fps: float, seed: int, height: int = 56, width: int = 56) -> Shown:
    rng = np.random.default_rng(seed)
    frames = torch.from_numpy(rng.integers(0, 256, (round(seconds * fps), 3, height, width), dtype=np.uint8))
    return Shown(frames, fps, rng.normal(0, 0.1, round(seconds * RATE)).astype(np.float32))


@given(st.floats(0.05, 60), st.floats(1, 10))
def test_windows_cover_a_clip_end_to_end(seconds, longest):
    spans = windows(seconds, longest)
    assert spans[0][0] == 0 and spans[-1][1] == pytest.approx(seconds)
    assert all(b == c for (_, b), (c, _) in zip(spans[:-1], spans[1:], strict=True))
    assert all(end - start <= longest * 1.0011 for start, end in spans)
    assert len(spans) - 1 < seconds / longest  # one fewer would not do


def test_frames_are_taken_by_their_times():
    """A video of 23 frames a second at 8 a second: at k / 8 the frame that has begun, floor(23 k / 8) = 0, 2, 5, 8, 11,
    14, 17, 20. One whose frames come late (1, 2, 3 at 0.5, 0.6, 2.0 s) shows what is on the screen at 0, 1, 2, 3 s."""
    view = View("v", "frame", 8.0, 56 * 56)
    video = [(k / 23, torch.full((3, 1, 1), k, dtype=torch.uint8)) for k in range(23)]
    taken = [int(frame[0, 0, 0]) for _, frame in pick(video, {view: sample_times(0, 1, 8)})]
    assert taken == [0, 2, 5, 8, 11, 14, 17, 20]
    video = [(time, torch.full((3, 1, 1), k, dtype=torch.uint8)) for k, time in enumerate((0.0, 0.5, 0.6, 2.0))]
    assert [int(f[0, 0, 0]) for _, f in pick(video, {view: sample_times(0, 4, 1)})] == [0, 2, 3, 3]


@given(st.integers(20, 2000), st.integers(20, 2000), st.sampled_from([56 * 56, 224 * 224, 336 * 336, 672 * 672]))
def test_sizes_are_qwens_own_with_bounds_of_ours(height, width, most):
    """transformers' smart_resize, where its limits on shape allow it, and never more pixels than the view has."""
    if max(height, width) / min(height, width) > 100:
        return
    pytest.importorskip("transformers")
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    found = smart_size(height, width, most)
    theirs = smart_resize(height, width, 28, 4 * 28**2, most)
    assert found == theirs or min(height, width) < 28 or math.prod(theirs) > most
    assert found[0] % 28 == found[1] % 28 == 0 and math.prod(found) <= most


def test_small_crops_are_not_blown_up():
    assert smart_size(112, 84, 336 * 336) == (112, 84)
    assert smart_size(500, 300, 224 * 224) == (280, 168)  # sqrt(150000 / 50176) = 1.729: 289 x 173.5, rounded down


def test_a_face_is_cropped_with_room_and_for_the_whole_clip():
    """Landmarks from 40..60 x 30..70 over time: centre (50, 50), widest 40, half of 1.3 x 40 is 26: 24..76."""
    points = np.array([[[40.0, 30.0], [60.0, 50.0]], [[45.0, 60.0], [50.0, 70.0]], [[np.nan] * 2] * 2])
    assert face_box(points, 200, 200) == (24, 24, 52, 52)
    assert face_box(points, 60, 200) == (24, 24, 36, 52)  # cut at the lower edge


def test_a_clip_in_its_views_and_windows():
    """7 s at 25 frames a second are two windows of 3.5 s; 8 frames a second make 28 frames in each, 2 make 7. The
    second window of the 2-a-second view begins with the frame at 3.5 s, number 87; its sound is that of its time."""
    views = Views(
        "own", 5.0, {d: View(d, "frame", fps, 56 * 56) for d, fps in zip(DIMENSIONS, (8, 25, 2), strict=True)}
    )
    video = ((k / 25, torch.full((3, 56, 56), k, dtype=torch.uint8)) for k in range(175))
    sound = np.arange(7 * RATE, dtype=np.float32)
    found = show(video, 7.0, sound, views)
    assert [len(one.frames) for one in found["mn"]] == [28, 28] and [len(one.frames) for one in found["vq"]] == [7, 7]
    assert int(found["vq"][1].frames[0, 0, 0, 0]) == 87
    assert found["mn"][1].sound[0] == 3.5 * RATE and len(found["mn"][1].sound) == 3.5 * RATE


def test_silence_stands_for_no_sound_and_fills_what_is_short():
    assert (sound_of(None, 0, 1) == 0).all() and len(sound_of(None, 0, 1)) == RATE
    assert sound_of(np.ones(100, np.float32), 0, 0.01).sum() == 100 and len(sound_of(np.ones(100), 0, 0.01)) == 160
    found = show([(0.0, torch.zeros(3, 56, 56, dtype=torch.uint8))], 0.04, None, read_views("shared"))
    assert found["shared"][0].silent


def test_patches_stand_as_they_are_merged():
    """Two frames of 56 x 56 whose value names the place: 16 patches, one pair of frames. The first four patches are
    the four corners of the upper left 28 x 28, the second four those of the upper right."""
    rows, columns = torch.meshgrid(torch.arange(56) // 14, torch.arange(56) // 14, indexing="ij")
    picture = (rows * 4 + columns).to(torch.uint8).expand(2, 3, -1, -1).clone()
    patches = patchify(picture)
    assert patches.shape == (16, 1176)
    red = patches[:, 0] * 0.26862954 + 0.48145466  # undo the normalisation of the first number, red
    assert (red * 255).round().int().tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    assert torch.equal(patchify(picture[:1]), patches)  # an odd frame is repeated


@pytest.mark.parametrize("fps", [1, 2, 4, 7.5, 8, 12.5, 23, 25, 30])
def test_video_and_audio_take_turns_where_the_model_thinks_they_do(fps):
    """The model counts chunks in float32 and truncates; positions it gives must be those of whole chunks: as many
    positions as ids, time never running backwards within a kind."""
    model, front = thinker(), FrontEnd(tokenizer(), read_questions())
    batch = front.batch([shown(10.0, fps, 0, 28, 28)], ["mn"])
    positions, _ = model.model.get_rope_index(
        batch["input_ids"], None, batch["video_grid_thw"], batch["attention_mask"], True,
        batch["feature_attention_mask"].sum(-1), batch["video_second_per_grid"],
    )  # fmt: skip
    for kind in ("VIDEO", "AUDIO"):
        times = positions[0, 0][batch["input_ids"][0] == front.ids[kind]]
        assert (times.diff() >= 0).all()
        assert int(times.max() - times.min()) == pytest.approx(250, abs=25 * 2 / fps + 1)  # 25 positions a second


def test_chunks_by_hand():
    """4 s at 1 frame a second: two pairs of frames, one a chunk of 2 s; 100 audio tokens, 50 a chunk."""
    ids = {"VIDEO": 1, "AUDIO": 2, "audio_bos": 3, "audio_eos": 4}
    assert interleave((2, 4, 2), 1.0, 100, ids) == [3, 1, 1, *[2] * 50, 1, 1, *[2] * 50, 4]
    assert audio_tokens(400) == 100 and audio_tokens(100) == 25


def test_mel_bands_need_no_300_seconds_of_padding():
    from transformers import WhisperFeatureExtractor

    extract = WhisperFeatureExtractor(feature_size=128, chunk_length=30, return_attention_mask=True)
    sounds = [shown(1.0, 1, 0).sound, shown(2.3, 1, 1).sound[:36799]]
    told = extract(sounds, sampling_rate=RATE, return_tensors="pt", padding="max_length", return_attention_mask=True)
    bands, mask = mel_bands(sounds)
    assert bands.shape[2] < 300
    for i in range(2):
        count = int(mask[i].sum())
        assert count == int(told["attention_mask"][i].sum())
        assert torch.equal(bands[i, :, :count], told["input_features"][i, :, :count])


def test_a_foreign_tokenizer_is_noticed():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    with pytest.raises(UserError, match="'Yes' in 3 tokens"):
        FrontEnd(PreTrainedTokenizerFast(tokenizer_object=inner), read_questions())


def test_questions_and_views_are_told_apart():
    assert read_views("shared").hash != read_views("separate").hash
    assert [view.name for view in read_views("shared").distinct] == ["shared"]
    assert read_views("separate").crops_face and not read_views("shared").crops_face
    assert not read_views("separate").whole().crops_face and read_views("shared").whole() == read_views("shared")
    assert all(
        question.endswith("Answer with one word: Yes or No.") for question in read_questions().questions.values()
    )
    with pytest.raises(UserError, match="unknown views"):
        read_views("best")


@pytest.mark.parametrize(
    ("preset", "seconds", "tokens"), [("shared", 5, 1405), ("separate", 5, 3005)], ids=["shared", "separate"]
)
def test_a_view_takes_as_many_tokens_as_it_says(preset, seconds, tokens):
    """5 s in 2 frames a second of 448 x 448: 5 x 16 x 16 = 1280 and 125 of sound. In 8 a second of 336 x 336: 20 x 12 x
    12 = 2880 and 125."""
    view = read_views(preset).of["mn"]
    side = math.isqrt(view.pixels)
    assert shown(seconds, view.fps, 0, side, side).tokens == tokens


def declared_torchvision() -> bool:
    """Whether torchvision can be imported; its CUDA build can on a CPU once two operators are declared."""
    if importlib.util.find_spec("torchvision") is None:
        return False
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    declared_torchvision.library = library  # it must stay alive
    return True


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="transformers' processor needs torchvision")
def test_the_front_end_is_the_real_processor():
    """Three clips of other lengths and sizes, one of which is made smaller, on the real Qwen2_5OmniProcessor."""
    assert declared_torchvision()
    from transformers import (
        Qwen2_5OmniProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
        WhisperFeatureExtractor,
    )

    from fantasy_core.critic.shown import resize

    most, fps, questions = 56 * 84, 4.0, read_questions()
    size = {"shortest_edge": 4 * 28 * 28, "longest_edge": most}
    extract = WhisperFeatureExtractor(feature_size=128, chunk_length=30, return_attention_mask=True)
    real = Qwen2_5OmniProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        video_processor=Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=False),
        feature_extractor=extract, tokenizer=tokenizer(), chat_template=None,
    )  # fmt: skip
    clips = [shown(3.0, fps, 1), shown(5.0, fps, 2, 100, 80), shown(4.25, fps, 3, 70, 61)]
    text = [questions.before + "<|VIDEO|><|vision_eos|>" + questions.after(d) for d in DIMENSIONS]
    told = real(
        text=text, videos=[clip.frames for clip in clips], audio=[clip.sound for clip in clips],
        load_audio_from_video=True, audio_from_video_indices=[0, 1, 2], fps=fps, do_sample_frames=False, size=size,
        sampling_rate=RATE, seconds_per_chunk=2.0, position_id_per_seconds=25, padding=True, return_tensors="pt",
    )  # fmt: skip
    sized = [Shown(torch.stack([resize(f, most) for f in clip.frames]), fps, clip.sound) for clip in clips]
    own = FrontEnd(tokenizer(), questions).batch(sized, DIMENSIONS)
    for name in ("input_ids", "attention_mask", "video_grid_thw"):
        assert torch.equal(told[name], own[name]), name
    assert torch.equal(told["video_second_per_grid"].float(), own["video_second_per_grid"].float())
    assert (told["pixel_values_videos"] - own["pixel_values_videos"]).abs().max() < 1e-5
    for i, mask in enumerate(own["feature_attention_mask"].bool()):
        count = int(mask.sum())
        assert int(told["feature_attention_mask"][i].sum()) == count
        assert torch.equal(told["input_features"][i, :, :count], own["input_features"][i, :, :count])
