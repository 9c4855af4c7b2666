"""Responses kept in memory, for ``previous_response_id``, item references and ``GET /responses/{id}``."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final

from prem_core._apis.base import ApiError, to_json

#: How many responses one API key may have, and how many bytes. Each counts with the whole conversation before it.
MAX_RESPONSES: Final = 256
MAX_BYTES: Final = 64 * 1024 * 1024

#: How many bytes all API keys may have together.
MAX_TOTAL_BYTES: Final = 256 * 1024 * 1024

RESPONSE_PREFIX: Final = "resp_"

_TOKEN_LENGTH: Final = 32


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response, and the conversation up to its end.

    Attributes:
        response: The response.
        items: All items of input and output, this response's included.
        size: Bytes of both.
    """

    response: dict[str, Any] = field(repr=False)
    items: list[Any] = field(repr=False)
    size: int


class ResponseStore:
    """The stored responses of all callers, each visible to its caller only. The oldest make room for new ones.

    Args:
        max_responses: How many responses a caller may have.
        max_bytes: How many bytes a caller's responses may have.
        max_total_bytes: How many bytes all responses may have.
    """

    def __init__(
        self,
        max_responses: int = MAX_RESPONSES,
        max_bytes: int = MAX_BYTES,
        max_total_bytes: int = MAX_TOTAL_BYTES,
    ) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._max_total = max_total_bytes
        self._lock = threading.Lock()
        self._stored: OrderedDict[tuple[str, str], StoredResponse] = OrderedDict()
        self._total = 0

    def __len__(self) -> int:
        return len(self._stored)

    def __repr__(self) -> str:
        return f"ResponseStore({len(self)} responses, {self._total} bytes)"

    def put(self, caller: str, response: dict[str, Any], items: list[Any]) -> None:
        """Store a response, unless it alone is over the limit."""
        stored = StoredResponse(response, items, len(to_json(response)) + len(to_json(items)))
        if stored.size > min(self._max_bytes, self._max_total):
            return
        with self._lock:
            self._stored[caller, response["id"]] = stored
            self._total += stored.size
            own = [key for key in self._stored if key[0] == caller]
            size = sum(self._stored[key].size for key in own)
            for key in own:
                if len(own) <= self._max_responses and size <= self._max_bytes:
                    break
                own = own[1:]
                size -= self._remove(key).size
            while self._total > self._max_total:
                self._remove(next(iter(self._stored)))

    def get(self, caller: str, response_id: str) -> StoredResponse:
        """A response of the caller. It becomes the newest.

        Raises:
            ApiError: 404, there is none.
        """
        with self._lock:
            found = self._stored.get((caller, response_id))
            if found is not None:
                self._stored.move_to_end((caller, response_id))
                return found
        raise self._missing()

    def find_item(self, caller: str, item_id: str) -> dict[str, Any] | None:
        """An item of one of the caller's responses, or None."""
        token = item_id.partition("_")[2][:_TOKEN_LENGTH]
        with self._lock:
            found = self._stored.get((caller, RESPONSE_PREFIX + token))
        items: list[dict[str, Any]] = found.response["output"] if found is not None else []
        return next((item for item in items if item["id"] == item_id), None)

    def delete(self, caller: str, response_id: str) -> None:
        """Remove a response of the caller.

        Raises:
            ApiError: 404, there is none.
        """
        with self._lock:
            if (caller, response_id) in self._stored:
                self._remove((caller, response_id))
                return
        raise self._missing()

    def _remove(self, key: tuple[str, str]) -> StoredResponse:
        removed = self._stored.pop(key)
        self._total -= removed.size
        return removed

    def _missing(self) -> ApiError:
        return ApiError(
            404,
            "there is no such stored response: it was not stored, was stored with another API key, was deleted, or "
            f"made room for newer ones (the limits are {self._max_responses} responses and {self._max_bytes} bytes)",
            code="response_not_found",
        )
