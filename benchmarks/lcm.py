"""The embedded LCM LoRA: what the judge reads off pictures of four steps without guidance, with it and without."""

from __future__ import annotations

import torch
from diffusers import LCMScheduler, StableDiffusionXLPipeline

from modular_diffdiff.still_life import CHECKPOINT, GUIDANCE_SCALE, LCM_LORA
from modular_diffdiff.still_life.judge import load_judge, to_tensor
from modular_diffdiff.still_life.scene import Scene

from .still_life import HELD_OUT, draw, row


def count_right(pipe, scenes: list[Scene], guidance_scale: float, steps: int) -> int:
    """In how many pictures kind, colour and background are the caption's."""
    seen = load_judge().read(to_tensor(draw(pipe, scenes, guidance_scale, steps)))
    pairs = zip(seen, scenes, strict=True)
    return sum(tuple(one) == (scene.kind, scene.colour, scene.background) for one, scene in pairs)


def with_lora():
    """The checkpoint with the LoRA and its scheduler."""
    pipe = StableDiffusionXLPipeline.from_pretrained(CHECKPOINT, torch_dtype=torch.float32)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    pipe.load_lora_weights(LCM_LORA.parent, weight_name=LCM_LORA.name)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def main(count: int = 100) -> None:
    scenes = [Scene.random(HELD_OUT + k) for k in range(count)]
    plain = StableDiffusionXLPipeline.from_pretrained(CHECKPOINT, torch_dtype=torch.float32)
    plain.set_progress_bar_config(disable=True)
    print("| all three are the caption's | right | share | 95 % interval |\n|---|---|---|---|")
    for name, pipe, guidance_scale, steps in (
        ("25 steps, guidance", plain, GUIDANCE_SCALE, 25),
        ("4 steps, without guidance", plain, 1.0, 4),
        ("4 steps, with the LoRA", with_lora(), 1.0, 4),
        ("2 steps, with the LoRA", with_lora(), 1.0, 2),
    ):
        print(row(name, count_right(pipe, scenes, guidance_scale, steps), count), flush=True)


if __name__ == "__main__":
    main()
