import copy
import enum
import json
from collections import OrderedDict, UserDict
from types import MappingProxyType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import TypeAdapter, ValidationError
from support.fake_gateway import COMPLETION, PARAMS, error_text
from support.paths import SCHEMAS

from prem_core._errors import InvalidParameterError
from prem_core._protocol.request_schema import (
    PARAM_NAMES,
    ChatOptions,
    ChatParams,
    TranscriptionParams,
    audio_plaintext,
    chat_plaintext,
)
from prem_core._protocol.response_types import ChatCompletion, ChatCompletionMessage

SCHEMA = json.loads((SCHEMAS / "chat-inference-params.schema.json").read_text())
Draft202012Validator.check_schema(SCHEMA)
PUBLISHED = Draft202012Validator(SCHEMA)


def sent(params=None, extra_body=None, **more):
    """What the enclave finds when it opens the request."""
    return json.loads(chat_plaintext({**PARAMS, **(params or {}), **more}, extra_body))


def refusal(params, extra_body=None):
    with pytest.raises(InvalidParameterError) as caught:
        chat_plaintext(params, extra_body)
    return caught.value


def user(content):
    return [{"role": "user", "content": content}]


CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
IMAGE = {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}}
AUDIO = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
FILE = {"type": "file", "file": {"file_data": "AAAA", "filename": "a.pdf", "file_id": "f"}}
TEXT = {"type": "text", "text": "a"}
PLACE = {"city": "Lugano", "country": "CH", "region": "TI", "timezone": "Europe/Zurich"}
FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}

#: For each parameter values that the published schema allows.
VALID = {
    "messages": [
        user("a"),
        user(""),
        user([]),
        user([TEXT, IMAGE, AUDIO, FILE]),
        user([{"type": "file", "file": {}}]),
        user([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]),
        [{"role": "system", "content": "a", "name": "n"}, *user("b")],
        [{"role": "system", "content": [TEXT, TEXT]}],
        [{"role": "user", "content": "a", "name": "n"}],
        [{"role": "assistant"}],
        [{"role": "assistant", "content": "a", "refusal": "r", "name": "n", "audio": {"id": "i"}}],
        [{"role": "assistant", "content": [TEXT], "tool_calls": [CALL, CALL], "reasoning_content": "r"}],
        [{"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}],
        [{"role": "tool", "content": "a", "tool_call_id": "call_1"}],
        [{"role": "tool", "content": [TEXT], "tool_call_id": "call_1"}],
        [{"role": "function", "content": "a", "name": "f"}],
        [{"role": "user", "content": "a", "new": {"x": [1, None]}}],
    ],
    "model": ["openai/gpt-oss-120b", ""],
    "temperature": [0, 0.0, 1, 1.5, 2, 2.0],
    "top_p": [0, 0.5, 1],
    "max_tokens": [1, 0, 10**9],
    "max_completion_tokens": [1, 100_000],
    "stream": [True, False],
    "stream_options": [{}, {"include_usage": True}, {"include_obfuscation": False}, {"new": 1}],
    "tools": [
        [],
        [{"type": "function", "function": FUNCTION}],
        [{"type": "function", "function": {"name": "f"}}],
        [{"type": "function", "function": {"name": "f", "strict": True}}],
        [{"type": "custom", "custom": {"name": "c", "description": "d", "format": {"type": "text"}}}],
        [{"type": "custom", "custom": {"name": "c"}}],
    ],
    "tool_choice": [
        "none",
        "auto",
        "required",
        {"type": "function", "function": {"name": "f"}},
        {"type": "custom", "custom": {"name": "c"}},
    ],
    "response_format": [
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "n"}},
        {
            "type": "json_schema",
            "json_schema": {"name": "n", "description": "d", "schema": {}, "strict": True},
        },
    ],
    "audio": [{"format": "wav", "voice": "alloy"}, {"format": "pcm16", "voice": "shimmer"}],
    "frequency_penalty": [-2, 0, 0.5, 2],
    "presence_penalty": [-2.0, 0, 2],
    "function_call": ["none", "auto", {"name": "f"}],
    "functions": [[], [FUNCTION], [{"name": "f"}]],
    "logit_bias": [{}, {"50256": -100, "7": 100, "8": 0.5}],
    "logprobs": [True, False],
    "top_logprobs": [0, 20],
    "metadata": [{}, {"k": "v" * 512}, {str(n): "v" for n in range(16)}],
    "modalities": [[], ["text"], ["text", "audio"]],
    "n": [1, 5],
    "prediction": [{"type": "content", "content": "a"}, {"type": "content", "content": [TEXT]}],
    "prompt_cache_key": ["k"],
    "prompt_cache_retention": ["24h"],
    "reasoning_effort": ["none", "minimal", "low", "medium", "high"],
    "safety_identifier": ["s"],
    "seed": [0, -1, 2**63],
    "service_tier": ["auto", "default", "flex", "priority"],
    "stop": ["a", [], ["a", "b", "c", "d"]],
    "store": [True, False],
    "verbosity": ["low", "medium", "high"],
    "web_search_options": [
        {},
        {"search_context_size": "high"},
        {"user_location": None},
        {"user_location": {"type": "approximate", "approximate": {}}},
        {"user_location": {"type": "approximate", "approximate": PLACE}},
    ],
}

