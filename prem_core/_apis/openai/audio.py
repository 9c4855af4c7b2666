"""``POST /audio/transcriptions`` and ``POST /audio/translations``."""

from __future__ import annotations

from typing import Final, Literal, cast

from prem_core._apis.base import TEXT, ApiRequest, Recording, Reply, Route, to_json
from prem_core._apis.openai.form import OpenAIApi
from prem_core._apis.openai.parameters import adjust
from prem_core._audio.subtitles import srt, vtt
from prem_core._audio.transcripts import ChunkTranscript, TranscriptionRequest, segments
from prem_core._protocol.request_schema import TranscriptionParams, TranslationParams
from prem_core._protocol.response_types import Transcription

#: Transcription formats made here, from the service's verbose_json.
SUBTITLES: Final = {"srt": srt, "vtt": vtt}

_NAMES: Final = {
    "transcriptions": TranscriptionParams.__required_keys__ | TranscriptionParams.__optional_keys__,
    "translations": TranslationParams.__required_keys__ | TranslationParams.__optional_keys__,
}


class Audio(OpenAIApi):
    """OpenAI's transcriptions and translations."""

    routes = tuple(Route("POST", f"/audio/{task}", "audio") for task in _NAMES)

    def recording(self, request: ApiRequest) -> Recording:
        """See `Api.recording`."""
        from prem_core._apis.openai.forms import parse_audio_form

        task = cast("Literal['transcriptions', 'translations']", request.route.path.rpartition("/")[2])
        file, given = parse_audio_form(request.form)
        adjusted = adjust(given, _NAMES[task], strict=request.strict)
        params = adjusted.params
        form = params.get("response_format")
        if form in SUBTITLES:
            params["response_format"] = "verbose_json"
        elif form == "text":
            params["response_format"] = "json"  # the same text, in an answer that states how it was protected
        return Recording(task=task, file=file, params=params, form=form, dropped=adjusted.dropped)

    def transcript(self, answer: Transcription, recording: Recording) -> Reply:
        """See `Api.transcript`."""
        form = recording.form
        if form == "text":
            return Reply(content_type=TEXT, body=answer.text.encode())
        if form in SUBTITLES:
            request = TranscriptionRequest(mode="segments")
            found = segments("", [ChunkTranscript(answer)], request)
            return Reply(content_type=TEXT, body=SUBTITLES[form](found).encode())
        return Reply(body=to_json(answer.model_dump(exclude_unset=True, exclude_none=True, warnings=False)))
