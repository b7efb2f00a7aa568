"""How much leaks with every scheduler: table and picture of `docs/exactness.md`, on the embedded checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import ClassifierFreeGuidance
from PIL import Image
from tqdm.auto import tqdm

from modular_diffdiff import SDXLDiffDiffBlocks
from modular_diffdiff.demo import draw_sheet, half_map
from modular_diffdiff.publishing import PACKAGE
from modular_diffdiff.still_life import CHECKPOINT, GUIDANCE_SCALE
from modular_diffdiff.still_life.scene import SIZE, Scene, render
from tests.scheduler_table import OPTIONS, SDXL


PAGE = Path(__file__).parents[1] / "docs/exactness.md"
PICTURE = PACKAGE / "pictures/exactness.png"
STEPS, COUNT = (4, 8, 25), 4
SCENE = Scene("apple", "red", "striped", light=0.3)
PROMPT = "a green pear on a striped background"


def make_pipeline(restore: bool):
    blocks = SDXLDiffDiffBlocks()
    if not restore:
        blocks.sub_blocks.pop("skip_frozen")
        blocks.sub_blocks["denoise"].sub_blocks.pop("restore")
    return make(blocks)


def make(blocks):
    pipe = blocks.init_pipeline(CHECKPOINT)
    pipe.load_components(dtype=torch.float32)
    pipe.update_components(guider=ClassifierFreeGuidance(guidance_scale=GUIDANCE_SCALE))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe, keep: np.ndarray, steps: int, count: int = COUNT):
    return pipe(
        prompt=PROMPT,
        image=Image.fromarray(render(SCENE)),
        diffdiff_map=keep,
        num_inference_steps=steps,
        num_images_per_prompt=count,
        generator=[torch.Generator().manual_seed(seed) for seed in range(count)],
    )


def leak(state) -> float:
    """RMS change of the kept half's latents; they have a variance of 1."""
    return (state.latents - state.image_latents)[..., : state.latents.shape[-1] // 2].square().mean().sqrt().item()


def correlation(state, keep: np.ndarray) -> float:
    """Pearson's, of what changes in each column of latents with what the map lets change."""
    change = (state.latents - state.image_latents).abs().mean((0, 1, 2))
    allowed = 1 - torch.from_numpy(keep).float().reshape(SIZE, len(change), -1).mean((0, 2))
    return torch.corrcoef(torch.stack([change, allowed]))[0, 1].item()


def measure() -> list[str]:
    """A row a scheduler: leak without and with `restore`, and the correlation under a ramp, at each number of steps."""
    ramp = np.linspace(1, 0, SIZE) * np.ones((SIZE, 1))
    pipes = {restore: make_pipeline(restore) for restore in (False, True)}
    base = dict(pipes[True].scheduler.config)
    rows = []
    for name, scheduler_class in tqdm(SDXL.items(), "schedulers"):
        scheduler = scheduler_class.from_config(base, **OPTIONS.get(name, {}))
        for pipe in pipes.values():
            pipe.update_components(scheduler=scheduler)
        cells = []
        for steps in STEPS:
            without, exact = (leak(run(pipe, half_map(), steps)) for pipe in pipes.values())
            follows = correlation(run(pipes[True], ramp, steps), ramp)
            cells.append(f"{without:.2f} / {exact:g} / {follows:.2f}")
        rows.append(f"| {name.removesuffix('Scheduler')} | {' | '.join(cells)} |")
    return rows


def difference_by_skipping() -> list[str]:
    """A row a scheduler: RMS difference of the latents with and without `skip_frozen`, under a ramp."""
    ramp = np.linspace(1, 0.4, SIZE) * np.ones((SIZE, 1))
    whole = SDXLDiffDiffBlocks()
    whole.sub_blocks.pop("skip_frozen")
    pipes = make_pipeline(restore=True), make(whole)
    base = dict(pipes[0].scheduler.config)
    rows = []
    for name in (
        *("EulerDiscrete", "DDIM", "HeunDiscrete", "KDPM2Discrete"),
        *("DPMSolverMultistep", "LMSDiscrete", "DEISMultistep", "UniPCMultistep", "EulerAncestralDiscrete"),
    ):
        scheduler = SDXL[f"{name}Scheduler"].from_config(base)
        for pipe in pipes:
            pipe.update_components(scheduler=scheduler)
        skipped, all_steps = (run(pipe, ramp, 25).latents for pipe in pipes)
        rows.append(f"| {name} | {(skipped - all_steps).square().mean().sqrt().item():.1g} |")
    return rows


def write(name: str, lines: list[str]) -> None:
    """Replaces what stands between the page's marks of this name."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    page = PAGE.read_text()
    table = "\n".join(lines)
    PAGE.write_text(f"{page.split(begin)[0]}{begin}\n{table}\n\n{end}{page.split(end)[1]}")
    print(f"{table}\n")


def picture() -> Image.Image:
    """The same edit at 4, 8 and 25 steps, without and with `restore`."""
    rows = []
    for restore, title in ((False, "The paper's algorithm"), (True, "With `restore`")):
        pipe = make_pipeline(restore)
        tiles = [(Image.fromarray(render(SCENE)), "original")]
        tiles += [(run(pipe, half_map(), steps, count=1).images[0], f"{steps} steps") for steps in STEPS]
        rows.append((title, tiles))
    return draw_sheet(rows)


def main() -> None:
    header = " | ".join(f"{steps} steps" for steps in STEPS)
    print("Leak without restoring / with / correlation of change with the map\n")
    write("table", [f"| scheduler | {header} |", f"|---|{'---|' * len(STEPS)}", *measure()])
    write("skipping", ["| scheduler | difference |", "|---|---|", *difference_by_skipping()])
    picture().save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
