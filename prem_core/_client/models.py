"""``client.models``."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from prem_core._client.requester import AsyncRequester, Requester
from prem_core._errors import InvalidParameterError
from prem_core._protocol import flow
from prem_core._protocol.routes import MODEL_TYPES

if TYPE_CHECKING:
    from prem_core._protocol.response_types import Model


class Models:
    """``client.models``."""

    def __init__(self, requester: Requester) -> None:
        self._requester = requester

    def list(self, type: str | None = None) -> list[Model]:  # noqa: A002 - the service's name
        """The models the gateway offers.

        Args:
            type: One of CHAT, AUDIO_TRANSCRIPTION, AUDIO_SPEECH, IMAGE; None for all.

        Raises:
            InvalidParameterError: `type` is none of these.
            APIError: The service's error, or the network's.
        """
        models: list[Model] = self._requester.run(functools.partial(flow.list_models, _model_type(type)))
        return models


class AsyncModels:
    """``client.models``."""

    def __init__(self, requester: AsyncRequester) -> None:
        self._requester = requester

    async def list(self, type: str | None = None) -> list[Model]:  # noqa: A002
        """See `Models.list`."""
        run = self._requester.run
        models: list[Model] = await run(functools.partial(flow.list_models, _model_type(type)))
        return models


def _model_type(kind: str | None) -> str | None:
    if kind is not None and kind not in MODEL_TYPES:
        raise InvalidParameterError(f"type: {kind!r} is not one of {', '.join(MODEL_TYPES)}", param="type")
    return kind
