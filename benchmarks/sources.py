"""How well the embedded segmenter and depth estimator see, from seeds that training has not seen."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForDepthEstimation, CLIPSegForImageSegmentation, CLIPSegProcessor

from modular_diffdiff import DiffDiffMapDepthStep, DiffDiffMapTextStep
from modular_diffdiff.still_life import DEPTH_ESTIMATOR, TEXT_SEGMENTER
from modular_diffdiff.still_life.scene import BACKGROUNDS, COLOURS, KINDS, Scene, depth, masks, render
from modular_diffdiff.still_life.train import PAIRS

from .still_life import HELD_OUT, row


BATCH = 25
MARKED = 0.01  # of a picture: what is less, nobody sees


def find(scenes: list[Scene], words: list[str]) -> np.ndarray:
    """(B, H, W) bool: where the segmenter finds the words."""
    pipe = DiffDiffMapTextStep().init_pipeline()
    pipe.update_components(
        text_segmenter=CLIPSegForImageSegmentation.from_pretrained(TEXT_SEGMENTER),
        text_segmenter_processor=CLIPSegProcessor.from_pretrained(TEXT_SEGMENTER),
    )
    found = []
    for start in range(0, len(scenes), BATCH):
        part = slice(start, start + BATCH)
        pictures = [Image.fromarray(render(scene)) for scene in scenes[part]]
        found.append(pipe(image=pictures, map_text=words[part], output="diffdiff_map")[:, 0] < 0.5)
    return torch.cat(found).numpy()


def overlap(found: np.ndarray, wanted: np.ndarray) -> float:
    """Intersection over union, of all pictures together."""
    return float((found & wanted).sum() / (found | wanted).sum())


def words(count: int) -> None:
    """IoU of each object by its kind, by its colour and by both, and of the background by its name."""
    scenes = [Scene.random(HELD_OUT + k, PAIRS) for k in range(count)]
    truth = [masks(scene) for scene in scenes]
    asked = {
        "kind": [scene.kind for scene in scenes],
        "colour": [f"{scene.colour} object" for scene in scenes],
        "colour and kind": [f"{scene.colour} {scene.kind}" for scene in scenes],
        "background": [BACKGROUNDS[scene.background].removeprefix("a ") for scene in scenes],
    }
    wanted = {
        "kind": [where[scene.kind] for scene, where in zip(scenes, truth, strict=True)],
        "colour": [where[scene.colour] for scene, where in zip(scenes, truth, strict=True)],
        "background": [where[word] for word, where in zip(asked["background"], truth, strict=True)],
    }
    wanted["colour and kind"] = np.minimum(wanted["kind"], wanted["colour"])
    print("| words for | IoU |\n|---|---|")
    for name, phrases in asked.items():
        seen = find(scenes, [f"the {phrase}" for phrase in phrases])
        print(f"| {name} | {overlap(seen, np.stack(wanted[name]) > 127):.3f} |")
    rng = np.random.default_rng(0)
    shown = [{word for item in scene.items for word in (item.kind, item.colour)} for scene in scenes]
    missing = [str(rng.choice(sorted({*KINDS, *COLOURS} - there))) for there in shown]
    marked = find(scenes, [f"the {word}" for word in missing]).mean((1, 2)) >= MARKED
    print("\n| what | right | share | 95 % interval |\n|---|---|---|---|")
    print(row("nothing found of what is not there", int((~marked).sum()), count) + "\n")


def depths(count: int) -> None:
    """Pearson's correlation of the nearness that is seen and rendered, a scene."""
    pipe = DiffDiffMapDepthStep().init_pipeline()
    pipe.update_components(
        depth_estimator=AutoModelForDepthEstimation.from_pretrained(DEPTH_ESTIMATOR),
        depth_estimator_processor=AutoImageProcessor.from_pretrained(DEPTH_ESTIMATOR),
    )
    found = []
    for k in range(count):
        scene = Scene.random(HELD_OUT + k, PAIRS)
        seen = pipe(image=Image.fromarray(render(scene)), map_depth=(0, 1), output="diffdiff_map")[0, 0]
        found.append(np.corrcoef(seen.flatten(), depth(scene).flatten())[0, 1])
    print(f"Depth, correlation with the rendered one: mean {np.mean(found):.4f}, lowest {min(found):.4f}\n")


def main(count: int = 200) -> None:
    words(count)
    depths(count)
