"""Sends the requests of OpenAI's Batch JSONL."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from prem_core._audio.upload import DEFAULT_MODEL
from prem_core._errors import APIResponseValidationError, InvalidParameterError
from prem_core.batch.lines import (
    AUDIO_URLS,
    CHAT_URL,
    BatchRequest,
    InvalidLineError,
    answer_line,
    id_at_start,
    parse_request,
    read_raw_lines,
)
from prem_core.batch.runner import Answer, Item, Job, OnUsage

if TYPE_CHECKING:
    from prem_core import AsyncPremClient

#: Names of `create` that are no parameters of the service.
_NOT_PARAMETERS: Final = ("timeout", "self")


def read_items(file: IO[bytes], folder: Path) -> Iterator[Item]:
    """The items of an input. Paths of recordings are relative to `folder`."""
    for number, raw in read_raw_lines(file):
        name = None if raw is None else id_at_start(raw)
        size = 0 if raw is None else len(raw)
        yield Item(number, name, size, functools.partial(_job, number, raw, folder))


def _job(number: int, raw: bytes | None, folder: Path) -> Job:
    request = parse_request(number, raw)
    params = _params(request)
    limit = params.get("max_completion_tokens", params.get("max_tokens"))
    return Job(
        name=request.custom_id,
        model=str(params.get("model") or ""),
        size=request.size,
        max_tokens=limit if isinstance(limit, int) else None,
        perform=functools.partial(_perform, request, params, folder),
    )


def check_request(number: int, raw: bytes | None, folder: Path) -> tuple[BatchRequest, Job]:
    """Check a line as far as that is possible without sending it.

    Raises:
        InvalidLineError: The published schema does not allow a parameter, or the recording cannot be sent.
    """
    from prem_core._audio.upload import read_recording
    from prem_core._protocol.request_schema import audio_plaintext, chat_request

    request, job = parse_request(number, raw), _job(number, raw, folder)
    params = dict(request.body)
    extra_body = params.pop("extra_body", None)
    try:
        if request.url == CHAT_URL:
            chat_request(params, extra_body, whole=True)
        else:
            read_recording(_recording(params, folder))
            del params["file"]
            task: Any = AUDIO_URLS[request.url]
            audio_plaintext(task, {"model": DEFAULT_MODEL, **params}, extra_body)
    except InvalidParameterError as error:
        raise InvalidLineError(
            number, error.message, custom_id=request.custom_id, code="invalid_request"
        ) from None
    return request, job


def _params(request: BatchRequest) -> dict[str, Any]:
    """The arguments of `create`, except the recording.

    Raises:
        InvalidLineError: One of them cannot be an argument.
    """

    def invalid(message: str) -> InvalidLineError:
        return InvalidLineError(request.number, message, custom_id=request.custom_id, code="invalid_request")

    params = dict(request.body)
    if params.get("stream"):
        raise invalid("stream: a batch has whole answers only")
    params.pop("stream", None)
    for name in _NOT_PARAMETERS:
        if name in params:
            raise invalid(f"{name}: the published schema has no such parameter")
    if request.url == CHAT_URL:
        if not isinstance(params.get("model"), str):
            raise invalid("model: must be a string")
        params.setdefault("messages", None)
    else:
        params.setdefault("model", DEFAULT_MODEL)
        if not isinstance(params.get("file"), str):
            raise invalid("file: must be the path of a recording")
    return params


def _recording(params: dict[str, Any], folder: Path) -> Path:
    return folder / Path(str(params["file"])).expanduser()


async def _perform(
    request: BatchRequest, params: dict[str, Any], folder: Path, client: AsyncPremClient, on_usage: OnUsage
) -> Answer:
    if request.url == CHAT_URL:
        completion = await client.chat.completions.create(**params)
        on_usage(completion.usage)
        truncated = any(choice.finish_reason == "length" for choice in completion.choices)
        support_id = completion.prem.support_id if completion.prem else None
        body: Any = completion.model_dump(exclude_none=True)
        return Answer(_answer_line(request, body, support_id), truncated)
    audio = client.audio
    resource: Any = audio.translations if AUDIO_URLS[request.url] == "translate" else audio.transcriptions
    transcription = await resource.create(**{**params, "file": _recording(params, folder)})
    on_usage(None)
    if isinstance(transcription, str):
        return Answer(_answer_line(request, transcription, None))
    support_id = transcription.prem.support_id if transcription.prem else None
    return Answer(_answer_line(request, transcription.model_dump(exclude_none=True), support_id))


def _answer_line(request: BatchRequest, body: Any, support_id: str | None) -> bytes:
    try:
        return answer_line(request.custom_id, body, support_id)
    except ValueError:
        pass
    raise APIResponseValidationError("the answer holds a number that JSON does not have")
