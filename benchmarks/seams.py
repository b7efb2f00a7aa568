"""What `match_colors` does to the seam between what is kept and what changes, from seeds that training has not seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from modular_diffdiff import loading
from modular_diffdiff.still_life import GUIDANCE_SCALE
from modular_diffdiff.still_life.scene import KINDS, SIZE, Scene, render

from .still_life import HELD_OUT, row


STEPS, BATCH = 16, 10
BAND = 4  # pixels on each side of the seam
# Kept on the left half, and ever freer over a quarter of the picture from there: an overlay's usual seam.
KEEP = (1 - 4 * (torch.arange(SIZE) / SIZE - 0.5)).clamp(0, 1).repeat(SIZE, 1)
SEAM = int((KEEP[0] > 1 - 1 / STEPS).sum())  # the first column that is released
# A colour shift that is put into the decoder: gain and offset of red, green and blue in [-1, 1].
GAIN, OFFSET = torch.tensor([0.8, 1.0, 0.9]).view(3, 1, 1), torch.tensor([-0.08, -0.08, 0.1]).view(3, 1, 1)


class ShiftedDecoder(torch.nn.Module):
    """A decoder whose colours are shifted."""

    def __init__(self, decoder: torch.nn.Module):
        super().__init__()
        self.decoder = decoder

    def forward(self, *arguments, **options) -> torch.Tensor:
        return GAIN * self.decoder(*arguments, **options) + OFFSET


def difference(picture: np.ndarray) -> np.ndarray:
    """(3,), of 255: the mean colour of the band on the left of the seam, less that of the band on its right."""
    return picture[:, SEAM - BAND : SEAM].mean((0, 1)) - picture[:, SEAM : SEAM + BAND].mean((0, 1))


def edit(scenes: list[Scene], match: bool, shifted: bool) -> list[np.ndarray]:
    """Each scene with another object on the right, the original laid over what is kept."""
    pipe = loading.load_pipeline(loading.Model(loading.EMBEDDED, "cpu", "float32"), GUIDANCE_SCALE)
    if shifted:
        pipe.vae.decoder = ShiftedDecoder(pipe.vae.decoder)
    results = []
    for start in tqdm(range(0, len(scenes), BATCH), "edits"):
        part = scenes[start : start + BATCH]
        edited = [
            replace(scene, beside=replace(scene.beside, kind=next_kind(scene.beside.kind, scene.kind)))
            for scene in part
        ]
        results += pipe(
            prompt=[scene.caption for scene in edited],
            image=[Image.fromarray(render(scene)) for scene in part],
            diffdiff_map=KEEP,
            num_inference_steps=STEPS,
            match_colors=match,
            overlay=True,
            generator=[torch.Generator().manual_seed(scene.seed) for scene in part],
            output="images",
        )
    return [np.asarray(result) for result in results]


def next_kind(kind: str, other: str) -> str:
    """Another kind than both."""
    return next(each for each in KINDS if each not in (kind, other))


def jumps(scenes: list[Scene], match: bool, shifted: bool) -> np.ndarray:
    """How much more or less the two sides of each result's seam differ than the original's: the mean of RGB, of 255."""
    results = edit(scenes, match, shifted)
    pairs = zip(scenes, results, strict=True)
    return np.array([abs(difference(result) - difference(render(scene))).mean() for scene, result in pairs])


def main(count: int = 100) -> None:
    scenes = [Scene.random(HELD_OUT + k, pairs=1.0) for k in range(count)]
    print("| decoder | jump | with `match_colors` | falls by |\n|---|---|---|---|")
    shares = []
    for name, shifted in (("as it is", False), ("shifted", True)):
        plain, matched = jumps(scenes, False, shifted), jumps(scenes, True, shifted)
        fall = 100 * (1 - matched.mean() / plain.mean())
        print(f"| {name} | {plain.mean():.2f} | {matched.mean():.2f} | {fall:.0f} % |")
        good = int(((matched <= plain / 2) | (matched < 1)).sum())
        shares.append(row(f"{name}: falls by half, or is below 1", good, count))
    print("\n| what | scenes | share | 95 % interval |\n|---|---|---|---|", *shares, "", sep="\n")


if __name__ == "__main__":
    main()
