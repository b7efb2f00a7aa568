"""The repo as the Hub's loader sees it: fresh processes, fresh module caches, no network."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import modular_diffdiff
from modular_diffdiff.blocks import diffdiff_versions

from . import fresh


PACKAGE = Path(modular_diffdiff.__file__).parent
CLONE = PACKAGE.parent
CHECKPOINT = PACKAGE / "still_life" / "checkpoint"


def fresh_process(code: str, cache: Path, folder: Path | None = None) -> subprocess.CompletedProcess:
    return fresh.run(
        *("-c", textwrap.dedent(code)),
        folder=folder or cache,  # in the cache, the package is not importable by accident
        environment={"HF_MODULES_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"},
    )


RUN = """
    import hashlib, torch
    from PIL import Image
    pipe.load_components(
        workflow="diffdiff", pretrained_model_name_or_path={checkpoint!r}, subfolder={{"vae": "vae"}}, variant=None,
        dtype=torch.float32,
    )
    image = Image.linear_gradient("L").convert("RGB").resize((100, 90))
    map_image = Image.radial_gradient("L").resize((100, 90))
    generator = torch.Generator().manual_seed(0)
    result = pipe(
        prompt="a green pear", image=image, diffdiff_map=map_image, num_inference_steps=3, generator=generator,
        output="images",
    )[0]
    print(type(pipe.blocks).__module__, type(pipe.blocks).__name__, hashlib.sha256(result.tobytes()).hexdigest())
"""
FROM_REPO = """
    from diffusers import ModularPipeline
    pipe = ModularPipeline.from_pretrained({repo!r}, trust_remote_code=True)
"""
FROM_PACKAGE = """
    import sys
    sys.path.insert(0, {clone!r})
    from modular_diffdiff import SDXLDiffDiffAutoBlocks
    pipe = SDXLDiffDiffAutoBlocks().init_pipeline({repo!r})
"""


def run(code: str, cache: Path, repo: Path | str, folder: Path | None = None) -> list[list[str]]:
    code = (code + RUN).format(repo=str(repo), clone=str(CLONE), checkpoint=str(CHECKPOINT))
    result = fresh_process(code, cache, folder)
    assert result.returncode == 0, result.stderr
    return [line.split() for line in result.stdout.splitlines()]


def test_package_folder_and_clone_load_as_repos_and_draw_what_the_import_draws(tmp_path):
    caches = [tmp_path / name for name in ("package", "clone")]
    for cache in caches:
        cache.mkdir()
    package, imported = run(FROM_REPO + RUN + FROM_PACKAGE, caches[0], PACKAGE)
    (clone,) = run(FROM_REPO, caches[1], ".", folder=CLONE)
    # a failed load builds upstream's pipeline without a word, so the class is asserted
    assert [module.split(".")[0] for module, _, _ in (package, clone, imported)] == [
        "diffusers_modules",
        "diffusers_modules",
        "modular_diffdiff",
    ]
    assert {name for _, name, _ in (package, clone, imported)} == {"SDXLDiffDiffAutoBlocks"}
    assert package[2] == clone[2] == imported[2]


def test_without_trust_the_repos_code_does_not_run(tmp_path):
    result = fresh_process(
        f"""
        from diffusers import ModularPipeline
        ModularPipeline.from_pretrained({str(PACKAGE)!r})
        """,
        tmp_path,
    )
    assert result.returncode != 0
    assert "trust_remote_code=True" in result.stderr
    assert not list(tmp_path.rglob("presets.py"))


@pytest.mark.parametrize(
    "name",
    [
        *("modular_config.json", "modular_model_index.json", "presets.py", "families.py", "videos.py", "blocks"),
        "model_card.md",
    ],
)
def test_the_clones_root_points_into_the_package(name):
    link = CLONE / name
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
    assert link.resolve() == (PACKAGE / name).resolve()


SDXL_MODULES, FAN = {"diffdiff_inpainting", "diffdiff_sdxl", "diffdiff_sdxl_checks"}, {"diffdiff_fan"}
SIBLINGS = re.compile(r"^from \. import (?:\(([^)]*)\)|(.*))$", re.MULTILINE)


def test_the_sentences_know_what_inputs_take_and_nothing_of_the_blocks():
    assert imported_by("diffdiff_docs") == {"diffdiff_kinds"}
    assert imported_by("diffdiff_kinds") == set()


def imported_by(module: str) -> set[str]:
    """The siblings that a module of `blocks/` imports, and those that they import."""
    lists = SIBLINGS.findall((PACKAGE / "blocks" / f"{module}.py").read_text())
    own = {name.strip() for pair in lists for part in pair for name in part.split(",") if name.strip()}
    return own.union(*map(imported_by, own))


@pytest.mark.parametrize(
    ("entry", "strangers"),
    [("presets.py", FAN), ("families.py", FAN | SDXL_MODULES), ("videos.py", FAN | SDXL_MODULES)],
)
def test_an_entry_module_names_the_modules_that_it_needs_and_no_others(entry, strangers):
    """The loader of local folders copies what is named; who reads the repo before trusting it reads what runs."""
    named = set(re.findall(r"^from \.blocks\.(\w+) import", (PACKAGE / entry).read_text(), re.MULTILINE))
    assert set().union(*map(imported_by, named)) <= named
    assert {path.stem for path in (PACKAGE / "blocks").glob("diffdiff_*.py")} - named == strangers


@pytest.mark.parametrize("module", ["modular_diffdiff", "presets"])
def test_an_older_diffusers_is_one_clear_line(tmp_path, module):
    """Both for the package and for the Hub repo's entry module."""
    metadata = tmp_path / "diffusers-0.41.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: diffusers\nVersion: 0.41.0\n")
    result = subprocess.run(
        [sys.executable, "-c", f"import {'modular_diffdiff.' * (module == 'presets')}{module}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    last = result.stderr.splitlines()[-1]
    assert last.startswith("ImportError: modular-diffdiff needs diffusers 0.42 or newer, and 0.41.0 is installed")
    assert "pip install --upgrade diffusers" in last


@pytest.mark.parametrize("version", ["0.42.0", "0.42.1", "0.43.0.dev0", "1.0.0"])
def test_a_newer_one_is_none(version):
    diffdiff_versions.refuse_older(version)
