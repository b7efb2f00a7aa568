"""What an edit costs with SDXL's real architecture on a CPU: `python -m benchmarks.real_sdxl [COMMUNITY]`.

Random weights in bfloat16: nothing is downloaded. COMMUNITY is the file of diffusers' community pipeline for
differential diffusion with SDXL. Each size has a section of its own in `RESULTS.md`.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch
from diffusers.utils import logging

from .accelerator import Bench, community_pipelines, times
from .architectures import SDXL, Model
from .cost import RESULTS
from .measure import machine, put_section


SIDES = (512, 1024)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_sdxl", description=__doc__.partition("\n")[0])
    parser.add_argument("community", nargs="*", type=Path, help="the file of diffusers' community pipeline")
    parser.add_argument("--sides", nargs="+", type=int, default=SIDES, help="of the pictures (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="of an edit (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="that are measured (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the page (default: benchmarks/RESULTS.md)")
    options = parser.parse_args(arguments)

    community = community_pipelines(options.community)
    for side in options.sides:
        bench = Bench(torch.device("cpu"), side, options.steps, options.turns, community=community)
        lines = [
            f"Measured by `python -m benchmarks.real_sdxl` on {machine()}.",
            f"Random weights and prompt embeddings, bfloat16, {options.steps} steps. An edit encodes the picture and",
            f"decodes it; no text encoder runs. Medians of {options.turns} turns, of times and of their ratios.",
            "Without `batch_guidance`, ours and upstream's make the same calls: what sets their steps apart is noise.",
            "",
        ]
        for line in times(bench, Model(SDXL, bench.device, side, dtype=torch.bfloat16)):
            bench.say(line)
            lines.append(line)
        put_section(options.out, f"SDXL's real architecture, {side} x {side} pixels", lines)


if __name__ == "__main__":
    logging.set_verbosity_error()
    warnings.simplefilter("ignore", FutureWarning)
    main()
