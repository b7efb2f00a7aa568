"""Putting the collection, and its embedded checkpoint, on the Hub: one commit, checked before anything is sent.

Heavy libraries are imported where they are used: a mistake in a name is answered before they are loaded.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import distribution, requires, version
from importlib.util import find_spec
from pathlib import Path

from .catalog import FAMILIES, OWNER, PACKAGE, Family
from .loading import UserError
from .still_life import CHECKPOINT, COMPANIONS


BLOCKS_REPO, CHECKPOINT_REPO = f"{OWNER}/sdxl", f"{OWNER}/still-life"
_DOCUMENTS = ("README.md", "LICENSE", ".gitattributes")
_CODE = ("presets.py", "families.py", "videos.py")
_BLOCK_CODE = "map_blocks.py"
_CONFIGS = ("modular_config.json", "modular_model_index.json", "mellon_pipeline_config.json")
# Files that the Hub makes itself.
_EMPTY_REPO = {".gitattributes", "README.md"}


@dataclass(frozen=True)
class Content:
    """What a repo is made of.

    Attributes:
        default_repo: What its card calls it.
        assemble: Writes its files into a folder.
        check: Python that a fresh process runs beside them; it prints a line, or fails.
        own: Patterns of the files that it, or an earlier version of it, consists of.
        mark: The file that distinguishes it from our other repos.
        marks: Words that this file holds.
        kind: The Hub's type of repo.
    """

    default_repo: str
    assemble: Callable[[Path], None]
    check: str
    own: tuple[str, ...]
    mark: str
    marks: str
    kind: str = "model"


_CHECK_BLOCKS = """
from diffusers import ModularPipeline
pipe = ModularPipeline.from_pretrained(".", trust_remote_code=True)
name, module = type(pipe.blocks).__name__, type(pipe.blocks).__module__
# a failed load silently builds upstream's pipeline
assert (name, module.split(".")[0]) == ("{blocks}", "diffusers_modules"), f"loads as {{module}}.{{name}}"
assert "TODO" not in pipe.doc, "inputs without a sentence"
inputs, workflows = pipe.blocks.inputs, pipe.blocks.available_workflows
print(f"loads as {{name}}, with {{len(inputs)}} inputs and {{len(workflows)}} workflows")
"""
_CHECK_BLOCK = """
from diffusers import ModularPipelineBlocks
block = ModularPipelineBlocks.from_pretrained(".", trust_remote_code=True)
assert type(block).__name__ == "{block}", f"loads as {{type(block).__name__}}"
assert "TODO" not in block.init_pipeline().doc, "inputs without a sentence"
print(f"loads as {{type(block).__name__}}, with {{len(block.inputs)}} inputs")
"""
_CHECK_CHECKPOINT = """
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(".")
assert type(pipe).__name__ == "StableDiffusionXLPipeline", f"loads as {type(pipe).__name__}"
print(f"loads as {type(pipe).__name__}, with {sum(p.numel() for p in pipe.unet.parameters()):,} weights in its UNet")
"""


_CHECK_SPACE = """
import json, os, pathlib, subprocess, sys, tempfile
from gradio_client import Client, handle_file
from PIL import Image
with tempfile.TemporaryDirectory() as folder:
    settings = pathlib.Path(folder, "settings.json")
    settings.write_text("{}")  # the embedded model's: nothing is downloaded
    environment = {**os.environ, "DIFFDIFF_SETTINGS": str(settings), "GRADIO_SERVER_NAME": "127.0.0.1"}
    ramp = pathlib.Path(folder, "ramp.png")  # a picture and its map
    Image.linear_gradient("L").save(ramp)
    with subprocess.Popen([sys.executable, "app.py"], env=environment, stdout=subprocess.PIPE, text=True) as page:
        try:
            address = page.stdout.readline().strip()
            assert address.startswith("http"), "the page does not start"
            asked = {"image": handle_file(ramp), "prompt": "a pear", "change_map": handle_file(ramp), "steps": 2}
            made = Client(address, verbose=False, download_files=folder).predict(**asked, api_name="/edit")
            assert pathlib.Path(made).stat().st_size, "an edit is empty"
        finally:
            page.terminate()
