"""How well edits adhere to their change map, by the paper's two metrics: the tables of `docs/cam.md`.

    python -m benchmarks.cam

The paper (Levin and Fried, arXiv 2306.00950) looks at many edits under one map M. A metric says how much each pixel of
an edit differs from the original. The edit map EM (H, W) is the mean of that over the edits under M, minus the mean
over the same edits under a black map, which lets everything change. Then

    CAM = Pearson(M, EM)                          (correlation: 1 is perfect)
    DAM = min over a, b of ||M - a EM - b||       (distance, Frobenius norm over all pixels: 0 is perfect)

Signs differ with what white means. Here M is 1 where the map keeps, and EM is lowest there: less has changed than under
a black map. So CAM is computed for the strength 1 - M, which makes change the positive side, and a >= 0 in DAM: where
EM falls as the strength rises, the best fit is a constant. With M in place of 1 - M, CAM would have the other sign, and
DAM the same value with a <= 0.

For one map the two metrics rank alike, as least squares leave DAM = ||M - mean(M)|| sqrt(1 - max(CAM, 0)^2).
"""

from __future__ import annotations

import argparse
import importlib
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from diffusers.modular_pipelines.stable_diffusion_xl.denoise import StableDiffusionXLLoopBeforeDenoiser
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from tqdm.auto import tqdm

from modular_diffdiff import SDXLDiffDiffLoopBeforeDenoiser, catalog, loading
from modular_diffdiff.blocks.diffdiff_block import DiffDiffLoopBlock
from modular_diffdiff.still_life.scene import render

from .exactness import STEPS, loops_of, take_out
from .steering import pairs


Metric = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
EMBEDDED = (loading.EMBEDDED, loading.EMBEDDED_FLOW)
METHODS = ("ours", "paper's", "blended")
GUIDANCE_OFF = 1.0
CLEAR = 10.0  # in CIELAB, about four just noticeable differences
WINDOW = 9  # pixels, about the side of a latent
RESAMPLES = 2000
NORMAL = 1.96  # standard errors on each side of a 95 % interval


# Change maps: functions of x and y, in (0, 1) from the left and from the top, with values in [0, 1]; 1 keeps


