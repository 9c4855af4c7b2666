"""Splits recordings that are too long for one request into chunks, at pauses.

No audio is lost without an error, and at most one chunk is in memory.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import PurePath
from typing import IO, Any, Final

from prem_core._audio.decoders import SndfileDecoder, WavDecoder, open_decoder
from prem_core._audio.sources import WHISPER_SUFFIXES, AudioSource, file_errors
from prem_core._audio.upload import invalid_file, suffix_of_content
from prem_core._media import HEAD_BYTES
from prem_core._protocol.routes import MAX_AUDIO_BYTES

#: The smallest limit that a caller can set for a chunk. Below it, a chunk would hold only a second or two.
MIN_CHUNK_BYTES: Final = 256 * 1024

#: Seconds before the end of a chunk that are searched for a pause: people seldom speak longer without one, and
#: Whisper processes half a minute at a time.
SEARCH_SECONDS: Final = 30.0

#: Seconds of the quietest span, in whose middle the recording is split: a pause between two sentences.
PAUSE_SECONDS: Final = 0.3

#: Seconds of a block: loudness is measured for each, and chunks end between two.
BLOCK_SECONDS: Final = 0.05

#: Seconds that are left for the next chunk at least: services reject a recording of almost no length.
MIN_CHUNK_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class AudioChunk:
    """A recording, or a part of one, as it is sent. Its repr shows nothing of the content.

    Attributes:
        name: The file name.
        data: The file's bytes.
        offset: Seconds from the recording's start to the chunk's.
        seconds: How long the chunk is; None for a whole recording, which was not decoded here.
        progress: How much of the recording was read when the chunk was complete, 0 to 1.
    """

    name: str = field(repr=False)
    data: bytes = field(repr=False)
    offset: float = 0.0
    seconds: float | None = None
    progress: float = field(default=1.0, repr=False)


def chunks_of(source: AudioSource, limit: int = MAX_AUDIO_BYTES) -> Generator[AudioChunk, None, None]:
    """A recording as it is sent: whole if it has at most `limit` bytes, otherwise split at pauses.

    Raises:
        InvalidParameterError: It cannot be read, it is empty, or it is too long and cannot be split.
    """
    with ExitStack() as stack:
        with file_errors(source.source):
            file = stack.enter_context(source.open_file())
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            head = file.read(HEAD_BYTES)
            if not isinstance(head, bytes):
                raise invalid_file(f"{source.source} must be open in binary mode")
            if not head:
                raise invalid_file(f"the recording is empty: {source.source}")
        name = source.name
        if PurePath(name).suffix.lower() not in WHISPER_SUFFIXES:
            # The service recognises the format by the suffix.
            name += suffix_of_content(head)
        if size > limit:
            chunks = split(name, file, limit, label=source.source)
            while True:
                with file_errors(source.source):
                    chunk = next(chunks, None)
                if chunk is None:
                    return
                yield chunk
                del chunk  # frees its memory before the next one is made
        with file_errors(source.source):
            file.seek(0)
            data = file.read()
        yield AudioChunk(name, data)


def split(
    name: str, file: IO[bytes], limit: int = MAX_AUDIO_BYTES, *, label: str | None = None
) -> Generator[AudioChunk, None, None]:
    """Split a recording at pauses, and yield one chunk at a time.

    Args:
        name: The recording's file name; the chunks' names are made from it.
        file: The recording, open in binary mode and seekable. It is read from its start, and not closed.
        limit: Most bytes of a chunk.
        label: What an error calls the recording; `name` if None.

    Yields:
        Chunks of at most `limit` bytes, in order and without gaps.

    Raises:
        InvalidParameterError: It cannot be decoded here (at all, or without the extra ``audio``), it is truncated, or
            `limit` is too small for it.
    """
    label = label or name
    size = file.seek(0, io.SEEK_END)
    decoder = open_decoder(file, label)
    try:
        stem = PurePath(name).stem
        start = 0
        for number, (data, frames) in enumerate(_split_at_pauses(decoder, limit, label), 1):
            yield AudioChunk(
                f"{stem}.part{number:03d}{decoder.suffix}",
                data,
                start / decoder.rate,
                frames / decoder.rate,
                file.tell() / max(size, 1),
            )
            del data  # frees its memory before the next one is made
            start += frames
    finally:
        decoder.close()


def _split_at_pauses(
    decoder: WavDecoder | SndfileDecoder, limit: int, label: str
) -> Iterator[tuple[bytes, int]]:
    """The chunks, and how many frames each has."""
    block_frames = max(1, round(decoder.rate * BLOCK_SECONDS))
    block_bytes = block_frames * decoder.frame_bytes
    # The blocks that are held back for the search fill at most half a chunk: every chunk makes progress.
    held = min(round(SEARCH_SECONDS / BLOCK_SECONDS), limit // (2 * block_bytes))
    if held < 4 or decoder.overhead + 2 * block_bytes > limit // 2:
        raise invalid_file(f"{label}: the chunk limit of {limit:,} bytes is too small for this recording")
    writer = decoder.writer()
    frames = 0
    waiting: deque[Any] = deque()
    for block in decoder.blocks(block_frames):
        if writer.size() + decoder.overhead + (len(waiting) + 1) * block_bytes > limit:
            for _ in range(_blocks_before_pause([decoder.power(each) for each in waiting])):
                frames += decoder.frames(waiting[0])
                writer.write(waiting.popleft())
            finished, writer = writer, decoder.writer()
            yield finished.finish(), frames
            del finished
            frames = 0
        waiting.append(block)
        if len(waiting) > held:
            frames += decoder.frames(waiting[0])
            writer.write(waiting.popleft())
    for block in waiting:
        frames += decoder.frames(block)
        writer.write(block)
    if not frames:
        raise invalid_file(f"{label}: it contains no audio that can be decoded")
    yield writer.finish(), frames


def _blocks_before_pause(powers: list[float]) -> int:
    """How many of these blocks end a chunk: up to the middle of the quietest span, and of equal spans the last."""
    width = min(round(PAUSE_SECONDS / BLOCK_SECONDS), len(powers) // 2)
    left = min(round(MIN_CHUNK_SECONDS / BLOCK_SECONDS), len(powers) // 4)
    sums = [0.0, *accumulate(powers)]
    spans = range(len(powers) - left - width + 1)
    quietest = min(spans, key=lambda at: (sums[at + width] - sums[at], -at))
    return max(1, quietest + width // 2)
