"""Saving pipelines' blocks as a repo that loads: upstream writes down the name of their class, and no code."""

from __future__ import annotations

import inspect
import os
import shutil
from pathlib import Path
from typing import Any

from diffusers.modular_pipelines import ModularPipelineBlocks
from diffusers.utils.dynamic_modules_utils import get_relative_imports


def save_code(blocks: ModularPipelineBlocks, folder: str | os.PathLike) -> None:
    """Writes the module that a pipeline's class is defined in, and the modules of `blocks/` that it names.

    Raises:
        ValueError: If loading the class again would make other blocks than these.
    """
    entry = Path(inspect.getfile(type(blocks)))
    modules = [Path(*module.split(".")).with_suffix(".py") for module in get_relative_imports(entry)]
    if not modules or any(len(module.parts) != 2 or not (entry.parent / module).exists() for module in modules):
        raise ValueError(
            f"Blocks are saved as their class, and {type(blocks).__name__} is not one of the pipelines "
            "of `presets.py` or `families.py`; save one of those, e.g. `SDXLDiffDiffAutoBlocks().save_pretrained(...)`."
        )
    if _outline(blocks) != _outline(type(blocks)()):
        raise ValueError(
            f"Blocks are saved as their class, and these differ from `{type(blocks).__name__}()`: save "
            "that, and change its blocks again after loading."
        )
    for module in (Path(entry.name), *modules):
        target = Path(folder, module)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(entry.parent / module, target)


def _outline(blocks: ModularPipelineBlocks) -> list[Any]:
    """Names and classes of all blocks within these."""
    return [(name, type(block).__name__, _outline(block)) for name, block in blocks.sub_blocks.items()]


class SavedWithCode:
    """Mixin of a pipeline's blocks, which are saved as a repo that loads."""

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Saves the blocks with their code, so that `from_pretrained(save_directory, trust_remote_code=True)` has them.

        `pipe.save_pretrained(save_directory)` adds the components.

        Args:
            save_directory: Folder for the code and `modular_config.json`; created if it does not exist.

        Raises:
            ValueError: If these are not the blocks that their class makes: code is saved, and not objects.
        """
        save_code(self, save_directory)
        module = type(self).__module__.rsplit(".", 1)[-1]
        self.register_to_config(auto_map={"ModularPipelineBlocks": f"{module}.{type(self).__name__}"})
        self.save_config(save_directory)
