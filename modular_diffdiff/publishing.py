"""Putting the collection, and its embedded checkpoint, on the Hub: one commit, checked before anything is sent.

Heavy libraries are imported where they are used: a mistake in a name is answered before they are loaded.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

from .loading import UserError
from .still_life import CHECKPOINT, COMPANIONS


PACKAGE = Path(__file__).parent
# Where the documents say that the two repos are; a card names the one that it is published as.
BLOCKS_REPO, CHECKPOINT_REPO = "modular-diffdiff/sdxl", "modular-diffdiff/still-life"
_REPO_ID = re.compile(r"[\w-]+/[\w.-]+")
# Files that the Hub makes itself.
_EMPTY_REPO = {".gitattributes", "README.md"}


@dataclass(frozen=True)
class Content:
    """What a repo is made of.

    Attributes:
        assemble: Writes its files into a folder.
        check: Python that a fresh process runs beside them; it prints a line, or fails.
        mark: A file that no other repo has.
        default_repo: What its card calls it.
    """

    assemble: Callable[[Path], None]
    check: str
    mark: str
    default_repo: str


def _assemble_blocks(folder: Path) -> None:
    from . import mellon
    from .presets import SDXLDiffDiffAutoBlocks

    SDXLDiffDiffAutoBlocks().save_pretrained(folder)
    shutil.copyfile(PACKAGE / "modular_model_index.json", folder / "modular_model_index.json")
    shutil.copyfile(PACKAGE / "model_card.md", folder / "README.md")
    shutil.copytree(PACKAGE / "pictures", folder / "pictures")
    mellon.build_config(BLOCKS_REPO).save(folder)


def _assemble_checkpoint(folder: Path) -> None:
    shutil.copytree(CHECKPOINT, folder, dirs_exist_ok=True)
    shutil.copytree(COMPANIONS, folder, dirs_exist_ok=True)
    shutil.copyfile(PACKAGE / "still_life" / "model_card.md", folder / "README.md")


BLOCKS = Content(
    assemble=_assemble_blocks,
    check="""
from diffusers import ModularPipeline
pipe = ModularPipeline.from_pretrained(".", trust_remote_code=True)
name, module = type(pipe.blocks).__name__, type(pipe.blocks).__module__
# a failed load builds upstream's pipeline without a word
assert (name, module.split(".")[0]) == ("SDXLDiffDiffAutoBlocks", "diffusers_modules"), f"loads as {module}.{name}"
assert "TODO" not in pipe.doc, "inputs without a sentence"
print(f"loads as {name}, with {len(pipe.blocks.inputs)} inputs and {len(pipe.blocks.available_workflows)} workflows")
""",
    mark="blocks/diffdiff_docs.py",
    default_repo=BLOCKS_REPO,
)
STILL_LIFE = Content(
    assemble=_assemble_checkpoint,
    check="""
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(".")
assert type(pipe).__name__ == "StableDiffusionXLPipeline", f"loads as {type(pipe).__name__}"
print(f"loads as {type(pipe).__name__}, with {sum(p.numel() for p in pipe.unet.parameters()):,} weights in its UNet")
""",
    mark="ip_adapter/ip-adapter_still-life.safetensors",
    default_repo=CHECKPOINT_REPO,
)


def check_repo_id(repo_id: str) -> None:
    """Refuses names that are none, and those that upstream's loader makes no module of.

    Raises:
        UserError: If `repo_id` is no "owner/name" of letters, digits, "-" and "_".
    """
    if not _REPO_ID.fullmatch(repo_id):
        raise UserError(f"REPO_ID {repo_id!r} is no repository's name on the Hub (owner/name).")
    if "." in repo_id:
        raise UserError(f"REPO_ID {repo_id!r} has a dot in it: diffusers cannot import code from such a repository.")


def assemble(content: Content, repo_id: str, folder: Path) -> str:
    """Writes the files of a repo into a new folder, and loads them in a fresh process.

    Returns:
        What that process said.

    Raises:
        UserError: If the folder exists.
        OSError: If the files do not load as what they are.
    """
    if folder.exists():
        raise UserError(f"{folder} exists; name another folder with --out, or remove it.")
    folder.mkdir(parents=True)
    content.assemble(folder)
    (folder / "LICENSE").write_text(distribution("modular-diffdiff").read_text("licenses/LICENSE"))
    for name in ("README.md", "mellon_pipeline_config.json"):
        if (folder / name).exists():
            text = (folder / name).read_text(encoding="utf-8")
            (folder / name).write_text(text.replace(content.default_repo, repo_id), encoding="utf-8")
    return _check(content, folder)


def _check(content: Content, folder: Path) -> str:
    with tempfile.TemporaryDirectory() as cache:
        fresh = {"HF_MODULES_CACHE": cache, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-c", content.check]
        result = subprocess.run(command, cwd=folder, env=os.environ | fresh, capture_output=True, text=True)
    if result.returncode:
        raise OSError(f"{folder} does not load: {result.stderr.strip().splitlines()[-1]}")
    return result.stdout.strip()


def list_files(folder: Path) -> list[tuple[str, int]]:
    """Name and size in bytes of every file in a folder, in the order of their names."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted((path.relative_to(folder).as_posix(), path.stat().st_size) for path in files)


