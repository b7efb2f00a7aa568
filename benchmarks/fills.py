"""Fills on the embedded model: an object is removed by its name, at a strength below 1; is it still there?"""

from __future__ import annotations

import torch
from PIL import Image
from tqdm.auto import tqdm

from modular_diffdiff import loading
from modular_diffdiff.blocks.diffdiff_fill import FILLS
from modular_diffdiff.blocks.diffdiff_model_sources import DiffDiffMapTextStep
from modular_diffdiff.still_life import GUIDANCE_SCALE, TEXT_SEGMENTER
from modular_diffdiff.still_life.judge import load_judge, to_tensor
from modular_diffdiff.still_life.scene import BACKGROUNDS, Scene, render

from .still_life import HELD_OUT, row


STEPS, STRENGTH = 16, 0.5
GROW, FEATHER = 12, 4  # pixels


def remove(scenes: list[Scene], fill: str) -> list[Image.Image]:
    """Each scene with its background in the place of its object."""
    blocks = loading.catalog.FAMILIES["sdxl"].blocks_class()
    pipe = blocks.init_pipeline(loading.CHECKPOINT)
    pipe.load_components(dtype=torch.float32)
    models = {name: kind.from_pretrained(TEXT_SEGMENTER) for name, (kind, _) in DiffDiffMapTextStep.models.items()}
    pipe.update_components(**models)
    loading.set_guidance(pipe, GUIDANCE_SCALE)
    results = []
    for scene in tqdm(scenes, fill):
        results += pipe(
            prompt=BACKGROUNDS[scene.background],
            image=Image.fromarray(render(scene)),
            map_text=scene.kind,
            map_text_threshold=0.5,
            map_grow=GROW,
            map_feather=FEATHER,
            map_fill=fill,
            strength=STRENGTH,
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(scene.seed),
            output="images",
        )
    return results


def count_found(scenes: list[Scene], fill: str) -> int:
    """In how many results the judge still sees an object of that kind and colour."""
    seen = load_judge().read(to_tensor(remove(scenes, fill)))
    return sum((one.kind, one.colour) == (scene.kind, scene.colour) for one, scene in zip(seen, scenes, strict=True))


def main(count: int = 50) -> None:
    scenes = [Scene.random(HELD_OUT + k) for k in range(count)]
    print("| what | scenes | share | 95 % interval |\n|---|---|---|---|")
    for fill in ("original", *FILLS):
        print(row(f"`map_fill={fill!r}`: the object is still found", count_found(scenes, fill), count), flush=True)


if __name__ == "__main__":
    main()
