"""Runs every benchmark and prints its tables."""

import platform
from importlib.metadata import version

import torch
from diffusers.utils import logging

from . import steering, still_life


def main() -> None:
    logging.set_verbosity_error()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers"))
    print(f"Still life on {platform.machine()}, {torch.get_num_threads()} threads; {packages}\n")
    still_life.main()
    steering.main()


if __name__ == "__main__":
    main()
