"""How well the companions of the embedded checkpoint steer an edit, from seeds that training has not seen."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm.auto import tqdm

from modular_diffdiff import SDXLDiffDiffBlocks, loading
from modular_diffdiff.still_life import GUIDANCE_SCALE, controls
from modular_diffdiff.still_life.judge import load_judge, to_tensor
from modular_diffdiff.still_life.scene import BACKGROUNDS, SIZE, Scene, render

from .still_life import HELD_OUT, row


STEPS, BATCH = 25, 30
TOLERANCE = 2  # pixels between an edge and its match
MARGIN = 4  # pixels beside the map's border that do not count: the two halves meet there
HALF = torch.cat([torch.ones(SIZE, SIZE // 2), torch.zeros(SIZE, SIZE // 2)], 1)


def edge_alignment(pictures: list[Image.Image], edges: list[Image.Image], columns: slice) -> torch.Tensor:
    """The boundary F-measure (Martin et al. 2004) of each picture's Canny edges against given ones.

    An edge pixel is matched if one of the other set lies within `TOLERANCE` pixels in both directions.

    Args:
        pictures: B pictures of SIZE x SIZE pixels.
        edges: B control images, white lines on black.
        columns: Those of the picture that count.

    Returns:
        (B,) harmonic means of precision and recall, 0 where nothing matches.
    """
    found = torch.from_numpy(controls.edge_masks(np.stack([np.asarray(picture) for picture in pictures]))).float()
    wanted = torch.from_numpy(np.stack([np.asarray(edge)[..., 0] > 127 for edge in edges])).float()

    def matched(these: torch.Tensor, those: torch.Tensor) -> torch.Tensor:
        near = F.max_pool2d(those[:, None], 2 * TOLERANCE + 1, stride=1, padding=TOLERANCE)[:, 0]
        counts = (these * near)[..., columns].sum((1, 2)), these[..., columns].sum((1, 2))
        return counts[0] / counts[1].clamp(min=1)

    precision, recall = matched(found, wanted), matched(wanted, found)
    return 2 * precision * recall / (precision + recall).clamp(min=1e-6)


def mean_interval(values: torch.Tensor) -> tuple[float, float, float]:
    """The mean, and its 95 % confidence interval by the normal approximation."""
    mean, half = values.mean().item(), 1.96 * values.std().item() / math.sqrt(len(values))
    return mean, mean - half, mean + half


def load(**steering):
    """The pipeline of the embedded checkpoint with some of its companions."""
    return loading.load_pipeline(loading.Model(loading.EMBEDDED, "cpu", "float32", **steering), GUIDANCE_SCALE)


def run(pipe, scenes: list[Scene], prompts: list[str], keep: torch.Tensor, **lists):
    """Edits scenes in batches; `lists` holds inputs: with an item a scene, embeddings of all, or the same for all.

    Returns:
        The pictures, and the final latents (B, 4, 32, 32) with the originals'.
    """
    pictures, latents, originals = [], [], []
    for start in tqdm(range(0, len(scenes), BATCH), "edits"):
        part = slice(start, start + BATCH)
        given = {name: value[part] if isinstance(value, list) else value for name, value in lists.items()}
        given |= {name: [value[part]] for name, value in given.items() if isinstance(value, torch.Tensor)}
        if "control_mode" in given:  # a union takes one batch a mode
            given["control_image"] = [given["control_image"]]
        state = pipe(
            prompt=prompts[part],
            image=[Image.fromarray(render(scene)) for scene in scenes[part]],
            diffdiff_map=keep,
            num_inference_steps=STEPS,
            generator=[torch.Generator().manual_seed(scene.seed) for scene in scenes[part]],
            **given,
        )
        pictures += state.images
        latents.append(state.latents)
        originals.append(state.image_latents)
    return pictures, torch.cat(latents), torch.cat(originals)


def pairs(count: int) -> tuple[list[Scene], list[Scene]]:
    """Scenes to edit and scenes to be like, all unseen."""
    return tuple([Scene.random(HELD_OUT + first + k) for k in range(count)] for first in (0, 10_000))


def edges_and_depth(count: int = 60) -> None:
    """The right half becomes another object; with a control image it also gets that object's outline.

    On plain backgrounds, so that the edges are those of objects.
    """
    scenes, targets = pairs(count)
    scenes = [replace(scene, background="plain") for scene in scenes]
    prompts = [
        Scene(target.kind, target.colour, scene.background).caption
        for scene, target in zip(scenes, targets, strict=True)
    ]
    outlines = [controls.outline(target) for target in targets]
    depths = [controls.depth(target) for target in targets]
    runs = {
        "no control": ({}, {}),
        "ControlNet, edges": ({"controlnet": loading.EMBEDDED}, {"control_image": outlines}),
        "union, edges": ({"controlnet": loading.EMBEDDED_UNION}, {"control_image": outlines, "control_mode": 0}),
        "union, depth": ({"controlnet": loading.EMBEDDED_UNION}, {"control_image": depths, "control_mode": 1}),
    }
    print(
        "| edge alignment of the released half | mean | 95 % interval | kept latents bit for bit |\n|---|---|---|---|"
    )
    for name, (steering, inputs) in runs.items():
        pictures, latents, originals = run(load(**steering), scenes, prompts, HALF, **inputs)
        mean, low, high = mean_interval(edge_alignment(pictures, outlines, slice(SIZE // 2 + MARGIN, SIZE)))
        exact = torch.equal(latents[..., : SIZE // 16], originals[..., : SIZE // 16])
        print(f"| {name} | {mean:.3f} | {low:.3f} to {high:.3f} | {exact} |")
    print()


@torch.no_grad()
def embed(pipe, images: list[Image.Image]) -> torch.Tensor:
    """(B, 1, 128) image embeddings: one image prompt for each text prompt of a batch."""
    features = pipe.feature_extractor(images, return_tensors="pt").pixel_values
    return pipe.image_encoder(features).image_embeds[:, None]


def image_prompts(judge, count: int = 60) -> None:
    """The text says "an object"; its kind and its colour come from the image prompt, or from nowhere."""
    scenes, targets = pairs(count)
    prompts = [f"an object on {BACKGROUNDS[scene.background]}" for scene in scenes]
    adapted = load(ip_adapter=loading.EMBEDDED, ip_adapter_scale=1.0)
    embeds = embed(adapted, [Image.fromarray(render(target)) for target in targets])
    # upstream's step gives all pictures of a list to every prompt; embeddings go in one by one
    batched = SDXLDiffDiffBlocks().init_pipeline()
    batched.update_components(**{name: getattr(adapted, name) for name in batched.component_names})
    for where, keep in (("everything", torch.zeros(SIZE, SIZE)), ("right half", HALF)):
        for name, pipe, inputs in (
            ("without", load(), {}),
            ("with", batched, {"ip_adapter_embeds": embeds, "negative_ip_adapter_embeds": torch.zeros_like(embeds)}),
        ):
            pictures, latents, originals = run(pipe, scenes, prompts, keep, **inputs)
            readings = judge.read(to_tensor(pictures), (1 - keep).expand(count, 1, -1, -1))
            for label in ("kind", "colour"):
                right = sum(getattr(r, label) == getattr(t, label) for r, t in zip(readings, targets, strict=True))
                print(row(f"{where} released, {name} image prompt: its {label}", right, count))
            if keep.any():
                exact = torch.equal(latents[..., : SIZE // 16], originals[..., : SIZE // 16])
                print(f"| {where} released, {name} image prompt: kept latents bit for bit: {exact} | | | |")


def main() -> None:
    print()
    edges_and_depth()
    print("| what | right | share | 95 % interval |\n|---|---|---|---|")
    print("| chance: its kind, its colour | | 16.7 %, 12.5 % | |")
    image_prompts(load_judge())