#: One broken rule each: the parameter as the error should name it, and the value. W stands for the
#: caller's own words, which no error may repeat.
W = "q7-words-of-the-caller"
INVALID = [
    ("messages", []),
    ("messages", W),
    ("messages", {"role": "user", "content": W}),
    ("messages", 5),
    ("messages.0", [W]),
    ("messages.0", [None]),
    ("messages.0", [[W]]),
    ("messages.0.role", [{}]),
    ("messages.0.role", [{"content": W}]),
    ("messages.0.role", [{"role": W, "content": "a"}]),
    ("messages.0.role", [{"role": 5, "content": "a"}]),
    ("messages.1.role", [*user("a"), {"role": W, "content": "a"}]),
    ("messages.0.content", [{"role": "user"}]),
    ("messages.0.content", user(5)),
    ("messages.0.content", user({"type": "text", "text": W})),
    ("messages.0.content.0", user([W])),
    ("messages.0.content.0.type", user([{}])),
    ("messages.0.content.0.type", user([{"text": W}])),
    ("messages.0.content.0.type", user([{"type": W}])),
    ("messages.0.content.0.text", user([{"type": "text"}])),
    ("messages.0.content.0.text", user([{"type": "text", "text": 5}])),
    ("messages.0.content.1.image_url", user([TEXT, {"type": "image_url"}])),
    ("messages.0.content.0.image_url", user([{"type": "image_url", "image_url": W}])),
    ("messages.0.content.0.image_url.url", user([{"type": "image_url", "image_url": {}}])),
    ("messages.0.content.0.image_url.url", user([{"type": "image_url", "image_url": {"url": 5}}])),
    (
        "messages.0.content.0.image_url.detail",
        user([{"type": "image_url", "image_url": {"url": "", "detail": W}}]),
    ),
    (
        "messages.0.content.0.image_url.detail",
        user([{"type": "image_url", "image_url": {"url": "", "detail": None}}]),
    ),
    ("messages.0.content.0.input_audio", user([{"type": "input_audio"}])),
    (
        "messages.0.content.0.input_audio.data",
        user([{"type": "input_audio", "input_audio": {"format": "wav"}}]),
    ),
    ("messages.0.content.0.input_audio.format", user([{"type": "input_audio", "input_audio": {"data": ""}}])),
    (
        "messages.0.content.0.input_audio.format",
        user([{"type": "input_audio", "input_audio": {"data": "", "format": W}}]),
    ),
    ("messages.0.content.0.file", user([{"type": "file"}])),
    ("messages.0.content.0.file.file_data", user([{"type": "file", "file": {"file_data": 5}}])),
    ("messages.0.content.0.file.filename", user([{"type": "file", "file": {"filename": 5}}])),
    ("messages.0.content.0.file.file_id", user([{"type": "file", "file": {"file_id": None}}])),
    ("messages.0.name", [{"role": "user", "content": "a", "name": 5}]),
    ("messages.0.content", [{"role": "system"}]),
    ("messages.0.content.0.type", [{"role": "system", "content": [IMAGE]}]),
    ("messages.0.name", [{"role": "system", "content": "a", "name": [W]}]),
    ("messages.0.content", [{"role": "assistant", "content": 5}]),
    ("messages.0.content.0.type", [{"role": "assistant", "content": [AUDIO]}]),
    ("messages.0.refusal", [{"role": "assistant", "refusal": 5}]),
    ("messages.0.name", [{"role": "assistant", "name": 5}]),
    ("messages.0.audio.id", [{"role": "assistant", "audio": {}}]),
    ("messages.0.audio", [{"role": "assistant", "audio": W}]),
    ("messages.0.function_call.arguments", [{"role": "assistant", "function_call": {"name": "f"}}]),
    ("messages.0.function_call.name", [{"role": "assistant", "function_call": {"arguments": W}}]),
    ("messages.0.tool_calls", [{"role": "assistant", "tool_calls": CALL}]),
    ("messages.0.tool_calls.0.id", [{"role": "assistant", "tool_calls": [{**CALL, "id": 5}]}]),
    (
        "messages.0.tool_calls.0.type",
        [{"role": "assistant", "tool_calls": [{"id": "", "function": CALL["function"]}]}],
    ),
    (
        "messages.0.tool_calls.0.function",
        [{"role": "assistant", "tool_calls": [{"id": "", "type": "function"}]}],
    ),
    (
        "messages.0.tool_calls.0.function.arguments",
        [{"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {"x": W}}}]}],
    ),
    (
        "messages.0.tool_calls.1.function.name",
        [{"role": "assistant", "tool_calls": [CALL, {**CALL, "function": {"arguments": W}}]}],
    ),
    ("messages.0.tool_call_id", [{"role": "tool", "content": W}]),
    ("messages.0.tool_call_id", [{"role": "tool", "content": W, "tool_call_id": 5}]),
    ("messages.0.content", [{"role": "tool", "tool_call_id": "call_1"}]),
    ("messages.0.content", [{"role": "function", "content": [TEXT], "name": "f"}]),
    ("messages.0.name", [{"role": "function", "content": W}]),
    ("model", 5),
    ("model", [W]),
    ("temperature", -0.1),
    ("temperature", 2.1),
    ("temperature", "1"),
    ("temperature", True),
    ("temperature", [1]),
    ("top_p", -0.1),
    ("top_p", 1.1),
    ("top_p", W),
    ("max_tokens", 1.5),
    ("max_tokens", "5"),
    ("max_tokens", True),
    ("max_completion_tokens", 0.5),
    ("max_completion_tokens", W),
    ("stream", "yes"),
    ("stream", 1),
    ("stream_options", True),
    ("stream_options.include_usage", {"include_usage": 1}),
    ("stream_options.include_obfuscation", {"include_obfuscation": W}),
    ("tools", {"type": "function"}),
    ("tools", W),
    ("tools.0", [W]),
    ("tools.0.type", [{"function": {"name": "f"}}]),
    ("tools.0.type", [{"type": W}]),
    ("tools.0.function", [{"type": "function"}]),
    ("tools.0.function.name", [{"type": "function", "function": {}}]),
    ("tools.0.function.name", [{"type": "function", "function": {"name": 5}}]),
    (
        "tools.1.function.description",
        [
            {"type": "function", "function": FUNCTION},
            {"type": "function", "function": {"name": "f", "description": 5}},
        ],
    ),
    ("tools.0.function.parameters", [{"type": "function", "function": {"name": "f", "parameters": [W]}}]),
    ("tools.0.custom", [{"type": "custom"}]),
    ("tools.0.custom.name", [{"type": "custom", "custom": {}}]),
    ("tools.0.custom.format", [{"type": "custom", "custom": {"name": "c", "format": W}}]),
    ("tool_choice", W),
    ("tool_choice", 5),
    ("tool_choice", "any"),
    ("tool_choice.type", {"function": {"name": W}}),
    ("tool_choice.type", {"type": W}),
    ("tool_choice.function", {"type": "function"}),
    ("tool_choice.function.name", {"type": "function", "function": {}}),
    ("tool_choice.custom", {"type": "custom", "function": {"name": W}}),
    ("response_format", W),
    ("response_format.type", {}),
    ("response_format.type", {"type": W}),
    ("response_format.json_schema", {"type": "json_schema"}),
    ("response_format.json_schema.name", {"type": "json_schema", "json_schema": {}}),
    (
        "response_format.json_schema.schema",
        {"type": "json_schema", "json_schema": {"name": "n", "schema": [W]}},
    ),
    (
        "response_format.json_schema.strict",
        {"type": "json_schema", "json_schema": {"name": "n", "strict": "yes"}},
    ),
    ("audio", W),
    ("audio.format", {"voice": "alloy"}),
    ("audio.format", {"voice": "alloy", "format": W}),
    ("audio.voice", {"format": "wav"}),
    ("audio.voice", {"format": "wav", "voice": W}),
    ("frequency_penalty", -2.1),
    ("frequency_penalty", 2.1),
    ("frequency_penalty", W),
    ("presence_penalty", -3),
    ("presence_penalty", 3),
    ("function_call", W),
    ("function_call", "required"),
    ("function_call.name", {}),
    ("function_call.name", {"name": 5}),
    ("functions", FUNCTION),
    ("functions.0.name", [{}]),
    ("functions.0.parameters", [{"name": "f", "parameters": W}]),
    ("functions.0.description", [{"name": "f", "description": 5}]),
    ("logit_bias", [1]),
    ("logit_bias.7", {"7": 101}),
    ("logit_bias.7", {"7": -101}),
    ("logit_bias.7", {"7": W}),
    ("logprobs", "yes"),
    ("logprobs", 1),
    ("top_logprobs", -1),
    ("top_logprobs", 21),
    ("top_logprobs", 1.5),
    ("metadata", [W]),
    ("metadata", {str(n): W for n in range(17)}),
    ("metadata.k", {"k": 5}),
    ("metadata.k", {"k": W * 100}),
    ("modalities", "text"),
    ("modalities.1", ["text", W]),
    ("n", 0),
    ("n", 1.5),
    ("n", "1"),
    ("prediction", W),
    ("prediction.type", {"content": W}),
    ("prediction.type", {"type": W, "content": "a"}),
    ("prediction.content", {"type": "content"}),
    ("prediction.content", {"type": "content", "content": 5}),
    ("prediction.content.0.type", {"type": "content", "content": [IMAGE]}),
    ("prompt_cache_key", 5),
    ("prompt_cache_retention", 5),
    ("reasoning_effort", W),
    ("reasoning_effort", 5),
    ("safety_identifier", 5),
    ("seed", 1.5),
    ("seed", "1"),
    ("service_tier", W),
    ("stop", 5),
    ("stop", ["a"] * 5),
    ("stop.0", [5]),
    ("store", "yes"),
    ("verbosity", W),
    ("web_search_options", W),
    ("web_search_options.search_context_size", {"search_context_size": W}),
    ("web_search_options.user_location", {"user_location": W}),
    ("web_search_options.user_location.type", {"user_location": {"approximate": {}}}),
    ("web_search_options.user_location.type", {"user_location": {"type": W, "approximate": {}}}),
    ("web_search_options.user_location.approximate", {"user_location": {"type": "approximate"}}),
    (
        "web_search_options.user_location.approximate.city",
        {"user_location": {"type": "approximate", "approximate": {"city": 5}}},
    ),
]


def invalid_params():
    for path, value in INVALID:
        yield path, {**PARAMS, path.partition(".")[0]: value}
    yield "model", {"messages": PARAMS["messages"]}
    yield "messages", {"model": "m"}
    for name in (
        "top_k",
        "user",
        "parallel_tool_calls",
        "max_output_tokens",
        "new",
        "Temperature",
        "messages ",
    ):
        yield name, {**PARAMS, name: W}


def test_the_table_of_valid_values_covers_every_published_parameter():
    assert set(VALID) == set(SCHEMA["properties"])


def test_the_parameters_have_the_published_names_and_no_other():
    assert set(SCHEMA["properties"]) == PARAM_NAMES
    assert SCHEMA["additionalProperties"] is False
    options = ChatOptions.__required_keys__ | ChatOptions.__optional_keys__
    assert options == PARAM_NAMES - {"messages", "model", "stream"}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in VALID.items() for value in values]
)
def test_a_value_the_published_schema_allows_is_sent_unchanged(name, value):
    params = {**PARAMS, name: value}
    PUBLISHED.validate(params)
    assert json.loads(chat_plaintext(params)) == params


