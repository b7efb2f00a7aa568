"""What an edit costs, in time, memory and waiting, against upstream's image-to-image and the community pipeline."""

from __future__ import annotations

import functools
import gc
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ClassifierFreeGuidance, StableDiffusionXLPipeline
from diffusers.modular_pipelines import SequentialPipelineBlocks
from PIL import Image

from modular_diffdiff import IMAGE2IMAGE_BLOCKS, SDXLDiffDiffBlocks, encode_once
from modular_diffdiff.demo import keep_left
from modular_diffdiff.still_life import CHECKPOINT, GUIDANCE_SCALE
from modular_diffdiff.still_life.scene import SIZE, Scene, render

from .measure import Waits, at_each_call, compared, in_turns, load_community, machine, put_section


RESULTS = Path(__file__).parent / "RESULTS.md"
IMAGE = Image.fromarray(render(Scene("apple", "red", "striped", light=0.3)))
PROMPT = "a green pear on a striped background"
BLACK, WHITE_HALF, HALF_FROZEN = np.zeros((SIZE, SIZE)), keep_left(1 / 2), np.full((SIZE, SIZE), 0.5)
REPEATS, LARGE = 15, 384


@functools.cache
def models() -> dict[str, Any]:
    """The checkpoint's parts, the same ones for all: another copy, elsewhere in memory, can be a percent faster."""
    pipe = StableDiffusionXLPipeline.from_pretrained(CHECKPOINT, torch_dtype=torch.float32)
    return {name: part for name, part in pipe.components.items() if part is not None}


def make(blocks, guidance_scale: float):
    pipe = blocks.init_pipeline()
    parts = {name: part for name, part in models().items() if name in pipe.component_names}
    pipe.update_components(**parts, guider=ClassifierFreeGuidance(guidance_scale=guidance_scale))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ours(guidance_scale: float = 1.0, side: int = SIZE, batched: bool = False):
    pipe, image = make(SDXLDiffDiffBlocks(), guidance_scale), IMAGE.resize((side, side))
    fixed = {"prompt": PROMPT, "image": image, "batch_guidance": batched}

    def run(steps: int, change_map: np.ndarray = BLACK):
        generator = torch.Generator().manual_seed(0)
        return pipe(diffdiff_map=change_map, num_inference_steps=steps, generator=generator, **fixed)

    run.unet = pipe.unet
    return run


def upstream(guidance_scale: float = 1.0):
    pipe = make(SequentialPipelineBlocks.from_blocks_dict(IMAGE2IMAGE_BLOCKS), guidance_scale)

    def run(steps: int):
        generator = torch.Generator().manual_seed(0)
        return pipe(prompt=PROMPT, image=IMAGE, strength=1.0, num_inference_steps=steps, generator=generator)

    run.unet = pipe.unet
    return run


def community(path: Path, guidance_scale: float = 1.0, side: int = SIZE):
    pipe = load_community(path).StableDiffusionXLDifferentialImg2ImgPipeline(**models())
    pipe.set_progress_bar_config(disable=True)
    pixels = torch.from_numpy(np.array(IMAGE.resize((side, side)))).permute(2, 0, 1)[None] / 127.5 - 1

    def run(steps: int, change_map: np.ndarray = BLACK):
        return pipe(
            prompt=PROMPT,
            image=pixels,
            original_image=pixels,
            map=torch.from_numpy(change_map).float()[None],
            strength=1.0,
            guidance_scale=guidance_scale,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(0),
        )

    run.unet = pipe.unet
    return run


def step_time(run, steps: int) -> float:
    """Median seconds from one call of the denoiser to the next."""
    called = []
    with at_each_call(run.unet, lambda: called.append(time.perf_counter())):
        run(steps)
    return statistics.median(np.diff(called))


def edit_time(run, *arguments) -> float:
    start = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - start


def ratio(measure, first, second) -> tuple[float, float, float]:
    """Medians of both, and the median of their ratios."""
    return compared(*in_turns({"first": lambda: measure(first), "second": lambda: measure(second)}, REPEATS).values())


