"""Trains what change maps of still lifes are made with: a text segmenter, a mask generator and a depth estimator.

    python -m modular_diffdiff.still_life.train_sources WORK_DIR

Stages resume as those of `train` do.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPSegForImageSegmentation, CLIPTokenizer, DPTForDepthEstimation, SamModel

from . import COMPANIONS
from .models import (
    build_depth_estimator,
    build_depth_estimator_processor,
    build_mask_generator,
    build_mask_generator_processor,
    build_text_segmenter,
    build_text_segmenter_processor,
    build_tokenizer,
)
from .scene import BACKGROUNDS, COLOURS, KINDS, SIZE, Scene, depth, masks, render
from .train import cached, draw_rng, fit, in_parallel


# The share of scenes with two objects: of those it learns to tell one from another.
PAIRS = 0.5
# Of the things that a text asks for: the share of backgrounds, of kinds that may be any, and of colours likewise.
GROUND, ANY_KIND, ANY_COLOUR = 0.1, 0.4, 0.4
# What the depth estimator says of the background; at 0 the ReLU at its end would stop learning.
FAR = 0.2
# How much it counts whether patches are named rightly.
NAMING = 0.2
# So often a colour stands with the kind, and alone.
BOTH, COLOUR_ALONE = 0.4, 0.2
# The mask generator is asked for so many things in each picture, and this often for the background.
PROMPTS, BEHIND = 4, 0.15
# This often by a box, whose edges are off by up to this share of its sides, or else by up to so many points.
BOXES, OFF, POINTS = 0.4, 0.05, 3
# How much the Dice loss of its masks counts.
DICE = 0.25


def scene_of(seed: int) -> Scene:
    return Scene.random(seed, PAIRS)


def see(seed: int, size: int) -> np.ndarray:
    """(size, size, 6) uint8: the picture of a seed's scene, where its first and second object are, and its depth."""
    scene = scene_of(seed)
    where, nothing = masks(scene, size), np.zeros((size, size), np.uint8)
    objects = [np.minimum(where[item.kind], where[item.colour]) for item in scene.items]
    return np.dstack([render(scene, size), *objects, *[nothing] * (2 - len(objects)), depth(scene, size)])


def draw(seen: torch.Tensor, count: int, generator: torch.Generator) -> tuple[list[int], torch.Tensor, torch.Tensor]:
    """`count` of the scenes that `see` has seen, mirrored in every other case.

    Returns:
        Their seeds, their pictures (B, 3, H, W) in [-1, 1], and their objects and depth (B, 3, H, W) in [0, 1].
    """
    indices = torch.randint(len(seen), (count,), generator=generator)
    mirrored = (torch.rand(count, 1, 1, 1, generator=generator) < 0.5).to(seen.device)
    drawn = seen[indices.to(seen.device)].permute(0, 3, 1, 2)
    drawn = torch.where(mirrored, drawn.flip(3), drawn).float() / 255
    return indices.tolist(), 2 * drawn[:, :3] - 1, drawn[:, 3:]


def ask(scene: Scene, rng: np.random.Generator) -> tuple[str, list[bool] | None]:
    """Words for something that may be in a scene, and for each of its objects whether they name it.

    None in place of these stands for the background.
    """
    if rng.random() < GROUND:
        shown = BACKGROUNDS[scene.background].removeprefix("a ")
        return f"the {rng.choice([shown, 'background'])}", None
    item = scene.items[rng.integers(len(scene.items))]
    kind = str(rng.choice(KINDS)) if rng.random() < ANY_KIND else item.kind
    colour = str(rng.choice(list(COLOURS))) if rng.random() < ANY_COLOUR else item.colour
    said = rng.random()
    words = f"{colour} {kind}" if said < BOTH else f"{colour} object" if said < BOTH + COLOUR_ALONE else kind
    named = [
        (item.colour == colour or colour not in words) and (item.kind == kind or kind not in words)
        for item in scene.items
    ]
    return f"{rng.choice(['the ', 'a ', ''])}{words}", named