def test_the_invalid_variations_are_many_and_distinct():
    assert len(INVALID) >= 60
    assert len({repr(pair) for pair in INVALID}) == len(INVALID)


@pytest.mark.parametrize(("path", "params"), list(invalid_params()))
def test_a_value_the_published_schema_forbids_is_rejected_by_name_without_quoting_it(path, params):
    assert not PUBLISHED.is_valid(params)
    error = refusal(params)
    assert error.param == path
    assert path in str(error)
    assert W not in error_text(error)


# --- generated parameters

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
OBJECTS = st.dictionaries(TEXTS, JSON, max_size=2)


def some(required, **optional):
    return st.fixed_dictionaries(required, optional=optional)


def one(*values):
    return st.sampled_from(values)


TEXT_PARTS = some({"type": st.just("text"), "text": TEXTS})
CONTENT = TEXTS | st.lists(TEXT_PARTS, max_size=2)
PARTS = st.one_of(
    TEXT_PARTS,
    some(
        {"type": st.just("image_url"), "image_url": some({"url": TEXTS}, detail=one("low", "high", "auto"))}
    ),
    some({"type": st.just("input_audio"), "input_audio": some({"data": TEXTS, "format": one("wav", "mp3")})}),
    some({"type": st.just("file"), "file": some({}, file_data=TEXTS, file_id=TEXTS, filename=TEXTS)}),
)
CALLS = some({"id": TEXTS, "type": TEXTS, "function": some({"name": TEXTS, "arguments": TEXTS})})
MESSAGES = st.one_of(
    some({"role": st.just("system"), "content": CONTENT}, name=TEXTS),
    some({"role": st.just("user"), "content": TEXTS | st.lists(PARTS, max_size=3)}, name=TEXTS),
    some(
        {"role": st.just("assistant")},
        content=CONTENT,
        reasoning_content=TEXTS,
        name=TEXTS,
        refusal=TEXTS,
        tool_calls=st.lists(CALLS, max_size=2),
        function_call=some({"name": TEXTS, "arguments": TEXTS}),
        audio=some({"id": TEXTS}),
    ),
    some({"role": st.just("tool"), "content": CONTENT, "tool_call_id": TEXTS}),
    some({"role": st.just("function"), "content": TEXTS, "name": TEXTS}),
)
FUNCTIONS = some({"name": TEXTS}, description=TEXTS, parameters=OBJECTS)
NAMED = some({"name": TEXTS})
VALID_PARAMS = some(
    {"messages": st.lists(MESSAGES, min_size=1, max_size=3), "model": TEXTS},
    temperature=st.floats(0, 2) | st.integers(0, 2),
    top_p=st.floats(0, 1),
    max_tokens=st.integers(),
    max_completion_tokens=st.integers(),
    stream=st.booleans(),
    stream_options=some({}, include_usage=st.booleans(), include_obfuscation=st.booleans()),
    tools=st.lists(
        some({"type": st.just("function"), "function": FUNCTIONS})
        | some(
            {"type": st.just("custom"), "custom": some({"name": TEXTS}, description=TEXTS, format=OBJECTS)}
        ),
        max_size=2,
    ),
    tool_choice=one("none", "auto", "required")
    | some({"type": st.just("function"), "function": NAMED})
    | some({"type": st.just("custom"), "custom": NAMED}),
    response_format=some({"type": one("text", "json_object")})
    | some(
        {
            "type": st.just("json_schema"),
            "json_schema": some({"name": TEXTS}, description=TEXTS, schema=OBJECTS, strict=st.booleans()),
        }
    ),
    audio=some(
        {"format": one("wav", "mp3", "flac", "opus", "pcm16"), "voice": one("alloy", "nova", "shimmer")}
    ),
    frequency_penalty=st.floats(-2, 2),
    presence_penalty=st.integers(-2, 2),
    function_call=one("none", "auto") | NAMED,
    functions=st.lists(FUNCTIONS, max_size=2),
    logit_bias=st.dictionaries(TEXTS, st.integers(-100, 100) | st.floats(-100, 100), max_size=3),
    logprobs=st.booleans(),
    top_logprobs=st.integers(0, 20),
    metadata=st.dictionaries(TEXTS, TEXTS, max_size=16),
    modalities=st.lists(one("text", "audio"), max_size=2),
    n=st.integers(min_value=1),
    prediction=some({"type": st.just("content"), "content": CONTENT}),
    prompt_cache_key=TEXTS,
    prompt_cache_retention=TEXTS,
    reasoning_effort=one("none", "minimal", "low", "medium", "high"),
    safety_identifier=TEXTS,
    seed=st.integers(),
    service_tier=one("auto", "default", "flex", "priority"),
    stop=TEXTS | st.lists(TEXTS, max_size=4),
    store=st.booleans(),
    verbosity=one("low", "medium", "high"),
    web_search_options=some(
        {},
        search_context_size=one("low", "medium", "high"),
        user_location=st.none()
        | some(
            {
                "type": st.just("approximate"),
                "approximate": some({}, city=TEXTS, country=TEXTS, region=TEXTS, timezone=TEXTS),
            }
        ),
    ),
)
GENERATED = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))


