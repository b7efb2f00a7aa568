"""The training of the companions: the real script, with few steps."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetUnionModel, UNet2DConditionModel

from modular_diffdiff.still_life import CHECKPOINT, models, train_companions
from modular_diffdiff.still_life.scene import Scene
from modular_diffdiff.still_life.train_companions import ImagePrompts

from ..helpers import let_it_speak, relative, seeded


def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(CHECKPOINT, subfolder="unet", torch_dtype=torch.float32)


def arguments(batch: int = 2) -> dict:
    generator = seeded()
    return {
        "sample": torch.randn(batch, 4, 16, 16, generator=generator),
        "timestep": torch.tensor([500] * batch),
        "encoder_hidden_states": torch.randn(batch, 32, 128, generator=generator),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(batch, 80, generator=generator),
            "time_ids": torch.full((batch, 6), 128),
        },
    }


@torch.no_grad()
def test_a_union_starts_as_the_controlnet():
    controlnet = let_it_speak(models.build_controlnet(unet()))
    union = models.build_controlnet_union(controlnet).eval()
    edges = torch.rand(2, 3, 128, 128, generator=seeded(1))
    expected = controlnet(**arguments(), controlnet_cond=edges)
    given = union(
        **arguments(), controlnet_cond=[edges], control_type=torch.tensor([[1.0, 0.0]] * 2), control_type_idx=[0]
    )
    assert relative(given.mid_block_res_sample, expected.mid_block_res_sample) < 1e-5
    assert expected.mid_block_res_sample.abs().mean() > 0


@torch.no_grad()
def test_an_adapters_file_puts_it_into_another_unet():
    trained, fresh = unet(), unet()
    torch.manual_seed(0)
    adapter = models.add_ip_adapter(trained, image_dim=128)
    given = arguments()
    given["added_cond_kwargs"]["image_embeds"] = [torch.randn(2, 1, 128, generator=seeded(2))]
    expected = trained(**given).sample
    nested = {"image_proj": {}, "ip_adapter": {}}
    for name, weight in models.ip_adapter_weights(adapter).items():
        part, _, rest = name.partition(".")
        nested[part][rest] = weight
    fresh._load_ip_adapter_weights([nested])
    assert relative(fresh(**given).sample, expected) < 1e-4
    assert relative(expected, unet()(**arguments()).sample) > 1e-3


def test_in_every_other_step_a_part_of_the_original_stands_beside_what_counts(tmp_path):
    scenes = np.zeros((2, 64, 64, 3), np.uint8)
    base = train_companions.Base(scenes, scenes, tmp_path, "cpu")
    far = torch.full((2, 4, 32, 32), 1000.0)  # so far apart that noise changes no sign
    base.latents, base.originals = far, -far
    shares = []
    for seed in range(60):
        noised = base.noise(torch.tensor([0, 1]), ["an apple", "a pear"], seeded(seed))
        assert torch.equal(noised.inputs["sample"] > 0, noised.counts.expand(2, 4, -1, -1))
        assert noised.loss(torch.where(noised.counts, noised.velocity, 0)) == 0
        shares.append(noised.counts.float().mean().item())
    assert 0.3 < shares.count(1) / len(shares) < 0.7
    assert 0.25 <= min(shares) < 0.4


def test_an_image_prompt_shares_what_the_caption_leaves_open():
    scenes = [Scene.random(seed) for seed in range(2000)]
    prompts, rng = ImagePrompts(scenes), np.random.default_rng(0)
    same_kind = []
    for index in range(400):
        scene = scenes[index]
        open_ended = scenes[prompts.choose(index, "an object on a tabletop", rng)]
        assert (open_ended.kind, open_ended.colour) == (scene.kind, scene.colour)
        told = scenes[prompts.choose(index, scene.caption, rng)]
        assert told.colour == scene.colour
        same_kind.append(told.kind == scene.kind)
    # a kind that is said agrees in half of the cases, and by chance in some of the others
    assert 0.5 < np.mean(same_kind) < 0.7


@pytest.mark.usefixtures("here")
def test_the_script_makes_companions_that_load_and_leaves_the_base_alone(tmp_path):
    base = {path: path.read_bytes() for path in Path(CHECKPOINT).rglob("*") if path.is_file()}
    steps = [f"--{stage}-steps=1" for stage in ("image-encoder", "controlnet", "union", "ip-adapter")]
    arguments = [str(tmp_path / "work"), "--scenes=4", "--batch=2", *steps, f"--out={tmp_path / 'companions'}"]
    train_companions.main(arguments)
    assert ControlNetUnionModel.from_pretrained(tmp_path / "companions", subfolder="controlnet_union")
    trained = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()}
    train_companions.main(arguments)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()} == trained  # nothing twice
    assert {path: path.read_bytes() for path in Path(CHECKPOINT).rglob("*") if path.is_file()} == base
