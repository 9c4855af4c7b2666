"""The context window: known, set, listed, or an error; it is looked up only when it is read."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.memory import ChatMemoryBuffer

from llama_index_prem import PremEncrypted
from prem_core import ConfigurationError

Make = Callable[..., PremEncrypted]


@pytest.fixture
def listing() -> Any:
    """Constructs models of a service whose models list has the given entry, and records the requests."""
    asked: list[str] = []

    def make(status: int = 200, **entry: Any) -> PremEncrypted:
        def answer(request: httpx.Request) -> httpx.Response:
            asked.append(request.url.path)
            data = [{"id": "other", "context_length": 5}, {"id": "9", "model": "somebody/new", **entry}]
            return httpx.Response(status, json={"status": status, "data": data})

        client = httpx.Client(transport=httpx.MockTransport(answer))
        return PremEncrypted(model="somebody/new", api_key="sk_test_x", http_client=client, max_retries=0)

    make.asked = asked  # type: ignore[attr-defined]
    return make


def test_the_context_window_of_a_known_model_needs_no_request(llm: Make, seen: Any) -> None:
    metadata = llm(max_tokens=50).metadata
    assert metadata.context_window == 131_072
    assert metadata.num_output == 50
    assert metadata.is_chat_model
    assert metadata.is_function_calling_model
    assert metadata.model_name == "openai/gpt-oss-120b"
    assert seen.exchanges == []


def test_the_context_window_setting_takes_precedence(llm: Make) -> None:
    assert llm(context_window=4096).metadata.context_window == 4096
    assert llm(model="somebody/new", context_window=4096).metadata.context_window == 4096


@pytest.mark.parametrize("name", ["context_window", "context_length", "max_context_length", "max_model_len"])
def test_the_models_list_is_requested_once_when_the_context_window_is_read(listing: Any, name: str) -> None:
    model = listing(**{name: 32_768})
    metadata = model.metadata
    assert metadata.is_function_calling_model
    assert metadata.num_output == -1
    assert listing.asked == []
    assert metadata.context_window == model.metadata.context_window == 32_768
    assert PromptHelper.from_llm_metadata(model.metadata).context_window == 32_768
    assert listing.asked == ["/models"]
    assert metadata.model_dump()["context_window"] == 32_768


@pytest.mark.parametrize(
    "entry", [{}, {"context_length": None}, {"context_length": "big"}, {"context_length": 0}]
)
def test_a_context_window_that_the_list_does_not_state_is_an_error(
    listing: Any, entry: dict[str, Any]
) -> None:
    model = listing(**entry)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="pass context_window="):
            _ = model.metadata.context_window
    assert listing.asked == ["/models"]
    with pytest.raises(ConfigurationError, match="pass context_window="):
        ChatMemoryBuffer.from_defaults(llm=model)


def test_a_failed_request_for_the_models_list_is_an_error_and_made_again(listing: Any) -> None:
    model = listing(status=403)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="pass context_window="):
            _ = model.metadata.context_window
    assert listing.asked == ["/models"] * 2
    with pytest.raises(ConfigurationError, match="pass context_window="):
        _ = PremEncrypted(model="somebody/new").metadata.context_window


def test_calls_and_callbacks_do_not_read_the_context_window(llm: Make, seen: Any) -> None:
    model = llm(model="prem-local/quoting")
    model.complete("Hello")
    assert [exchange.path for exchange in seen.exchanges if "models" in exchange.path] == []
    assert "context_window" not in model.to_payload()
    assert "context_window" not in repr(model.metadata)


def test_a_context_window_belongs_to_one_model_name(listing: Any) -> None:
    model = listing(context_length=7)
    assert model.metadata.context_window == 7
    assert copy.deepcopy(model).metadata.context_window == 7
    model.model = "openai/gpt-oss-20b"
    assert model.metadata.context_window == 131_072


def test_an_unknown_attribute_of_the_metadata_is_an_attribute_error(listing: Any) -> None:
    with pytest.raises(AttributeError):
        _ = listing().metadata.no_such_field
