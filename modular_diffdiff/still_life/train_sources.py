"""Trains what change maps of still lifes are made with: a text segmenter and a depth estimator.

    python -m modular_diffdiff.still_life.train_sources WORK_DIR

Stages resume as those of `train` do, and share its scenes if WORK_DIR is the same.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPSegForImageSegmentation, CLIPTokenizer, DPTForDepthEstimation

from . import COMPANIONS
from .models import (
    build_depth_estimator,
    build_depth_estimator_processor,
    build_text_segmenter,
    build_text_segmenter_processor,
    build_tokenizer,
)
from .scene import BACKGROUNDS, COLOURS, KINDS, SIZE, Scene, depth, masks
from .train import cached, draw_rng, fit, in_parallel, render_scenes, scene_pixels, training_scene


# Of the things that a text asks for: the share that need not be in the picture, and that of backgrounds.
ANYTHING, GROUND = 0.5, 0.1
# So often a colour stands with the kind, and alone.
BOTH, COLOUR_ALONE = 0.4, 0.2


def _truth_of_seed(seed: int, size: int) -> np.ndarray:
    scene = training_scene(seed)
    where, nothing = masks(scene, size), np.zeros((size, size), np.uint8)
    objects = [np.minimum(where[item.kind], where[item.colour]) for item in scene.items]
    return np.stack([*objects, *[nothing] * (2 - len(objects)), depth(scene, size)])


def render_truth(work: Path, count: int, size: int) -> np.ndarray:
    """(count, 3, size, size) uint8: where each scene's first and second object are, and its depth."""
    path = work / f"truth-{count}-{size}.npy"
    return cached(path, "truth", in_parallel(partial(_truth_of_seed, size=size), count), count)


def ask(scene: Scene, rng: np.random.Generator) -> tuple[str, list[bool] | None]:
    """Words for something that may be in a scene, and for each of its objects whether they name it.

    None in place of these stands for the background.
    """
    if rng.random() < GROUND:
        shown = BACKGROUNDS[scene.background].removeprefix("a ")
        return f"the {rng.choice([shown, 'background'])}", None
    item = scene.items[rng.integers(len(scene.items))]
    kind, colour = item.kind, item.colour
    if rng.random() < ANYTHING:
        kind, colour = str(rng.choice(KINDS)), str(rng.choice(list(COLOURS)))
    said = rng.random()
    words = f"{colour} {kind}" if said < BOTH else f"{colour} object" if said < BOTH + COLOUR_ALONE else kind
    named = [
        (item.colour == colour or colour not in words) and (item.kind == kind or kind not in words)
        for item in scene.items
    ]
    return f"{rng.choice(['the ', 'a ', ''])}{words}", named


def segment(model: CLIPSegForImageSegmentation, pixels: torch.Tensor, tokens) -> torch.Tensor:
    """(B, H, W) logits, as upstream's forward gives them, which lets gradients reach the decoder alone."""
    clip, extracted = model.clip, model.extract_layers
    states = clip.vision_model(pixels, output_hidden_states=True).hidden_states
    text = clip.text_projection(clip.text_model(**tokens).pooler_output)
    return model.decoder([states[index + 1] for index in extracted], text).logits


def train_text_segmenter(
    scenes: np.ndarray,
    truth: np.ndarray,
    tokenizer: CLIPTokenizer,
    work: Path,
    device: str,
    cycles: list[int],
    batch: int,
) -> CLIPSegForImageSegmentation:
    """Trains it in cycles of so many steps, each at half of the learning rate of the one before."""
    torch.manual_seed(0)
    model = build_text_segmenter(tokenizer).to(device)

    def loss(generator: torch.Generator) -> torch.Tensor:
        indices = torch.randint(len(scenes), (batch,), generator=generator)
        rng = draw_rng(generator)
        asked = [ask(training_scene(index), rng) for index in indices.tolist()]
        objects = torch.from_numpy(truth[indices.numpy(), :2]).float() / 255
        wanted = torch.stack(
            [
                1 - here.amax(0) if named is None else (here[: len(named)] * torch.tensor(named)[:, None, None]).amax(0)
                for here, (_, named) in zip(objects, asked, strict=True)
            ]
        )
        tokens = tokenizer([words for words, _ in asked], padding=True, return_tensors="pt").to(device)
        logits = segment(model, scene_pixels(scenes, indices).to(device), tokens)
        return F.binary_cross_entropy_with_logits(logits.float(), wanted.to(device))

    for cycle, steps in enumerate(cycles):
        rate = 2e-3 / 2**cycle
        fit(f"text_segmenter-{cycle}", nn.ModuleDict({"model": model}), loss, steps, rate, work, ema_decay=0.995)
    return model.eval()


def train_depth_estimator(
    scenes: np.ndarray, truth: np.ndarray, work: Path, device: str, steps: int, batch: int
) -> DPTForDepthEstimation:
    torch.manual_seed(0)
    model = build_depth_estimator().to(device)

    def loss(generator: torch.Generator) -> torch.Tensor:
        indices = torch.randint(len(scenes), (batch,), generator=generator)
        pixels = F.avg_pool2d(scene_pixels(scenes, indices), scenes.shape[1] // model.config.image_size).to(device)
        seen = model(pixels).predicted_depth.float()
        wanted = torch.from_numpy(truth[indices.numpy(), 2]).float().to(device) / 255
        steps_off = [(seen.diff(dim=axis) - wanted.diff(dim=axis)).abs().mean() for axis in (1, 2)]
        return (seen - wanted).abs().mean() + sum(steps_off)

    fit("depth_estimator", nn.ModuleDict({"model": model}), loss, steps, 2e-3, work, ema_decay=0.995)
    return model.eval()


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for scenes and checkpoints; the same folder resumes")
    parser.add_argument(
        "--out", type=Path, default=Path(COMPANIONS), help="where they are saved (default: %(default)s)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--scenes", type=int, default=8_000)
    parser.add_argument("--segmenter-steps", type=int, nargs="+", default=[1_200, 1_500], help="of each cycle")
    parser.add_argument("--depth-steps", type=int, default=1_000)
    parser.add_argument("--batch", type=int, default=24)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = _arguments(arguments)
    work, out, device, batch = options.work, options.out, options.device, options.batch
    work.mkdir(parents=True, exist_ok=True)
    scenes, truth = render_scenes(work, options.scenes, SIZE), render_truth(work, options.scenes, SIZE)
    tokenizer = build_tokenizer()
    segmenter = train_text_segmenter(scenes, truth, tokenizer, work, device, options.segmenter_steps, batch)
    segmenter.half().save_pretrained(out / "text_segmenter")
    build_text_segmenter_processor(tokenizer).save_pretrained(out / "text_segmenter")
    estimator = train_depth_estimator(scenes, truth, work, device, options.depth_steps, batch)
    estimator.half().save_pretrained(out / "depth_estimator")
    build_depth_estimator_processor().save_pretrained(out / "depth_estimator")


if __name__ == "__main__":
    main()