@given(VALID_PARAMS)
@GENERATED
def test_valid_parameters_are_accepted_unchanged(params):
    PUBLISHED.validate(params)
    before = copy.deepcopy(params)
    assert json.loads(chat_plaintext(params)) == params
    assert params == before


@st.composite
def nearly_valid(draw):
    """Valid parameters with one value somewhere replaced, removed or added."""
    params = draw(VALID_PARAMS)
    places = []

    def walk(value):
        if isinstance(value, dict):
            places.extend((value, key) for key in value)
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            places.extend((value, index) for index in range(len(value)))
            for inner in value:
                walk(inner)

    walk(params)
    where, key = draw(st.sampled_from(places))
    match draw(st.integers(0, 2)):
        case 0:
            del where[key]
        case 1:
            where[key] = draw(JSON | st.floats() | st.just(-1) | st.just(10**30))
        case 2 if isinstance(where, dict):
            where[draw(TEXTS)] = draw(JSON)
        case _:
            where.append(draw(JSON))
    return params


@given(nearly_valid())
@GENERATED
def test_accepted_parameters_satisfy_the_published_schema(params):
    try:
        plain = chat_plaintext(params)
    except InvalidParameterError as error:
        assert str(error)
        return
    PUBLISHED.validate(json.loads(plain))