def wanted_of(objects: torch.Tensor, named: list[bool] | None) -> torch.Tensor:
    """(H, W) in [0, 1]: the objects (2, H, W) that are named, or all but both."""
    if named is None:
        return 1 - objects.amax(0)
    return (objects[: len(named)] * torch.tensor(named, device=objects.device)[:, None, None]).amax(0)


def segment(model: CLIPSegForImageSegmentation, pixels: torch.Tensor, tokens) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, H, W) logits, as upstream's forward gives them, which lets gradients reach the decoder alone.

    Returns:
        The logits, and the vision model's last states (B, 1 + patches, features).
    """
    clip, extracted = model.clip, model.extract_layers
    states = clip.vision_model(pixels, output_hidden_states=True).hidden_states
    text = clip.text_projection(clip.text_model(**tokens).pooler_output)
    return model.decoder([states[index + 1] for index in extracted], text).logits, states[-1]


def names_of(scenes: list[Scene], objects: torch.Tensor, patch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What each patch shows most of: its kind and its colour (B, patches), counted from 1 in the scene's lists, or 0.

    Args:
        objects: (B, 2, H, W) in [0, 1], where each scene's first and second object are.
    """
    shares = F.avg_pool2d(objects, patch).flatten(2)
    shown = torch.cat([1 - shares.sum(1, keepdim=True), shares], 1).argmax(1).cpu()
    kinds, colours = (
        torch.tensor([[0, *(1 + names.index(getattr(item, what)) for item in scene.items), 0][:3] for scene in scenes])
        for names, what in ((KINDS, "kind"), (list(COLOURS), "colour"))
    )
    return tuple(table.gather(1, shown).to(objects.device) for table in (kinds, colours))


def build_naming(features: int) -> nn.Linear:
    """Names what patches show. It is only trained along: a model that learns what it sees learns masks sooner."""
    return nn.Linear(features, len(KINDS) + len(COLOURS) + 2)


def misnamed(said: torch.Tensor, scenes: list[Scene], objects: torch.Tensor) -> torch.Tensor:
    """How wrong the naming is: the cross entropy of kinds and colours.

    Args:
        said: (B, patches, names), for square patches that fill the picture.
        objects: (B, 2, H, W) in [0, 1], as `names_of` takes them.
    """
    patch = objects.shape[-1] // math.isqrt(said.shape[1])
    kinds, colours = said.float().mT.split([len(KINDS) + 1, len(COLOURS) + 1], 1)
    true_kinds, true_colours = names_of(scenes, objects, patch)
    return F.cross_entropy(kinds, true_kinds) + F.cross_entropy(colours, true_colours)


def train_text_segmenter(
    seen: torch.Tensor, tokenizer: CLIPTokenizer, work: Path, cycles: list[int], batch: int
) -> CLIPSegForImageSegmentation:
    """Trains it, where `seen` is, in cycles of so many steps."""
    torch.manual_seed(0)
    model = build_text_segmenter(tokenizer).to(seen.device)
    model.set_attn_implementation("eager")  # its backward pass is the fastest on a CPU
    scenes = [scene_of(seed) for seed in range(len(seen))]
    naming = build_naming(model.config.vision_config.hidden_size).to(seen.device)

    def loss(generator: torch.Generator) -> torch.Tensor:
        seeds, pixels, truth = draw(seen, batch, generator)
        rng = draw_rng(generator)
        asked = [ask(scenes[seed], rng) for seed in seeds]
        wanted = torch.stack([wanted_of(here[:2], named) for here, (_, named) in zip(truth, asked, strict=True)])
        tokens = tokenizer([words for words, _ in asked], padding=True, return_tensors="pt").to(seen.device)
        logits, states = segment(model, pixels, tokens)
        wrong = misnamed(naming(states[:, 1:]), [scenes[seed] for seed in seeds], truth[:, :2])
        return F.binary_cross_entropy_with_logits(logits.float(), wanted) + NAMING * wrong

    in_cycles("text_segmenter", nn.ModuleDict({"model": model, "naming": naming}), loss, cycles, batch, work)
    return model.eval()


