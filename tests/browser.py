"""The page in a real browser, and what visitors do there."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 60  # seconds


@contextlib.contextmanager
def served(log: Path) -> Iterator[str]:
    """The address of a page that a process of its own serves."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "modular_diffdiff.cli", "web", "--port", str(port)]
    with log.open("w") as said:
        page = subprocess.Popen(
            command, stdout=said, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    try:
        yield wait_for(lambda: re.search(r"http://\S+", log.read_text()))[0]
    finally:
        page.terminate()
        page.wait()


def wait_for(happens: Callable, tab=None):
    """What happens, once it does; meanwhile a tab goes on."""
    end = time.monotonic() + PATIENCE
    while not (happened := happens()):
        if time.monotonic() > end:
            raise TimeoutError(happens)
        tab.wait_for_timeout(50) if tab else time.sleep(0.05)
    return happened


class Visitor:
    """Somebody who uses the page.

    Args:
        begins: What the page says when it is there.

    Attributes:
        errors: What the browser's console told of errors.
        abroad: The addresses beyond this machine that the page asked for; each is refused.
        seconds: How long things took.
    """

    def __init__(self, browser, address: str, begins: str = "Or try one of these"):
        self.tab = browser.new_page(viewport={"width": 1366, "height": 900})
        self.errors, self.abroad, self.seconds = [], [], {}
        self.tab.set_default_timeout(1000 * PATIENCE)
        self.tab.on("console", lambda said: said.type == "error" and self.errors.append(said.text))
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.route(re.compile(f"^(?!{re.escape(address)}|data:|blob:)"), self._refuse)
        with self.timed("open the page"):
            self.tab.goto(f"{address}?__theme=light")
            self.tab.get_by_text(begins).first.wait_for()

    def _refuse(self, route) -> None:
        self.abroad.append(route.request.url)
        route.abort()

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[what] = round(time.monotonic() - began, 2)

    def button(self, name: str):
        return self.tab.get_by_role("button", name=name, exact=True)

    def press(self, name: str) -> None:
        self.button(name).click()

    def open(self, name: str) -> None:
        """Opens a part of the page that is folded."""
        self.tab.get_by_role("button", name=re.compile(f"^{name}")).click()

    def reads(self, text: str | re.Pattern) -> None:
        """Waits until the page says something."""
        self.tab.get_by_text(text).filter(visible=True).first.wait_for()

    def field(self, label: str):
        """A text field, or the number of a slider."""
        named = (self.tab.get_by_label(name, exact=True) for name in (f"number input for {label}", label))
        return next(named).or_(next(named)).first

    def tell(self, label: str, value: object) -> None:
        self.field(label).fill(str(value))
        self.field(label).press("Tab")

    def pictures(self, part: str) -> list[str]:
        """The addresses of the pictures that a part of the page shows."""
        return [picture.get_attribute("src") for picture in self.tab.locator(f"#{part} img").all()]

    @contextlib.contextmanager
    def waits(self, part: str, what: str) -> Iterator[None]:
        """Waits until a part of the page shows another picture, and measures how long it takes."""
        before = self.pictures(part)
        with self.timed(what):
            yield
            wait_for(lambda: self.pictures(part) not in (before, []), self.tab)

    def upload(self, path: Path, into: str) -> None:
        self.tab.locator(f"#{into} input[type=file]").set_input_files(path)

    def drag(self, size: tuple[int, int], *points: tuple[int, int]) -> None:
        """Moves the brush over the photo, of this size, between these of its pixels."""
        box = self.tab.locator("#painting canvas").first.bounding_box()
        zoom = int(self.tab.locator("#painting").get_by_text(re.compile(r"^\d+%$")).inner_text()[:-1]) / 100
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        for k, point in enumerate(points):
            x, y = (m + (p + 0.5 - s / 2) * zoom for m, p, s in zip(middle, point, size, strict=True))
            self.tab.mouse.move(x, y)
            if k == 0:
                self.tab.mouse.down()
        self.tab.mouse.up()

    def tool(self, name: str, strength: int | None = None) -> None:
        """Takes a brush or eraser, and one of the brush's strengths, 0 is the strongest."""
        editor = self.tab.locator("#painting")
        editor.get_by_label(name, exact=True).click()
        if strength is not None:
            editor.get_by_label("Color", exact=True).click()
            editor.locator("button.color").nth(strength).click()
            editor.get_by_label("Color", exact=True).click()

    def download(self, name: str, folder: Path) -> Path:
        with self.tab.expect_download() as download:
            self.press(name)
        path = folder / download.value.suggested_filename
        download.value.save_as(path)
        return path