# --- the forms OpenAI users write


def test_a_parameter_that_is_none_is_omitted():
    params = {**PARAMS, **dict.fromkeys(sorted(PARAM_NAMES - {"messages", "model"}))}
    assert json.loads(chat_plaintext(params)) == PARAMS


def test_a_message_field_that_is_none_is_omitted():
    message = {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None, "name": None}
    assert sent(messages=[message])["messages"] == [{"role": "assistant", "tool_calls": [CALL]}]


def test_an_unknown_parameter_that_is_none_is_omitted():
    assert sent(top_k=None, parallel_tool_calls=None) == PARAMS


def test_a_developer_message_is_sent_as_a_system_message():
    message = {"role": "developer", "content": "a", "name": "n"}
    assert sent(messages=[message])["messages"] == [{"role": "system", "content": "a", "name": "n"}]


def test_a_message_of_a_response_can_be_sent_unchanged():
    answer = ChatCompletion.model_validate(COMPLETION).choices[0].message
    found = sent(messages=[*PARAMS["messages"], answer])
    PUBLISHED.validate(found)
    assert found["messages"][1] == {"role": "assistant", "content": "Hello"}


def test_a_response_message_with_tool_calls_and_reasoning_can_be_sent_unchanged():
    answer = ChatCompletionMessage.model_validate(
        {"content": None, "reasoning_content": "r", "tool_calls": [CALL], "annotations": None, "new": "x"}
    )
    found = sent(
        messages=[*PARAMS["messages"], answer, {"role": "tool", "content": "1", "tool_call_id": "call_1"}]
    )
    PUBLISHED.validate(found)
    assert found["messages"][1] == {
        "role": "assistant",
        "reasoning_content": "r",
        "tool_calls": [CALL],
        "new": "x",
    }


