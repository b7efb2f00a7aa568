"""The flow-matching checkpoint: that it is a Z-Image, how well it draws, and how it was trained."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ClassifierFreeGuidance, ZImagePipeline
from diffusers.modular_pipelines.z_image import ZImageAutoBlocks
from PIL import Image
from torch import nn

from benchmarks.still_life import HELD_OUT
from modular_diffdiff import still_life
from modular_diffdiff.still_life import train, train_flow
from modular_diffdiff.still_life.flow import (
    CAPTION_TOKENS,
    build_flow_scheduler,
    build_flow_text_encoder,
    build_flow_tokenizer,
    build_transformer,
)
from modular_diffdiff.still_life.judge import load_judge, to_tensor
from modular_diffdiff.still_life.scene import SIZE, Scene, render

from ..helpers import relative, seeded
from .test_checkpoint import BEFORE, misread


PROMPTS = ["a red apple on a striped background", "", "something green, zxq"]


@pytest.fixture(scope="module")
def judge():
    return load_judge()


@pytest.fixture(scope="module")
def pipe():
    pipe = ZImagePipeline.from_pretrained(still_life.FLOW_CHECKPOINT, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def modular():
    pipe = ZImageAutoBlocks().init_pipeline(still_life.FLOW_CHECKPOINT)
    pipe.load_components(torch_dtype=torch.float32)
    pipe.update_components(guider=ClassifierFreeGuidance(guidance_scale=still_life.FLOW_GUIDANCE_SCALE))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def untrained():
    """Tokenizer, text encoder and a transformer whose output is not zero."""
    torch.manual_seed(0)
    tokenizer, transformer = build_flow_tokenizer(), build_transformer()
    nn.init.normal_(transformer.all_final_layer["2-1"].linear.weight)
    return tokenizer, build_flow_text_encoder(tokenizer).eval(), transformer


def draw(pipe, scenes, steps: int):
    return pipe(
        [scene.caption for scene in scenes],
        height=SIZE,
        width=SIZE,
        num_inference_steps=steps,
        guidance_scale=still_life.FLOW_GUIDANCE_SCALE - 1,
        generator=[seeded(seed) for seed in range(len(scenes))],
    ).images


# What it is


def test_it_holds_the_other_checkpoints_autoencoder():
    weights = Path("vae", "diffusion_pytorch_model.safetensors")
    ours, others = (Path(folder, weights) for folder in (still_life.FLOW_CHECKPOINT, still_life.CHECKPOINT))
    assert ours.read_bytes() == others.read_bytes()


def test_it_has_z_images_parts(pipe):
    assert type(pipe.transformer).__name__ == "ZImageTransformer2DModel"
    assert type(pipe.text_encoder).__name__ == "Qwen3Model"
    assert type(pipe.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    assert pipe.vae_scale_factor == 8
    assert pipe.transformer.in_channels == pipe.vae.config.latent_channels == 4


def test_the_words_of_a_caption_are_one_token_each_and_any_text_can_be_written():
    tokenizer = build_flow_tokenizer()
    for seed in range(50):
        words = Scene.random(seed).caption.split()
        assert [token.strip("Ġ") for token in tokenizer.tokenize(" ".join(words))] == words
    text = "Zürich, 東京 42"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_a_prompt_in_capitals_is_the_same_prompt():
    tokenizer = build_flow_tokenizer()
    quiet, loud = train_flow.as_template(tokenizer, [PROMPTS[0], PROMPTS[0].upper()])
    assert quiet == loud


# How it was trained


@torch.no_grad()
def test_training_sees_what_the_pipeline_computes(untrained):
    """The text as the pipeline encodes it, and the transformer's own answer, by one call on tensors."""
    tokenizer, text_encoder, transformer = untrained
    pipe = ZImagePipeline(build_flow_scheduler(), None, text_encoder, tokenizer, transformer)
    expected_text, _ = pipe.encode_prompt(list(PROMPTS), do_classifier_free_guidance=False)
    hidden, given = train_flow.encode_prompts(tokenizer, text_encoder, PROMPTS)
    for expected, row, mask in zip(expected_text, hidden, given, strict=True):
        assert relative(row[mask], expected) < 1e-5

    latents, times = torch.randn(3, 4, 16, 16, generator=seeded()), torch.tensor([0.0, 0.4, 0.9])
    expected = torch.stack(transformer(list(latents[:, :, None]), times, expected_text).sample)[:, :, 0]
    assert relative(train_flow.denoise(transformer, latents, times, hidden, given), expected) < 1e-5
    train_flow.use_plain_attention(transformer)
    assert relative(train_flow.denoise(transformer, latents, times, hidden, given), expected) < 1e-5


