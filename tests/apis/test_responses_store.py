"""The Responses API: responses are kept in memory, bounded and separate for each API key."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from prem_core._apis.base import ApiError, ApiRequest, Route
from prem_core._apis.responses.api import Responses
from prem_core._apis.responses.store import ResponseStore
from prem_core._protocol.response_types import ChatCompletion

POST, GET, DELETE = (Route(method, "/responses") for method in ("POST", "GET", "DELETE"))


class Session:
    """One caller's requests to an API that stores responses."""

    def __init__(self, store: ResponseStore, caller: str = "a") -> None:
        self._tokens = itertools.count(1)
        self._api = Responses(store, new_token=lambda: f"{caller}{next(self._tokens):031x}")
        self._caller = caller
        self.messages: list[dict[str, Any]] = []

    def ask(self, value: Any, **body: Any) -> dict[str, Any]:
        request = ApiRequest(route=POST, body={"model": "m", "input": value, **body}, caller=self._caller)
        adjusted = self._api.chat_params(request)
        self.messages = adjusted.params["messages"]
        message = {"content": "Hi.", "reasoning_content": "Hm."}
        completion = ChatCompletion.model_validate(
            {"choices": [{"message": message, "finish_reason": "stop"}]}
        )
        response: dict[str, Any] = json.loads(self._api.whole(completion, adjusted))
        return response

    def local(self, route: Route, response_id: str) -> dict[str, Any]:
        request = ApiRequest(route=route, path_params={"id": response_id}, caller=self._caller)
        value: dict[str, Any] = json.loads(self._api.local(request).body)
        return value


def status_of(call: Any, *arguments: Any, **keywords: Any) -> tuple[int, str | None]:
    with pytest.raises(ApiError) as caught:
        call(*arguments, **keywords)
    return caught.value.status, caught.value.code


def test_a_conversation_goes_on_from_a_stored_response() -> None:
    session = Session(ResponseStore())
    first = session.ask("One.", instructions="Be brief.")
    second = session.ask("Two.", previous_response_id=first["id"])
    assert second["previous_response_id"] == first["id"]
    session.ask("Three.", previous_response_id=second["id"], instructions="Be kind.")
    answer = {"role": "assistant", "reasoning_content": "Hm.", "content": "Hi."}
    assert session.messages == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "One."},
        answer,
        {"role": "user", "content": "Two."},
        answer,
        {"role": "user", "content": "Three."},
    ]


def test_a_stored_item_can_be_referred_to_by_its_id() -> None:
    session = Session(ResponseStore())
    output = session.ask("One.")["output"]
    references = [{"type": "item_reference", "id": item["id"]} for item in output]
    session.ask([{"role": "user", "content": "One."}, *references, {"role": "user", "content": "Two."}])
    assert session.messages[1] == {"role": "assistant", "reasoning_content": "Hm.", "content": "Hi."}


def test_a_stored_response_is_returned_until_it_is_deleted() -> None:
    session = Session(ResponseStore())
    response = session.ask("One.")
    assert response["store"] is True
    assert session.local(GET, response["id"]) == response
    assert session.local(DELETE, response["id"]) == {
        "id": response["id"],
        "object": "response",
        "deleted": True,
    }
    assert status_of(session.local, GET, response["id"]) == (404, "response_not_found")
    assert status_of(session.local, DELETE, response["id"]) == (404, "response_not_found")
    assert status_of(session.ask, "Two.", previous_response_id=response["id"]) == (404, "response_not_found")


def test_a_response_with_store_false_is_not_stored() -> None:
    store = ResponseStore()
    assert Session(store).ask("One.", store=False)["store"] is False
    assert len(store) == 0


def test_another_api_key_cannot_read_delete_or_continue_a_response() -> None:
    store = ResponseStore()
    response = Session(store, "a").ask("One.")
    other = Session(store, "b")
    missing = (404, "response_not_found")
    assert status_of(other.local, GET, response["id"]) == missing
    assert status_of(other.local, DELETE, response["id"]) == missing
    assert status_of(other.ask, "Two.", previous_response_id=response["id"]) == missing
    reference = [{"type": "item_reference", "id": response["output"][-1]["id"]}]
    assert status_of(other.ask, reference)[0] == 400


def test_the_oldest_response_makes_room_for_a_new_one() -> None:
    session = Session(ResponseStore(max_responses=2))
    first, second = session.ask("One."), session.ask("Two.")
    session.local(GET, first["id"])  # now the newest
    session.ask("Three.")
    assert session.local(GET, first["id"])
    assert status_of(session.local, GET, second["id"])[0] == 404


def test_one_api_key_does_not_push_out_the_responses_of_another() -> None:
    store = ResponseStore(max_responses=2)
    other = Session(store, "b")
    kept = other.ask("One.")
    session = Session(store, "a")
    for _ in range(5):
        session.ask("Two.")
    assert other.local(GET, kept["id"])
    assert len(store) == 3


def test_the_bytes_of_the_stored_responses_are_bounded() -> None:
    store = ResponseStore(max_bytes=20_000, max_total_bytes=30_000)
    for caller in "abcd":
        session = Session(store, caller)
        for _ in range(10):
            session.ask("x" * 4000)
    assert 1 <= len(store) <= 6


def test_a_response_over_the_limit_is_not_stored() -> None:
    store = ResponseStore(max_bytes=5_000)
    session = Session(store)
    kept = session.ask("One.")
    session.ask("x" * 10_000)
    assert session.local(GET, kept["id"])
    assert len(store) == 1


def test_the_repr_of_the_store_has_no_content() -> None:
    store = ResponseStore()
    Session(store).ask("a secret")
    assert "secret" not in repr(store)