def check_target(content: Content, repo_id: str, private: bool) -> None:
    """Looks whether the repo can be written, and holds nothing else.

    Raises:
        UserError: If there is no token, its owner may not write there, the repo holds something else, or is public and
            shall be private.
    """
    from huggingface_hub import HfApi, get_token

    api = HfApi()
    if get_token() is None:
        raise UserError("there is no token to write to the Hub with: run `hf auth login`, or set HF_TOKEN.")
    known = api.whoami()
    owners = [known["name"], *(organization["name"] for organization in known.get("orgs", []))]
    owner = repo_id.split("/")[0]
    if owner not in owners:
        raise UserError(f"REPO_ID {repo_id!r}: this token may write to {', '.join(owners)}, and not to {owner!r}.")
    if not api.repo_exists(repo_id):
        return
    there = api.model_info(repo_id)
    files = {sibling.rfilename for sibling in there.siblings}
    if content.mark not in files and not files <= _EMPTY_REPO:
        raise UserError(f"REPO_ID {repo_id!r} is taken: it exists, and holds something else.")
    if private and not there.private:
        raise UserError(f"--private: {repo_id!r} exists and is public; that is changed in its settings on the Hub.")


def upload(content: Content, repo_id: str, folder: Path, private: bool, revision: str | None) -> str:
    """Makes the repo what the folder is, in one commit, or leaves all as it was.

    Args:
        revision: The branch to commit to; made where there is none, "main" by default.

    Returns:
        The commit's address; that of the last one where nothing has changed.

    Raises:
        OSError: If the Hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    version = distribution("modular-diffdiff").version
    with _made_for_this(api, repo_id, private, revision):
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=f"modular-diffdiff {version}",
            delete_patterns="*",
        )
    return commit.commit_url


@contextmanager
def _made_for_this(api, repo_id: str, private: bool, revision: str | None) -> Iterator[None]:
    """Makes the repo and the branch where there are none, and takes them back if what follows fails."""
    from huggingface_hub.utils import httpx

    undo = []
    try:
        if not api.repo_exists(repo_id):
            api.create_repo(repo_id, private=private)
            undo.append(lambda: api.delete_repo(repo_id))
        if revision is not None and revision not in (branch.name for branch in api.list_repo_refs(repo_id).branches):
            api.create_branch(repo_id, branch=revision)
            undo.append(lambda: api.delete_branch(repo_id, branch=revision))
        yield
    except BaseException as error:
        for take_back in reversed(undo):
            take_back()
        if isinstance(error, httpx.TransportError):
            raise ConnectionError(f"the Hub cannot be reached: {error}") from error
        raise