print("starts, and edits")
"""


def blocks_of(name: str) -> Content:
    """The repo of a family, by its name in the catalog."""
    family, repo = FAMILIES[name], f"{OWNER}/{name.replace('.', '-')}"
    return Content(
        default_repo=repo,
        assemble=lambda folder: _assemble_blocks(family, repo, folder),
        check=_CHECK_BLOCKS.format(blocks=family.blocks),
        own=(*_CODE, "blocks/*.py", "pictures/*", *_CONFIGS, *_DOCUMENTS),
        mark="modular_config.json",
        marks=f'"{family.module}.{family.blocks}"',
    )


def block_of(name: str) -> Content:
    """The repo of one block, by its name in `map_blocks.MAP_BLOCKS`.

    Raises:
        UserError: If no block has this name.
    """
    from .map_blocks import MAP_BLOCKS

    if name not in MAP_BLOCKS:
        raise UserError(f"--block is {name!r}; it takes one of {', '.join(MAP_BLOCKS)}.")
    kind, repo = MAP_BLOCKS[name].__name__, f"{OWNER}/{name}"
    return Content(
        default_repo=repo,
        assemble=lambda folder: _assemble_block(name, repo, folder),
        check=_CHECK_BLOCK.format(block=kind),
        own=(_BLOCK_CODE, "blocks/*.py", "modular_config.json", *_DOCUMENTS),
        mark="modular_config.json",
        marks=f'"map_blocks.{kind}"',
    )


def still_life() -> Content:
    """The repo of the embedded checkpoint and its companions."""
    return Content(
        default_repo=CHECKPOINT_REPO,
        assemble=_assemble_checkpoint,
        check=_CHECK_CHECKPOINT,
        own=(*(f"{part}/*" for part in _parts()), "model_index.json", *_DOCUMENTS),
        mark="README.md",
        marks="# still-life: a small SDXL",
    )


def space_of(name: str | None) -> Content:
    """The Space of a family, by its name in the catalog; of the embedded model by default.

    Raises:
        UserError: If no checkpoint of the family is known, or gradio is missing.
    """
    if find_spec("gradio") is None:
        raise UserError("--space needs gradio: pip install 'gradio>=6.31'.")
    if name is not None and FAMILIES[name].model is None:
        raise UserError(f"--space: no checkpoint of {FAMILIES[name].title} is known that it could use.")
    return Content(
        default_repo=f"{OWNER}/page",
        assemble=lambda folder: _assemble_space(name, folder),
        check=_CHECK_SPACE,
        own=("app.py", "settings.json", "requirements.txt", "modular_diffdiff/*", *_DOCUMENTS),
        mark="app.py",
        marks="from modular_diffdiff import web",
        kind="space",
    )


def _parts() -> list[str]:
    """The folders of the checkpoint and its companions."""
    return [part.name for whole in (CHECKPOINT, COMPANIONS) for part in Path(whole).iterdir() if part.is_dir()]


def _assemble_blocks(family: Family, repo: str, folder: Path) -> None:
    from . import cards, mellon

    blocks = family.blocks_class()
    blocks.save_pretrained(folder)
    if family.module == "presets":
        for name, target in (("modular_model_index.json", "modular_model_index.json"), ("model_card.md", "README.md")):
            shutil.copyfile(PACKAGE / name, folder / target)
        shutil.copytree(PACKAGE / "pictures", folder / "pictures")
    else:
        cards.write_index(family, folder)
        (folder / "README.md").write_text(cards.family_card(family, repo), encoding="utf-8")
        (folder / "pictures").mkdir()
        for name in cards.PICTURES:
            shutil.copyfile(PACKAGE / "pictures" / name, folder / "pictures" / name)
    mellon.build_config(blocks, family.title, repo).save(folder)


def _assemble_block(name: str, repo: str, folder: Path) -> None:
    from diffusers.utils.dynamic_modules_utils import get_relative_imports

    from . import cards
    from .map_blocks import MAP_BLOCKS

    block = MAP_BLOCKS[name]()
    block.register_to_config(auto_map={"ModularPipelineBlocks": f"map_blocks.{type(block).__name__}"})
    block.save_config(folder)
    (folder / "blocks").mkdir()
    for module in (
        _BLOCK_CODE,
        *(f"{path.replace('.', '/')}.py" for path in get_relative_imports(PACKAGE / _BLOCK_CODE)),
    ):
        shutil.copyfile(PACKAGE / module, folder / module)
    (folder / "README.md").write_text(cards.block_card(name, block, repo), encoding="utf-8")


def _assemble_checkpoint(folder: Path) -> None:
    shutil.copytree(CHECKPOINT, folder, dirs_exist_ok=True)
    shutil.copytree(COMPANIONS, folder, dirs_exist_ok=True)
    shutil.copyfile(PACKAGE / "still_life" / "model_card.md", folder / "README.md")


def _assemble_space(name: str | None, folder: Path) -> None:
    from .blocks.diffdiff_make_map import SOURCES
    from .maps import OPTIONS

    settings = {}
    if name is not None:
        examples = {
            source.needs[0]: next(iter(source.models.values()))[1] for source in SOURCES if hasattr(source, "models")
        }
        named = {OPTIONS[asks].removeprefix("--").replace("-", "_"): model for asks, model in examples.items()}
        settings = {"model": FAMILIES[name].model} | named
    card = (PACKAGE / "space" / "README.md").read_text(encoding="utf-8")
    models = "".join(f"\n- {model}" for model in settings.values()) or " []"
    title = "a small still-life model" if name is None else FAMILIES[name].title
    (folder / "README.md").write_text(
        card.format(gradio=version("gradio"), models=models, title=title, owner=OWNER), encoding="utf-8"
    )
    (folder / "settings.json").write_text(json.dumps(settings, indent=2))
    needed = [line for line in requires("modular-diffdiff") if "extra ==" not in line]
    (folder / "requirements.txt").write_text("\n".join([*needed, "spaces"]) + "\n")
    shutil.copyfile(PACKAGE / "space" / "app.py", folder / "app.py")
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))


def check_repo_id(repo_id: str, holds_code: bool) -> None:
    """Refuses what cannot be a repository's name, and names that upstream's loader cannot import code from.

    Raises:
        UserError: If `repo_id` is not "owner/name" in letters, digits, "-" and "_" (and "." for repos without code).
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"REPO_ID {repo_id!r} cannot be a repository's name on the Hub: {error}") from error
    if repo_id.count("/") != 1:
        raise UserError(f"REPO_ID {repo_id!r} cannot be a repository's name on the Hub (owner/name).")
    if holds_code and "." in repo_id:
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
    try:
        content.assemble(folder)
        (folder / "LICENSE").write_text(distribution("modular-diffdiff").read_text("licenses/LICENSE"))
        for name in ("README.md", "mellon_pipeline_config.json", "presets.py"):
            if (folder / name).exists():
                text = (folder / name).read_text(encoding="utf-8")
                (folder / name).write_text(text.replace(content.default_repo, repo_id), encoding="utf-8")
        return check(content, folder)
    except BaseException:
        shutil.rmtree(folder)  # so that the next attempt does not find half of it
        raise


