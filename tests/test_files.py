"""Pictures from paths and URLs: what is read as it is, and what is refused before it costs anything."""

import contextlib
import http.server
import io
import struct
import threading
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from modular_diffdiff.blocks import diffdiff_files
from modular_diffdiff.blocks.diffdiff_files import UnreadableError

from .helpers import picture


def as_file(image: Image.Image, kind: str = "png", **options) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header says that it has this size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.fixture
def site():
    """A web site on this machine: `site(answer)` is its address, where `answer` is a request's handler."""
    servers = []

    def serve(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                answer(self)

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def send(handler, body: bytes) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(body)


def redirect(handler, location: str) -> None:
    handler.send_response(302)
    handler.send_header("Location", location)
    handler.end_headers()


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        ("/a b.png", "/a%20b.png"),
        ("/a%20b.png", "/a%20b.png"),
        ("/Äpfel/梨.png?q=ö&n=1", "/%C3%84pfel/%E6%A2%A8.png?q=%C3%B6&n=1"),
        ("/a.png#part", "/a.png"),
    ],
)
def test_a_url_is_sent_as_servers_take_it(site, typed, sent):
    address = site(lambda handler: send(handler, handler.path.encode()))
    assert diffdiff_files.read(address + typed) == sent.encode()


def test_a_host_beyond_ascii_is_looked_up_as_idna(monkeypatch):
    asked = []
    monkeypatch.setattr("socket.getaddrinfo", lambda host, port, *_: asked.append((host, port)) or [][0])
    with pytest.raises(IndexError):
        diffdiff_files.read("http://bücher.example:8080/a.png")
    assert asked == [("xn--bcher-kva.example", 8080)]  # the example of RFC 3492's Wikipedia article


def test_a_redirect_is_followed_on_the_web(site):
    def answer(handler):
        send(handler, b"here") if handler.path == "/new%20place" else redirect(handler, "/new place")

    assert diffdiff_files.read(site(answer) + "/old") == b"here"


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/a.png", "data:image/png;base64,AAAA"])
def test_a_redirect_to_another_scheme_is_refused(site, target):
    with pytest.raises(UnreadableError, match=target.split(":")[0]):
        diffdiff_files.read(site(lambda handler: redirect(handler, target)))


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/a.png", "data:,a"])
def test_another_scheme_is_no_url(target):
    with pytest.raises(UnreadableError, match="No such file"):
        diffdiff_files.read(target)


def test_a_download_without_end_is_broken_off(site, monkeypatch):
    def answer(handler):
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):  # who asked has gone
            while True:
                handler.wfile.write(bytes(2**16))

    monkeypatch.setattr(diffdiff_files, "MOST_BYTES", 2**21)
    with pytest.raises(UnreadableError, match="more than 2,097,152 bytes"):
        diffdiff_files.read(site(answer))


def test_a_file_without_end_is_broken_off(monkeypatch):
    monkeypatch.setattr(diffdiff_files, "MOST_BYTES", 2**21)
    with pytest.raises(UnreadableError, match="more than 2,097,152 bytes"):
        diffdiff_files.read("/dev/zero")


def test_a_silent_server_is_given_up(site, monkeypatch):
    answered = threading.Event()
    monkeypatch.setattr(diffdiff_files, "TIMEOUT", 0.2)
    with pytest.raises(UnreadableError, match="timed out"):
        diffdiff_files.read(site(lambda handler: answered.wait(5)))
    answered.set()


@pytest.mark.parametrize("size", [(2**14, 2**13 + 1), (2**31 - 1, 2**31 - 1)], ids=["ours", "PIL's"])
def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch, size):
    """Whether PIL refuses them too."""
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UnreadableError, match=r"more than 134,217,728 pixels"):
        diffdiff_files.open_image(huge_png(*size))


@pytest.mark.filterwarnings("error")
def test_a_large_photo_is_read_silently(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)
    assert diffdiff_files.open_image(as_file(picture(50, 40))).size == (40, 50)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_pictures_are_upright(orientation, kind):
    """Each orientation of the EXIF standard: where it puts the first row and the first column."""
    seen = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: np.rot90,
    }
    image = Image.linear_gradient("L").resize((40, 24)).rotate(30)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.open(io.BytesIO(as_file(image, kind, exif=exif)))
    upright = diffdiff_files.open_image(as_file(image, kind, exif=exif))
    np.testing.assert_array_equal(np.asarray(upright), seen[orientation](np.asarray(stored)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_pictures_keep_their_mode(mode):
    assert diffdiff_files.open_image(as_file(Image.new(mode, (3, 2)))).mode == mode


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "webp", "tiff", "bmp"])
def test_damaged_files_are_refused_as_such(kind):
    """Cut anywhere, or with bytes changed anywhere, a file is read or refused, and nothing else."""
    whole, random = as_file(picture(20, 20), kind), np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        spoilt = bytearray(whole)
        for place in random.integers(0, len(whole), 5):
            spoilt[place] = random.integers(0, 256)
        for data in (bytes(spoilt), whole[: random.integers(0, len(whole))]):
            try:
                diffdiff_files.open_image(data)
            except UnreadableError:
                refused += 1
    assert refused > 20


def test_a_program_is_no_picture():
    """PIL has Ghostscript run it."""
    with pytest.raises(UnreadableError, match="EPS"):
        diffdiff_files.open_image(as_file(picture(), "eps"))


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tiff", "avif"])
@pytest.mark.parametrize("frames", [1, 3])
def test_frames_are_counted(kind, frames):
    first, *others = (picture(20, 20, seed) for seed in range(frames))
    data = as_file(first, kind, **({"save_all": True, "append_images": others} if others else {}))
    assert diffdiff_files.count_frames(diffdiff_files.open_image(data)) == frames


def test_the_preview_in_a_phones_photo_is_no_frame():
    data = as_file(picture(20, 20), "mpo", save_all=True, append_images=[picture(10, 10)])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert diffdiff_files.count_frames(diffdiff_files.open_image(data)) == 1
