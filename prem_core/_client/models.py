"""``client.models``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prem_core._errors import InvalidParameterError
from prem_core._protocol import flow
from prem_core._protocol.routes import MODEL_TYPES

if TYPE_CHECKING:
    from prem_core._client.client import AsyncPremClient, PremClient
    from prem_core._protocol.response_types import Model


class Models:
    """``client.models``."""

    def __init__(self, client: PremClient) -> None:
        self._client = client

    def list(self, type: str | None = None) -> list[Model]:  # noqa: A002 - the service's name
        """The models the gateway offers.

        Args:
            type: One of CHAT, AUDIO_TRANSCRIPTION, AUDIO_SPEECH, IMAGE; None for all.
        """
        settings = self._client._call_settings()
        driver = self._client._driver(deadline=settings.deadline)
        models = driver.run(flow.list_models(_model_type(type), settings))
        driver.close()
        return models


class AsyncModels:
    """``client.models``."""

    def __init__(self, client: AsyncPremClient) -> None:
        self._client = client

    async def list(self, type: str | None = None) -> list[Model]:  # noqa: A002
        """`Models.list`, awaited."""
        settings = self._client._call_settings()
        driver = await self._client._driver(deadline=settings.deadline)
        models = await driver.run(flow.list_models(_model_type(type), settings))
        await driver.close()
        return models


def _model_type(kind: str | None) -> str | None:
    if kind is not None and kind not in MODEL_TYPES:
        raise InvalidParameterError(f"type: must be one of {', '.join(MODEL_TYPES)}", param="type")
    return kind
