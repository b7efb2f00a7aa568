"""How good the embedded checkpoint is: the figures of `model_card.md`, from seeds that training has not seen."""

from __future__ import annotations

import itertools
import math
import operator

import numpy as np
import torch
from diffusers import ClassifierFreeGuidance, StableDiffusionXLPipeline, ZImagePipeline
from PIL import Image
from scipy import ndimage
from tqdm.auto import tqdm

from modular_diffdiff import SDXLDiffDiffBlocks
from modular_diffdiff.still_life import CHECKPOINT, FLOW_CHECKPOINT, FLOW_GUIDANCE_SCALE, GUIDANCE_SCALE
from modular_diffdiff.still_life.controls import edge_masks
from modular_diffdiff.still_life.judge import LABELS, Reading, load_judge, to_tensor
from modular_diffdiff.still_life.scene import BACKGROUNDS, COLOURS, KINDS, SIZE, Scene, render
from modular_diffdiff.still_life.train import PAIRS


HELD_OUT = 1_000_000  # training has seen the seeds 0 to 19,999


def decibels(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """PSNR a picture, for values in [-1, 1]."""
    return 10 * torch.log10(4 / (a - b).square().mean((1, 2, 3)))


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share (Wilson 1927)."""
    z = 1.96
    share, spread = right / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return centre - half, centre + half


def row(name: str, right: int, total: int) -> str:
    low, high = wilson(right, total)
    return f"| {name} | {right} of {total} | {100 * right / total:.1f} % | {100 * low:.1f} to {100 * high:.1f} % |"


def count_right(scenes: list[Scene], readings: list[Reading]) -> dict[str, int]:
    pairs = list(zip(scenes, readings, strict=True))
    return {name: sum(getattr(scene, name) == getattr(reading, name) for scene, reading in pairs) for name in LABELS}


@torch.no_grad()
def round_trip(vae, pixels: torch.Tensor) -> torch.Tensor:
    """What the autoencoder returns of pictures (B, 3, H, W) in [-1, 1]."""
    parts = [vae.decode(vae.encode(part).latent_dist.mode()).sample.clamp(-1, 1) for part in pixels.split(20)]
    return torch.cat(parts)


def unevenness(pictures: np.ndarray) -> float:
    """How far Canny's edges in the upper 40 % are from straight: the RMS distance, in pixels, to the line of each.

    The line of a connected edge is the one with the least squared distances (total least squares). Short edges, of less
    than a tenth of the side, do not count.

    Args:
        pictures: (B, H, W, 3) uint8.
    """
    top = pictures.shape[1] * 2 // 5
    squares = []
    for mask in edge_masks(pictures)[:, :top]:
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        for label in range(1, count + 1):
            points = np.argwhere(labels == label).astype(float)
            if len(points) >= pictures.shape[1] // 10:
                across = np.linalg.svd(points - points.mean(0))[2][1]
                squares.append(((points - points.mean(0)) @ across) ** 2)
    return float(np.sqrt(np.concatenate(squares).mean()))


def striped_scenes(count: int) -> list[Scene]:
    """Lemons, which leave the upper 40 % free, on stripes."""
    colours = itertools.islice(itertools.cycle(COLOURS), count)
    return [Scene("lemon", colour, "striped", seed=HELD_OUT + seed) for seed, colour in enumerate(colours)]


def autoencoder(vae, count: int = 200) -> None:
    pixels = to_tensor([render(Scene.random(HELD_OUT + seed, PAIRS)) for seed in range(count)])
    values = decibels(round_trip(vae, pixels), pixels)
    print(f"Autoencoder, PSNR of {count} scenes: mean {values.mean():.2f} dB, lowest {values.min():.2f} dB\n")


def stripes(pipe, guidance_scale: float, count: int = 40) -> None:
    scenes = striped_scenes(count)
    rendered = np.stack([render(scene) for scene in scenes])
    returned = to_pictures(round_trip(pipe.vae, to_tensor(rendered)))
    drawn = np.stack([np.asarray(picture) for picture in draw(pipe, scenes, guidance_scale, 25)])
    rendered, returned, drawn = map(unevenness, (rendered, returned, drawn))
    print("Stripes, RMS distance of their edges from straight lines, in pixels:")
    print(
        f"rendered {rendered:.2f}, after a round trip {returned:.2f}, drawn {drawn:.2f}: {drawn / returned:.2f} times\n"
    )


def to_pictures(pixels: torch.Tensor) -> np.ndarray:
    """(B, H, W, 3) uint8 of (B, 3, H, W) in [-1, 1]."""
    return (127.5 * (pixels + 1)).round().byte().permute(0, 2, 3, 1).numpy()


def judge_itself(judge, count: int = 1000) -> None:
    scenes = [Scene.random(HELD_OUT + seed) for seed in range(count)]
    pixels = to_tensor([render(scene) for scene in scenes])
    for part, columns in (
        ("whole", slice(0, SIZE)),
        ("left half", slice(0, SIZE // 2)),
        ("right half", slice(SIZE // 2, SIZE)),
    ):
        visible = torch.zeros(count, 1, SIZE, SIZE)
        visible[..., columns] = 1
        for name, right in count_right(scenes, judge.read(pixels, visible)).items():
            print(row(f"judge, rendered scenes, {part}, {name}", right, count))


def draw(pipe, scenes: list[Scene], guidance_scale: float, steps: int, batch: int = 24) -> list[Image.Image]:
    """What the model draws for their captions."""
    pictures = []
    for start in tqdm(range(0, len(scenes), batch), "pictures"):
        part = scenes[start : start + batch]
        pictures += pipe(
            [scene.caption for scene in part],
            height=SIZE,
            width=SIZE,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=[torch.Generator().manual_seed(HELD_OUT + start + k) for k in range(len(part))],
        ).images
    return pictures


def text_to_image(pipe, judge, name: str, guidance_scale: float, steps: int) -> None:
    names = itertools.product(KINDS, COLOURS, BACKGROUNDS)
    scenes = [Scene(kind, colour, background) for kind, colour, background in names]
    readings = judge.read(to_tensor(draw(pipe, scenes, guidance_scale, steps)))
    for question, right in count_right(scenes, readings).items():
        print(row(f"{name}, {steps} steps, {question}", right, len(scenes)))


def read_halves(judge, pictures: torch.Tensor) -> list[tuple[Reading, Reading]]:
    """What the judge sees in the left and in the right half of each picture."""
    left = torch.zeros_like(pictures[:, :1])
    left[..., : pictures.shape[3] // 2] = 1
    return list(zip(judge.read(pictures, left), judge.read(pictures, 1 - left), strict=True))


def count_pairs_right(scenes: list[Scene], readings: list[tuple[Reading, Reading]]) -> int:
    """In how many scenes both objects have the kind and the colour that the caption says."""
    said = [[(item.kind, item.colour) for item in scene.items] for scene in scenes]
    seen = [[(half.kind, half.colour) for half in halves] for halves in readings]
    return sum(map(operator.eq, said, seen))


def two_objects(pipe, judge, guidance_scale: float, count: int = 100) -> None:
    scenes = [Scene.random(HELD_OUT + seed, pairs=1) for seed in range(count)]
    rendered = to_tensor([render(scene) for scene in scenes])
    drawn = to_tensor(draw(pipe, scenes, guidance_scale, 25))
    for name, pictures in (("judge, rendered scenes of two objects", rendered), ("two objects, 25 steps", drawn)):
        print(row(f"{name}, both right", count_pairs_right(scenes, read_halves(judge, pictures)), count))


@torch.no_grad()
def edits(pipe, judge, count: int = 25) -> None:
    """A red apple on stripes; one half is kept, the other becomes a green pear."""
    for steps, side in itertools.product((4, 8, 25), ("left", "right")):
        keep = torch.zeros(SIZE, SIZE)
        keep[:, : SIZE // 2] = 1
        keep = keep if side == "left" else 1 - keep
        state = pipe(
            prompt="a green pear on a striped background",
            image=Image.fromarray(render(Scene("apple", "red", "striped", light=0.3, seed=HELD_OUT))),
            diffdiff_map=keep,
            num_inference_steps=steps,
            num_images_per_prompt=count,
            generator=[torch.Generator().manual_seed(HELD_OUT + seed) for seed in range(count)],
        )
        pictures = to_tensor(state.images)
        visible = keep.expand(count, 1, -1, -1)
        changed = sum(reading[:2] == ("pear", "green") for reading in judge.read(pictures, 1 - visible))
        kept = sum(reading[:2] == ("apple", "red") for reading in judge.read(pictures, visible))
        frozen = (state.release_steps == steps).expand_as(state.latents)
        exact = torch.equal(state.latents[frozen], state.image_latents[frozen])
        round_trip = pipe.vae.decode(state.image_latents / pipe.vae.config.scaling_factor).sample.clamp(-1, 1)
        outer = slice(0, SIZE // 4) if side == "left" else slice(-SIZE // 4, None)
        drift = 127.5 * (pictures - round_trip)[..., outer].abs().mean()
        print(row(f"edit, {steps} steps, {side} kept: green pear where it may change", changed, count))
        print(row(f"edit, {steps} steps, {side} kept: red apple where it is kept", kept, count))
        print(f"| kept latents bit for bit: {exact} | pixels of the outer quarter off by | {drift:.2f} of 255 | |")


def main() -> None:
    judge = load_judge()
    plain = StableDiffusionXLPipeline.from_pretrained(CHECKPOINT, torch_dtype=torch.float32)
    plain.set_progress_bar_config(disable=True)
    autoencoder(plain.vae)
    stripes(plain, GUIDANCE_SCALE)
    print("| what | right | share | 95 % interval |\n|---|---|---|---|")
    judge_itself(judge)
    for steps in (25, 8):
        text_to_image(plain, judge, "text to image", GUIDANCE_SCALE, steps)
    two_objects(plain, judge, GUIDANCE_SCALE)
    ours = SDXLDiffDiffBlocks().init_pipeline(CHECKPOINT)
    ours.load_components(dtype=torch.float32)
    ours.update_components(guider=ClassifierFreeGuidance(guidance_scale=GUIDANCE_SCALE))
    edits(ours, judge)
    flow = ZImagePipeline.from_pretrained(FLOW_CHECKPOINT, torch_dtype=torch.float32)
    flow.set_progress_bar_config(disable=True)
    for steps in (8, 4):
        text_to_image(flow, judge, "flow, text to image", FLOW_GUIDANCE_SCALE - 1, steps)
