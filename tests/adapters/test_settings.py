import copy
import pickle
import threading

import httpx
import pytest
from pydantic import Field

from prem_core import EncryptionKeys, InvalidParameterError
from prem_core._adapters.settings import PARAM_FIELDS, ModelSettings, check_params
from prem_core._crypto.xwing import PrivateKey
from prem_core._protocol.request_schema import PARAM_NAMES


class Plain(ModelSettings):
    """A model of no framework."""

    http_client: httpx.Client | None = Field(default=None, exclude=True, repr=False)
    http_async_client: httpx.AsyncClient | None = None
    rate_limiter: object = None

    _http_fields = ("http_client", "http_async_client")


def make(**settings):
    return Plain(**{"model": "m", "api_key": "sk_test_SECRET", **settings})


def request(model, given=None, *, stream=False):
    return model._chat_request([{"role": "user", "content": "?"}], given or {}, stream=stream)


def test_every_parameter_that_does_not_belong_to_a_call_is_a_setting():
    of_a_call = {"messages", "stream", "stream_options", "tools", "tool_choice", "functions", "function_call"}
    assert set(PARAM_FIELDS) == PARAM_NAMES - of_a_call - {"metadata"}
    assert set(PARAM_FIELDS) | {"request_metadata"} <= set(ModelSettings.model_fields)


def test_parameters_that_are_not_set_are_not_sent():
    assert set(request(make())) == {"model", "messages"}
    assert set(request(make(), stream=True)) == {"model", "messages", "stream", "stream_options"}


def test_parameters_of_the_call_replace_those_of_the_model():
    model = make(
        temperature=0.1, top_p=0.5, stop="a", request_metadata={"a": "b"}, extra_body={"x": 1, "y": 1}
    )
    made = request(model, {"temperature": 0.9, "stop": ["b"], "extra_body": {"y": 2}})
    assert (made["temperature"], made["top_p"], made["stop"]) == (0.9, 0.5, ["b"])
    assert made["metadata"] == {"a": "b"}
    assert made["extra_body"] == {"x": 1, "y": 2}


def test_an_empty_list_of_stops_or_tools_is_not_sent():
    made = request(make(stop=["a"]), {"stop": [], "tools": []})
    assert {"stop", "tools"}.isdisjoint(made)


@pytest.mark.parametrize(
    ("setting", "given", "asked"),
    [(True, None, True), (False, None, False), (False, True, True), (True, False, False)],
)
def test_a_stream_requests_usage_unless_that_is_turned_off(setting, given, asked):
    kwargs = {} if given is None else {"stream_usage": given}
    made = request(make(stream_usage=setting), kwargs, stream=True)
    assert made.get("stream_options") == ({"include_usage": True} if asked else None)
    assert "stream_usage" not in made


def test_stream_options_are_sent_with_streams_only():
    given = {"stream_options": {"include_obfuscation": False}, "stream": True}
    assert request(make(), given, stream=True)["stream_options"] == {
        "include_usage": True,
        "include_obfuscation": False,
    }
    assert {"stream", "stream_options"}.isdisjoint(request(make(), given))


def test_several_answers_cannot_be_streamed():
    assert request(make(n=2))["n"] == 2
    with pytest.raises(InvalidParameterError, match="^n: a streamed answer can have one choice only"):
        request(make(n=2), stream=True)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("model", ""),
        ("temperature", 2.1),
        ("top_logprobs", 21),
        ("stop", ["a"] * 5),
        ("prediction", {"type": "content"}),
        ("request_metadata", {"a": "b" * 513}),
        ("timeout", 0),
        ("max_retries", -1),
        ("nonsense", "sk_test_SECRET"),
        ("api_key", ["sk_test_SECRET"]),
    ],
)
def test_an_invalid_setting_is_named_and_its_value_not_shown(setting, value):
    with pytest.raises(ValueError, match=setting) as caught:
        make(**{setting: value})
    assert "SECRET" not in str(caught.value)


def test_parameters_can_be_checked_against_the_schema_by_themselves():
    check_params({})
    check_params({"temperature": 1, "seed": None})
    with pytest.raises(InvalidParameterError, match="^top_k: "):
        check_params({"top_k": 4})


def test_no_repr_and_no_dump_contains_the_key():
    model = make()
    for shown in (repr(model), str(model), str(model.model_dump()), model.model_dump_json()):
        assert "SECRET" not in shown


def test_a_pickle_leaves_the_key_out():
    pickled = pickle.dumps(make(temperature=0.5))
    assert b"SECRET" not in pickled
    again = pickle.loads(pickled)
    assert (again.temperature, again.api_key) == (0.5, None)
    assert set(request(again)) == {"model", "messages", "temperature"}


@pytest.mark.parametrize("name", ["http_client", "http_async_client"])
def test_an_http_client_is_shared_by_deep_copies_and_not_pickled(name):
    client = httpx.Client() if name == "http_client" else httpx.AsyncClient()
    model = make(**{name: client})
    with pytest.raises(TypeError, match="http client"):
        pickle.dumps(model)
    assert getattr(copy.deepcopy(model), name) is client


def test_a_rate_limiter_is_shared_by_deep_copies():
    limiter = threading.Lock()
    model = make(rate_limiter=limiter, stop=["a"])
    again = copy.deepcopy(model)
    assert again.rate_limiter is limiter
    assert again.stop is not model.stop
    assert again.api_key == model.api_key


def test_a_changed_setting_applies_to_the_next_request():
    model = make(temperature=0.1)
    assert request(model)["temperature"] == 0.1
    model.temperature = 0.2
    assert request(model)["temperature"] == 0.2
    assert request(model.model_copy(update={"temperature": 0.3}))["temperature"] == 0.3
    assert request(model)["temperature"] == 0.2


def test_every_setting_reaches_the_client():
    key = PrivateKey(bytes(32)).public_key()
    keys = EncryptionKeys.encapsulate(key)
    model = make(enclave_public_key=key, encryption_keys=keys, allow_insecure=True, max_buffer_size=7)
    settings = model._client()._requester._settings
    assert (settings.keys, settings.pinned, settings.max_buffer_size) == (keys, True, 7)


# --- proxy_url


def test_proxy_url_is_another_name_of_gateway_url():
    model = make(proxy_url="http://127.0.0.1:9")
    assert model.gateway_url == "http://127.0.0.1:9"
    assert "proxy_url" not in model.model_dump()
    for again in (pickle.loads(pickle.dumps(model)), model.model_copy(), copy.deepcopy(model)):
        assert again.gateway_url == "http://127.0.0.1:9"
    assert make(proxy_url=None, gateway_url="http://127.0.0.1:9").gateway_url == "http://127.0.0.1:9"


def test_proxy_url_and_gateway_url_together_are_an_error():
    with pytest.raises(ValueError, match="proxy_url and gateway_url are the same setting"):
        make(proxy_url="http://127.0.0.1:9", gateway_url="http://127.0.0.1:9")