def check(content: Content, folder: Path) -> str:
    """What a fresh process says of a repo's files.

    Raises:
        OSError: If they do not load as what they are.
    """
    with tempfile.TemporaryDirectory() as cache:
        fresh = {"HF_MODULES_CACHE": cache, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-c", content.check]
        result = subprocess.run(command, cwd=folder, env=os.environ | fresh, capture_output=True, text=True)
    if result.returncode:
        *_, last = result.stderr.strip().splitlines() or [f"its process ended with {result.returncode}"]
        raise OSError(f"{folder} does not load: {last}")
    return result.stdout.strip()


def list_files(folder: Path) -> list[tuple[str, int]]:
    """Name and size in bytes of every file in a folder, in the order of their names."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted((path.relative_to(folder).as_posix(), path.stat().st_size) for path in files)


def check_target(content: Content, repo_id: str, private: bool, revision: str | None) -> None:
    """Looks whether the repo can be written, and whether all that is there is an earlier version of what comes.

    Args:
        revision: The branch to look at; the main one if no branch has this name.

    Raises:
        UserError: If there is no token, its owner may not write there, the repo holds anything else, or is public and
            was to be private.
        OSError: If the Hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise UserError("There is no token for the Hub: run `hf auth login`, or set HF_TOKEN.")
    with _reached():
        api = HfApi()
        known = api.whoami()
        owners = [known["name"], *(organization["name"] for organization in known.get("orgs", []))]
        owner = repo_id.split("/")[0]
        if owner not in owners:
            raise UserError(f"REPO_ID {repo_id!r}: this token may write to {', '.join(owners)}, and not to {owner!r}.")
        if not api.repo_exists(repo_id, repo_type=content.kind):
            return
        branch = revision if revision in _branches(api, content, repo_id) else None
        there = api.repo_info(repo_id, revision=branch, repo_type=content.kind)
        files = {sibling.rfilename for sibling in there.siblings}
        marked = content.mark in files and content.marks in _read(api, content, repo_id, there.sha)
    strangers = sorted(name for name in files if not any(fnmatch(name, pattern) for pattern in content.own))
    if strangers or not (marked or files <= _EMPTY_REPO):
        listed = f", among it {strangers[0]}" if strangers else ""
        raise UserError(f"REPO_ID {repo_id!r} is taken: it exists, and holds something else{listed}.")
    if private and not there.private:
        raise UserError(f"--private: {repo_id!r} exists and is public; that is changed in its settings on the Hub.")


def _read(api, content: Content, repo_id: str, revision: str) -> str:
    path = api.hf_hub_download(repo_id, content.mark, revision=revision, repo_type=content.kind)
    return Path(path).read_text(encoding="utf-8")


def _branches(api, content: Content, repo_id: str) -> list[str]:
    return [branch.name for branch in api.list_repo_refs(repo_id, repo_type=content.kind).branches]


@contextmanager
def _reached() -> Iterator[None]:
    """Turns what a network that fails raises into an OSError."""
    from huggingface_hub.utils import httpx

    try:
        yield
    except httpx.TransportError as error:
        raise ConnectionError(f"the Hub cannot be reached: {error}") from error


def upload(content: Content, repo_id: str, folder: Path, private: bool, revision: str | None) -> str:
    """Makes the repo what the folder is, in one commit, or leaves all as it was.

    Args:
        revision: The branch to commit to; created if it does not exist, "main" by default.

    Returns:
        The commit's address; that of the last one where nothing has changed.

    Raises:
        OSError: If the Hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _made_for_this(api, content, repo_id, private, revision), _reached():
        commit = api.upload_folder(
            repo_id=repo_id,
            repo_type=content.kind,
            folder_path=folder,
            revision=revision,
            commit_message=f"modular-diffdiff {version('modular-diffdiff')}",
            delete_patterns="*",  # an earlier version's: `check_target` has looked
        )
    return commit.commit_url


@contextmanager
def _made_for_this(api, content: Content, repo_id: str, private: bool, revision: str | None) -> Iterator[None]:
    """Creates the repo and the branch if they do not exist, and deletes them again if what follows fails."""
    undo, kind = [], {"repo_type": content.kind}
    try:
        with _reached():
            if not api.repo_exists(repo_id, **kind):
                api.create_repo(
                    repo_id, private=private, space_sdk="gradio" if content.kind == "space" else None, **kind
                )
                undo.append((f"the empty repository {repo_id}", lambda: api.delete_repo(repo_id, **kind)))
            if revision is not None and revision not in _branches(api, content, repo_id):
                api.create_branch(repo_id, branch=revision, **kind)
                undo.append((f"the branch {revision}", lambda: api.delete_branch(repo_id, branch=revision, **kind)))
        yield
    except BaseException as error:
        left = []
        for made, take_back in reversed(undo):
            try:
                with _reached():
                    take_back()
            except OSError:
                left.append(made)
        if left:
            raise OSError(f"{error}; what was made for this could not be taken back: {', '.join(left)}") from error
        raise
