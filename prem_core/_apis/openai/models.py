"""``GET /models`` and ``GET /models/{id}``."""

from __future__ import annotations

from typing import Any

from prem_core._apis.base import ApiError, ApiRequest, Reply, Route, to_json
from prem_core._apis.openai.form import OpenAIApi
from prem_core._protocol.response_types import Model


class Models(OpenAIApi):
    """OpenAI's list of models, with every field of the service's."""

    routes = (Route("GET", "/models", "models"), Route("GET", "/models/{id}", "models"))

    def models(self, request: ApiRequest, listed: list[Model]) -> Reply:
        """See `Api.models`."""
        name = request.path_params.get("id")
        if name is None:
            return Reply(body=to_json({"object": "list", "data": [*map(_entry, listed)]}))
        for each in listed:
            if name == each.id:
                return Reply(body=to_json(_entry(each)))
        raise ApiError(
            404,
            "there is no such model; GET /v1/models lists the names",
            code="model_not_found",
            param="model",
        )


def _entry(model: Model) -> dict[str, Any]:
    # OpenAI's clients require the last three fields; the service has none of them.
    return {
        **model.model_dump(exclude_unset=True, exclude={"model"}, warnings=False),
        "id": model.id,
        "object": "model",
        "created": 0,
        "owned_by": model.id.partition("/")[0] or "prem",
    }
