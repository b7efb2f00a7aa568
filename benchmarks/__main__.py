"""Runs the benchmarks, prints their tables, and writes those that have a page: `python -m benchmarks [COMMUNITY]`.

COMMUNITY is the file of diffusers' community pipeline for differential diffusion with SDXL; without it, nothing is
compared with it. What takes long or needs a device runs by itself: `python -m benchmarks.cam`, `benchmarks.real_sdxl`,
`benchmarks.video_memory` and `benchmarks.accelerator`.
"""

import platform
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers.utils import logging

from . import cost, exactness, seams, sources, steering, still_life


def main() -> None:
    logging.set_verbosity_error()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers"))
    print(f"Still life on {platform.machine()}, {torch.get_num_threads()} threads; {packages}\n")
    still_life.main()
    steering.main()
    sources.main()
    exactness.main()
    seams.main()
    cost.main(*map(Path, sys.argv[1:]))


if __name__ == "__main__":
    main()
