"""Transitional: the extractive engine behind the `Engine` protocol."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Final

from prem_core.enclave import extractive
from prem_core.enclave.engines.base import AudioReply, Chunk, Engine, EngineError, EngineRequest

#: Threads that transcribe. Each keeps a decoder of about 100 MB; the second is there so that a short recording
#: does not wait for a long one.
_TRANSCRIBERS: Final = 2


class QuotingEngine(Engine):
    """The default engine."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None

    async def chat(self, request: EngineRequest) -> AsyncGenerator[Chunk, None]:
        """See `Engine.chat`."""
        params = {**request.params, "stream_options": {"include_usage": True}}
        for chunk in await asyncio.to_thread(extractive.complete, params, created=int(time.time())):
            yield chunk

    async def audio(self, request: EngineRequest) -> AudioReply:
        """Transcribe English with pocketsphinx. The content decides the format, not the file's name."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_TRANSCRIBERS, thread_name_prefix="prem-transcriber")
        in_thread = functools.partial(asyncio.get_running_loop().run_in_executor, self._threads)
        speech = await in_thread(_speech)
        speech.refuse(request.task, request.params)
        recording = await in_thread(speech.decode, request.audio)
        utterances = speech.utterances(recording.pcm)
        found = []
        # One by one, so that the work ends soon after the client disconnects.
        while (utterance := await in_thread(next, utterances, None)) is not None:
            found.append(utterance)
        return AudioReply(speech.transcription(request.params, recording.seconds, found), recording.seconds)

    async def aclose(self) -> None:
        """See `Engine.aclose`. The threads end with the utterance they work on."""
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)


def _speech() -> ModuleType:
    """The recogniser, imported with the first recording: numpy and two C libraries come with it."""
    try:
        from prem_core.enclave.engines import speech
    except (ImportError, OSError):  # OSError: there is no libsndfile for this machine
        raise EngineError(
            'the default engine cannot transcribe: pip install "prem-encrypted[enclave]"', status=503
        ) from None
    return speech
