"""``/responses``: OpenAI's Responses API."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any

from prem_core._apis.base import Adjusted, ApiError, ApiRequest, Encoder, Reply, Route, to_json
from prem_core._apis.openai.form import OpenAIApi
from prem_core._apis.responses.events import Draft, ResponseEncoder, whole_response
from prem_core._apis.responses.items import NOT_STORED
from prem_core._apis.responses.reading import invalid
from prem_core._apis.responses.request import read_request
from prem_core._apis.responses.store import RESPONSE_PREFIX, ResponseStore
from prem_core._protocol.response_types import ChatCompletion


class Responses(OpenAIApi):
    """OpenAI's Responses API.

    Args:
        store: Where responses are kept; None to keep none.
        now: Seconds since the epoch.
        new_token: Makes 32 hex digits that no other response has.
    """

    routes = (
        Route("POST", "/responses"),
        Route("GET", "/responses/{id}", kind="local"),
        Route("DELETE", "/responses/{id}", kind="local"),
    )

    def __init__(
        self,
        store: ResponseStore | None = None,
        *,
        now: Callable[[], float] = time.time,
        new_token: Callable[[], str] = lambda: secrets.token_hex(16),
    ) -> None:
        self._store = store
        self._now = now
        self._new_token = new_token

    def chat_params(self, request: ApiRequest) -> Adjusted:
        """See `Api.chat_params`."""
        read = read_request(request, self._store)
        token = self._new_token()
        keep = None
        if read.store and (store := self._store) is not None:

            def keep(response: dict[str, Any]) -> None:
                store.put(request.caller, response, [*read.items, *response["output"]])

        adjusted = read.adjusted
        head = {
            "id": RESPONSE_PREFIX + token,
            "object": "response",
            "created_at": int(self._now()),
            "model": str(adjusted.params.get("model")),
            "background": False,
            "store": read.store,
            "truncation": "disabled",
            **read.head,
        }
        adjusted.context = Draft(
            token=token,
            head=head,
            custom=read.tools.custom,
            mark_reasoning=read.mark_reasoning,
            logprobs=read.logprobs,
            now=self._now,
            keep=keep,
        )
        return adjusted

    def whole(self, completion: ChatCompletion, adjusted: Adjusted) -> bytes:
        """See `Api.whole`.

        Raises:
            ApiError: 502, the answer has no finish reason, or one that is not known.
        """
        return to_json(whole_response(completion, adjusted.context))

    def stream(self, adjusted: Adjusted) -> Encoder:
        """See `ResponseEncoder`."""
        return ResponseEncoder(adjusted.context)

    def local(self, request: ApiRequest) -> Reply:
        """A stored response, or its deletion."""
        response_id = request.path_params["id"]
        if self._store is None:
            raise ApiError(404, NOT_STORED, code="response_not_stored")
        if request.route.method == "DELETE":
            self._store.delete(request.caller, response_id)
            return Reply(body=to_json({"id": response_id, "object": "response", "deleted": True}))
        if request.query.get("stream") == "true":
            raise invalid("stream", "a stored response cannot be streamed")
        return Reply(body=to_json(self._store.get(request.caller, response_id).response))
