"""Constructing, serialising, pickling and copying a model."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.llms import LLM
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.rate_limiter import TokenBucketRateLimiter
from llama_index.core.types import PydanticProgramMode
from pydantic import BaseModel

from llama_index_prem import PremEncrypted
from prem_core import AuthenticationError, EncryptionKeys, PublicKey
from prem_core._protocol.request_schema import PARAM_NAMES
from prem_core.enclave import LocalEnclave

Make = Callable[..., PremEncrypted]


class Payment(BaseModel):
    amount: int


# --- constructing ---------------------------------------------------------------------------------------


def test_every_parameter_of_the_published_schema_is_a_field() -> None:
    of_a_call = {"messages", "stream", "stream_options", "tools", "tool_choice", "functions", "function_call"}
    fields = set(PremEncrypted.model_fields)
    assert PARAM_NAMES - of_a_call - {"metadata"} <= fields
    assert "request_metadata" in fields


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("model", ""),
        ("temperature", 3),
        ("top_p", -0.1),
        ("top_logprobs", 21),
        ("frequency_penalty", 2.5),
        ("logit_bias", {"1": 101}),
        ("n", 0),
        ("stop", ["a"] * 5),
        ("reasoning_effort", "enormous"),
        ("modalities", ["smell"]),
        ("audio", {"format": "wav"}),
        ("response_format", {"type": "xml"}),
        ("request_metadata", {"a": "b" * 513}),
        ("context_window", 0),
        ("timeout", 0),
        ("max_retries", -1),
        ("max_buffer_size", 0),
        ("additional_kwargs", {"top_k": 4}),
        ("additional_kwargs", {"model": "another"}),
        ("additional_kwargs", {"temperature": 0.5}),
        ("additional_kwargs", {"metadata": {"a": "b"}}),
        ("additional_kwargs", {"timeout": 5}),
        ("additional_kwargs", {"stream": True}),
        ("additional_kwargs", {"parallel_tool_calls": False}),
        ("temperatur", 0.5),
        ("http_client", "a client"),
    ],
)
def test_an_invalid_setting_is_named_at_construction(setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=setting) as caught:
        PremEncrypted(**{"model": "m", setting: value})
    assert "input_value" not in str(caught.value)


def test_llama_indexs_own_settings_are_accepted() -> None:
    manager = CallbackManager([])
    model = PremEncrypted(
        model="m",
        callback_manager=manager,
        system_prompt="Be brief.",
        messages_to_prompt=lambda messages: "p",
        completion_to_prompt=lambda prompt: prompt,
        pydantic_program_mode=PydanticProgramMode.LLM,
        output_parser=PydanticOutputParser(Payment),
    )
    assert model.callback_manager is manager
    assert isinstance(model, LLM)


def test_constructing_needs_no_connection_and_no_key() -> None:
    model = PremEncrypted(model="m")
    with pytest.raises(ValueError, match="PREM_API_KEY"):
        model.complete("Hello")


def test_a_setting_changed_after_a_call_applies_to_the_next_one(llm: Make, enclave: LocalEnclave) -> None:
    model = llm()
    model.complete("Hello")
    model.api_key = None
    with pytest.raises(ValueError, match="PREM_API_KEY"):
        model.complete("Hello")
    wrong = llm(api_key="sk_test_wrong")
    with pytest.raises(AuthenticationError):
        wrong.complete("Hello")
    wrong.api_key = llm().api_key
    assert wrong.complete("Hello").text


def test_a_pinned_key_may_be_an_object_bytes_or_text(llm: Make, enclave: LocalEnclave) -> None:
    key: PublicKey = enclave.public_key
    models = [llm(enclave_public_key=form) for form in (key, bytes(key), bytes(key).hex())]
    assert len({model.enclave_public_key for model in models}) == 1
    assert models[0].complete("Hello").text


# --- serialising ----------------------------------------------------------------------------------------


def test_a_model_survives_a_round_trip_through_a_dict_and_json(
    llm: Make, enclave: LocalEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREM_API_KEY", enclave.api_key)
    model = llm(temperature=0.5, stop=["zebra"], additional_kwargs={"tool_choice": "none"}, context_window=5)
    assert model.to_dict()["class_name"] == PremEncrypted.class_name() == "PremEncrypted"
    for again in (PremEncrypted.from_dict(model.to_dict()), PremEncrypted.from_json(model.to_json())):
        assert again.to_dict() == model.to_dict()
        assert again.complete("Hello").text == model.complete("Hello").text
    json.dumps(model.to_payload())


def test_a_model_constructed_with_proxy_url_is_serialised_with_gateway_url(
    llm: Make, enclave: LocalEnclave
) -> None:
    model = llm(gateway_url=None, proxy_url=enclave.gateway_url)
    assert model.complete("Hello").text
    assert "proxy_url" not in model.to_dict()
    assert PremEncrypted.from_dict(model.to_dict()).gateway_url == enclave.gateway_url


def test_serialised_forms_leave_secrets_and_live_objects_out(llm: Make, enclave: LocalEnclave) -> None:
    keys = EncryptionKeys.encapsulate(enclave.public_key)
    model = llm(encryption_keys=keys)
    for shown in (model.to_json(), repr(model), str(model.to_payload())):
        assert keys.shared_secret.hex() not in shown
        assert "encryption_keys" not in shown
    with pytest.raises(TypeError, match="they contain a secret"):
        pickle.dumps(model)


# --- pickling -------------------------------------------------------------------------------------------


def test_a_model_in_use_pickles_without_its_key_and_works_again(
    llm: Make, enclave: LocalEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llm(temperature=0.5, system_prompt="Be brief.", output_parser=PydanticOutputParser(Payment))
    model.complete("Hello")
    asyncio.run(model.acomplete("Hello"))
    pickled = pickle.dumps(model)
    assert enclave.api_key.encode() not in pickled

    monkeypatch.setenv("PREM_API_KEY", enclave.api_key)
    again: PremEncrypted = pickle.loads(pickled)
    assert (again.temperature, again.system_prompt) == (0.5, "Be brief.")
    assert again.complete("Hello").text == model.complete("Hello").text
    assert asyncio.run(again.acomplete("Hello")).text


def test_pickling_does_not_change_the_model(llm: Make) -> None:
    # Core's own pickling takes what it cannot pickle out of the living object.
    manager = CallbackManager([TokenCountingHandler(tokenizer=lambda text: [])])
    model = llm(callback_manager=manager)
    before = dict(model.__dict__)
    again: PremEncrypted = pickle.loads(pickle.dumps(model))
    assert model.__dict__ == before
    assert again.callback_manager.handlers == []


def test_an_unpickled_model_without_a_key_in_the_environment_names_the_variable(llm: Make) -> None:
    again: PremEncrypted = pickle.loads(pickle.dumps(llm()))
    with pytest.raises(ValueError, match="PREM_API_KEY"):
        again.complete("Hello")


def test_a_pickle_of_an_older_version_takes_the_defaults_of_new_settings(llm: Make) -> None:
    state = llm().__getstate__()
    del state["__dict__"]["stream_usage"]
    again = PremEncrypted.__new__(PremEncrypted)
    again.__setstate__(state)
    assert again.stream_usage is True


# --- copying --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "made", [copy.copy, copy.deepcopy, lambda m: m.model_copy(), lambda m: m.model_copy(deep=True)]
)
def test_a_copy_of_a_model_in_use_keeps_the_key_and_works(
    llm: Make, made: Callable[[PremEncrypted], PremEncrypted]
) -> None:
    model = llm(stop=["zebra"])
    model.complete("Hello")
    asyncio.run(model.acomplete("Hello"))
    again = made(model)
    assert again.to_dict() == model.to_dict()
    assert again.api_key == model.api_key
    assert again.complete("Hello").text == model.complete("Hello").text
    assert asyncio.run(again.acomplete("Hello")).text


def test_a_copy_with_another_key_uses_it(llm: Make) -> None:
    model = llm()
    model.complete("Hello")
    with pytest.raises(AuthenticationError):
        model.model_copy(update={"api_key": llm(api_key="sk_test_wrong").api_key}).complete("Hello")


def test_a_deep_copy_shares_only_what_belongs_to_the_process(llm: Make) -> None:
    limiter = TokenBucketRateLimiter(requests_per_minute=1000)
    model = llm(
        stop=["zebra"],
        additional_kwargs={"stream_options": {"include_obfuscation": False}},
        rate_limiter=limiter,
    )
    again = copy.deepcopy(model)
    assert isinstance(again.stop, list)
    again.stop.append("lion")
    again.additional_kwargs["stream_options"]["include_obfuscation"] = True
    assert (model.stop, model.additional_kwargs) == (
        ["zebra"],
        {"stream_options": {"include_obfuscation": False}},
    )
    assert again.rate_limiter is limiter
    assert again.callback_manager is model.callback_manager
