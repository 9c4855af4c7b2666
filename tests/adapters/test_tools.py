import pytest

from prem_core import InvalidParameterError, LengthFinishReasonError
from prem_core._adapters.tools import (
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
def test_every_form_of_tool_choice_becomes_the_schemas(choice, wire):
    assert tool_choice(choice, TOOLS) == wire


@pytest.mark.parametrize("choice", ["g", {"name": "g"}, {"type": "function", "function": {"name": "g"}}, {}])
def test_a_tool_choice_that_names_no_tool_is_refused(choice):
    with pytest.raises(InvalidParameterError, match="these are f, c") as caught:
        tool_choice(choice, TOOLS)
    assert caught.value.param == "tool_choice"
    with pytest.raises(InvalidParameterError, match="these are none"):
        tool_choice(choice, [])


def test_a_response_format_that_is_one_already_is_kept():
    for form in (
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "a"}},
    ):
        assert as_response_format(form) is form
    schema = {"name": "a", "schema": {"type": "object"}}
    assert as_response_format(schema) == {"type": "json_schema", "json_schema": schema}


@pytest.mark.parametrize("schema", [{"type": "object"}, {"name": "a"}, dict, "text", None])
def test_another_schema_is_not_taken_for_a_response_format(schema):
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
    ("form", "wants"),
    [
        ({"type": "json_object"}, True),
        ({"type": "json_schema"}, True),
        ({"type": "text"}, False),
        (None, False),
    ],
)
def test_a_request_requests_json_where_its_response_format_says_so(form, wants):
    assert requests_json({"response_format": form}) is wants
    assert requests_json({}) is False


@pytest.mark.parametrize(
    ("arguments", "text"), [([], None), (["{}"], None), (["{}", '{"a": 1}'], ""), ([], "{}"), (["{}"], "{")]
)
def test_an_answer_that_is_whole_in_spite_of_its_limit_passes(arguments, text):
    raise_if_truncated(arguments, text)


@pytest.mark.parametrize(
    ("arguments", "text"), [(['{"a": 1'], None), (["{}", ""], None), ([], ""), ([], '{"a'), ([""], "{}")]
)
def test_an_answer_that_its_limit_cut_is_an_error(arguments, text):
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


def test_a_misfit_names_the_first_fields_and_no_values():
    found = [{"loc": ("items", i, "price"), "msg": "too low", "input": "secret"} for i in range(9)]
    text = format_findings("Invoice", [{"loc": (), "msg": "not JSON"}, *found])
    assert text.startswith("the answer does not fit Invoice: the value: not JSON; items.0.price: too low; ")
    assert text.count(";") == 4
    assert "secret" not in text
