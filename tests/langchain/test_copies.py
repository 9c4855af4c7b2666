"""Serialising, pickling and copying a model."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Callable

import httpx
import pytest
from langchain_core.load import dumpd, dumps, load
from langchain_core.rate_limiters import InMemoryRateLimiter

from langchain_prem import ChatPremEncrypted
from prem_core import EncryptionKeys, PublicKey
from prem_core.enclave import LocalEnclave

Make = Callable[..., ChatPremEncrypted]


def test_a_model_in_use_pickles_without_its_key_and_works_again(
    llm: Make, enclave: LocalEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llm(temperature=0.5)
    model.invoke("Hello")
    asyncio.run(model.ainvoke("Hello"))
    pickled = pickle.dumps(model)
    assert enclave.api_key.encode() not in pickled

    monkeypatch.setenv("PREM_API_KEY", enclave.api_key)
    again: ChatPremEncrypted = pickle.loads(pickled)
    assert again.temperature == 0.5
    assert again.invoke("Hello").content == model.invoke("Hello").content


def test_an_unpickled_model_without_a_key_in_the_environment_names_the_variable(llm: Make) -> None:
    again: ChatPremEncrypted = pickle.loads(pickle.dumps(llm()))
    with pytest.raises(ValueError, match="PREM_API_KEY"):
        again.invoke("Hello")


@pytest.mark.parametrize(
    "made", [copy.copy, copy.deepcopy, lambda m: m.model_copy(), lambda m: m.model_copy(deep=True)]
)
def test_a_copy_of_a_model_in_use_keeps_the_key_and_works(
    llm: Make, made: Callable[[ChatPremEncrypted], ChatPremEncrypted]
) -> None:
    model = llm(stop=["zebra"])
    model.invoke("Hello")
    again = made(model)
    assert again.model_dump() == model.model_dump()
    assert again.api_key == model.api_key
    assert again.invoke("Hello").content == model.invoke("Hello").content
    assert asyncio.run(again.ainvoke("Hello")).content


def test_a_deep_copy_shares_nothing_that_can_be_changed(llm: Make) -> None:
    model = llm(stop=["zebra"])
    again = copy.deepcopy(model)
    assert isinstance(again.stop, list)
    again.stop.append("lion")
    assert model.stop == ["zebra"]


def test_the_callers_http_client_is_shared_by_copies_and_not_pickled(llm: Make) -> None:
    with httpx.Client() as client:
        model = llm(http_client=client)
        model.invoke("Hello")
        assert copy.deepcopy(model).http_client is client
        with pytest.raises(TypeError, match="http client"):
            pickle.dumps(model)


def test_a_model_with_a_rate_limiter_cannot_be_pickled(llm: Make) -> None:
    with pytest.raises(TypeError, match="rate_limiter"):
        pickle.dumps(llm(rate_limiter=InMemoryRateLimiter()))


def test_dumps_marks_the_key_as_a_secret_and_leaves_live_objects_out(
    llm: Make, enclave: LocalEnclave
) -> None:
    keys = EncryptionKeys.encapsulate(enclave.public_key)
    with httpx.Client() as client:
        text = dumps(llm(http_client=client, encryption_keys=keys))
    assert enclave.api_key not in text
    assert keys.shared_secret.hex() not in text
    assert "http_client" not in text
    assert '"PREM_API_KEY"' in text


def test_a_serialised_model_loads_again(
    llm: Make, enclave: LocalEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREM_API_KEY", enclave.api_key)
    model = llm(temperature=0.5, max_tokens=50)
    again = load(
        dumpd(model),
        allowed_objects=[ChatPremEncrypted],
        valid_namespaces=["langchain_prem"],
        secrets_from_env=True,
    )
    assert again.asdict() == model.asdict()
    assert again.invoke("Hello").content == model.invoke("Hello").content


def test_a_model_constructed_with_proxy_url_is_serialised_with_gateway_url(
    llm: Make, enclave: LocalEnclave
) -> None:
    url = enclave.gateway_url
    model = llm(gateway_url=None, proxy_url=url)
    assert model.invoke("Hello").content
    assert dumpd(model)["kwargs"]["gateway_url"] == model._identifying_params["gateway_url"] == url
    assert "proxy_url" not in dumps(model)


def test_identifying_parameters_contain_no_key(llm: Make, enclave: LocalEnclave) -> None:
    model = llm()
    for shown in (
        repr(model),
        str(model),
        str(model.asdict()),
        str(model._get_invocation_params()),
        str(model.model_dump()),
    ):
        assert enclave.api_key not in shown


def test_a_pinned_key_may_be_an_object_bytes_or_text(llm: Make, enclave: LocalEnclave) -> None:
    key: PublicKey = enclave.public_key
    models = [llm(enclave_public_key=form) for form in (key, bytes(key), bytes(key).hex())]
    assert len({model.enclave_public_key for model in models}) == 1
    assert models[0].invoke("Hello").content


def test_one_model_works_in_several_event_loops(llm: Make) -> None:
    model = llm()
    answers = {asyncio.run(model.ainvoke("Hello")).text for _ in range(5)}
    assert len(answers) == 1


def test_a_misspelt_parameter_is_an_error(llm: Make) -> None:
    with pytest.raises(ValueError, match="temperatur"):
        llm(temperatur=0.5)
