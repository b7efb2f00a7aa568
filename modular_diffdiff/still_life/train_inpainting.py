"""Trains an inpainting UNet, of 9 channels, on from the still-life checkpoint's: it fills holes in what it sees.

    python -m modular_diffdiff.still_life.train_inpainting WORK_DIR

The base checkpoint is read and stays as it is. The stage resumes as those of `train` do, and shares its scenes if
WORK_DIR is the same.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import save_file
from torch import nn
from tqdm.auto import tqdm

from . import CHECKPOINT, INPAINTING
from .models import INPAINTING_PARTS, build_inpainting_unet
from .train import fit, scene_pixels
from .train_companions import Base, begin_stage


# The share of scenes in which everything is to be filled in: inpainting without a hole's edge is text-to-image.
NOTHING_SHOWN = 0.1
LEFT_OPEN = 0.1


def hole_of(seed: int, side: int) -> np.ndarray:
    """(side, side) bool, on the latents' grid: a rectangle, an ellipse, what lies beyond a line, or everything."""
    rng = np.random.default_rng([seed, 4])
    if rng.random() < NOTHING_SHOWN:
        return np.ones((side, side), bool)
    y, x = np.mgrid[:side, :side] + 0.5
    form = rng.choice(["rectangle", "ellipse", "half"])
    if form == "half":
        along = (x if rng.random() < 0.5 else y) - side * rng.uniform(0.3, 0.7)
        return along * rng.choice([-1, 1]) > 0
    (left, top), (width, height) = side * rng.uniform(0.2, 0.8, 2), side * rng.uniform(0.15, 0.45, 2)
    dx, dy = abs(x - left) / width, abs(y - top) / height
    return np.maximum(dx, dy) < 1 if form == "rectangle" else dx**2 + dy**2 < 1


@torch.no_grad()
def encode_with_holes(vae, scenes: np.ndarray, holes: torch.Tensor, path: Path) -> torch.Tensor:
    """(count, 4, h, w) posterior means of scenes whose holes, (count, 1, h, w), are grey; cached in `path`."""
    if not path.exists():
        device = next(vae.parameters()).device
        latents = []
        for indices in tqdm(torch.arange(len(scenes)).split(64), "latents with holes"):
            pixels = scene_pixels(scenes, indices)
            shown = 1 - F.interpolate(holes[indices], size=pixels.shape[-2:])
            latents.append(vae.encode((pixels * shown).to(device)).latent_dist.mean.cpu())
        torch.save(torch.cat(latents), f"{path}.partial")
        os.replace(f"{path}.partial", path)
    return torch.load(path)


def train_inpainting(base: Base, holes: torch.Tensor, shown: torch.Tensor, work: Path, steps: int, batch: int):
    """An inpainting UNet; what it has after its middle stays the base's.

    Args:
        holes: (count, 1, h, w), 1 where a scene is to be filled in.
        shown: (count, 4, h, w), the latents of the scenes without their holes.
    """
    torch.manual_seed(0)
    unet = build_inpainting_unet(base.unet).to(base.device).requires_grad_(False)
    unet.set_attn_processor(AttnProcessor())
    parts = nn.ModuleDict({name: getattr(unet, name).requires_grad_(True) for name in INPAINTING_PARTS})

    def loss(generator: torch.Generator) -> torch.Tensor:
        indices, captions, _ = base.draw(generator, batch, left_open=LEFT_OPEN)
        noised = base.noise_whole(indices, captions, generator)
        seen = torch.cat([holes[indices], shown[indices]], 1).to(base.device)
        noised.inputs["sample"] = torch.cat([noised.inputs["sample"], seen], 1)
        return noised.loss(unet(**noised.inputs).sample)

    fit("inpainting", parts, loss, steps, 1.5e-3, work, ema_decay=0.998)
    return parts


def main(arguments: list[str] | None = None) -> None:
    options, scenes, base = begin_stage(__doc__, INPAINTING, 1_000, arguments)
    work = options.work
    vae = AutoencoderKL.from_pretrained(CHECKPOINT, subfolder="vae", torch_dtype=torch.float32).to(options.device)
    side = base.latents.shape[-1]
    holes = torch.from_numpy(np.stack([hole_of(seed, side) for seed in range(options.scenes)]))[:, None].float()
    shown = encode_with_holes(vae, scenes, holes, work / "latents-with-holes.pt") * vae.config.scaling_factor
    parts = train_inpainting(base, holes, shown, work, options.steps, options.batch)
    save_file({name: weight.half().cpu() for name, weight in parts.state_dict().items()}, options.out)


if __name__ == "__main__":
    main()
