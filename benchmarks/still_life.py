"""How good the embedded checkpoint is: the figures of `model_card.md`, from seeds that training has not seen."""

from __future__ import annotations

import itertools
import math

import torch
from diffusers import ClassifierFreeGuidance, StableDiffusionXLPipeline, ZImagePipeline
from PIL import Image
from tqdm.auto import tqdm

from modular_diffdiff import SDXLDiffDiffBlocks
from modular_diffdiff.still_life import CHECKPOINT, FLOW_CHECKPOINT, FLOW_GUIDANCE_SCALE, GUIDANCE_SCALE
from modular_diffdiff.still_life.judge import LABELS, Reading, load_judge, to_tensor
from modular_diffdiff.still_life.scene import BACKGROUNDS, COLOURS, KINDS, SIZE, Scene, render


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
def autoencoder(vae, count: int = 200) -> None:
    pixels = to_tensor([render(Scene.random(HELD_OUT + seed)) for seed in range(count)])
    values = torch.cat(
        [
            decibels(vae.decode(vae.encode(part).latent_dist.mode()).sample.clamp(-1, 1), part)
            for part in pixels.split(20)
        ]
    )
    print(f"Autoencoder, PSNR of {count} scenes: mean {values.mean():.2f} dB, lowest {values.min():.2f} dB\n")


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


def text_to_image(pipe, judge, name: str, guidance_scale: float, steps: int = 25, batch: int = 24) -> None:
    names = itertools.product(KINDS, COLOURS, BACKGROUNDS)
    scenes = [Scene(kind, colour, background) for kind, colour, background in names]
    readings = []
    for start in tqdm(range(0, len(scenes), batch), "pictures"):
        part = scenes[start : start + batch]
        pictures = pipe(
            [scene.caption for scene in part],
            height=SIZE,
            width=SIZE,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=[torch.Generator().manual_seed(HELD_OUT + start + k) for k in range(len(part))],
        ).images
        readings += judge.read(to_tensor(pictures))
    for question, right in count_right(scenes, readings).items():
        print(row(f"{name}, {steps} steps, {question}", right, len(scenes)))


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
    print("| what | right | share | 95 % interval |\n|---|---|---|---|")
    judge_itself(judge)
    text_to_image(plain, judge, "text to image", GUIDANCE_SCALE)
    ours = SDXLDiffDiffBlocks().init_pipeline(CHECKPOINT)
    ours.load_components(dtype=torch.float32)
    ours.update_components(guider=ClassifierFreeGuidance(guidance_scale=GUIDANCE_SCALE))
    edits(ours, judge)
    flow = ZImagePipeline.from_pretrained(FLOW_CHECKPOINT, torch_dtype=torch.float32)
    flow.set_progress_bar_config(disable=True)
    for steps in (25, 8, 4):
        text_to_image(flow, judge, "flow, text to image", FLOW_GUIDANCE_SCALE - 1, steps)
