"""Pictures from paths and URLs, within limits: how long, how large, and from where.

Python's standard library and PIL; no heavy import.
"""

from __future__ import annotations

import http.client
import io
import pathlib
import string
import urllib.error
import urllib.parse
import urllib.request
import warnings
from typing import BinaryIO

import PIL.Image
import PIL.ImageOps


TIMEOUT = 30  # seconds that a server may stay silent
MOST_PIXELS = 2**27  # 134 megapixels, e.g. 11585 x 11585
MOST_BYTES = 4 * MOST_PIXELS  # 512 MiB: so many pixels, uncompressed
AGENT = "modular-diffdiff"  # what servers are told; some refuse Python's own name
SCHEMES = ("http://", "https://")
CHUNK = 2**20  # bytes


class UnreadableError(ValueError):
    """Why something cannot be read as a picture; the message goes behind its name."""


class WebRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https; Python's own follows them to ftp too."""

    def redirect_request(self, request, file, code, message, headers, location):
        if not is_url(location):
            raise UnreadableError(f"it redirects to {location!r}, which is neither http nor https")
        return super().redirect_request(request, file, code, message, headers, location)


def is_url(location: str) -> bool:
    """Whether a location is fetched, rather than opened as a path; `file:` and other schemes are not."""
    return location.lower().startswith(SCHEMES)


def read(location: str) -> bytes:
    """The bytes of a path or a URL (http, https), at most `MOST_BYTES`.

    Spaces and letters beyond ASCII are encoded in URLs; what is percent-encoded stays as it is.

    Raises:
        UnreadableError: If there is nothing to read, or too much.
    """
    try:
        if not is_url(location):
            with pathlib.Path(location).open("rb") as file:
                return read_all(file)
        request = urllib.request.Request(_encode(location), headers={"User-Agent": AGENT})
        with urllib.request.build_opener(WebRedirects).open(request, timeout=TIMEOUT) as response:
            return read_all(response)
    except UnreadableError:
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:
        cause = error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", error)
        raise UnreadableError(getattr(cause, "strerror", None) or str(cause)) from error


def read_all(stream: BinaryIO) -> bytes:
    """What a stream holds.

    Raises:
        UnreadableError: If that is more than `MOST_BYTES`.
    """
    data = bytearray()
    while chunk := stream.read(CHUNK):
        data += chunk
        if len(data) > MOST_BYTES:
            raise UnreadableError(f"it holds more than {MOST_BYTES:,} bytes")
    return bytes(data)


def open_image(data: bytes, most_pixels: int = MOST_PIXELS) -> PIL.Image.Image:
    """A picture, decoded and upright (its EXIF orientation applied), in the file's own mode.

    Raises:
        UnreadableError: If it is damaged or no picture, or has more pixels than that, before these are decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PIL's smaller limit, and of damaged tags that do not matter
            image = PIL.Image.open(io.BytesIO(data))
            if image.width * image.height > most_pixels:
                raise PIL.Image.DecompressionBombError
            if image.format == "EPS":
                raise UnreadableError("it is a program (EPS) that draws a picture; save that as PNG")
            image.load()
            PIL.ImageOps.exif_transpose(image, in_place=True)
    except UnreadableError:
        raise
    except PIL.Image.DecompressionBombError as error:  # PIL has a limit of its own
        raise UnreadableError(f"it has more than {most_pixels:,} pixels") from error
    except PIL.UnidentifiedImageError as error:
        raise UnreadableError("it is in no image format that PIL knows") from error
    except Exception as error:  # decoders end in errors of all kinds on damaged files
        raise UnreadableError(f"it is damaged: {error}") from error
    return image


def count_frames(image: PIL.Image.Image) -> int:
    """The number of pictures that a file holds, as `open_image` gives it; previews and layers do not count."""
    return 1 if image.format in ("MPO", "PSD") else getattr(image, "n_frames", 1)


def _encode(url: str) -> str:
    """A URL as servers take it."""
    parts = urllib.parse.urlsplit(url)
    host, colon, port = parts.netloc.partition(":")
    netloc = parts.netloc if parts.netloc.isascii() else host.encode("idna").decode() + colon + port
    path, query = (urllib.parse.quote(part, safe=string.punctuation) for part in (parts.path, parts.query))
    return urllib.parse.urlunsplit((parts.scheme, netloc, path, query, ""))
