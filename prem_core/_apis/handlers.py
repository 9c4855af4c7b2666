"""One request and its answer, without a network: for the proxy, and for both transports.

The caller of an `Exchange` sends what it asks for with a client, synchronous or not, and passes on what it returns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, cast

import httpx

from prem_core._apis.base import Adjusted, Api, ApiError, ApiRequest, Encoder, Recording, Reply, quote_names
from prem_core._client.client import AsyncPremClient, PremClient
from prem_core._protocol.first_call import FirstCallOnly
from prem_core._protocol.protection import Protection
from prem_core._protocol.response_types import ChatCompletion, ChatCompletionChunk

#: The header that states how an answer was protected.
PROTECTION_HEADER: Final = "x-prem-protection"

#: The header that lists the parameters that were left out.
DROPPED_HEADER: Final = "x-prem-dropped"

#: The header that lists the parameters that were sent in another form, or applied to the answer here.
ADJUSTED_HEADER: Final = "x-prem-adjusted"

#: Characters of a support id in a header. The service's have 44.
MAX_SUPPORT_ID: Final = 100


class Exchange:
    """One request of one API.

    Args:
        api: The API.
        request: The request, read and parsed.

    Attributes:
        streamed: Whether the caller asked for a stream.
        model: The requested model, as the caller wrote it; None for a route without one.
        protection: How the answer was protected; None before it arrives, and where nothing was sealed.

    Raises:
        ApiError: The request is not valid, or asks for something that Prem's API does not have.
    """

    def __init__(self, api: Api, request: ApiRequest) -> None:
        self._api = api
        self._request = request
        self._chat: Adjusted | None = None
        self._recording: Recording | None = None
        self._encoder: Encoder | None = None
        self._first_call: FirstCallOnly | None = None
        self.protection: Protection | None = None
        if request.route.kind == "chat":
            self._chat = api.chat_params(request)
            self._first_call = FirstCallOnly() if self._chat.first_call_only else None
        elif request.route.kind == "audio":
            self._recording = api.recording(request)
        self.streamed = self._chat is not None and self._chat.streamed
        given = self._chat or self._recording
        self.model: Any = None if given is None else given.params.get("model")

    def headers(self) -> list[tuple[str, str]]:
        """The headers of the response that are known so far."""
        pairs = []
        if self.protection is not None:
            pairs.append((PROTECTION_HEADER, protection_text(self.protection)))
        given = self._chat or self._recording
        if given is not None and given.dropped:
            pairs.append((DROPPED_HEADER, quote_names(given.dropped)))
        if self._chat is not None and self._chat.adjusted:
            pairs.append((ADJUSTED_HEADER, quote_names(self._chat.adjusted) + self._left_out()))
        return pairs

    def local(self) -> Reply | None:
        """The response, if it needs no service.

        Raises:
            ApiError: See `Api.local`.
        """
        return self._api.local(self._request) if self._request.route.kind == "local" else None

    def send(self, client: PremClient | AsyncPremClient, timeout: float | httpx.Timeout | None = None) -> Any:
        """Call `client`.

        Args:
            client: The client.
            timeout: The timeout of this call; None for the client's.

        Returns:
            The client's result for `receive`; an awaitable of it for an `AsyncPremClient`.
        """
        options = {} if timeout is None else {"timeout": timeout}
        if self._chat is not None:
            create: Any = client.chat.completions.create
            return create(**{"messages": None, "model": None, **self._chat.params, **options})
        if self._recording is not None:
            create = getattr(client.audio, self._recording.task).create
            return create(file=self._recording.file, **self._recording.params, **options)
        return client.models.list(self._request.query.get("type"))

    def receive(self, result: Any) -> Reply | None:
        """The response to a request that was not streamed. None for a stream: its chunks are for `encode`.

        Raises:
            ApiError: There is no such model.
            APIResponseValidationError: The answer does not have what the caller asked for.
        """
        if self._chat is not None:
            self.protection = result.prem
            if not isinstance(result, ChatCompletion):
                return None
            if self._first_call is not None:
                self._first_call.filter_completion(result)
            return Reply(body=self._api.whole(result, self._chat))
        if self._recording is not None:
            self.protection = result.prem
            return self._api.transcript(result, self._recording)
        return self._api.models(self._request, [model for model in result if model.enabled is not False])

    def encode(self, chunk: ChatCompletionChunk) -> bytes:
        """The events of a chunk; may be empty."""
        if self._first_call is not None:
            self._first_call.filter_chunk(chunk)
        return self._stream().chunk(chunk)

    def end(self) -> bytes:
        """The last events of a complete stream."""
        left_out = self._left_out()
        comment = f": {ADJUSTED_HEADER}: parallel_tool_calls{left_out}\n\n".encode() if left_out else b""
        return comment + self._stream().end()

    def fail(self, error: ApiError) -> bytes:
        """The last event of a stream that fails."""
        return self._stream().error(error)

    def keep_alive(self) -> bytes:
        """What is sent while the caller waits for a stream."""
        return self._stream().keep_alive()

    def error_body(self, error: ApiError) -> bytes:
        """The body of an error response."""
        return self._api.error_body(error)

    def _stream(self) -> Encoder:
        if self._encoder is None:
            self._encoder = self._api.stream(cast("Adjusted", self._chat))
        return self._encoder

    def _left_out(self) -> str:
        left_out = 0 if self._first_call is None else self._first_call.left_out
        return f" (tool calls left out: {left_out})" if left_out else ""


def protection_text(protection: Protection) -> str:
    """How an answer was protected, for a header. What is not known is left out."""
    support_id = protection.support_id
    values = {
        "key": protection.key_fingerprint,
        "source": protection.key_source,
        "attested": "yes" if protection.attested else "no",
        "key-bound": "yes" if protection.key_bound else "no" if protection.attested else None,
        "nonce": protection.reply_nonce,
        # It comes from the network, and must not look like another value.
        "support-id": support_id and re.sub(r"[^\w.:-]", "?", support_id, flags=re.ASCII)[:MAX_SUPPORT_ID],
    }
    return "; ".join(f"{name}={value}" for name, value in values.items() if value)


#: The headers in which clients send an API key.
KEY_HEADERS: Final = ("authorization", "x-api-key")


def api_key_of(headers: Mapping[str, str]) -> str | None:
    """The API key in a request's headers, by lower-case name: ``Authorization: Bearer …``, or else ``x-api-key``."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return headers.get("x-api-key", "").strip() or None
