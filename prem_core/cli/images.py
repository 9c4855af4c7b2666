"""Images that a command line names, as parts of a message."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from prem_core._adapters.content import image_part
from prem_core.cli import EXIT_USAGE
from prem_core.cli.errors import CliError

#: Bytes of one image. The service publishes no limit; this is OpenAI's, and more than any model looks at.
MAX_BYTES: Final = 20 * 1024 * 1024

#: How the kinds of images begin that models are shown, and their media types. A suffix would prove nothing.
_BEGINNINGS: Final = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF8", "image/gif"),
    (8, b"WEBP", "image/webp"),
)


def part_of(image: str) -> dict[str, Any]:
    """The part that shows `image`: a URL as it is, a file by its bytes.

    Args:
        image: An http(s) or ``data:`` URL, or a path.

    Raises:
        CliError: The file cannot be read, is too large, or is no PNG, JPEG, GIF or WebP image.
    """
    if image.startswith(("http://", "https://", "data:")):
        return image_part(url=image)
    try:
        with Path(image).open("rb") as file:
            # One byte more than is allowed tells a file that is too large from one that just fits.
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise _refused(image, f"cannot be read ({getattr(error, 'strerror', None) or 'no path'})") from None
    if len(data) > MAX_BYTES:
        raise _refused(image, f"is larger than {MAX_BYTES // 1024**2} MB")
    for at, mark, media_type in _BEGINNINGS:
        if data[at : at + len(mark)] == mark:
            return image_part(data=data, media_type=media_type)
    raise _refused(image, "is no PNG, JPEG, GIF or WebP image")


def _refused(image: str, why: str) -> CliError:
    return CliError(f"--image: {image} {why}", EXIT_USAGE)