def gradient(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Falls evenly from the left to the right."""
    return 1 - x + 0 * y


def complex_shape(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A star in front of a bar, a square and a disc, each of a grey of its own, on white."""
    angle, radius = np.arctan2(y - 0.55, x - 0.45), np.hypot(x - 0.45, y - 0.55)
    star = radius < 0.18 + 0.07 * np.cos(5 * angle)
    bar = np.abs(x + y - 1.05) < 0.08
    square = np.maximum(np.abs(x - 0.7), np.abs(y - 0.7)) < 0.2
    disc = np.hypot(x - 0.35, y - 0.35) < 0.25
    return np.select([star, bar, square, disc], [0.0, 0.2, 0.4, 0.7], 1.0)


def triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Three nested triangles, darker towards the middle, on white."""
    depth = np.minimum((y - 0.1) - 2 * np.abs(x - 0.5), 0.9 - y)  # 0 on the outline, 0.4 in the middle
    return 1 - np.clip(np.ceil(depth / 0.13), 0, 3) / 3


def disc(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Black in the middle, and softly white all around."""
    return np.clip((np.hypot(x - 0.5, y - 0.5) - 0.15) / 0.3, 0, 1)


MAPS = {"gradient": gradient, "complex shape": complex_shape, "triangle": triangle, "disc": disc}


def draw_map(name: str, height: int, width: int) -> np.ndarray:
    """(height, width), in [0, 1]: one of `MAPS`."""
    x, y = ((np.arange(side) + 0.5) / side for side in (width, height))
    return MAPS[name](x[None, :], y[:, None])


# What is edited


@dataclass(frozen=True)
class Edit:
    """An original, what it becomes, and the seed of its noise."""

    image: Image.Image
    prompt: str
    seed: int


def still_life_edits(count: int) -> list[Edit]:
    """Unseen scenes, each to become another one: objects, colours and backgrounds change."""
    pictures, targets = pairs(count)
    return [
        Edit(Image.fromarray(render(scene)), target.caption, seed)
        for seed, (scene, target) in enumerate(zip(pictures, targets, strict=True))
    ]


def edits_of(images: list[Path], prompts: list[str], count: int) -> list[Edit]:
    """Each image with each prompt in turn, as often as it takes, from a new seed each time.

    Raises:
        OSError: If an image cannot be read.
        UserError: If the images have several sizes.
    """
    pictures = [Image.open(path).convert("RGB") for path in images]
    if len({picture.size for picture in pictures}) > 1:
        raise loading.UserError("--image: all images must have the same size, as one map lies on all of them.")
    pairings = [(picture, prompt) for prompt in prompts for picture in pictures]
    return [Edit(*pairings[seed % len(pairings)], seed) for seed in range(count)]


# The three methods


class BlendStep(DiffDiffLoopBlock):
    """Behind the scheduler's step: blended latent diffusion (Avrahami et al., arXiv 2206.02779, algorithm 1).

    The region to be kept becomes the original again, with fresh noise of the next level; after the last step, the
    original itself. A latent belongs to it if the map keeps more than half of what it covers, to
    within a step.
    """

    needs, takes = ("latents", "image_latents", "release_steps", "level_alphas", "level_sigmas"), ("generator",)
    gives = ("latents",)

    def run_step(self, components, block_state, i: int) -> None:
        latents, original = block_state.latents, block_state.image_latents
        alpha, sigma = block_state.level_alphas[i + 1], block_state.level_sigmas[i + 1]
        steps = -(-(len(block_state.level_alphas) - 1) // components.scheduler.order)
        kept = 2 * block_state.release_steps > steps
        noise = randn_tensor(original.shape, block_state.generator, original.device, original.dtype)
        block_state.latents = torch.where(kept, (alpha * original + sigma * noise).to(latents.dtype), latents)


def blend(blocks):
    """A workflow's blocks, changed in place: blended latent diffusion in the place of differential diffusion."""
    take_out(blocks, ("inject", "restore", "skip_frozen"))
    for loop in loops_of(blocks):
        for name, block in loop.sub_blocks.items():
            if isinstance(block, SDXLDiffDiffLoopBeforeDenoiser):  # SDXL's injects too
                loop.sub_blocks[name] = StableDiffusionXLLoopBeforeDenoiser()
        loop.sub_blocks.insert("blend", BlendStep(), list(loop.sub_blocks).index("check_finite"))
    return blocks


def load_methods(model: loading.Model) -> dict[str, object]:
    """A pipeline for each of `METHODS`, guidance off, with the same components."""
    ours = loading.load_pipeline(model, GUIDANCE_OFF)
    parts = {name: getattr(ours, name) for name in ours.component_names}
    pipes = {"ours": ours}
    for name, change in (("paper's", partial(take_out, without=("restore", "skip_frozen"))), ("blended", blend)):
        pipes[name] = change(ours.blocks).init_pipeline(loading.find_model(model.model))
        pipes[name].update_components(**parts)
    for pipe in pipes.values():
        pipe.set_progress_bar_config(disable=True)
    return pipes


def as_given_to(method: str, change_map: np.ndarray) -> np.ndarray:
    """The map for a method: blended latent diffusion knows only kept and free, so its map is cut at half."""
    return (change_map >= 0.5).astype(float) if method == "blended" else change_map


# What changes: a metric takes two batches (B, 3, H, W) of pictures in [0, 1] and gives (B, H, W), 0 for no difference


def colour_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The distance of each pixel's colours in CIELAB (CIE 1976); it has no bound."""
    from kornia.color import rgb_to_lab

    return (rgb_to_lab(a) - rgb_to_lab(b)).square().sum(1).sqrt()


def local(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """How clearly colours differ, in [0, 1]: 1 - exp(-distance / `CLEAR`), averaged over `WINDOW` x `WINDOW` pixels.

    It needs no weights, and it has a bound: without one, the edit map shows where the objects stand, as they change
    most under a black map. It sees colours, pixel by pixel: a texture that is drawn anew in the same colours counts as
    change, an object that becomes another one of the same colour hardly does.
    """
    from kornia.filters import box_blur

    return box_blur(1 - torch.exp(-colour_distance(a, b)[:, None] / CLEAR), WINDOW)[:, 0]


def load_lpips() -> Metric:
    """LPIPS on AlexNet (Zhang et al., arXiv 1801.03924), a value for each pixel.

    Raises:
        UserError: If the package or its weights are not there.
    """
    try:
        from lpips import LPIPS
    except ImportError as error:
        raise loading.UserError(f"--metric lpips needs the package: pip install lpips ({error}).") from error
    try:
        network = LPIPS(net="alex", spatial=True, verbose=False)
    except (OSError, RuntimeError) as error:  # the weights of AlexNet are downloaded at first use
        raise loading.UserError(f"--metric lpips cannot load its weights: {error}") from error
    return lambda a, b: network.to(a.device)(a, b, normalize=True)[:, 0]


def find_metric(name: str) -> Metric:
    """The metric that `--metric` names.

    Raises:
        UserError: If there is no such function, or it cannot be loaded.
    """
    if name in ("local", "lpips"):
        return local if name == "local" else load_lpips()
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise loading.UserError(f"--metric {name!r} is neither local, nor lpips, nor a module:function.")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise loading.UserError(f"--metric {name!r} cannot be imported: {error}") from error


def to_tensor(pictures: list[Image.Image]) -> torch.Tensor:
    """(B, 3, H, W), in [0, 1]."""
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2) / 255


@torch.no_grad()
def measure(pipe, edits: list[Edit], change_map: np.ndarray, steps: int, batch: int, metric: Metric) -> np.ndarray:
    """(E, H, W): how much each edit under a map differs from its original."""
    maps = []
    for start in range(0, len(edits), batch):
        part = edits[start : start + batch]
        images = [edit.image for edit in part]
        pictures = pipe(
            prompt=[edit.prompt for edit in part],
            image=images if len(part) > 1 else images[0],  # to edit models a list is several references
            diffdiff_map=change_map,
            num_inference_steps=steps,
            generator=[torch.Generator().manual_seed(edit.seed) for edit in part],
            output="images",
        )
        originals = [image.resize(pictures[0].size) for image in images]  # edit models have sizes of their own
        device = pipe._execution_device
        maps.append(metric(to_tensor(originals).to(device), to_tensor(pictures).to(device)).float().cpu())
    return torch.cat(maps).numpy()


# The paper's metrics


def cam(strength: np.ndarray, edit_map: np.ndarray) -> float:
    """Pearson's correlation of (H, W) strengths, 1 - M, with an edit map (H, W); 0 if that is constant."""
    return float(np.corrcoef(strength.ravel(), edit_map.ravel())[0, 1]) if np.ptp(edit_map) else 0.0


def dam(strength: np.ndarray, correlation: np.ndarray | float) -> np.ndarray | float:
    """What the least squares fit of (H, W) strengths by an edit map leaves, from their correlation."""
    return np.linalg.norm(strength - strength.mean()) * np.sqrt(1 - np.clip(correlation, 0, 1) ** 2)


def resampled_cam(strength: np.ndarray, changes: np.ndarray) -> np.ndarray:
    """(RESAMPLES,): CAM of bootstrap samples of the edits, the same ones for all methods with as many edits.

    Args:
        strength: (H, W), 1 - M.
        changes: (E, H, W), whose mean is the edit map.
    """
    count = len(changes)
    weights = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES) / count
    changes = changes.reshape(count, -1).astype(float)
    changes -= changes.mean(1, keepdims=True)
    strength = (strength - strength.mean()).ravel()
    squares = np.einsum("re,ef,rf->r", weights, changes @ changes.T, weights)  # of the norm of each sample's edit map
    lengths = np.linalg.norm(strength) * np.sqrt(squares)
    return np.divide(weights @ (changes @ strength), lengths, out=np.zeros(RESAMPLES), where=lengths > 0)


@dataclass(frozen=True)
class Score:
    """CAM and DAM of a method under a map, and those of its bootstrap samples, (RESAMPLES,) each."""

    cam: float
    dam: float
    cams: np.ndarray
    dams: np.ndarray

    @classmethod
    def of(cls, strength: np.ndarray, changes: np.ndarray) -> Score:
        value, values = cam(strength, changes.mean(0)), resampled_cam(strength, changes)
        return cls(value, dam(strength, value), values, dam(strength, values))


def half_interval(samples: np.ndarray) -> float:
    """Half of the 95 % interval around an estimate, from its bootstrap samples.

    By their standard error and not by their percentiles, which lie too low: a sample has fewer different edits, so its
    edit map is noisier.
    """
    return NORMAL * samples.std()


def compare(ours: Score, other: Score) -> tuple[float, float]:
    """By how much our CAM is higher, and half of the paired 95 % interval."""
    return ours.cam - other.cam, half_interval(ours.cams - other.cams)


def judge(differences: list[tuple[float, float]]) -> str:
    """Whether ours is best, equal to the best (the interval of a difference has 0 in it), or behind."""
    if any(difference + half < 0 for difference, half in differences):
        return "**behind**"
    return "best" if all(difference - half > 0 for difference, half in differences) else "equal"


# Tables

HEAD = ["steps", "map", "ideal CAM", *(f"CAM, {name}" for name in METHODS)]
HEAD += [*(f"ours - {name}" for name in METHODS[1:]), *(f"DAM, {name}" for name in METHODS), "ours is"]


def ideal_cam(strength: np.ndarray, free: np.ndarray) -> float:
    """CAM of edits that change each pixel by its strength times what changes under a black map, both (H, W)."""
    return cam(strength, strength * free - free)


def format_row(steps: int, name: str, ideal: float, scores: dict[str, Score]) -> str:
    """A line of the table: CAM and DAM of each method, and by how much our CAM is higher."""
    ours, *others = scores.values()
    differences = [compare(ours, other) for other in others]
    cells = [str(steps), name, f"{ideal:.3f}"]
    cells += [f"{score.cam:.3f} ± {half_interval(score.cams):.3f}" for score in scores.values()]
    cells += [f"{difference:+.3f} ± {half:.3f}" for difference, half in differences]
    cells += [f"{score.dam:.1f} ± {half_interval(score.dams):.1f}" for score in scores.values()]
    return f"| {' | '.join([*cells, judge(differences)])} |"


def table(pipes: dict[str, object], edits: list[Edit], options: argparse.Namespace, batch: int, metric: Metric):
    """The lines of a model's table; a row for each number of steps and map."""
    yield f"| {' | '.join(HEAD)} |"
    yield f"|{'---|' * len(HEAD)}"
    for steps in options.steps:
        run = partial(measure, edits=edits, steps=steps, batch=batch, metric=metric)
        free = run(pipes["ours"], change_map=np.zeros((1, 1)))  # nothing is frozen: the same for all methods
        for name in tqdm(MAPS, f"{steps} steps"):
            change_map = draw_map(name, *free.shape[1:])
            changes = {
                method: run(pipe, change_map=as_given_to(method, change_map)) - free for method, pipe in pipes.items()
            }
            scores = {method: Score.of(1 - change_map, values) for method, values in changes.items()}
            yield format_row(steps, name, ideal_cam(1 - change_map, free.mean(0)), scores)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cam",
        description="CAM and DAM of ours, the paper's algorithm, and blended diffusion.",
    )
    add = parser.add_argument
    add("--model", nargs="+", default=EMBEDDED, help="folders or Hub repositories (default: the embedded models)")
    add("--image", nargs="+", type=Path, help="for other models: the originals, all of one size")
    add("--prompts", nargs="+", help="for other models: what they become")
    add("--steps", nargs="+", type=positive, default=STEPS, help="numbers of steps (default: 4 8 25)")
    add("--edits", type=positive, default=40, help="under each map (default: %(default)s)")
    add("--batch", type=positive, default=20, help="edits at once (default: %(default)s)")
    add("--metric", default="local", help="local, lpips, or module:function (default: %(default)s)")
    add("--device", help="a name that torch has (default: the accelerator, if there is one)")
    add("--dtype", help="likewise (default: float32 on a CPU)")
    return parser


