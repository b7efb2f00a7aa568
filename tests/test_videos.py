"""A change map over time, with every video family by one mechanism: laws of the method on tiny random parts."""

import copy
import functools

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    ClassifierFreeGuidance,
    PerturbedAttentionGuidance,
    UniPCMultistepScheduler,
    WanVideoToVideoPipeline,
)
from diffusers.modular_pipelines import LoopSequentialPipelineBlocks, ModularPipelineBlocks
from diffusers.modular_pipelines.hunyuan_video1_5.modular_pipeline import HunyuanVideo15ModularPipeline
from PIL import Image

import modular_diffdiff
from modular_diffdiff import BadInputError, FamilyTraits, add_diffdiff, without_encoders
from modular_diffdiff.blocks import diffdiff_video

from .families import flow
from .helpers import Calls, Overwrite, picture, relative, seeded, shape_of
from .videos import VIDEOS, parts_of


SKIPS = [name for name, family in VIDEOS.items() if family.skips]
IN_ONE = [name for name, family in VIDEOS.items() if family.guided_in_one]
SIDE = 32
HALF = torch.cat([torch.ones(SIDE, SIDE // 2), torch.zeros(SIDE, SIDE // 2)], 1)


@pytest.fixture(autouse=True)
def short_texts(monkeypatch):
    """HunyuanVideo 1.5 pads every text to a thousand tokens; here to sixteen."""
    for name in ("tokenizer_max_length", "tokenizer_2_max_length", "vision_num_semantic_tokens"):
        monkeypatch.setattr(HunyuanVideo15ModularPipeline, name, 16)


def build(blocks: ModularPipelineBlocks, name: str, **replaced):
    """A pipeline of these blocks and a family's tiny parts."""
    pipe = blocks.init_pipeline()
    parts = parts_of(name) | replaced
    pipe.update_components(**{key: part for key, part in parts.items() if key in pipe.component_names})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@functools.cache
def workflow(name: str) -> ModularPipelineBlocks:
    return VIDEOS[name].ours().get_workflow("diffdiff")


def loop_key(blocks: ModularPipelineBlocks) -> str:
    return next(key for key, block in blocks.sub_blocks.items() if isinstance(block, LoopSequentialPipelineBlocks))


def ours(name: str, without: tuple[str, ...] = (), **replaced):
    """A family's workflow with a change map, without some of the blocks of ours."""
    blocks = copy.deepcopy(workflow(name))
    for sub_blocks in (blocks.sub_blocks, blocks.sub_blocks[loop_key(blocks)].sub_blocks):
        for key in set(without) & set(sub_blocks):
            sub_blocks.pop(key)
    return build(blocks, name, **replaced)


def theirs(name: str, **replaced):
    """Upstream's workflow that makes a video of a prompt."""
    upstream = VIDEOS[name].ours.upstream()
    return build(upstream.get_execution_blocks(prompt=True, num_frames=True), name, **replaced)


def frames_of(name: str) -> int:
    """So many that there are three latent frames."""
    return 2 * VIDEOS[name].every + 1


def clip(frames: int, height: int = SIDE, width: int = SIDE, seed: int = 0) -> torch.Tensor:
    """(F, 3, H, W)"""
    return torch.rand(frames, 3, height, width, generator=seeded(100 + seed))


def run(pipe, name: str, **options):
    """A short run of either; every option can be replaced."""
    given = {"prompt": "a green pear", "num_inference_steps": 4, "generator": seeded(), "output_type": "pt"}
    if "video" in pipe.blocks.input_names:
        given |= {"video": clip(frames_of(name)), "diffdiff_map": HALF}
    else:
        given |= {"height": SIDE, "width": SIDE, "num_frames": frames_of(name)}
    given |= VIDEOS[name].inputs | options
    return pipe(**{key: value for key, value in given.items() if value is not None})


def as_grid(name: str, values: torch.Tensor) -> torch.Tensor:
    """Values of the loop's shape as (B, C, F, h, w), by where a token lies in LTX's order: frame, row, column."""
    cells = SIDE // 8
    return values if values.ndim == 5 else values.transpose(1, 2).unflatten(2, (-1, cells, cells))


def decoded(pipe, latents: torch.Tensor) -> torch.Tensor:
    """What the autoencoder makes of its own latents (B, C, F, h, w): (B, F, 3, H, W)."""
    vae = pipe.vae
    taken = (latents, None) if isinstance(vae, diffusers.AutoencoderKLLTXVideo) else (latents,)
    return (vae.decode(*taken, return_dict=False)[0] / 2 + 0.5).clamp(0, 1).transpose(1, 2)


def round_trip(pipe, video: torch.Tensor) -> torch.Tensor:
    return decoded(pipe, pipe.vae.encode(2 * video.transpose(0, 1)[None] - 1).latent_dist.mode())


# The parts


@pytest.mark.parametrize("name", VIDEOS)
def test_upstream_makes_videos_with_these_parts(name):
    first, second = (run(theirs(name), name, prompt=prompt).videos for prompt in ("a green pear", "a blue cup"))
    assert first.shape == (1, frames_of(name), 3, SIDE, SIDE)
    assert first.isfinite().all()
    assert not torch.equal(first, second)


# The paper's algorithm


@pytest.mark.parametrize("name", VIDEOS)
def test_a_black_map_is_upstreams_text_to_video_bit_for_bit(name):
    """Sound included: nothing of it is original."""
    state, expected = run(ours(name), name, diffdiff_map=torch.zeros(SIDE, SIDE)), run(theirs(name), name)
    assert torch.equal(state.videos, expected.videos)
    if not VIDEOS[name].skips:
        assert torch.equal(state.audio, expected.audio)


def levels(frames: int) -> torch.Tensor:
    """(F, H, W): strips kept, and free from the start, the second and the third of four steps, that move by a strip
    with each latent frame."""
    strips = torch.tensor([1.0, 0.0, 0.25, 0.5]).repeat_interleave(SIDE // 4).repeat(SIDE, 1)
    return torch.stack([strips.roll(SIDE // 4 * (-(-2 * place // (frames - 1))), 1) for place in range(frames)])


@pytest.mark.parametrize("name", VIDEOS)
def test_without_restore_the_loop_is_the_papers_algorithm(name):
    results = []
    for plain in (False, True):
        pipe = ours(name, without=("restore", "skip_frozen"))
        if plain:
            loop = copy.deepcopy(theirs(name).blocks.sub_blocks[loop_key(theirs(name).blocks)])
            loop.sub_blocks.insert("overwrite", Overwrite(), 0)
            pipe._blocks.sub_blocks[loop_key(pipe.blocks)] = loop
        results.append(run(pipe, name, diffdiff_map=levels(frames_of(name))))
    assert len(results[0].release_steps.unique()) == 4
    assert relative(results[0].videos, results[1].videos) < 1e-4


@pytest.mark.parametrize("name", VIDEOS)
def test_without_restore_what_is_kept_leaks(name):
    state = run(ours(name, without=("restore", "skip_frozen")), name)
    kept, original = (as_grid(name, values)[..., : SIDE // 16] for values in (state.latents, state.image_latents))
    assert relative(kept, original) > 0.01


# Keep law


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", VIDEOS)
def test_what_is_kept_ends_as_the_encoded_original_bit_for_bit(name, steps):
    state = run(ours(name), name, num_inference_steps=steps)
    latents, half = as_grid(name, state.latents), SIDE // 16
    assert torch.equal(latents[..., :half], state.video_latents[..., :half])
    assert relative(latents[..., half:], state.video_latents[..., half:]) > 0.1


@pytest.mark.parametrize("name", VIDEOS)
def test_a_white_map_is_the_round_trip_of_the_autoencoder(name):
    """The original is normalized as upstream's own decoder expects it."""
    pipe = ours(name)
    with Calls(pipe.transformer) as calls:
        state = run(pipe, name, diffdiff_map=torch.ones(SIDE, SIDE))
    assert calls.made == 0 or not VIDEOS[name].skips
    assert relative(state.videos, round_trip(pipe, clip(frames_of(name)))) < 1e-4


@pytest.mark.parametrize("name", VIDEOS)
def test_frames_that_are_kept_are_untouched_whatever_the_others_do(name):
    every = VIDEOS[name].every
    keeps = torch.ones(frames_of(name), SIDE, SIDE)
    keeps[1 : every + 1] = torch.rand(every, SIDE, SIDE, generator=seeded(3))
    results = [
        as_grid(name, run(ours(name), name, diffdiff_map=keeps, prompt=prompt).latents)
        for prompt in ("a green pear", "a blue cup")
    ]
    original = run(ours(name), name).video_latents
    for latents in results:
        assert torch.equal(latents[:, :, [0, 2]], original[:, :, [0, 2]])
    assert relative(results[0][:, :, 1], original[:, :, 1]) > 0.1
    assert not torch.equal(results[0][:, :, 1], results[1][:, :, 1])


@pytest.mark.parametrize("name", VIDEOS)
def test_each_element_is_released_where_and_when_the_map_says(name):
    """Brute force over latent frames, rows and columns: the mean of the pixels that an element stands for."""
    every, frames = VIDEOS[name].every, frames_of(name)
    keeps = torch.full((frames, SIDE, SIDE), 0.5)
    keeps[0, :16, :16] = 1.0
    keeps[2, 8:24, 20:30] = 0.0
    keeps[every + 1 :, 24:, 20:] = 0.25
    state = run(ours(name, without=("skip_frozen",)), name, diffdiff_map=keeps)
    released = as_grid(name, state.release_steps.expand(*state.image_latents.shape[:-1], -1))
    groups = [keeps[:1], keeps[1 : every + 1], keeps[every + 1 :]]
    for frame, group in enumerate(groups):
        for row in range(SIDE // 8):
            for column in range(SIDE // 8):
                mean = group[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].double().mean().item()
                assert (released[0, :, frame, row, column] == int(np.ceil(4 * mean - 1e-6))).all()


# Strength law


SCHEDULERS = {
    "flow": flow(shift=3.0),
    "unipc": UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
}


@pytest.mark.parametrize(("steps", "runs"), [(3, 2), (8, 3)])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_constant_map_is_upstreams_video_to_video(scheduler, steps, runs):
    """`WanVideoToVideoPipeline` from the same noise, which enters as the noised original."""
    made = copy.deepcopy(SCHEDULERS[scheduler])
    pipe = ours("wan", scheduler=copy.deepcopy(made), guider=ClassifierFreeGuidance(guidance_scale=4.0))
    keep = torch.full((SIDE, SIDE), (steps - runs) / steps)
    state = run(pipe, "wan", diffdiff_map=keep, num_inference_steps=steps)
    parts = {key: part for key, part in parts_of("wan").items() if key != "scheduler"}
    upstream = WanVideoToVideoPipeline(scheduler=made, **parts)
    upstream.set_progress_bar_config(disable=True)
    made.set_timesteps(steps)
    start = made.timesteps[steps - runs : steps - runs + 1]
    noised = made.add_noise if hasattr(made, "add_noise") else lambda x, n, t: made.scale_noise(x, t, n)
    expected = upstream(
        video=None,
        latents=noised(state.image_latents, state.noise, start),
        prompt="a green pear",
        height=SIDE,
        width=SIDE,
        num_inference_steps=steps,
        strength=(runs + 0.01) / steps,
        guidance_scale=4.0,
        max_sequence_length=16,
        output_type="pt",
    ).frames
    assert len(state.timesteps) == runs
    assert relative(state.videos, expected) < 1e-4


@pytest.mark.parametrize("name", SKIPS)
def test_a_constant_map_is_text_to_video_from_the_noised_original(name):
    """Upstream's own run over the last sigmas of the schedule."""
    steps, runs = 4, 2
    pipe = ours(name, scheduler=flow())
    state = run(pipe, name, diffdiff_map=torch.full((SIDE, SIDE), 0.5))
    sigmas = pipe.scheduler.sigmas[steps - runs : -1]
    noised = (1 - sigmas[0]) * state.image_latents + sigmas[0] * state.noise
    given = {"sigmas": sigmas.tolist(), "latents": noised, "num_inference_steps": runs}
    expected = run(theirs(name, scheduler=flow()), name, **given)
    assert relative(state.videos, expected.videos) < 1e-4


# Skipping


@pytest.mark.parametrize(("darkest", "runs"), [(0.25, 6), (0.8, 1)])
@pytest.mark.parametrize("name", SKIPS)
def test_the_darkest_value_of_all_frames_decides_how_many_steps_run(name, darkest, runs):
    keeps = torch.ones(frames_of(name), SIDE, SIDE)
    keeps[1 : VIDEOS[name].every + 1] = darkest
    pipe = ours(name)
    with Calls(pipe.transformer) as early, Calls(getattr(pipe, "transformer_2", pipe.text_encoder)) as late:
        state = run(pipe, name, diffdiff_map=keeps, num_inference_steps=8, batch_guidance=True)
    encoded = 0 if "transformer_2" in pipe.component_names else late.made
    assert early.made + late.made - encoded == len(state.timesteps) == runs


@pytest.mark.parametrize("name", SKIPS)
def test_skipping_changes_no_latents(name):
    keeps = levels(frames_of(name)).clamp(min=0.25)
    skipped, whole = (run(ours(name, without), name, diffdiff_map=keeps) for without in ((), ("skip_frozen",)))
    assert len(skipped.timesteps) < len(whole.timesteps)
    assert relative(skipped.videos, whole.videos) < 1e-4


def test_with_sound_every_step_runs():
    """LTX-2's sound begins with noise: its steps are the same whatever the map keeps."""
    state = run(ours("ltx-2"), "ltx-2", diffdiff_map=torch.full((SIDE, SIDE), 0.25))
    assert len(state.timesteps) == 4
    assert state.audio.isfinite().all()
    white = run(ours("ltx-2"), "ltx-2", diffdiff_map=torch.ones(SIDE, SIDE))
    assert relative(white.audio, state.audio) > 1e-3  # it is made for the video that is seen meanwhile


# Batches


@pytest.mark.parametrize("name", VIDEOS)
def test_each_output_of_a_batch_is_the_one_of_its_own_run(name):
    texts = ["a green pear", "a blue cup"]
    seeds = [seeded(place) for place in range(4)]
    state = run(ours(name), name, prompt=texts, num_videos_per_prompt=2, generator=seeds)
    assert len(state.videos) == 4
    for place in range(4):
        alone = run(ours(name), name, prompt=texts[place // 2], generator=seeded(place))
        assert relative(state.videos[place : place + 1], alone.videos) < 1e-3


# Guidance


@pytest.mark.parametrize("name", IN_ONE)
def test_guidance_in_one_call_is_guidance_in_two(name):
    with Calls(parts_of(name)["transformer"]) as calls:
        together = run(ours(name), name, batch_guidance=True, diffdiff_map=levels(frames_of(name)))
    with Calls(parts_of(name)["transformer"]) as twice:
        apart = run(ours(name), name, diffdiff_map=levels(frames_of(name)))
    assert twice.made == 2 * calls.made > 0
    assert relative(together.videos, apart.videos) < 1e-3


@pytest.mark.parametrize("name", SKIPS)
def test_guidance_that_is_off_is_refused_as_upstream_fails_with_it(name):
    off = ClassifierFreeGuidance(guidance_scale=1.0)
    with pytest.raises((UnboundLocalError, ValueError), match="negative_prompt_embeds"):
        run(theirs(name, guider=off), name)
    with pytest.raises(BadInputError, match="The guider's guidance is off"):
        run(ours(name, guider=off), name)


def test_both_models_of_two_stages_are_asked_where_upstream_asks_them():
    pipe = ours("wan-2.2", scheduler=flow())
    with Calls(pipe.transformer) as early, Calls(pipe.transformer_2) as late:
        state = run(pipe, "wan-2.2", num_inference_steps=8)
    boundary = pipe.config.boundary_ratio * 1000
    assert early.made == 2 * (state.timesteps >= boundary).sum().item() > 0
    assert late.made == 2 * (state.timesteps < boundary).sum().item() > 0


# Sizes and numbers of frames


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 32, 32), (2, 19, 37), (12, 24, 16)])
@pytest.mark.parametrize("name", VIDEOS)
def test_videos_of_any_size_and_length_come_back_as_they_were(name, frames, height, width):
    keeps = torch.ones(height, width)
    keeps[:, width // 2 :] = 0
    for options in ({}, {"overlay": True}):
        video = clip(frames, height, width)
        state = run(ours(name), name, video=video, diffdiff_map=keeps, num_inference_steps=2, **options)
        assert state.videos.shape == (1, frames, 3, height, width)


@pytest.mark.parametrize("name", VIDEOS)
def test_padding_leaves_frames_and_pixels_where_they_were(name):
    """With everything kept: the round trip of the clip reflected at its edges, its last frame repeated."""
    every, video = VIDEOS[name].every, clip(VIDEOS[name].every + 3, 29, 43)
    multiple = 16 if name.startswith("wan") else 8
    reflected = np.pad(video.numpy(), ((0, 0), (0, 0), (0, -29 % multiple), (0, -43 % multiple)), mode="reflect")
    padded = torch.from_numpy(reflected)[[*range(len(video)), *[len(video) - 1] * (every - 2)]]
    pipe = ours(name)
    state = run(pipe, name, video=video, diffdiff_map=torch.ones(29, 43))
    assert relative(state.videos, round_trip(pipe, padded)[:, : len(video), :, :29, :43]) < 1e-4


def test_padded_frames_do_not_count_for_the_map():
    """Six frames: the last latent frame stands for one frame of the clip alone, whose map is white."""
    keeps = torch.zeros(6, SIDE, SIDE)
    keeps[5] = 1
    state = run(ours("wan"), "wan", video=clip(6), diffdiff_map=keeps)
    assert torch.equal(state.latents[:, :, 2], state.video_latents[:, :, 2])


def test_height_and_width_are_the_size_that_frames_are_brought_to():
    keeps = torch.zeros(100, 60)
    state = run(ours("wan"), "wan", video=clip(5, 100, 60), diffdiff_map=keeps, height=48, width=32)
    assert state.latents.shape[-3:] == (2, 6, 4)
    assert state.videos.shape[-2:] == (48, 32)


# Forms


@pytest.mark.parametrize(
    "form",
    [
        lambda video: [Image.fromarray(frame) for frame in video],
        lambda video: video,
        lambda video: video.astype(np.float32) / 255,
        lambda video: list(video),
        lambda video: torch.from_numpy(video.astype(np.float32) / 255).permute(0, 3, 1, 2),
        lambda video: list(torch.from_numpy(video.astype(np.float32) / 255).permute(0, 3, 1, 2)),
    ],
)
def test_a_video_in_any_form_is_the_same_video(form):
    video = np.random.default_rng(1).integers(0, 256, (5, SIDE, SIDE, 3), dtype=np.uint8)
    expected = run(ours("wan"), "wan", video=[Image.fromarray(frame) for frame in video])
    state = run(ours("wan"), "wan", video=form(video))
    assert relative(state.latents, expected.latents) < 1e-4


@pytest.mark.parametrize(
    "form",
    [
        lambda keeps: torch.from_numpy(keeps / 255).float(),
        lambda keeps: torch.from_numpy(keeps / 255).float()[:, None],
        lambda keeps: [Image.fromarray(keep) for keep in keeps],
        lambda keeps: list(keeps),
        lambda keeps: np.stack([keeps] * 3, -1),
    ],
)
def test_maps_of_frames_in_any_form_are_the_same_maps(form):
    keeps = np.random.default_rng(2).integers(0, 256, (5, SIDE, SIDE), dtype=np.uint8)
    expected = run(ours("wan"), "wan", video=clip(5), diffdiff_map=keeps)
    state = run(ours("wan"), "wan", video=clip(5), diffdiff_map=form(keeps))
    assert torch.equal(state.latents, expected.latents)


def test_one_map_holds_for_all_frames():
    one, each = (run(ours("wan"), "wan", video=clip(5), diffdiff_map=keeps) for keeps in (HALF, HALF.repeat(5, 1, 1)))
    assert torch.equal(one.latents, each.latents)


@pytest.mark.parametrize(("name", "output_type"), [*((name, "pil") for name in VIDEOS), ("wan", "np"), ("wan", "pt")])
def test_an_overlay_brings_back_the_bytes_of_each_frame_where_its_own_map_keeps_it(name, output_type):
    video = np.random.default_rng(1).integers(0, 256, (6, 40, 56, 3), dtype=np.uint8)
    keeps = np.random.default_rng(2).integers(0, 2, (6, 40, 56)).astype(bool)
    state = run(ours(name), name, video=video, diffdiff_map=keeps, overlay=True, output_type=output_type)
    (result,) = state.videos
    if output_type == "pil":
        result = np.stack([np.asarray(frame) for frame in result])
    result = result.permute(0, 2, 3, 1).numpy() if output_type == "pt" else result
    result = result if result.dtype == np.uint8 else np.rint(255 * result).astype(np.uint8)
    np.testing.assert_array_equal(result[keeps], video[keeps])
    assert (result[~keeps] != video[~keeps]).mean() > 0.9


def test_a_box_around_all_that_changes_is_edited_alone():
    video = np.random.default_rng(1).integers(0, 256, (5, 200, 300, 3), dtype=np.uint8)
    keeps = np.ones((5, 200, 300))
    for place in range(5):  # it moves to the right
        keeps[place, 80:100, 100 + 10 * place : 120 + 10 * place] = 0
    state = run(ours("wan"), "wan", video=video, diffdiff_map=keeps, padding_map_crop=8, output_type="pil")
    left, top, right, bottom = state.placement.box
    assert (left, top) <= (92, 72)
    assert (right, bottom) >= (168, 108)
    assert (right - left) * (bottom - top) < 0.2 * 200 * 300
    result = np.stack([np.asarray(frame) for frame in state.videos[0]])
    np.testing.assert_array_equal(result[keeps == 1], video[keeps == 1])
    assert (result[keeps == 0] != video[keeps == 0]).mean() > 0.9


# What makes maps


def test_sources_of_maps_work_frame_by_frame():
    """A paint-over of each frame: the map of a frame follows what differs there."""
    painted, photo = clip(5), clip(5)
    painted[2, :, :16, :16] = 1 - photo[2, :, :16, :16]
    difference = (painted - photo).abs().amax(1)
    pipe = build(VIDEOS["wan"].ours(), "wan")
    expected = run(pipe, "wan", video=painted, diffdiff_map=1 - difference)
    state = run(pipe, "wan", video=painted, diffdiff_map=None, map_difference=list(photo))
    assert torch.equal(state.latents, expected.latents)


def test_words_and_depth_are_looked_for_in_each_frame(segmenter, estimator):
    frames = [picture(SIDE, SIDE, seed) for seed in range(5)]
    for models, step, asked in (
        (segmenter, modular_diffdiff.DiffDiffMapTextStep, {"map_text": "a pear"}),
        (estimator, modular_diffdiff.DiffDiffMapDepthStep, {"map_depth": (0.2, 0.8)}),
    ):
        alone = step().init_pipeline()
        alone.update_components(**models)
        keeps = [alone(image=frame, **asked, output="diffdiff_map")[0, 0] for frame in frames]
        pipe = build(VIDEOS["wan"].ours(), "wan", **models)
        state = run(pipe, "wan", video=frames, diffdiff_map=None, **asked)
        assert relative(state.latents, run(pipe, "wan", video=frames, diffdiff_map=keeps).latents) < 1e-4


def test_maps_are_shaped_and_shown_frame_by_frame():
    keeps = torch.ones(5, SIDE, SIDE)
    keeps[1:, 12:24, 12:24] = 0
    grown = torch.ones(5, SIDE, SIDE)
    for y in range(SIDE):
        for x in range(SIDE):
            near = min(max(x, 12), 23) - x, min(max(y, 12), 23) - y
            if near[0] ** 2 + near[1] ** 2 <= 16:
                grown[1:, y, x] = 0
    expected = run(ours("wan"), "wan", video=clip(5), diffdiff_map=grown)
    state = run(ours("wan"), "wan", video=clip(5), diffdiff_map=keeps, map_grow=4, preview_map=True)
    assert torch.equal(state.latents, expected.latents)
    assert len(state.map_preview) == 5


# Without a map, and upstream's trees


@pytest.mark.parametrize("name", VIDEOS)
def test_without_a_map_a_pipeline_is_upstreams_bit_for_bit(name):
    upstream = VIDEOS[name].ours.upstream()
    before = shape_of(upstream)
    both = build(add_diffdiff(upstream, VIDEOS[name].ours.family), name)
    assert shape_of(upstream) == before
    given = {"video": None, "height": SIDE, "width": SIDE, "num_frames": frames_of(name)}
    state, expected = run(both, name, diffdiff_map=None, **given), run(theirs(name), name)
    assert torch.equal(state.videos, expected.videos)
    with_map = run(both, name, **{key: None for key in given if key != "video"})
    assert torch.equal(with_map.videos, run(ours(name), name).videos)


@pytest.mark.parametrize("given", [{"overlay": True}, {"invert_diffdiff_map": True}, {"video": clip(5)}])
@pytest.mark.parametrize("name", VIDEOS)
def test_what_needs_a_map_is_refused_without_one(name, given):
    pipe = build(VIDEOS[name].ours(), name)
    with pytest.raises(BadInputError, match=f"`{next(iter(given))}` is .*it only applies with a `diffdiff_map`"):
        run(pipe, name, **({"video": None, "diffdiff_map": None} | given))


@pytest.mark.parametrize("name", VIDEOS)
def test_upstreams_workflows_are_kept(name):
    upstream = VIDEOS[name].ours.upstream
    blocks = VIDEOS[name].ours()
    assert set(blocks.available_workflows) == {"diffdiff", *(upstream._workflow_map or {})}
    assert {"prompt", "video", "diffdiff_map"} <= set(blocks.get_workflow("diffdiff").input_names)
    assert type(blocks.init_pipeline()) is type(upstream().init_pipeline())


def test_latents_of_a_video_can_be_given():
    first = run(ours("wan"), "wan")
    pipe = build(without_encoders(workflow("wan"), "video_latents"), "wan")
    again = run(pipe, "wan", video_latents=first.video_latents)
    assert torch.equal(again.videos, first.videos)


def test_blocks_of_ones_own_get_a_map_over_time():
    blocks = diffusers.WanBlocks()
    blocks.sub_blocks.pop("decode")
    traits = FamilyTraits(triggers=("prompt", "video"), video=True)
    state = run(build(add_diffdiff(blocks, traits).get_workflow("diffdiff"), "wan"), "wan", output_type=None)
    assert torch.equal(state.latents, run(ours("wan"), "wan").latents)


# Bad input


@pytest.fixture
def no_model_runs(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a model ran before the input was refused")

    for name in ("text_encoder", "transformer"):
        monkeypatch.setattr(parts_of("wan")[name], "forward", refuse)
    for name in ("encode", "decode"):
        monkeypatch.setattr(parts_of("wan")["vae"], name, refuse)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"video": None}, "`video` is None; it takes a list of frames"),
        ({"video": []}, "`video` is empty"),
        ({"video": torch.zeros(0, 3, 8, 8)}, "`video` is empty"),
        ({"video": "clip.mp4"}, "`video` is 'clip.mp4'; blocks open no files.*read_video"),
        ({"video": 5}, "`video` is 5; it takes"),
        ({"video": picture()}, "`video` is a picture of 32 x 32"),
        ({"video": torch.zeros(3, 8, 8)}, r"`video` has the shape \(3, 8, 8\)"),
        ({"video": torch.zeros(5, 4, 8, 8)}, r"`video\[0\]` is a Tensor of shape \(4, 8, 8\)"),
        ({"video": [picture(), "frame.png"]}, r"`video\[1\]` is 'frame.png'"),
        ({"video": [picture(), picture(40, 32)]}, r"different sizes \(32 x 32, 32 x 40\)"),
        ({"video": torch.full((5, 3, 8, 8), 200.0)}, "values from 200 to 200"),
        ({"video": torch.full((5, 3, 8, 8), float("nan"))}, "values from nan"),
        ({"video": [Image.new("I;16", (32, 32))] * 5}, "8-bit images, not mode 'I;16'"),
        ({"diffdiff_map": torch.zeros(4, 8, 8)}, "`diffdiff_map` is for 4 frames, and `video` holds 9"),
        ({"diffdiff_map": [picture()] * 10}, "`diffdiff_map` is for 10 frames, and `video` holds 9"),
        ({"diffdiff_map": torch.full((8, 8), 2.0)}, "`diffdiff_map.* has values from 2 to 2"),
        ({"diffdiff_map": None}, "`video` is a Tensor .*it only applies with a `diffdiff_map`"),
        ({"num_frames": 5}, "`num_frames` is 5; it takes nothing with a `video`"),
        ({"diffdiff_map": None, "map_text": "a pear"}, "`map_text` is given, but no `text_segmenter` is loaded"),
        ({"prompt": None}, "`prompt` is None"),
        ({"num_inference_steps": 0}, "`num_inference_steps` is 0"),
        ({"overlay_grow": 3}, "`overlay_grow` is given, but there is no `overlay`"),
        ({"padding_map_crop": 4, "latents": torch.zeros(1, 4, 3, 4, 4)}, "`latents` is given together with `padding"),
        ({"num_videos_per_prompt": 0}, "`num_videos_per_prompt` is 0"),
        ({"generator": [seeded(), seeded()]}, "`generator` is a list of 2; it takes one generator, or 1"),
        ({"output_type": "latent"}, "`output_type` is 'latent'; it takes one of pil, np, pt"),
        ({"map_difference": [picture(SIDE, SIDE)] * 2}, "`map_difference` holds 2"),
    ],
)
def test_bad_input_is_refused_before_a_model_runs(no_model_runs, bad, says):
    pipe = build(VIDEOS["wan"].ours(), "wan")
    with pytest.raises(BadInputError, match=says):
        pipe(**({"prompt": "a pear", "video": clip(9), "diffdiff_map": HALF, "num_inference_steps": 2} | bad))


def test_an_odd_frame_rate_is_refused():
    with pytest.raises(BadInputError, match=r"`frame_rate` is 0; it takes a number in \[0.1, 1000\]"):
        run(ours("ltx"), "ltx", frame_rate=0)


def test_without_the_package_that_wans_text_encoder_needs_its_name_is_said(no_model_runs, monkeypatch):
    monkeypatch.setattr(diffdiff_video, "is_ftfy_available", lambda: False)
    with pytest.raises(BadInputError, match="`ftfy`, which is not installed; `pip install ftfy`"):
        run(ours("wan"), "wan")


@pytest.mark.parametrize("name", ["ltx", "ltx-2", "hunyuan-video-1.5"])
def test_what_upstream_would_start_from_is_refused_with_a_map(name):
    with pytest.raises(BadInputError, match="`image` is given together with `diffdiff_map`"):
        run(build(VIDEOS[name].ours(), name), name, image=picture(SIDE, SIDE))


@pytest.mark.parametrize("place", ["guider", "guider_2"])
def test_a_guider_that_changes_the_model_is_refused_in_one_call(place):
    guider = PerturbedAttentionGuidance(perturbed_guidance_layers=[0])
    with pytest.raises(BadInputError, match=f"the {place} is a PerturbedAttentionGuidance"):
        run(ours("wan-2.2", **{place: guider}), "wan-2.2", batch_guidance=True)
