"""The benchmark of accelerators, on toys and a CPU."""

import re

import pytest
import torch

from benchmarks import accelerator
from benchmarks.architectures import SDXL
from benchmarks.measure import put_section


FAMILIES = ("SDXL", "Z-Image", "Flux")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "page.md"
    accelerator.main(["--small", "--out", str(out)])
    return out.read_text()


def section(page: str, title: str) -> str:
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE).group(1)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_part_of_every_family_is_measured(page, family):
    parts = re.split(r"^### ", section(page, family), flags=re.MULTILINE)[1:]
    assert [part.partition("\n")[0] for part in parts] == list(accelerator.PARTS)
    assert "Left out" not in page
    assert [line for line in page.splitlines() if "Not measured" in line] == [
        "Not measured: it needs an accelerator."
    ] * len(FAMILIES)


def test_times_and_ratios_are_positive_and_finite(page):
    figures = re.findall(r"\| ([\d.]+) (?:m?s) ", page)
    ratios = re.findall(r"\| (\d+\.\d{3}) ", page)
    assert len(ratios) >= 2 * (6 + 6 + 3)  # of steps and edits, in the rows of each family
    assert all(0 < float(figure) < 1e4 for figure in figures + ratios)


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_latents_are_the_originals(page, family):
    assert re.search(r"Of [\d,]+ kept latents 0 differ", section(page, family))


def test_a_part_that_fails_says_so_and_takes_no_other_with_it(tmp_path, monkeypatch):
    def fail(bench, model):
        yield "begun"
        raise MemoryError("out of memory\ndetails")

    def work(bench, model):
        yield "measured"

    monkeypatch.setattr(accelerator, "PARTS", {"One": fail, "Two": work})
    out = tmp_path / "page.md"
    out.write_text("# Title\n")
    accelerator.one_architecture(accelerator.Bench(torch.device("cpu"), side=64, small=True), out, SDXL)
    assert "begun\n\nNot measured: MemoryError: out of memory\n\n### Two\n\nmeasured\n" in out.read_text()


def test_a_section_is_replaced_in_its_place_and_others_stay(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Title\n\nIntroduction.\n")
    put_section(page, "One", ["first", "", "### Detail"])
    put_section(page, "Two", ["second"])
    put_section(page, "One", ["third"])
    assert page.read_text() == "# Title\n\nIntroduction.\n\n## One\n\nthird\n\n## Two\n\nsecond\n"
