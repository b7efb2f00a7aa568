"""The training of the inpainting UNet and of the LCM LoRA: the real scripts, with few steps."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler, UNet2DConditionModel
from safetensors.torch import load_file

from modular_diffdiff.still_life import CHECKPOINT, models, train_inpainting, train_lcm_lora

from ..helpers import relative, seeded
from .test_train_companions import arguments, unet


@torch.no_grad()
def test_an_inpainting_unet_starts_as_the_plain_one():
    base, given = unet(), arguments()
    inpainting = models.build_inpainting_unet(base)
    expected = base(**given).sample
    seen = torch.cat([given["sample"], torch.randn(2, 5, 16, 16, generator=seeded(1))], 1)
    assert relative(inpainting(**given | {"sample": seen}).sample, expected) < 1e-5


@torch.no_grad()
def test_the_trained_one_looks_at_mask_and_picture_and_goes_up_as_the_base_does():
    base, trained = unet(), models.load_inpainting_unet()
    for name, weight in base.state_dict().items():
        if name.split(".")[0] not in models.INPAINTING_PARTS:
            assert torch.equal(trained.state_dict()[name], weight)
    given, whole = arguments(), torch.zeros(2, 5, 16, 16)
    answers = [
        trained(**given | {"sample": torch.cat([given["sample"], seen], 1)}).sample for seen in (whole, whole + 1)
    ]
    assert relative(*answers) > 0.1


def test_holes_are_of_every_kind():
    holes = np.stack([train_inpainting.hole_of(seed, 32) for seed in range(300)])
    shares = holes.mean((1, 2))
    assert 0.05 < (shares == 1).mean() < 0.16
    assert shares.min() > 0.01
    halves = [hole for hole in holes if not hole.all() and (hole.all(0).any() or hole.all(1).any())]
    assert 60 < len(halves) < 150


@torch.no_grad()
def test_a_hole_hides_what_is_in_it(tmp_path):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(CHECKPOINT, subfolder="vae", torch_dtype=torch.float32)
    scenes = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    scenes[1, :, :32] = scenes[0, :, :32]  # they differ in the hole alone
    holes = torch.zeros(2, 1, 8, 8)
    holes[..., 4:] = 1
    first, second = train_inpainting.encode_with_holes(vae, scenes, holes, tmp_path / "shown.pt")
    assert torch.equal(first, second)


def test_the_distillation_walks_as_ddim_and_answers_as_lcm():
    schedule = train_lcm_lora.Schedule("cpu")
    config = schedule.scheduler.config
    x, v = torch.randn(2, 4, 4, 4, generator=seeded()), torch.randn(2, 4, 4, 4, generator=seeded(1))
    ddim = DDIMScheduler.from_config(config, clip_sample=False, timestep_spacing="leading", steps_offset=0)
    ddim.set_timesteps(1000 // train_lcm_lora.STRIDE)
    t = ddim.timesteps[3]
    steps = torch.full((2,), t.item())
    expected = ddim.step(v, t, x).prev_sample
    assert relative(schedule.step(x, v, steps, steps - train_lcm_lora.STRIDE), expected) < 1e-4

    lcm = LCMScheduler.from_config(config)
    lcm.set_timesteps(4)
    t = lcm.timesteps[2]
    expected = lcm.step(v, t, x, generator=seeded()).denoised
    assert relative(schedule.consistent(x, v, torch.full((2,), t.item())), expected) < 1e-4
    assert relative(schedule.consistent(x, v, torch.zeros(2, dtype=torch.long)), x) < 1e-6


@pytest.mark.usefixtures("here")
def test_the_scripts_make_what_loads_and_leave_the_base_alone(tmp_path):
    base = {path: path.read_bytes() for path in Path(CHECKPOINT).rglob("*") if path.is_file()}
    given = [str(tmp_path / "work"), "--scenes=4", "--batch=2", "--steps=1"]
    train_inpainting.main([*given, f"--out={tmp_path / 'inpainting' / 'encoder.safetensors'}"])
    train_lcm_lora.main([*given, f"--out={tmp_path / 'lora' / 'weights.safetensors'}"])
    trained = UNet2DConditionModel.from_config(CHECKPOINT, subfolder="unet")
    known = models.build_inpainting_unet(trained).state_dict()
    parts = load_file(tmp_path / "inpainting" / "encoder.safetensors")
    assert {name: weight.shape for name, weight in parts.items()}.items() <= {
        name: weight.shape for name, weight in known.items()
    }.items()
    pipe_unet = unet()
    pipe_unet.load_lora_adapter(load_file(tmp_path / "lora" / "weights.safetensors"), prefix="unet")
    assert pipe_unet.active_adapters()
    trained_at = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()}
    train_lcm_lora.main([*given, f"--out={tmp_path / 'lora' / 'weights.safetensors'}"])
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()} == trained_at  # nothing twice
    assert {path: path.read_bytes() for path in Path(CHECKPOINT).rglob("*") if path.is_file()} == base
