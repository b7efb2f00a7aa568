"""What an edit costs on an accelerator: `python -m benchmarks.accelerator [--small] [COMMUNITY ...]`.

The real architectures of SDXL, Z-Image and Flux with random weights in half precision, at 1024 x 1024 pixels: it takes
ten minutes at most, and downloads nothing. COMMUNITY are files of diffusers' community pipelines for differential
diffusion. `--small` runs the same code on toys, on a CPU.
"""

from __future__ import annotations

import argparse
import functools
import gc
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import torch
from diffusers import ComponentsManager
from diffusers.utils import logging
from diffusers.utils.torch_utils import TorchDeviceBackend

from . import cost
from .architectures import FLUX, SDXL, SMALL_AUTOENCODER, Z_IMAGE, Architecture, Editor, Model, seeded
from .measure import Waits, at_each_call, compared, in_turns, load_community, machine, put_section


PAGE = Path(__file__).parent / "ACCELERATOR.md"
ARCHITECTURES = (SDXL, Z_IMAGE, FLUX)
RESERVE = 12e9  # bytes beside the denoiser's weights: the autoencoder's, and what a step and the decoder need
COMMUNITY = "the community pipeline"
TIMES_HEAD = ("| | a step, ours | theirs | ratio | an edit, ours | theirs | ratio |", "|---|---|---|---|---|---|---|")


