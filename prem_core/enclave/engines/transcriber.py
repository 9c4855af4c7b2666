"""English transcription on this machine, in threads, for the default engine."""

from __future__ import annotations

import asyncio
import functools
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Final

from prem_core.enclave.engines.base import AudioReply, EngineError, EngineRequest

#: Each thread keeps a decoder of about 100 MB; the second is there so that a short recording does not wait for a
#: long one.
_THREADS: Final = 2


class Transcriber:
    """Transcribes recordings with pocketsphinx. It needs the packages of the extra ``enclave``."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None

    async def transcribe(self, request: EngineRequest) -> AudioReply:
        """The transcript of a recording. The content decides the format, not the file's name.

        Raises:
            EngineError: The request is for another language, or the file cannot be decoded.
        """
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="prem-transcriber")
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

    def close(self) -> None:
        """End the threads, each with the utterance it works on."""
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)


def _speech() -> ModuleType:
    """The recogniser, imported with the first recording: numpy and two C libraries come with it."""
    try:
        from prem_core.enclave.engines import speech
    except (ImportError, OSError):  # OSError: there is no libsndfile for this machine
        message = 'the default engine cannot transcribe: pip install "prem-encrypted[enclave]"'
        raise EngineError(message, status=503) from None
    return speech