def _find_edits(options: argparse.Namespace) -> list[Edit]:
    if options.image and options.prompts:
        return edits_of(options.image, options.prompts, options.edits)
    if options.image or options.prompts or not set(options.model) <= set(EMBEDDED):
        raise loading.UserError("--image and --prompts are both needed; without them, the embedded models edit scenes.")
    return still_life_edits(options.edits)


def main(arguments: list[str] | None = None) -> None:
    parser = _parser()
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    try:
        metric = find_metric(options.metric)
        models = [
            loading.choose_device(loading.find_family(loading.Model(name, options.device, options.dtype)))
            for name in options.model
        ]
        edits = _find_edits(options)
        packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers"))
        print(f"{platform.machine()}, {torch.get_num_threads()} threads; {packages}")
        print(f"{len(edits)} edits under each map, guidance off; metric: {options.metric}; mean and 95 % interval\n")
        for model in models:
            references = catalog.FAMILIES[model.family].blocks_class.family.references
            batch = 1 if references else options.batch
            print(f"{model.model} ({model.title}, {model.device}, {model.dtype})\n")
            for line in table(load_methods(model), edits, options, batch, metric):
                print(line, flush=True)
            print()
    except (loading.UserError, OSError) as error:
        parser.exit(2, f"Error: {error}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