@dataclass
class Bench:
    """How much is measured, where, and against whom.

    Attributes:
        device: What is measured.
        side: Of the picture, in pixels.
        steps: Of an edit.
        turns: In which things are compared, at most.
        counts: Of the pictures in a call.
        small: Whether on toys.
        minutes: That all of it may take.
        community: Classes of diffusers' community pipelines, by name.
        started: When, by `time.perf_counter`.
        until: When the section that runs has to end.
    """

    device: torch.device
    side: int = 1024
    steps: int = 6
    turns: int = 9
    counts: tuple[int, ...] = (1, 2, 4, 8)
    small: bool = False
    minutes: float = 9.0
    community: dict[str, type] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    until: float = float("inf")

    def __post_init__(self):
        self.backend = TorchDeviceBackend(self.device)
        self.has_memory = self.device.type != "cpu" and hasattr(self.backend.module, "max_memory_allocated")

    def say(self, text: str) -> None:
        print(f"[{time.perf_counter() - self.started:4.0f} s] {text}", file=sys.stderr, flush=True)

    def give_share(self, sections: int) -> None:
        """The next section has its share of the time that is left for so many."""
        now = time.perf_counter()
        self.until = now + (self.started + 60 * self.minutes - now) / sections

    def is_over(self) -> bool:
        return time.perf_counter() > self.until

    def time_for_turns(self) -> Callable[[], bool]:
        """Says when a comparison has had its part of the section's time."""
        now = time.perf_counter()
        end = now + (self.until - now) / 3
        return lambda: time.perf_counter() > end

    def model(self, architecture: Architecture) -> Model:
        """A toy, or as much of the real one as the device's memory holds."""
        if self.small:
            config = architecture.config | architecture.small
            return Model(architecture, self.device, self.side, config=config, autoencoder=SMALL_AUTOENCODER)
        free = self.backend.mem_get_info()[0] if self.has_memory else float("inf")
        return Model(architecture, self.device, self.side, config=architecture.fitted(free - RESERVE))

    def rivals(self, model: Model, guided: bool) -> dict[str, Editor]:
        """Who else edits with this model."""
        rivals = {"upstream's image-to-image": model.upstream(guided)}
        if (pipeline_class := self.community.get(model.architecture.community)) is not None:
            rivals[COMMUNITY] = model.community(pipeline_class, guided)
        return rivals

    def without_those_that_fail(self, model: Model) -> list[str]:
        """Tries the community pipeline of a model; one that fails is left out, and is what the lines say."""
        pipeline_class = self.community.get(model.architecture.community)
        if pipeline_class is None:
            return []
        try:
            model.community(pipeline_class)(2, self.map_of(0.0))
        except Exception as error:
            del self.community[model.architecture.community]
            return ["", failure("The community pipeline is left out", error)]
        return []

    def map_of(self, keep: float) -> np.ndarray:
        return np.full((self.side, self.side), keep)

    def free(self) -> None:
        if self.has_memory:
            gc.collect()
            self.backend.empty_cache()

    # Clocks

    def mark(self) -> float | torch.Event:
        """A moment in the device's queue, without waiting for it."""
        if self.device.type == "cpu":
            return time.perf_counter()
        event = getattr(self.backend.module, "Event", torch.Event)(enable_timing=True)
        event.record()
        return event

    def seconds(self, edit: Editor, keep: float = 0.0, **inputs) -> tuple[float, float]:
        """Those of a step, from one call of the denoiser to the next, and of the whole edit."""
        marks = []
        self.backend.synchronize()
        start = time.perf_counter()
        with at_each_call(edit.denoiser, lambda: marks.append(self.mark())):
            edit(self.steps, self.map_of(keep), **inputs)
        self.backend.synchronize()
        whole = time.perf_counter() - start
        first, last = marks[0], marks[-edit.calls]
        in_loop = last - first if isinstance(first, float) else first.elapsed_time(last) / 1e3
        return in_loop / (len(marks) // edit.calls - 1), whole

    def all_seconds(self, editors: dict[str, tuple[Editor, float]]) -> dict[str, np.ndarray]:
        """`seconds` of editors, each with what its map keeps, in turns, without Python's collection of garbage."""
        measures = {name: functools.partial(self.seconds, *edit) for name, edit in editors.items()}
        gc.collect()
        gc.disable()  # as timeit does
        try:
            return in_turns(measures, self.turns, self.time_for_turns())
        finally:
            gc.enable()

    def seconds_and_peak(self, edit: Editor, **inputs) -> tuple[tuple[float, float], str]:
        """`seconds`, and the device's peak memory meanwhile."""
        self.free()
        if self.has_memory:
            self.backend.reset_peak_memory_stats()
        seconds = self.seconds(edit, **inputs)
        return seconds, f"{self.backend.max_memory_allocated() / 1e9:.2f} GB" if self.has_memory else "not measured"

    @contextmanager
    def waiting(self) -> Iterator[Callable[[], int]]:
        """Counts how often the host waits for the device."""
        if self.device.type != "cuda":
            with Waits() as waits:
                yield lambda: waits.count
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield lambda: sum("called a synchronizing" in str(warning.message) for warning in caught)
            finally:
                torch.cuda.set_sync_debug_mode("default")

    def waits(self, edit: Editor) -> float:
        """How often the host waits in a step."""
        counts = []
        with self.waiting() as count, at_each_call(edit.denoiser, lambda: counts.append(count())):
            edit(self.steps, self.map_of(0.0))
        return (counts[-edit.calls] - counts[0]) / (len(counts) // edit.calls - 1)


def shown(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def times_row(label: str, ones: np.ndarray, others: np.ndarray) -> str:
    cells = [
        cell
        for one, other, ratio in zip(*compared(ones, others), strict=True)
        for cell in (shown(one), shown(other), f"{ratio:.3f}")
    ]
    return f"| {label} | {' | '.join(cells)} |"


# What is measured of each architecture, in this order


def times(bench: Bench, model: Model) -> Iterator[str]:
    yield from TIMES_HEAD
    for guided in (False, True) if model.architecture.guided else (False,):
        label = ("guidance on, " if guided else "guidance off, ") if model.architecture.guided else ""
        rivals = bench.rivals(model, guided)
        editors = {"ours": model.ours(guided)} | rivals
        if guided:
            editors["batched"] = model.ours(guided, batched=True)
        taken = bench.all_seconds({name: (edit, 0.0) for name, edit in editors.items()})
        for name in rivals:
            yield times_row(label + name, taken["ours"], taken[name])
        if guided:
            yield times_row(f"{label}`batch_guidance`, ours without", taken["batched"], taken["ours"])
            for name in rivals:
                yield times_row(f"{label}`batch_guidance`, {name}", taken["batched"], taken[name])


def times_half_frozen(bench: Bench, model: Model) -> Iterator[str]:
    yield from TIMES_HEAD
    ours = model.ours()
    editors = {"ours, with none frozen": (ours, 0.0)}
    editors |= {name: (edit, 0.5) for name, edit in bench.rivals(model, guided=False).items() if name == COMMUNITY}
    taken = bench.all_seconds({"ours": (ours, 0.5)} | editors)
    for name in editors:
        yield times_row(name, taken["ours"], taken[name])


def waits_and_memory(bench: Bench, model: Model) -> Iterator[str]:
    editors = {"ours": model.ours()} | bench.rivals(model, guided=False)
    if model.architecture.guided:
        editors["ours, guidance on, `batch_guidance`"] = model.ours(guided=True, batched=True)
    yield from ("| | waits of the host for the device, a step | peak memory |", "|---|---|---|")
    for name, edit in editors.items():
        _, peak = bench.seconds_and_peak(edit)
        yield f"| {name} | {bench.waits(edit):g} | {peak} |"


def kept(bench: Bench, model: Model) -> Iterator[str]:
    channels, side = model.autoencoder.config.latent_channels, bench.side // 8
    original = torch.randn(1, channels, side, side, device=bench.device, dtype=model.dtype)
    change_map = bench.map_of(0.0)
    change_map[:, : bench.side // 2] = 1.0
    edited = model.ours(latents=True)(bench.steps, change_map, image_latents=original, output_type="latent").latents
    differ = edited != original.to(edited.dtype)
    halves = differ[..., : side // 2], differ[..., side // 2 :]
    yield f"Of {halves[0].numel():,} kept latents {halves[0].sum().item():,} differ from the original's;"
    yield f"of those that are free, {halves[1].float().mean().item():.0%}."


def batches(bench: Bench, model: Model) -> Iterator[str]:
    yield from ("| pictures, decoded one by one | a picture | peak memory |", "|---|---|---|")
    edit = model.ours()
    model.autoencoder.enable_slicing()
    try:
        for count in bench.counts:
            if bench.is_over():
                yield f"| {count} | left out: time was up | |"
                continue
            seeds = {"num_images_per_prompt": count, "generator": [seeded(k) for k in range(count)]}
            edit(1, bench.map_of(0.0), **seeds)  # warms up
            (_, whole), peak = bench.seconds_and_peak(edit, **seeds)
            yield f"| {count} | {shown(whole / count)} | {peak} |"
    finally:
        model.autoencoder.disable_slicing()


def compiled(bench: Bench, model: Model) -> Iterator[str]:
    edit = model.ours()
    model.denoiser.compile_repeated_blocks(backend="eager" if bench.small else "inductor")

    def eagerly(*arguments):
        with torch.compiler.set_stance("force_eager"):
            return edit(*arguments)

    try:
        taken = bench.all_seconds({"compiled": (edit, 0.0), "not": (Editor(eagerly, edit.denoiser), 0.0)})
    finally:
        for block in model.denoiser.modules():
            block._compiled_call_impl = None  # there is no public way back
        torch.compiler.reset()
    yield from TIMES_HEAD
    yield times_row("ours, not compiled", taken["compiled"], taken["not"])
    yield from ("", "The time that compiling takes is left out.")


def offloaded(bench: Bench, model: Model) -> Iterator[str]:
    if not bench.has_memory:
        yield "Not measured: it needs an accelerator."
        return
    sizes = {part: part.get_memory_footprint() for part in (model.denoiser, model.autoencoder)}
    limit = max(sizes.values()) + min(sizes.values()) // 2
    manager = ComponentsManager()
    edit = model.ours(manager=manager)
    for part in sizes:
        part.to("cpu")
    bench.free()
    margin = bench.backend.mem_get_info()[0] - limit
    manager.enable_auto_cpu_offload(device=bench.device, memory_reserve_margin=margin)
    try:
        (_, whole), peak = bench.seconds_and_peak(edit)
    finally:
        manager.disable_auto_cpu_offload()
        for part in sizes:
            part.to(bench.device)
    yield from ("| room for weights, so that one model fits at a time | peak memory | an edit |", "|---|---|---|")
    yield f"| {limit / 1e9:.2f} of {sum(sizes.values()) / 1e9:.2f} GB | {peak} | {shown(whole)} |"


PARTS = {
    "Against others": times,
    "With half of the steps frozen": times_half_frozen,
    "Waits and memory": waits_and_memory,
    "Kept latents": kept,
    "Several seeds in a call": batches,
    "With `compile_repeated_blocks`": compiled,
    "With `enable_auto_cpu_offload`": offloaded,
}


def one_architecture(bench: Bench, page: Path, architecture: Architecture) -> None:
    """Its section, written again with each part that is measured; what fails says so and takes no other with it."""
    try:
        model = bench.model(architecture)
    except Exception as error:
        put_section(page, architecture.name, [failure("The model could not be made", error)])
        return
    lines = [f"{model.parameters / 1e9:.3g} billion parameters, {str(model.dtype).removeprefix('torch.')}."]
    published = architecture.small if bench.small else architecture.config
    if any(model.denoiser.config[name] != published[name] for name in architecture.layers):
        layers = ", ".join(f"{name}={model.denoiser.config[name]}" for name in architecture.layers)
        lines.append(f"The device's memory holds no more layers than {layers}.")
    lines += bench.without_those_that_fail(model)
    for title, part in PARTS.items():
        bench.say(f"{architecture.name}: {title}")
        lines += ["", f"### {title}", ""]
        try:
            if bench.is_over():
                lines.append("Left out: time was up.")
            else:
                for line in part(bench, model):
                    lines.append(line)
        except Exception as error:
            lines += ["", failure("Not measured", error)]
        put_section(page, architecture.name, lines)
        bench.free()


def failure(what: str, error: Exception) -> str:
    traceback.print_exc(limit=-4)
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{what}: {type(error).__name__}: {first}"


def both_devices(bench: Bench, page: Path) -> None:
    """The embedded checkpoint's edit on the CPU and on the device, in float32."""
    models = [part for part in cost.models().values() if isinstance(part, torch.nn.Module)]
    edit = cost.ours(cost.GUIDANCE_SCALE)
    lines = ["| | largest difference | RMS difference |", "|---|---|---|"]

    def drawn() -> np.ndarray:
        return np.asarray(edit(bench.steps, cost.WHITE_HALF).images[0], np.float64)

    on_cpu, tf32 = drawn(), torch.backends.cudnn.allow_tf32
    try:
        for part in models:
            part.to(bench.device)
        for allowed in (True, False) if bench.device.type == "cuda" else (False,):
            torch.backends.cudnn.allow_tf32 = allowed
            difference = np.abs(drawn() - on_cpu)
            label = "convolutions in TF32, as torch comes" if allowed else "without TF32"
            rms = np.sqrt((difference**2).mean())
            lines.append(f"| {label} | {difference.max():.0f} of 255 | {rms:.4f} of 255 |")
    except Exception as error:
        lines += ["", failure("Not measured", error)]
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
        for part in models:
            part.to("cpu")
    about = f"The embedded checkpoint in float32, {bench.steps} steps with guidance, the left half kept: its pictures."
    put_section(page, "The same edit on the CPU and on the device", [about, "", *lines])


def head(bench: Bench) -> str:
    name = None
    if bench.device.type != "cpu":
        name = getattr(bench.backend.module, "get_device_name", lambda: bench.device.type)()
        name += f" ({bench.backend.mem_get_info()[1] / 1e9:.0f} GB)" if bench.has_memory else ""
    what = "Toys of the architectures" if bench.small else "The published architectures"
    return f"""# What an edit costs on an accelerator

Measured by `python -m benchmarks.accelerator{" --small" if bench.small else ""}` on
{machine(name)}; {date.today()}.
{what} with random weights and prompt embeddings, {bench.side} x {bench.side} pixels, {bench.steps} steps.
An edit encodes the picture and decodes it; no text encoder runs. What is compared was measured in turns, up to
{bench.turns} of them, as time allowed: medians of times and of ratios. A step is timed on the device's clock, an edit
on the host's.
"""


def community_pipelines(files: list[Path]) -> dict[str, type]:
    """The classes of diffusers' community pipelines in these files, by name.

    Raises:
        ValueError: If one of them has none for any of the architectures.
    """
    known = {architecture.community for architecture in ARCHITECTURES}
    found = {}
    for file in files:
        classes = {name: value for name, value in vars(load_community(file)).items() if name in known}
        if not classes:
            raise ValueError(f"{file} has none of {', '.join(sorted(known))}.")
        found |= classes
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accelerator", description=__doc__.partition("\n")[0])
    parser.add_argument("community", nargs="*", type=Path, help="files of diffusers' community pipelines")
    parser.add_argument("--small", action="store_true", help="toys on a CPU, printed and not written")
    parser.add_argument("--minutes", type=float, default=9.0, help="that it may take (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="the page (default: benchmarks/ACCELERATOR.md, or none with --small)")
    options = parser.parse_args(arguments)

    device = torch.accelerator.current_accelerator(check_available=True)
    if not options.small and device is None:
        parser.error("There is no accelerator; `--small` runs the same code on a CPU.")
    try:
        effort = {"minutes": options.minutes, "community": community_pipelines(options.community)}
    except ValueError as error:
        parser.error(str(error))
    if options.small:
        bench = Bench(torch.device("cpu"), side=64, steps=4, turns=1, counts=(1, 2), small=True, **effort)
    else:
        bench = Bench(device, **effort)
    page = options.out or (Path(tempfile.mkdtemp()) / PAGE.name if options.small else PAGE)
    page.write_text(head(bench))
    both_devices(bench, page)
    for done, architecture in enumerate(ARCHITECTURES):
        bench.give_share(len(ARCHITECTURES) - done)
        one_architecture(bench, page, architecture)
        bench.free()
    bench.say(f"written: {page}")
    if options.small:
        print(page.read_text())


if __name__ == "__main__":
    logging.set_verbosity_error()
    warnings.simplefilter("ignore", FutureWarning)
    main()