def test_the_callers_objects_are_not_changed():
    message = {"role": "developer", "content": [dict(TEXT)], "name": None}
    answer = ChatCompletionMessage(content="a")
    params = {
        "model": "m",
        "messages": (message, answer),
        "stop": ("a",),
        "tools": [{"type": "function", "function": FUNCTION}],
        "parallel_tool_calls": True,
        "seed": None,
    }
    extra = {"top_k": 1}
    before = copy.deepcopy((params, extra))
    chat_plaintext(params, extra)
    assert (params, extra) == before
    assert params["messages"] == (message, answer)


@pytest.mark.parametrize(
    "kind", [tuple, iter, lambda items: (item for item in items), lambda items: {"k": items[0]}.values()]
)
def test_messages_may_be_any_iterable(kind):
    assert sent(messages=kind(PARAMS["messages"])) == PARAMS


@pytest.mark.parametrize("kind", [MappingProxyType, OrderedDict, UserDict])
def test_a_message_may_be_any_mapping(kind):
    assert sent(messages=[kind(PARAMS["messages"][0])]) == PARAMS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop", ("a", "b")),
        ("modalities", ("text",)),
        ("tools", ({"type": "custom", "custom": {"name": "c"}},)),
    ],
)
def test_a_tuple_is_sent_as_a_list(name, value):
    assert sent({name: value})[name] == list(value)


