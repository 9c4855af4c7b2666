import pytest

from prem_core import InvalidParameterError, LengthFinishReasonError
from prem_core._adapters.tools import (
    are_truncated,
    as_response_format,
    format_findings,
    json_schema_format,
    raise_if_truncated,
    read_arguments,
    requests_json,
    tool_choice,
)

TOOLS = [
    {"type": "function", "function": {"name": "f"}},
    {"type": "custom", "custom": {"name": "c"}},
]
F = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("choice", "wire"),
    [
        (True, "required"),
        ("any", "required"),
        ("required", "required"),
        ("auto", "auto"),
        ("none", "none"),
        ("f", F),
        ({"name": "f"}, F),
        ({"type": "function", "function": {"name": "f"}}, F),
        ({"function": {"name": "f"}}, F),
        ({"type": "function", "name": "f"}, F),  # the Responses API's form
        ({"type": "custom", "name": "c"}, {"type": "custom", "custom": {"name": "c"}}),
        ({"type": "custom", "custom": {"name": "c"}}, {"type": "custom", "custom": {"name": "c"}}),
    ],
)
def test_every_form_of_tool_choice_is_converted_to_the_schemas(choice, wire):
    assert tool_choice(choice, TOOLS) == wire


@pytest.mark.parametrize("choice", ["g", {"name": "g"}, {"type": "function", "function": {"name": "g"}}, {}])
def test_a_tool_choice_that_names_no_tool_is_an_error(choice):
    with pytest.raises(InvalidParameterError, match="must name one of the tools: f, c") as caught:
        tool_choice(choice, TOOLS)
    assert caught.value.param == "tool_choice"
    with pytest.raises(InvalidParameterError, match="no tools were given"):
        tool_choice(choice, [])


def test_a_response_format_in_openais_form_is_kept():
    for form in (
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "a"}},
    ):
        assert as_response_format(form) is form
    schema = {"name": "a", "schema": {"type": "object"}}
    assert as_response_format(schema) == {"type": "json_schema", "json_schema": schema}


@pytest.mark.parametrize("schema", [{"type": "object"}, {"name": "a"}, dict, "text", None])
def test_another_schema_is_no_response_format(schema):
    assert as_response_format(schema) is None


def test_a_schema_becomes_a_response_format():
    schema = {"type": "object"}
    assert json_schema_format("a[b] c", schema) == {
        "type": "json_schema",
        "json_schema": {"name": "a_b__c", "schema": schema},
    }
    assert json_schema_format("a", schema, description="d", strict=False)["json_schema"] == {
        "name": "a",
        "schema": schema,
        "description": "d",
        "strict": False,
    }


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"type": "json_object"}, True),
        ({"type": "json_schema"}, True),
        ({"type": "text"}, False),
        (None, False),
    ],
)
def test_the_response_format_tells_whether_json_is_requested(form, expected):
    assert requests_json({"response_format": form}) is expected
    assert requests_json({}) is False


@pytest.mark.parametrize(
    ("arguments", "text"), [([], None), (["{}"], None), (["{}", '{"a": 1}'], ""), ([], "{}"), (["{}"], "{")]
)
def test_a_complete_answer_at_the_token_limit_is_accepted(arguments, text):
    raise_if_truncated(arguments, text)


@pytest.mark.parametrize(
    ("arguments", "text"), [(['{"a": 1'], None), (["{}", ""], None), ([], ""), ([], '{"a'), ([""], "{}")]
)
def test_an_answer_truncated_by_the_token_limit_is_an_error(arguments, text):
    with pytest.raises(LengthFinishReasonError):
        raise_if_truncated(arguments, text)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('{"a": 1}', {"a": 1}),
        ("", {}),
        (" \n", {}),
        ('{"a": "line\nbreak"}', {"a": "line\nbreak"}),
        ('{"a": 1', None),
        ("[1]", None),
        ("no json", None),
        ("null", None),
    ],
)
def test_arguments_are_a_json_object_or_nothing(text, arguments):
    assert read_arguments(text) == arguments


@pytest.mark.parametrize(
    ("arguments", "truncated"),
    [
        ('{"a": 1}', False),
        ('{"a": "line\nbreak"}', False),
        ("", False),
        ("no json", False),  # an invalid call: nothing would complete it
        ("[1", False),
        ('{"a": 1', True),
        (' {"a": 1, b', True),
        ('{"a": 1} and', True),
        ("{" * 100_000, True),
    ],
)
def test_arguments_that_start_as_an_object_and_are_incomplete_are_truncated(arguments, truncated):
    assert are_truncated(arguments) is truncated


def test_findings_name_the_first_fields_and_no_values():
    found = [{"loc": ("items", i, "price"), "msg": "too low", "input": "secret"} for i in range(9)]
    text = format_findings("Invoice", [{"loc": (), "msg": "not JSON"}, *found])
    assert text.startswith("the answer does not fit Invoice: the value: not JSON; items.0.price: too low; ")
    assert text.count(";") == 4
    assert "secret" not in text
