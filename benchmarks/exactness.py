"""How much leaks with every scheduler: table and picture of `docs/exactness.md`, on the embedded checkpoint."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import ClassifierFreeGuidance, FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler
from diffusers.modular_pipelines import LoopSequentialPipelineBlocks
from PIL import Image
from tqdm.auto import tqdm

from modular_diffdiff import SDXLDiffDiffBlocks, ZImageDiffDiffAutoBlocks
from modular_diffdiff.demo import draw_sheet, keep_left
from modular_diffdiff.publishing import PACKAGE
from modular_diffdiff.still_life import CHECKPOINT, FLOW_CHECKPOINT, FLOW_GUIDANCE_SCALE, GUIDANCE_SCALE
from modular_diffdiff.still_life.scene import SIZE, Scene, render
from tests.scheduler_table import OPTIONS, SDXL


PAGE = Path(__file__).parents[1] / "docs/exactness.md"
PICTURE = PACKAGE / "pictures/exactness.png"
STEPS, COUNT = (4, 8, 25), 2
SCENE = Scene("apple", "red", "striped", light=0.3)
PROMPT = "a green pear on a striped background"


@dataclass(frozen=True)
class Model:
    """An embedded checkpoint, with the blocks of its family."""

    name: str
    blocks: type
    checkpoint: str
    guidance_scale: float

    def make_blocks(self, without: tuple[str, ...] = ()):
        """Its blocks, without some of them, in the loop or around it."""
        return take_out(self.blocks().get_workflow("diffdiff"), without)


def loops_of(blocks) -> list[LoopSequentialPipelineBlocks]:
    """The denoising loops of a workflow."""
    return [block for block in blocks.sub_blocks.values() if isinstance(block, LoopSequentialPipelineBlocks)]


def take_out(blocks, without: tuple[str, ...]):
    """A workflow's blocks, changed in place: some names go, in the loop or around it."""
    for sub_blocks in (blocks.sub_blocks, *(loop.sub_blocks for loop in loops_of(blocks))):
        for name in list(sub_blocks):
            if name.split(".")[-1] in without:
                sub_blocks.pop(name)
    return blocks


SDXL_MODEL = Model("SDXL", SDXLDiffDiffBlocks, CHECKPOINT, GUIDANCE_SCALE)
FLOW_MODEL = Model("Z-Image", ZImageDiffDiffAutoBlocks, FLOW_CHECKPOINT, FLOW_GUIDANCE_SCALE)
SHIFT = 2.0  # as the checkpoint's own
# Those that take the sigmas that Z-Image's blocks set.
FLOW = {
    "FlowMatchEulerDiscrete": FlowMatchEulerDiscreteScheduler(shift=SHIFT),
    "FlowMatchEulerDiscrete, stochastic": FlowMatchEulerDiscreteScheduler(shift=SHIFT, stochastic_sampling=True),
    "FlowMatchLCM": FlowMatchLCMScheduler(shift=SHIFT),
}


def make_pipeline(restore: bool, model: Model = SDXL_MODEL):
    return make(model, () if restore else ("restore", "skip_frozen"))


def make(model: Model, without: tuple[str, ...] = ()):
    pipe = model.make_blocks(without).init_pipeline(model.checkpoint)
    pipe.load_components(dtype=torch.float32)
    pipe.update_components(guider=ClassifierFreeGuidance(guidance_scale=model.guidance_scale))
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


def sdxl_schedulers() -> dict[str, object]:
    """All that sample SDXL, with the embedded checkpoint's settings."""
    base = dict(make_pipeline(restore=True).scheduler.config)
    return {
        name.removesuffix("Scheduler"): scheduler_class.from_config(base, **OPTIONS.get(name, {}))
        for name, scheduler_class in SDXL.items()
    }


def measure(model: Model, schedulers: dict[str, object]) -> list[str]:
    """A row a scheduler: leak without and with `restore`, and the correlation under a ramp, at each number of steps."""
    ramp = np.linspace(1, 0, SIZE) * np.ones((SIZE, 1))
    pipes = {restore: make_pipeline(restore, model) for restore in (False, True)}
    rows = []
    for name, scheduler in tqdm(schedulers.items(), "schedulers"):
        for pipe in pipes.values():
            pipe.update_components(scheduler=scheduler)
        cells = []
        for steps in STEPS:
            without, exact = (leak(run(pipe, keep_left(1 / 2), steps)) for pipe in pipes.values())
            follows = correlation(run(pipes[True], ramp, steps), ramp)
            cells.append(f"{without:.2f} / {exact:g} / {follows:.2f}")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def difference_by_skipping() -> list[str]:
    """A row a scheduler: RMS difference of the latents with and without `skip_frozen`, under a ramp."""
    ramp = np.linspace(1, 0.4, SIZE) * np.ones((SIZE, 1))
    pipes = make(SDXL_MODEL), make(SDXL_MODEL, ("skip_frozen",))
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
    ways = ((False, "the paper's algorithm"), (True, "with `restore`"))
    for model, (restore, way) in itertools.product((SDXL_MODEL, FLOW_MODEL), ways):
        pipe, title = make_pipeline(restore, model), f"{model.name}, {way}"
        tiles = [(Image.fromarray(render(SCENE)), "original")]
        tiles += [(run(pipe, keep_left(1 / 2), steps, count=1).images[0], f"{steps} steps") for steps in STEPS]
        rows.append((title, tiles))
    return draw_sheet(rows)


def main() -> None:
    header = " | ".join(f"{steps} steps" for steps in STEPS)
    print("Leak without restoring / with / correlation of change with the map\n")
    head = [f"| scheduler | {header} |", f"|---|{'---|' * len(STEPS)}"]
    write("table", [*head, *measure(SDXL_MODEL, sdxl_schedulers())])
    write("flow", [*head, *measure(FLOW_MODEL, FLOW)])
    write("skipping", ["| scheduler | difference |", "|---|---|", *difference_by_skipping()])
    picture().save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