def things(objects: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """(B, PROMPTS, H, W) in [0, 1]: for each prompt one of a scene's objects (B, 2, H, W), or its background."""
    wanted = []
    for pair in objects:
        shown = pair[pair.flatten(1).amax(1) > 0]
        for _ in range(PROMPTS):
            wanted.append(1 - shown.amax(0) if rng.random() < BEHIND else shown[rng.integers(len(shown))])
    return torch.stack(wanted).unflatten(0, (-1, PROMPTS))


def points_on(thing: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 2): x and y of pixels drawn from a mask (H, W) of booleans."""
    rows, columns = np.nonzero(thing)
    drawn = rng.integers(len(rows), size=count)
    return np.stack([columns[drawn], rows[drawn]], 1)


def box_of(thing: np.ndarray) -> np.ndarray:
    """Left, top, right and bottom of the smallest box around a mask (H, W) of booleans."""
    rows, columns = np.nonzero(thing)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def point_at(wanted: torch.Tensor, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """Points for each of the things (B, P, H, W): some on it, as many for all of them, and none or one beside it."""
    on, beside = rng.integers(1, POINTS + 1), rng.integers(2)
    points = [np.concatenate([points_on(thing, on, rng), points_on(~thing, beside, rng)]) for thing in _masks(wanted)]
    labels = torch.tensor([1] * on + [0] * beside, device=wanted.device)
    return {"input_points": _prompts(points, wanted), "input_labels": labels.expand(*wanted.shape[:2], -1)}


def box_in(wanted: torch.Tensor, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """A box for each of the things (B, P, H, W), drawn by an unsteady hand."""
    height, width = wanted.shape[2:]
    boxes = []
    for thing in _masks(wanted):
        box = box_of(thing)
        box = box + rng.uniform(-OFF, OFF, 4) * np.tile(box[2:] - box[:2], 2)
        boxes.append(box.clip(0, [width, height] * 2))
    return {"input_boxes": _prompts(boxes, wanted)}


def _masks(wanted: torch.Tensor) -> np.ndarray:
    return wanted.flatten(0, 1).cpu().numpy() > 0.5


def _prompts(values: list[np.ndarray], wanted: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.stack(values)).float().to(wanted.device).unflatten(0, wanted.shape[:2])


def mismasked(logits: torch.Tensor, judged: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """How wrong masks are: their cross entropy, their Dice loss, and how far off the IoU is that they are judged by.

    Args:
        logits: (B, P, H, W)
        judged: (B, P), the model's guesses of the masks' IoU.
        wanted: (B, P, H, W) in [0, 1]
    """
    found, sides = logits.sigmoid(), (2, 3)
    both, all_of_them = (found * wanted).sum(sides), (found + wanted).sum(sides)
    overlap = (both / (all_of_them - both)).detach()
    wrong = F.binary_cross_entropy_with_logits(logits, wanted) + (judged - overlap).square().mean()
    return wrong + DICE * (1 - 2 * both / all_of_them).mean()


def train_mask_generator(seen: torch.Tensor, work: Path, cycles: list[int], batch: int) -> SamModel:
    """The same for the mask generator, with `multimask_output=False`: one mask for each prompt, and its IoU."""
    torch.manual_seed(0)
    model = build_mask_generator().to(seen.device)
    model.set_attn_implementation("eager")
    scenes = [scene_of(seed) for seed in range(len(seen))]
    naming = build_naming(model.config.vision_config.output_channels).to(seen.device)

    def loss(generator: torch.Generator) -> torch.Tensor:
        seeds, pixels, truth = draw(seen, batch // 2, generator)  # prompts cost too
        rng = draw_rng(generator)
        wanted = things(truth[:, :2], rng)
        prompts = box_in(wanted, rng) if rng.random() < BOXES else point_at(wanted, rng)
        features = model.vision_encoder(pixels).last_hidden_state
        said = model(image_embeddings=features, **prompts, multimask_output=False)
        logits = said.pred_masks[:, :, 0].float()
        wanted = F.interpolate(wanted, logits.shape[-2:], mode="area")
        wrong = misnamed(naming(features.flatten(2).mT), [scenes[seed] for seed in seeds], truth[:, :2])
        return mismasked(logits, said.iou_scores[:, :, 0].float(), wanted) + NAMING * wrong

    in_cycles("mask_generator", nn.ModuleDict({"model": model, "naming": naming}), loss, cycles, batch, work)
    return model.eval()


def train_depth_estimator(seen: torch.Tensor, work: Path, cycles: list[int], batch: int) -> DPTForDepthEstimation:
    """The same for the depth estimator."""
    torch.manual_seed(0)
    model = build_depth_estimator().to(seen.device)
    model.set_attn_implementation("eager")

    def loss(generator: torch.Generator) -> torch.Tensor:
        _, pixels, truth = draw(seen, batch, generator)
        found = model(F.avg_pool2d(pixels, pixels.shape[-1] // model.config.image_size)).predicted_depth.float()
        wanted = FAR + (1 - FAR) * F.interpolate(truth[:, 2:], found.shape[-2:], mode="area")[:, 0]
        steps_off = [(found.diff(dim=axis) - wanted.diff(dim=axis)).abs().mean() for axis in (1, 2)]
        return (found - wanted).abs().mean() + sum(steps_off)

    in_cycles("depth_estimator", nn.ModuleDict({"model": model}), loss, cycles, batch, work)
    return model.eval()


def in_cycles(
    name: str,
    modules: nn.ModuleDict,
    loss: Callable[[torch.Generator], torch.Tensor],
    cycles: list[int],
    batch: int,
    work: Path,
) -> None:
    """Minimises a loss in cycles of so many steps, each at half of the learning rate of the one before."""
    for cycle, steps in enumerate(cycles):
        fit(f"{name}-{cycle}", modules, loss, steps, learning_rate(batch) / 2**cycle, work, ema_decay=0.995)


def learning_rate(batch: int) -> float:
    """It grows with the square root of the batch (Malladi et al., arXiv 2205.10287)."""
    return 2e-3 * math.sqrt(batch / 24)


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for scenes and checkpoints; the same folder resumes")
    parser.add_argument(
        "--out", type=Path, default=Path(COMPANIONS), help="where they are saved (default: %(default)s)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--scenes", type=int, default=4_000)
    parser.add_argument("--segmenter-steps", type=int, nargs="+", default=[1_400, 1_000, 700], help="of each cycle")
    parser.add_argument("--mask-steps", type=int, nargs="+", default=[1_400, 900], help="likewise")
    parser.add_argument("--depth-steps", type=int, nargs="+", default=[600, 500], help="likewise")
    parser.add_argument("--batch", type=int, default=24)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = _arguments(arguments)
    work, out, batch = options.work, options.out, options.batch
    work.mkdir(parents=True, exist_ok=True)
    count = options.scenes
    scenes = cached(work / f"seen-{count}-{SIZE}.npy", "scenes", in_parallel(partial(see, size=SIZE), count), count)
    seen = torch.tensor(scenes, device=options.device)
    tokenizer = build_tokenizer()
    segmenter = train_text_segmenter(seen, tokenizer, work, options.segmenter_steps, batch)
    segmenter.half().save_pretrained(out / "text_segmenter")
    build_text_segmenter_processor(tokenizer).save_pretrained(out / "text_segmenter")
    generator = train_mask_generator(seen, work, options.mask_steps, batch)
    generator.half().save_pretrained(out / "mask_generator")
    build_mask_generator_processor().save_pretrained(out / "mask_generator")
    estimator = train_depth_estimator(seen, work, options.depth_steps, batch)
    estimator.half().save_pretrained(out / "depth_estimator")
    build_depth_estimator_processor().save_pretrained(out / "depth_estimator")


if __name__ == "__main__":
    main()