def test_nothing_is_lost_on_a_model_that_knows_the_data():
    x0 = torch.randn(8, 4, 16, 16, generator=seeded(1))
    times = train_flow.draw_times(8, seeded(2))

    def towards_data(line: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        return (x0 - line) / (1 - at[:, None, None, None])

    assert train_flow.flow_loss(towards_data, x0, times, seeded(3)) < 1e-6
    assert train_flow.flow_loss(lambda line, at: -towards_data(line, at), x0, times, seeded(3)) > 1


def test_times_cover_their_range_evenly_in_probability():
    times = train_flow.draw_times(64, seeded())
    shares = torch.special.ndtr(torch.logit(times) / train_flow.TIME_SPREAD)
    assert (64 * shares).long().sort().values.tolist() == list(range(64))
    assert not torch.equal(times, times.sort().values)


def test_muon_takes_the_matrices_of_the_layers_and_adamw_all_else(untrained):
    _, text_encoder, transformer = untrained
    modules = nn.ModuleDict({"text": text_encoder, "transformer": transformer})
    optimizer = train.muon_and_adamw(modules, 0.1)
    by_muon = {id(weight) for weight in optimizer.weights}
    by_adamw = {id(p) for p in optimizer.parts[0].param_groups[0]["params"]}
    assert not by_muon & by_adamw
    assert by_muon | by_adamw == {id(p) for p in modules.parameters()}
    assert id(transformer.layers[0].attention.to_q.weight) in by_muon
    assert id(text_encoder.layers[0].mlp.up_proj.weight) in by_muon
    assert id(text_encoder.embed_tokens.weight) in by_adamw
    assert id(transformer.all_x_embedder["2-1"].weight) in by_adamw


@pytest.mark.usefixtures("here")
def test_the_script_makes_a_checkpoint_that_loads(tmp_path):
    work, out = tmp_path / "work", tmp_path / "checkpoint"
    work.mkdir()
    arguments = [str(work), "--scenes", "4", "--steps", "1", "--batch", "2", "--out", str(out), "--device", "cpu"]
    train_flow.main(arguments)
    pipe = ZImagePipeline.from_pretrained(out, torch_dtype=torch.float32)
    assert pipe("an apple", height=SIZE, width=SIZE, num_inference_steps=1).images[0].size == (SIZE, SIZE)
    assert not any(still_life.CHECKPOINT in path.read_text() for path in out.rglob("*.json"))
    trained = {path: path.stat().st_mtime_ns for path in work.iterdir()}
    train_flow.main(arguments)
    assert {path: path.stat().st_mtime_ns for path in work.iterdir()} == trained  # nothing twice


# How well it draws


@pytest.mark.parametrize("steps", [4, 10])
def test_it_draws_what_the_prompt_says(pipe, judge, steps):
    """A sample; `make benchmark` takes all 240 combinations."""
    scenes = [Scene.random(HELD_OUT + seed) for seed in range(10)]
    readings = judge.read(to_tensor(draw(pipe, scenes, steps)))
    for name in ("kind", "colour", "background"):
        assert len(misread(scenes, readings, name)) <= 1, misread(scenes, readings, name)


def test_half_precision_draws_the_same_pictures(pipe):
    scenes = [Scene.random(HELD_OUT)]  # a CPU takes its time over float16
    expected = to_tensor(draw(pipe, scenes, 4))
    half = ZImagePipeline.from_pretrained(still_life.FLOW_CHECKPOINT, torch_dtype=torch.float16)
    half.set_progress_bar_config(disable=True)
    assert 127.5 * (to_tensor(draw(half, scenes, 4)) - expected).abs().mean() < 3


def test_the_modular_blocks_draw_what_the_pipeline_draws(pipe, modular):
    scenes = [Scene.random(HELD_OUT + seed) for seed in range(4)]
    images = modular(
        prompt=[scene.caption for scene in scenes],
        height=SIZE,
        width=SIZE,
        num_inference_steps=4,
        generator=[seeded(seed) for seed in range(len(scenes))],
        output="images",
    )
    difference = to_tensor(images) - to_tensor(draw(pipe, scenes, 4))
    assert round(127.5 * difference.abs().max().item()) <= 1  # of 255


@torch.no_grad()
def test_image_to_image_keeps_at_low_strength_and_follows_the_prompt_at_high(modular, judge):
    def edit(strength: float) -> torch.Tensor:
        images = modular(
            prompt="a green pear on a striped background",
            image=Image.fromarray(render(BEFORE)),
            strength=strength,
            num_inference_steps=20,
            generator=seeded(),
            output="images",
        )
        return to_tensor(images)

    before = to_tensor([render(BEFORE)])
    low, high = edit(0.1), edit(0.95)
    assert judge.read(low)[0][:2] == ("apple", "red")
    assert judge.read(high)[0] == ("pear", "green", "striped")
    assert (low - before).abs().mean() < (high - before).abs().mean() / 2


@pytest.mark.parametrize(("height", "width"), [(96, 144), (64, 64)])
def test_other_multiples_of_16_pixels_run(pipe, height, width):
    image = pipe("a red apple", height=height, width=width, num_inference_steps=2, generator=seeded()).images[0]
    assert image.size == (width, height)
    assert np.asarray(image).std() > 0


def test_captions_fit_into_what_training_reads():
    """All but those whose strange words are very long."""
    rng = np.random.default_rng(0)
    captions = [train.caption(train.training_scene(seed), rng) for seed in range(1000)]
    tokenizer = build_flow_tokenizer()
    lengths = [len(ids) for ids in tokenizer(train_flow.as_template(tokenizer, captions)).input_ids]
    assert np.mean([length <= CAPTION_TOKENS for length in lengths]) > 0.99
