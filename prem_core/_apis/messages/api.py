"""The routes of Anthropic's API."""

from __future__ import annotations

from typing import Any, ClassVar, Final

from prem_core._apis.base import Adjusted, Api, ApiError, ApiRequest, Encoder, Family, Reply, Route, to_json
from prem_core._apis.messages.answer import message
from prem_core._apis.messages.errors import error_body
from prem_core._apis.messages.events import MessageEncoder
from prem_core._apis.messages.request import chat_params
from prem_core._apis.messages.token_count import estimate_tokens
from prem_core._protocol.response_types import ChatCompletion, Model

_COUNT: Final = Route("POST", "/messages/count_tokens", "local")

#: Anthropic's clients require a date; the service has none.
_CREATED: Final = "1970-01-01T00:00:00Z"


class MessagesApi(Api):
    """Anthropic's Messages API: ``POST /messages`` and ``/messages/count_tokens``, ``GET /models`` and one model."""

    family: ClassVar[Family] = "anthropic"
    routes = (
        Route("POST", "/messages"),
        _COUNT,
        Route("GET", "/models", "models"),
        Route("GET", "/models/{id}", "models"),
    )

    def chat_params(self, request: ApiRequest) -> Adjusted:
        """See `Api.chat_params`."""
        return chat_params(request.body, strict=request.strict)

    def whole(self, completion: ChatCompletion, adjusted: Adjusted) -> bytes:
        """A message."""
        return to_json(message(completion, adjusted.context))

    def stream(self, adjusted: Adjusted) -> Encoder:
        """See `MessageEncoder`."""
        return MessageEncoder(adjusted.context)

    def local(self, request: ApiRequest) -> Reply:
        """An estimate of the tokens of a request. It is checked as if it were sent."""
        tokens = estimate_tokens(chat_params(request.body, strict=request.strict).params)
        return Reply(
            body=to_json({"input_tokens": tokens}), headers=(("x-prem-adjusted", "input_tokens=estimate"),)
        )

    def models(self, request: ApiRequest, listed: list[Model]) -> Reply:
        """The list in one page, or one model."""
        name = request.path_params.get("id")
        if name is not None:
            for each in listed:
                if name == each.id:
                    return Reply(body=to_json(_entry(each)))
            raise ApiError(
                404,
                "there is no such model; GET /v1/models lists the names",
                code="model_not_found",
                param="model",
            )
        data = [_entry(each) for each in listed]
        ends = (
            {"first_id": data[0]["id"], "last_id": data[-1]["id"]}
            if data
            else {"first_id": None, "last_id": None}
        )
        return Reply(body=to_json({"data": data, "has_more": False, **ends}))

    def error_body(self, error: ApiError) -> bytes:
        """See `errors.error_body`."""
        return error_body(error)


def _entry(model: Model) -> dict[str, Any]:
    name = model.id
    return {
        "type": "model",
        "id": name,
        "display_name": model.name or name,
        "created_at": _CREATED,
        "lifecycle": "active",
    }
