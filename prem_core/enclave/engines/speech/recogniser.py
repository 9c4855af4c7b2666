"""Utterances, and the words in them, with pocketsphinx.

Each utterance is recognised as if it were the first. What the decoder has measured of one (its noise, the mean of its
spectrum) is not carried over to the next, so the transcript does not depend on what came before or on the thread.
"""

from __future__ import annotations

import math
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from pocketsphinx import Decoder, Endpointer  # type: ignore[import-untyped]

from prem_core.enclave.engines.speech.recording import SAMPLE_RATE

#: pocketsphinx counts time in frames of 10 ms.
FRAMES_PER_SECOND: Final = 100

#: Seconds of the longest utterance; longer speech is cut there. At the end of an utterance the decoder
#: works for about 3 % of its length without letting other threads run.
MAX_UTTERANCE_SECONDS: Final = 15

#: Bytes given to the decoder at a time, 50 ms: it does not let other threads run in between either.
_BLOCK: Final = SAMPLE_RATE // 20 * 2

_SECOND: Final = SAMPLE_RATE * 2  # bytes

#: The search that finds nothing, cheaply: a pass with it measures the utterance's spectrum.
_MEASURE: Final = "measure"

#: ``read(2)`` is the second pronunciation of read.
_VARIANT: Final = re.compile(r"\(\d+\)$")


class Word(NamedTuple):
    """A word and its times in seconds from the recording's start."""

    word: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Utterance:
    """A stretch of speech without a pause. Its repr shows no words.

    Attributes:
        words: At least one.
        start: Seconds from the recording's start.
        end: Seconds from the recording's start.
        avg_logprob: The natural logarithm of the decoder's posterior probability of these words, given its
            other guesses at the utterance, divided by their number; at most 0. Not Whisper's scale.
        no_speech_prob: The share of the utterance's time that the decoder took for silence or noise.
    """

    words: tuple[Word, ...] = field(repr=False)
    start: float
    end: float
    avg_logprob: float
    no_speech_prob: float

    @property
    def text(self) -> str:
        """The words, with a space between them."""
        return " ".join(word.word for word in self.words)


def utterances(pcm: bytes) -> Iterator[Utterance]:
    """The utterances in a recording (16-bit mono samples, `SAMPLE_RATE` a second), in order.

    Each step may run in another thread; each thread that is used keeps a decoder, about 100 MB.
    """
    for start, speech in _spoken(pcm):
        if utterance := _decoder().recognise(speech, start):
            yield utterance


def _spoken(pcm: bytes) -> Iterator[tuple[float, bytes]]:
    """The stretches of speech, and where they start in seconds."""
    endpointer = Endpointer(sample_rate=SAMPLE_RATE)
    size = endpointer.frame_bytes
    speech, start = bytearray(), 0.0
    for position in range(0, len(pcm), size):
        frame = pcm[position : position + size]
        is_last = position + size >= len(pcm)
        piece = endpointer.end_stream(frame) if is_last else endpointer.process(frame)
        if piece is None:
            continue
        if not speech:
            start = max(start, endpointer.speech_start)
        speech += piece
        if is_last or not endpointer.in_speech or len(speech) >= MAX_UTTERANCE_SECONDS * _SECOND:
            yield start, bytes(speech)
            # While speech goes on, the endpointer keeps reporting where it started.
            start += len(speech) / _SECOND
            speech.clear()


class _Decoder:
    """pocketsphinx's decoder with the English model of its package. For one thread."""

    def __init__(self) -> None:
        self._decoder = Decoder(loglevel="FATAL")
        self._words = self._decoder.current_search()
        self._decoder.add_keyphrase(_MEASURE, "silence")

    def recognise(self, speech: bytes, start: float) -> Utterance | None:
        """The words in `speech`, which begins `start` seconds into the recording; None if there are none."""
        decoder = self._decoder
        # A first pass over the whole measures noise and spectrum, in a fifth of the time. Without it, half of the
        # words are lost. The decoder can do both in one pass, but only with the whole utterance at once, and then
        # no other thread runs until it is done.
        decoder.reinit_feat()
        decoder.activate_search(_MEASURE)
        decoder.start_utt()
        decoder.process_raw(speech, full_utt=True)
        decoder.end_utt()
        mean = decoder.get_cmn(False)
        decoder.activate_search(self._words)
        decoder.set_cmn(mean)
        decoder.start_utt()
        for position in range(0, len(speech), _BLOCK):
            decoder.process_raw(speech[position : position + _BLOCK])
        decoder.end_utt()
        return self._read(start, len(speech) / _SECOND)

    def _read(self, start: float, seconds: float) -> Utterance | None:
        words, spoken, frames = [], 0, 0
        for segment in self._decoder.seg() or ():
            length = segment.end_frame + 1 - segment.start_frame
            frames += length
            if segment.word[0] in "<[+":  # <sil>, [NOISE], ++BREATH++
                continue
            spoken += length
            begin, end = (
                round(start + min(frame / FRAMES_PER_SECOND, seconds), 2)
                for frame in (segment.start_frame, segment.end_frame + 1)
            )
            words.append(Word(_VARIANT.sub("", segment.word), begin, end))
        if not words:
            return None
        posterior = min(max(self._decoder.hyp().prob, sys.float_info.min), 1.0)
        return Utterance(
            words=tuple(words),
            start=round(start, 2),
            end=round(start + seconds, 2),
            avg_logprob=round(math.log(posterior) / len(words), 4),
            no_speech_prob=round(1 - spoken / frames, 4),
        )


_of_thread = threading.local()


def _decoder() -> _Decoder:
    """This thread's decoder. It is kept, because loading the model takes a quarter of a second."""
    try:
        decoder: _Decoder = _of_thread.decoder
    except AttributeError:
        decoder = _of_thread.decoder = _Decoder()
    return decoder