def test_a_string_enum_is_sent_as_its_value():
    class Effort(enum.StrEnum):
        LOW = "low"

    found = sent(model=enum.StrEnum("Name", {"M": "m"}).M, safety_identifier=Effort.LOW)
    assert (found["model"], found["safety_identifier"]) == ("m", "low")


def test_parallel_tool_calls_is_accepted_where_it_matches_the_service():
    assert "parallel_tool_calls" not in sent(parallel_tool_calls=True)


def test_unsupported_parallel_tool_calls_are_rejected_with_the_reason():
    error = refusal({**PARAMS, "parallel_tool_calls": False})
    assert error.param == "parallel_tool_calls"
    assert "Use the first tool call" in str(error)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("top_k", "top_p"),
        ("user", "safety_identifier"),
        ("max_output_tokens", "max_completion_tokens"),
        ("new", "extra_body"),
    ],
)
def test_an_unknown_parameter_is_rejected_with_its_replacement(name, hint):
    assert hint in str(refusal({**PARAMS, name: 1}))


def test_extra_body_is_sent_unvalidated():
    found = sent(extra_body={"top_k": 40, "temperature": 3, "nothing": None, "deep": {"x": [1]}})
    assert found == {**PARAMS, "top_k": 40, "temperature": 3, "nothing": None, "deep": {"x": [1]}}


def test_extra_body_overrides_the_parameters():
    assert sent(extra_body={"model": "other", "seed": 2}, seed=1) == {**PARAMS, "model": "other", "seed": 2}


def test_without_extra_body_nothing_is_added():
    assert sent(extra_body={}) == sent(extra_body=None) == PARAMS


@pytest.mark.parametrize("extra", [[], [("a", 1)], "text", 5, {1: 2}, {None: 1}, {b"a": 1}])
def test_an_extra_body_that_is_no_mapping_is_rejected(extra):
    assert refusal(PARAMS, extra).param == "extra_body"


# --- what cannot be written as JSON


def nested(depth):
    value = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def cycle():
    value = {"words": W}
    value["a"] = [value]
    return value


UNWRITABLE = {
    "nan": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "minus infinity": lambda: -float("inf"),
    "bytes": lambda: W.encode(),
    "set": lambda: {W},
    "object": object,
    "cycle": cycle,
    "deep": lambda: nested(100_000),
    "lone surrogate": lambda: W + "\ud800",
    "lone surrogate in a key": lambda: {W + "\udfff": 1},
    "complex": lambda: 1j,
}


@pytest.mark.parametrize("make", UNWRITABLE.values(), ids=UNWRITABLE)
def test_a_value_that_is_not_json_serialisable_is_rejected_by_name_without_quoting_it(make):
    value = make()
    places = [
        ("metadata_extra", {"metadata_extra": value}, None),
        ("messages", None, [{"role": "user", "content": "a", "x": value}]),
        (
            "tools",
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"x": value}}}]},
            None,
        ),
    ]
    for name, extra, messages in places:
        params = dict(PARAMS) if messages is None else {**PARAMS, "messages": messages}
        error = refusal(params, extra)
        assert error.param == name
        assert name in str(error)
        assert W not in str(error)


@pytest.mark.parametrize("make", UNWRITABLE.values(), ids=UNWRITABLE)
def test_the_error_keeps_no_reference_to_a_value_that_is_not_json_serialisable(make):
    error = refusal({**PARAMS, "messages": [{"role": "user", "content": "a", "x": make()}]})
    assert W not in error_text(error)


