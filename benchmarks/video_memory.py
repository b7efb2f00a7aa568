"""How much memory a video's edit takes: `python -m benchmarks.video_memory`, on an accelerator with `--device cuda`.

Random weights, nothing is downloaded: the autoencoder of Wan 2.1 in its published configuration, or with all its layers
and an eighth of their channels, in bfloat16, and a tiny transformer.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    WanTransformer3DModel,
)

from modular_diffdiff import without_encoders
from modular_diffdiff.videos import WanDiffDiffAutoBlocks

from .cost import RESULTS
from .measure import machine, put_section


HEIGHT, WIDTH, STEPS = 480, 832, 2
TEXT_WIDTH = 16
CHANNELS = {"published": 96, "an eighth": 12}  # of the autoencoder's first layer; the others are multiples
FLOOR, PLAIN, TILED = "no edit: the models and the video", "an edit", "an edit, tiled"
ON_A_CPU = [
    ("an eighth", FLOOR, 81),
    *(("an eighth", what, frames) for what in (PLAIN, TILED) for frames in (9, 81)),
    ("published", FLOOR, 81),
    *(("published", what, 9) for what in (PLAIN, TILED)),
]
ON_AN_ACCELERATOR = [
    ("published", FLOOR, 81),
    *(("published", what, frames) for what in (PLAIN, TILED) for frames in (9, 81)),
]


def make_vae(channels: int, tiled: bool) -> AutoencoderKLWan:
    """Wan's autoencoder in bfloat16, made in it, as a copy in float32 would count too."""
    torch.set_default_dtype(torch.bfloat16)
    vae = AutoencoderKLWan(base_dim=channels)
    torch.set_default_dtype(torch.float32)
    if tiled:
        vae.enable_tiling()
        vae.enable_slicing()
    return vae.eval().requires_grad_(False)


def make_transformer() -> WanTransformer3DModel:
    """A tiny one with the published one's channels and patches."""
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=TEXT_WIDTH, freq_dim=16, ffn_dim=16, num_layers=1
    )
    return transformer.eval().requires_grad_(False)


def make_pipeline(channels: int, tiled: bool):
    """Wan's blocks under a change map, without the text encoder."""
    pipe = without_encoders(WanDiffDiffAutoBlocks().get_workflow("diffdiff"), "prompt_embeds").init_pipeline()
    pipe.update_components(
        vae=make_vae(channels, tiled),
        transformer=make_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        guider=ClassifierFreeGuidance(guidance_scale=1.0),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(width: str, what: str, frames: int, device: str = "cpu") -> None:
    """Runs an edit that keeps the left half, and prints what it takes.

    That is a peak in MB, of the process or on an accelerator what PyTorch has allocated there, and seconds: those of a
    processor, or those that passed.
    """
    torch.manual_seed(0)
    clock = time.process_time if device == "cpu" else time.perf_counter
    pipe = make_pipeline(CHANNELS[width], what == TILED).to(device)
    video = np.random.default_rng(0).integers(0, 256, (frames, HEIGHT, WIDTH, 3), np.uint8)
    start = clock()
    if what != FLOOR:
        keep = np.zeros((HEIGHT, WIDTH), np.float32)
        keep[:, : WIDTH // 2] = 1
        embeddings = torch.randn(1, 8, TEXT_WIDTH)
        given = {"prompt_embeds": embeddings, "negative_prompt_embeds": embeddings}  # the latter is not looked at
        given = {name: value.to(device) for name, value in given.items()}
        fixed = {"overlay": True, "num_inference_steps": STEPS, "generator": torch.Generator().manual_seed(0)}
        state = pipe(video=video, diffdiff_map=keep, **given, **fixed)
        half = state.latents.shape[-1] // 2
        assert torch.equal(state.latents[..., :half], state.video_latents[..., :half]), "kept latents differ"
    seconds = clock() - start
    on_cpu = device == "cpu"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 if on_cpu else peak_on(device) / 1e6
    print(json.dumps([peak, seconds]))


def peak_on(device: str) -> int:
    """The most bytes that PyTorch has allocated on an accelerator."""
    return getattr(torch, device).max_memory_allocated()


def measure(width: str, what: str, frames: int, device: str) -> tuple[float, float]:
    """What `run` prints in a process of its own."""
    code = f"from benchmarks.video_memory import run; run({width!r}, {what!r}, {frames}, {device!r})"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peak, seconds = json.loads(ended.stdout.splitlines()[-1])
    return peak, seconds


def row(width: str, what: str, frames: int, device: str) -> str:
    peak, seconds = measure(width, what, frames, device)
    return f"| {width} | {what} | {frames} | {peak:,.0f} MB | {'' if what == FLOOR else f'{seconds:.0f} s'} |"


def main(device: str) -> None:
    on_cpu = device == "cpu"
    name = None if on_cpu else getattr(torch, device).get_device_name()
    of_what = "The time is that of the processor." if on_cpu else "Peaks are those of the accelerator's memory."
    lines = [
        f"Measured by `python -m benchmarks.video_memory{'' if on_cpu else f' --device {device}'}` on {machine(name)}.",
        f"Videos of {WIDTH} x {HEIGHT} pixels, the left half kept and laid over, {STEPS} steps of a tiny transformer.",
        "Random weights. The autoencoder is Wan 2.1's in bfloat16, as published or with an eighth of the channels;",
        f"tiled is after `pipe.vae.enable_tiling()`, with its defaults. {of_what}",
        "",
        f"| channels | what | frames | peak memory{' of the process' if on_cpu else ''} | time |",
        "|---|---|---|---|---|",
    ]
    for measured in ON_A_CPU if on_cpu else ON_AN_ACCELERATOR:
        lines.append(row(*measured, device))
        print(lines[-1], flush=True)
    put_section(RESULTS, "A video through Wan's autoencoder" + ("" if on_cpu else ", on an accelerator"), lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.video_memory", description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu", help="what PyTorch calls it (default: %(default)s)")
    main(**vars(parser.parse_args()))
