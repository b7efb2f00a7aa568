"""What an edit costs, in time, memory and waiting, against upstream's image-to-image and the community pipeline."""

from __future__ import annotations

import functools
import gc
import importlib.util
import itertools
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ClassifierFreeGuidance, StableDiffusionXLPipeline
from diffusers.modular_pipelines import SequentialPipelineBlocks
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from modular_diffdiff import IMAGE2IMAGE_BLOCKS, SDXLDiffDiffBlocks
from modular_diffdiff.demo import keep_left
from modular_diffdiff.still_life import CHECKPOINT, GUIDANCE_SCALE
from modular_diffdiff.still_life.scene import SIZE, Scene, render


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


def ours(guidance_scale: float = 1.0, side: int = SIZE):
    pipe, image = make(SDXLDiffDiffBlocks(), guidance_scale), IMAGE.resize((side, side))

    def run(steps: int, change_map: np.ndarray = BLACK):
        generator = torch.Generator().manual_seed(0)
        return pipe(prompt=PROMPT, image=image, diffdiff_map=change_map, num_inference_steps=steps, generator=generator)

    run.unet = pipe.unet
    return run


def upstream(guidance_scale: float = 1.0):
    pipe = make(SequentialPipelineBlocks.from_blocks_dict(IMAGE2IMAGE_BLOCKS), guidance_scale)

    def run(steps: int):
        generator = torch.Generator().manual_seed(0)
        return pipe(prompt=PROMPT, image=IMAGE, strength=1.0, num_inference_steps=steps, generator=generator)

    run.unet = pipe.unet
    return run


def load_community(path: Path) -> ModuleType:
    """The community pipeline's module; where torchvision is missing, its one resize is lent."""
    if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        transforms = ModuleType("torchvision.transforms")
        transforms.Resize = lambda size, antialias=None: (
            lambda x: F.interpolate(x if x.ndim == 4 else x[None], size, mode="bilinear", antialias=True).reshape(
                *x.shape[:-2], *size
            )
        )
        torchvision = ModuleType("torchvision")
        torchvision.transforms = transforms
        sys.modules |= {"torchvision": torchvision, "torchvision.transforms": transforms}
    spec = importlib.util.spec_from_file_location("community_pipeline", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    hook = run.unet.register_forward_pre_hook(lambda *_: called.append(time.perf_counter()))
    run(steps)
    hook.remove()
    return statistics.median(np.diff(called))


def edit_time(run, *arguments) -> float:
    start = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - start


def ratio(measure, first, second) -> tuple[float, float, float]:
    """Medians of both, measured in turns, and the median of their ratios."""
    pairs = []
    for turn in range(REPEATS + 1):
        order = (first, second) if turn % 2 else (second, first)
        seconds = {run: measure(run) for run in order}
        pairs.append((seconds[first], seconds[second]))
    pairs = pairs[1:]  # the first turn warms up
    ones, others = zip(*pairs, strict=True)
    return statistics.median(ones), statistics.median(others), statistics.median(a / b for a, b in pairs)


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


class Waits(TorchDispatchMode):
    """Counts the operations for whose answer the host waits for an accelerator."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.name() in ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero")
        return function(*args, **(kwargs or {}))


def waits_a_step(run) -> float:
    """How many of them there are from one call of the denoiser to the next."""
    counts = []
    with Waits() as waits:
        hook = run.unet.register_forward_pre_hook(lambda *_: counts.append(waits.count))
        run(10)
        hook.remove()
    return statistics.median(np.diff(counts))


def report(community_path: Path | None) -> list[str]:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers"))
    lines = [
        "# What an edit costs",
        "",
        f"Measured by `python -m benchmarks.cost` on a CPU ({platform.machine()}, {torch.get_num_threads()} threads);",
        f"{packages}.",
        f"The embedded checkpoint, {SIZE} x {SIZE} pixels, float32.",
        f"Medians of {REPEATS} turns, of both and of their ratio.",
        "",
        "| what | ours | the other | ratio |",
        "|---|---|---|---|",
    ]
    plain, base = ours(), upstream()
    one, other, times = ratio(lambda run: step_time(run, 30), plain, base)
    lines.append(f"| a step, against image-to-image | {1e3 * one:.1f} ms | {1e3 * other:.1f} ms | {times:.3f} |")
    one, other, times = ratio(lambda run: step_time(run, 30), upstream(), base)
    lines.append(f"| (image-to-image against itself) | {1e3 * one:.1f} ms | {1e3 * other:.1f} ms | {times:.3f} |")
    rivals = {"upstream's image-to-image": base}
    if community_path is not None:
        for guidance_scale, change_map, name in (
            (1.0, BLACK, "an edit of 25 steps, guidance off"),
            (GUIDANCE_SCALE, BLACK, "an edit of 25 steps, guidance on"),
            (1.0, HALF_FROZEN, "an edit of 25 steps, half of them frozen, guidance off"),
            (1.0, WHITE_HALF, "an edit of 25 steps, half of the picture kept, guidance off"),
        ):
            runs = ours(guidance_scale), community(community_path, guidance_scale)
            one, other, times = ratio(lambda run, keep=change_map: edit_time(run, 25, keep), *runs)
            lines.append(f"| {name}, against the community pipeline | {one:.2f} s | {other:.2f} s | {times:.3f} |")
        runs = ours(side=LARGE), community(community_path, side=LARGE)
        one, other, times = ratio(lambda run: edit_time(run, 25, np.zeros((LARGE, LARGE))), *runs)
        name = f"an edit of 25 steps, guidance off, {LARGE} x {LARGE} pixels, against the community pipeline"
        lines.append(f"| {name} | {one:.2f} s | {other:.2f} s | {times:.3f} |")
        one, other, times = ratio(lambda run: edit_time(run, 25), base, community(community_path))
        name = "(image-to-image of 25 steps, guidance off, against the community pipeline)"
        lines.append(f"| {name} | {one:.2f} s | {other:.2f} s | {times:.3f} |")
        rivals["the community pipeline"] = community(community_path)
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
        "No GPU was at hand: seconds of the real SDXL architecture are missing, and whether a denoiser that batches",
        "the guider's conditions would gain more than 2 % at 1024 x 1024 is open, so there is none. Waits are the",
        "operations whose answer the host needs; that our loop blocks have none is also a test, on the meta device.",
    ]
    return lines


def main(community_path: Path | None = None) -> None:
    lines = report(community_path)
    print("\n".join(lines))
    RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
