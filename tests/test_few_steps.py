"""Models distilled to few steps: how `edit` knows one, and what it takes then."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from benchmarks import lcm
from benchmarks.still_life import HELD_OUT
from modular_diffdiff import SDXLDiffDiffBlocks, few_steps, loading
from modular_diffdiff.cli import app
from modular_diffdiff.still_life.judge import load_judge, to_tensor
from modular_diffdiff.still_life.scene import Scene, render

from .helpers import picture, seeded


ATTENTION = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def folder(tiny, tmp_path, monkeypatch) -> Path:
    """The current folder: a photo, a black map, a checkpoint, and one that has a distilled one's scheduler."""
    monkeypatch.chdir(tmp_path)
    picture(32, 40).save("photo.png")
    Image.new("L", (40, 32)).save("map.png")
    StableDiffusionXLPipeline(**tiny).save_pretrained("plain")
    scheduler = LCMScheduler.from_config(tiny["scheduler"].config)
    StableDiffusionXLPipeline(**tiny | {"scheduler": scheduler}).save_pretrained("lcm")
    return tmp_path


def edit(*options: object) -> tuple[dict, list[str]]:
    """The settings that the PNG tells, and what was said on stderr besides the bar."""
    line = ["edit", "photo.png", "map.png", "a pear", "--seed", "5", "--out", "edited.png", *map(str, options)]
    ended = CliRunner().invoke(app, line)
    assert ended.exit_code == 0, ended.output
    with Image.open("edited.png") as image:
        told = json.loads(image.text["modular-diffdiff"])
    return told, [line for line in ended.stderr.splitlines() if "%|" not in line and line.strip()]


def test_a_schedule_for_few_steps_is_taken_for_what_it_is_and_said(folder):
    told, said = edit("--model", "lcm")
    assert (told["steps"], told["guidance_scale"], told["scheduler"]) == (4, 1.0, "LCMScheduler")
    assert said == ["Takes 4 steps, no guidance: its scheduler is LCMScheduler."]


def test_what_is_asked_for_counts_and_nothing_is_said(folder):
    told, said = edit("--model", "lcm", "--steps", 3, "--guidance-scale", 2)
    assert (told["steps"], told["guidance_scale"], said) == (3, 2.0, [])


def test_a_lora_for_few_steps_gets_its_scheduler(folder, tiny):
    width = tiny["unet"].get_submodule(ATTENTION).in_features
    shapes = {"A": (2, width), "B": (width, 2)}
    lora = {f"unet.{ATTENTION}.lora_{part}.weight": torch.randn(shape) for part, shape in shapes.items()}
    save_file(lora, "lcm-lora-sdxl.safetensors")
    told, said = edit("--model", "plain", "--lora", "lcm-lora-sdxl.safetensors")
    assert (told["steps"], told["guidance_scale"], told["scheduler"]) == (4, 1.0, "LCMScheduler")
    assert said == ["Takes 4 steps, no guidance, LCMScheduler: 'lcm-lora-sdxl.safetensors' is distilled."]
    pipe = SDXLDiffDiffBlocks().init_pipeline("plain")
    pipe.load_components(dtype=torch.float32)
    pipe.load_lora_weights(".", weight_name="lcm-lora-sdxl.safetensors")
    pipe.update_components(
        scheduler=LCMScheduler.from_config(pipe.scheduler.config),
        guider=pipe.guider.new(guidance_scale=1.0),
    )
    run = {"prompt": "a pear", "image": Image.open("photo.png"), "diffdiff_map": "map.png", "num_inference_steps": 4}
    (expected,) = pipe(**run, generator=seeded(5), output="images")
    np.testing.assert_array_equal(np.asarray(Image.open("edited.png")), np.asarray(expected))


# What their cards ask for.
@pytest.mark.parametrize(
    ("model", "lora", "steps", "scheduler"),
    [
        ("stabilityai/sdxl-turbo", None, 4, None),
        ("somewhere/sdxl-turbo", None, 4, None),
        ("rupeshs/SDXL-Lightning-2steps", None, 2, None),
        ("Tongyi-MAI/Z-Image-Turbo", None, 9, None),
        ("owner/base", "latent-consistency/lcm-lora-sdxl", 4, "LCMScheduler"),
        ("owner/base", "tianweiy/DMD2/dmd2_sdxl_4step_lora_fp16.safetensors", 4, "LCMScheduler"),
        ("owner/base", "ByteDance/SDXL-Lightning/sdxl_lightning_8step_lora.safetensors", 8, "EulerDiscreteScheduler"),
        ("owner/base", "ByteDance/Hyper-SD/Hyper-SDXL-2steps-lora.safetensors", 2, "DDIMScheduler"),
        (
            "Qwen/Qwen-Image",
            "lightx2v/Qwen-Image-Lightning/Qwen-Image-Lightning-4steps-V1.0.safetensors",
            4,
            "FlowMatchEulerDiscreteScheduler",
        ),
    ],
)
def test_well_known_models_are_known_by_their_names(model, lora, steps, scheduler):
    recipe = few_steps.find(loading.Model(model, "cpu", "float32", lora=lora))
    assert (recipe.steps, recipe.scheduler) == (steps, scheduler)


@pytest.mark.parametrize("name", ["sdxl-turbocharged", "owner/lcm-lora-sdv1-5", "owner/Z-Image", "./steps/sdxl"])
def test_other_names_say_nothing(name, monkeypatch):
    monkeypatch.setattr(few_steps, "_configured", lambda location, family: None)
    assert few_steps.find(loading.Model("plain/model", "cpu", "float32", lora=name)) is None


@pytest.mark.parametrize(("embeds", "steps"), [(True, 25), (False, 4)])
def test_a_flux_that_takes_no_guidance_scale_is_schnell(tmp_path, embeds, steps):
    index, config = (
        {"_class_name": "FluxPipeline"},
        {"_class_name": "FluxTransformer2DModel", "guidance_embeds": embeds},
    )
    (tmp_path / "transformer").mkdir()
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config))
    model = loading.find_family(loading.Model(str(tmp_path), "cpu", "float32"))
    assert loading.suggest(model) == (steps, None)


def test_the_embedded_lora_edits_in_four_steps_and_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scene = Scene("apple", "red", "striped")
    Image.fromarray(render(scene)).save("photo.png")
    Image.new("L", (8, 8)).save("map.png")
    words = "a green pear on a striped background"
    line = ["edit", "photo.png", "map.png", words, "--seed", "5", "--out", "edited.png", "--lora", "still-life"]
    ended = CliRunner().invoke(app, line)
    assert ended.exit_code == 0, ended.output
    assert "Takes 4 steps, no guidance, LCMScheduler: 'still-life' is distilled." in ended.stderr
    with Image.open("edited.png") as image:
        told = json.loads(image.text["modular-diffdiff"])
        (seen,) = load_judge().read(to_tensor([image]))
    assert (told["steps"], told["guidance_scale"], told["scheduler"]) == (4, 1.0, "LCMScheduler")
    assert (seen.kind, seen.colour, seen.background) == ("pear", "green", "striped")


def test_it_is_what_draws_the_background_in_so_few_steps():
    """A small sample of what `benchmarks.lcm` measures; the sampler alone, without the LoRA, loses patterns."""
    scenes = [Scene.random(HELD_OUT + k) for k in range(8)]
    distilled, plain = lcm.with_lora(), lcm.with_lora()
    plain.unload_lora_weights()
    right = [lcm.count_right(pipe, scenes, 1.0, 4) for pipe in (distilled, plain)]
    assert right[0] >= 7
    assert right[0] >= right[1]
