"""Regions on the embedded model: two things of a scene become two others, each by a prompt of its own."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from modular_diffdiff import loading
from modular_diffdiff.still_life import GUIDANCE_SCALE
from modular_diffdiff.still_life.judge import load_judge, to_tensor
from modular_diffdiff.still_life.scene import BACKGROUNDS, COLOURS, KINDS, SIZE, Item, Scene, render

from .still_life import HELD_OUT, row


STEPS = 12
WIDTH, HEIGHT = 0.23, 0.3  # half of a region's sides, in those of the picture


class Case(NamedTuple):
    """A scene of two things, and what is to become of each."""

    scene: Scene
    wanted: list[Item]

    def regions(self) -> list[np.ndarray]:
        """(SIZE, SIZE) float32 each: a box around each thing, 1 within."""
        y, x = (np.mgrid[:SIZE, :SIZE] + 0.5) / SIZE
        halves = (x < 0.5, x >= 0.5)
        near = [(abs(x - item.position[0]) < WIDTH) & (abs(y - item.position[1]) < HEIGHT) for item in self.scene.items]
        return [(box & half).astype(np.float32) for box, half in zip(near, halves, strict=True)]


def draw_cases(count: int) -> list[Case]:
    """Held-out scenes; what is wanted differs from both things in kind, and from what it replaces in colour."""
    cases = []
    for seed in range(HELD_OUT, HELD_OUT + count):
        scene, rng = Scene.random(seed, pairs=1.0), np.random.default_rng(seed)
        there = [item.kind for item in scene.items]
        kinds = rng.choice([kind for kind in KINDS if kind not in there], 2, replace=False)
        colours = [rng.choice([colour for colour in COLOURS if colour != item.colour]) for item in scene.items]
        cases.append(Case(scene, [Item(str(kind), str(colour)) for kind, colour in zip(kinds, colours, strict=True)]))
    return cases


def edit(pipe, case: Case) -> Image.Image:
    """The scene with what is wanted in place of each thing."""
    (left, right), (new_left, new_right) = case.scene.items, case.wanted
    where, regions = BACKGROUNDS[case.scene.background], case.regions()
    return pipe(
        prompt=case.scene.caption,
        # each says what becomes of its thing, and knows nothing of the other's change
        region_prompts=[
            f"{new_left.words} and {right.words} on {where}",
            f"{left.words} and {new_right.words} on {where}",
        ],
        region_maps=regions,
        image=Image.fromarray(render(case.scene)),
        diffdiff_map=1 - np.maximum(*regions),
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(case.scene.seed),
        output="images",
    )[0]


def count_right(cases: list[Case]) -> int:
    """In how many the judge sees both things, of the right kind and colour, each on its side."""
    pipe = loading.load_pipeline(loading.Model(loading.EMBEDDED, "cpu", "float32"), GUIDANCE_SCALE)
    judge, right = load_judge(), 0
    sides = torch.zeros(2, 1, SIZE, SIZE)
    sides[0, ..., : SIZE // 2] = sides[1, ..., SIZE // 2 :] = 1
    for case in tqdm(cases, "scenes"):
        seen = judge.read(to_tensor([edit(pipe, case)] * 2), sides)
        right += [(one.kind, one.colour) for one in seen] == [(item.kind, item.colour) for item in case.wanted]
    return right


def main(count: int = 50) -> None:
    print("| what | scenes | share | 95 % interval |\n|---|---|---|---|")
    print(row("both things are what their prompts say", count_right(draw_cases(count)), count))


if __name__ == "__main__":
    main()
