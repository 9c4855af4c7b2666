"""Reads documents for an extraction: text, PDF, images and recordings, recognised by their content."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from prem_core._adapters.content import file_part, image_part, text_part
from prem_core._audio.sources import WHISPER_SUFFIXES, AudioSource, source_of
from prem_core._errors import InvalidParameterError
from prem_core._media import HEAD_BYTES, audio_format, image_format

Path_ = str | os.PathLike[str]

#: Bytes of a document that is not a recording.
MAX_DOCUMENT_BYTES: Final = 20 * 1024 * 1024

_PDF: Final = b"%PDF-"


@dataclass(frozen=True, slots=True)
class Document:
    """A document in the forms of a request. Its repr does not show the content.

    Attributes:
        source: What identifies it in a row and in errors.
        parts: Its content as parts of a message; empty for a recording.
        recording: The recording that has to be transcribed first.
    """

    source: str
    parts: list[dict[str, Any]] = field(default_factory=list, repr=False)
    recording: AudioSource | None = field(default=None, repr=False)


def find_documents(paths: Iterable[Path_]) -> Iterator[str]:
    """The files at `paths`; for a directory the files in it, sorted, without hidden ones.

    Raises:
        InvalidParameterError: A path does not exist, or a directory has no file.
    """
    for each in paths:
        path = Path(each)
        if not path.is_dir():
            if not path.exists():
                raise InvalidParameterError(f"documents: there is no such file: {path}", param="documents")
            yield os.fspath(path)
            continue
        found = sorted(
            file
            for file in path.rglob("*")
            if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
        )
        if not found:
            raise InvalidParameterError(f"documents: {path} has no file", param="documents")
        yield from map(os.fspath, found)


def read_document(path: Path_) -> Document:
    """Read a file.

    The text of a PDF is taken out here if pypdf is installed and finds any; otherwise the PDF itself is sent.

    Raises:
        InvalidParameterError: It cannot be read, is too large, or is none of the four kinds.
    """
    source = os.fspath(path)
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
            if audio_format(head) or (
                not image_format(head) and Path(path).suffix.lower() in WHISPER_SUFFIXES
            ):
                return Document(source, recording=source_of(path))
            data = head + file.read(MAX_DOCUMENT_BYTES + 1 - len(head))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise InvalidParameterError(f"{source}: it cannot be read ({reason})", param="documents") from None
    if len(data) > MAX_DOCUMENT_BYTES:
        limit = MAX_DOCUMENT_BYTES // 1024**2
        raise InvalidParameterError(f"{source}: it is larger than {limit} MB", param="documents")
    return Document(source, _parts(source, data))


def text_document(text: str, source: str = "text") -> Document:
    """A document of text that is in memory already."""
    return Document(source, [text_part(text)])


def _parts(source: str, data: bytes) -> list[dict[str, Any]]:
    if (image := image_format(data)) is not None:
        return [image_part(data=data, media_type=image.media_type)]
    if data.startswith(_PDF):
        text = _pdf_text(data)
        if text:
            return [text_part(text)]
        return [file_part(data=data, media_type="application/pdf", filename=Path(source).name)]
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = None
    if text is None or "\0" in text:
        raise InvalidParameterError(
            f"{source}: it is not UTF-8 text, a PDF, an image (PNG, JPEG, GIF, WebP) or a recording",
            param="documents",
        )
    if not text.strip():
        raise InvalidParameterError(f"{source}: it is empty", param="documents")
    return [text_part(text)]


def _pdf_text(data: bytes) -> str | None:
    try:
        import pypdf
    except ImportError:
        return None
    try:
        pages = [page.extract_text() for page in pypdf.PdfReader(io.BytesIO(data)).pages]
    except Exception:  # pypdf raises many kinds; the service may be able to read the file
        return None
    return "\n\n".join(pages).strip()