@pytest.mark.parametrize("text", ["\ud800", "a\udc00b", W + "\ud800"])
def test_a_lone_surrogate_in_a_message_is_rejected(text):
    error = refusal({**PARAMS, "messages": user(text)})
    assert error.param.startswith("messages")
    assert W not in error_text(error)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"temperature": 3}, "temperature: must be at most 2"),
        ({"presence_penalty": -2.5}, "presence_penalty: must be at least -2"),
        ({"temperature": float("nan")}, "temperature: must be a finite number"),
        ({"temperature": W}, "temperature: must be a number"),
        ({"seed": 1.5}, "seed: must be an integer"),
        ({"logprobs": 1}, "logprobs: must be a boolean"),
        ({"model": 5}, "model: must be a string"),
        ({"model": None}, "model: is required"),
        ({"messages": []}, "messages: must have 1 or more items"),
        ({"messages": [W]}, "messages.0: must be a JSON object"),
        ({"tools": W}, "tools: must be a list"),
        ({"stop": [W] * 5}, "stop: must have at most 4 items"),
        ({"metadata": W}, "metadata: must be a JSON object"),
        ({"metadata": {"a": W * 513}}, "metadata.a: must be at most 512 characters long"),
        ({"verbosity": W}, "verbosity: must be 'low', 'medium' or 'high'"),
        ({"tool_choice": {"type": W}}, "tool_choice.type: must be one of 'function', 'custom'"),
    ],
)
def test_the_error_for_an_invalid_parameter_states_what_is_allowed(params, message):
    with pytest.raises(InvalidParameterError) as caught:
        chat_plaintext({**PARAMS, **params})
    assert caught.value.args[0] == message


def test_the_error_for_an_invalid_language_states_the_pattern():
    with pytest.raises(InvalidParameterError) as caught:
        audio_plaintext("transcribe", {"model": "whisper", "language": W})
    assert caught.value.args[0] == "language: must match ^[a-z]{2}$"


@pytest.mark.parametrize("name", ["temperature", "top_p", "frequency_penalty", "presence_penalty"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400])
def test_a_number_that_is_nan_or_infinite_is_rejected(name, value):
    assert refusal({**PARAMS, name: value}).param == name


def test_a_logit_bias_that_is_no_number_is_rejected():
    assert refusal({**PARAMS, "logit_bias": {"7": float("nan")}}).param == "logit_bias.7"


@pytest.mark.parametrize("params", [{1: 2}, {"\ud800": 1}, {None: 1}])
def test_a_parameter_name_that_is_no_string_is_rejected(params):
    text = str(refusal({**PARAMS, **params}))
    text.encode()


def test_an_extra_body_name_that_is_no_string_is_rejected():
    error = refusal(PARAMS, {"\ud800": 1})
    str(error).encode()
    assert "surrogate" in str(error)


def test_non_ascii_text_is_sent_as_utf_8():
    plain = chat_plaintext({**PARAMS, "messages": user("你好 🎉")})
    assert "你好 🎉".encode() in plain


def test_the_plaintext_is_compact_json():
    assert b": " not in chat_plaintext({**PARAMS, "messages": user("a")})


def test_a_large_request_is_accepted():
    assert len(chat_plaintext({**PARAMS, "messages": user("a" * 5_000_000)})) > 5_000_000


INVALID_ITEMS = [
    {"messages": [{}] * 1000},
    {"messages": ["text"] * 1000},
    *({"messages": [{"role": role, "content": [{}] * 1000}]} for role in ("system", "user", "assistant")),
    {"messages": [{"role": "tool", "tool_call_id": "1", "content": [{}] * 1000}]},
    {"messages": [{"role": "assistant", "tool_calls": [{}] * 1000}]},
    *({name: [{}] * 1000} for name in ("tools", "functions", "stop", "modalities")),
    {"prediction": {"type": "content", "content": [{}] * 1000}},
    {"logit_bias": dict.fromkeys(map(str, range(1000)), True)},
    {"metadata": dict.fromkeys(map(str, range(1000)), 7)},
]


@pytest.mark.parametrize("invalid", INVALID_ITEMS, ids=lambda invalid: str(invalid)[:60])
def test_a_thousand_invalid_items_are_not_a_thousand_errors_in_memory(invalid):
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(ChatParams).validate_python({**PARAMS, **invalid})
    assert caught.value.error_count() <= 4


def test_a_thousand_invalid_timestamp_granularities_are_not_a_thousand_errors_in_memory():
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(TranscriptionParams).validate_python(
            {"model": "whisper", "timestamp_granularities": [7] * 1000}
        )
    assert caught.value.error_count() == 1