def live_bytes() -> int:
    """Bytes of all tensors that are alive."""
    gc.collect()
    storages = (item.untyped_storage() for item in gc.get_objects() if type(item) is torch.Tensor)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def loop_memory(run, steps: int) -> float:
    """Peak megabytes of tensors alive in the loop and not before the run, looked at in ten of its steps."""
    before, sizes, calls = live_bytes(), [], itertools.count()

    def measure(*_):
        if next(calls) % (steps // 10) == 0:
            sizes.append(live_bytes())

    hook = run.unet.register_forward_hook(measure)
    run(steps)
    hook.remove()
    return (max(sizes) - before) / 1e6


def peak_memory(height: int, width: int, padding: int | None) -> float:
    """Peak resident megabytes of a process that changes a box of 64 x 64 pixels in a picture of this size."""
    code = f"""
import resource
import numpy as np
from PIL import Image
from benchmarks.cost import PROMPT, make
from modular_diffdiff import SDXLDiffDiffBlocks
pipe = make(SDXLDiffDiffBlocks(), 1.0)
keep = np.ones(({height}, {width}), np.float32)
keep[32:96, 32:96] = 0
pipe(prompt=PROMPT, image=Image.new("RGB", ({width}, {height}), "grey"), diffdiff_map=keep, padding_map_crop={padding},
     num_inference_steps=4)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(ended.stdout.split()[-1])


def waits_a_step(run) -> float:
    """How many of them there are from one call of the denoiser to the next."""
    counts = []
    with Waits() as waits, at_each_call(run.unet, lambda: counts.append(waits.count)):
        run(10)
    return statistics.median(np.diff(counts))


def edits(community_path: Path) -> Iterator[str]:
    """Rows of whole edits against the community pipeline's."""
    kinds = [
        ("25 steps, guidance off", 25, {}, BLACK),
        ("25 steps, guidance on", 25, {"guidance_scale": GUIDANCE_SCALE}, BLACK),
        ("25 steps, half of them frozen, guidance off", 25, {}, HALF_FROZEN),
        ("25 steps, half of the picture kept, guidance off", 25, {}, WHITE_HALF),
        (f"25 steps, guidance off, {LARGE} x {LARGE} pixels", 25, {"side": LARGE}, np.zeros((LARGE, LARGE))),
    ]
    for cells, steps in ((16, 25), (32, 25), (64, 10)):
        side = cells * SIZE // 32
        options = {"guidance_scale": GUIDANCE_SCALE, "side": side, "batched": True}
        name = f"{steps} steps, guidance on, `batch_guidance`, {cells} x {cells} latents"
        kinds.append((name, steps, options, np.zeros((side, side))))
    for name, steps, options, keep in kinds:
        other = {option: value for option, value in options.items() if option != "batched"}
        runs = ours(**options), community(community_path, **other)
        measured = ratio(lambda run, steps=steps, keep=keep: edit_time(run, steps, keep), *runs)
        yield row(f"an edit of {name}, against the community pipeline", *measured)
    measured = ratio(lambda run: edit_time(run, 25), upstream(), community(community_path))
    yield row("(image-to-image of 25 steps, guidance off, against the community pipeline)", *measured)


def four_seeds() -> Iterator[str]:
    """Rows of four edits of one picture that share something, against the same one after the other."""
    pipe = make(SDXLDiffDiffBlocks(), GUIDANCE_SCALE)
    fixed = {"prompt": PROMPT, "negative_prompt": "a cup", "image": IMAGE, "diffdiff_map": BLACK}

    def seeded(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    def alone(steps: int) -> None:
        for seed in range(4):
            pipe(**fixed, num_inference_steps=steps, generator=seeded(seed))

    def encoded_once(steps: int) -> None:
        with encode_once(pipe):
            alone(steps)

    def in_one_call(steps: int) -> None:
        generators = [seeded(seed) for seed in range(4)]
        pipe(**fixed, num_inference_steps=steps, generator=generators, num_images_per_prompt=4)

    for run, how in ((encoded_once, "encoded once"), (in_one_call, "in one call")):
        measured = ratio(lambda each: edit_time(each, 4), run, alone)
        yield row(f"four seeds of 4 steps, guidance on, {how}, against one after the other", *measured)


def row(name: str, one: float, other: float, times: float) -> str:
    unit, per_second = ("ms", 1e3) if one < 0.2 else ("s", 1)
    digits = 1 if unit == "ms" else 2
    return f"| {name} | {per_second * one:.{digits}f} {unit} | {per_second * other:.{digits}f} {unit} | {times:.3f} |"


def report(community_path: Path | None) -> list[str]:
    lines = [
        f"Measured by `python -m benchmarks.cost` on {machine()}.",
        f"{SIZE} x {SIZE} pixels, float32. Medians of {REPEATS} turns, of times and of their ratios.",
        "",
        "| what | ours | the other | ratio |",
        "|---|---|---|---|",
    ]
    plain, base = ours(), upstream()
    lines.append(row("a step, against image-to-image", *ratio(lambda run: step_time(run, 30), plain, base)))
    lines.append(row("(image-to-image against itself)", *ratio(lambda run: step_time(run, 30), upstream(), base)))
    rivals = {"upstream's image-to-image": base}
    if community_path is not None:
        lines += edits(community_path)
        rivals["the community pipeline"] = community(community_path)
    lines += four_seeds()
    lines += ["", "| alive in the loop | 10 steps | 50 steps | 1,000 steps |", "|---|---|---|---|"]
    for name, run in {"ours": plain, **rivals}.items():
        sizes = " | ".join(f"{loop_memory(run, steps):.2f} MB" for steps in (10, 50, 1000))
        lines.append(f"| {name} | {sizes} |")
    lines += [
        "",
        "| a box of 64 x 64 changes, with `padding_map_crop=32`, in | peak memory of the process |",
        "|---|---|",
    ]
    for width, height in ((SIZE, SIZE), (4000, 3000)):
        lines.append(f"| {width} x {height} pixels | {peak_memory(height, width, 32):.0f} MB |")
    lines += ["", "| waits for the accelerator, a step | |", "|---|---|"]
    for name, run in {"ours": plain, **rivals}.items():
        lines.append(f"| {name} | {waits_a_step(run):g} |")
    lines += [
        "",
        "Waits are the operations whose answer the host needs. That our loop blocks have none is also a test, on the",
        "meta device.",
    ]
    return lines


def main(community_path: Path | None = None) -> None:
    lines = report(community_path)
    print("\n".join(lines))
    put_section(RESULTS, "The embedded checkpoint", lines)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
