"""The embedded inpainting UNet: how far pixels step at the edge of a hole that it fills, against the plain UNet's."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from modular_diffdiff import loading
from modular_diffdiff.still_life import GUIDANCE_SCALE
from modular_diffdiff.still_life.models import load_inpainting_unet
from modular_diffdiff.still_life.scene import SIZE, Scene, render

from .still_life import HELD_OUT, row


STEPS, BATCH = 16, 10
# A hole in the middle, which cuts through object and background.
TOP, BOTTOM, LEFT, RIGHT = 88, 184, 80, 176


def step_at_edge(picture: np.ndarray) -> float:
    """The mean difference, of 255, between neighbours on either side of the hole's edge, (SIZE, SIZE, 3)."""
    picture = picture.astype(float)
    columns, rows = picture[:, LEFT:RIGHT], picture[TOP:BOTTOM]
    steps = [columns[edge] - columns[edge - 1] for edge in (TOP, BOTTOM)]
    steps += [rows[:, edge] - rows[:, edge - 1] for edge in (LEFT, RIGHT)]
    return float(abs(np.concatenate(steps)).mean())


def fill_holes(scenes: list[Scene], inpainting: bool) -> list[np.ndarray]:
    """Each scene with its hole filled, as its caption says, and the original laid over the rest."""
    pipe = loading.load_pipeline(loading.Model(loading.EMBEDDED, "cpu", "float32"), GUIDANCE_SCALE)
    if inpainting:
        pipe.update_components(unet=load_inpainting_unet())
    keep = np.ones((SIZE, SIZE), np.float32)
    keep[TOP:BOTTOM, LEFT:RIGHT] = 0
    results = []
    for start in tqdm(range(0, len(scenes), BATCH), "holes"):
        part = scenes[start : start + BATCH]
        results += pipe(
            prompt=[scene.caption for scene in part],
            image=[Image.fromarray(render(scene)) for scene in part],
            diffdiff_map=keep,
            num_inference_steps=STEPS,
            overlay=True,
            generator=[torch.Generator().manual_seed(scene.seed) for scene in part],
            output="images",
        )
    return [np.asarray(result) for result in results]


def steps_of(scenes: list[Scene], inpainting: bool) -> np.ndarray:
    return np.array([step_at_edge(result) for result in fill_holes(scenes, inpainting)])


def main(count: int = 100) -> None:
    scenes = [Scene.random(HELD_OUT + k) for k in range(count)]
    original = np.array([step_at_edge(render(scene)) for scene in scenes])
    plain, inpainting = (steps_of(scenes, which) for which in (False, True))
    print("| at the hole's edge, pixels step by | of 255 |\n|---|---|")
    for name, steps in (("the originals", original), ("the plain UNet", plain), ("the inpainting UNet", inpainting)):
        print(f"| {name} | {steps.mean():.2f} |")
    print("\n| what | scenes | share | 95 % interval |\n|---|---|---|---|")
    print(row("a smaller step than the plain UNet's", int((inpainting < plain).sum()), count))


if __name__ == "__main__":
    main()
