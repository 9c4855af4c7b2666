"""Structured output: three methods and every kind of schema."""

from __future__ import annotations

import functools
import inspect
import json
import operator
from collections.abc import Callable
from typing import Any, Literal, TypedDict

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from pydantic import BaseModel, Field
from support.scripted_upstream import delta, finish, tool_call
from support.wire_schemas import Opened

from langchain_prem import ChatPremEncrypted, RefusalError
from prem_core import InvalidParameterError, LengthFinishReasonError
from prem_core.enclave import ScriptedEngine

LETTER = """
Invoice number: INV-1042
Date: 12 March 2026
Vendor: Northwind Traders Ltd

| item | quantity | unit_price |
| --- | --- | --- |
| Paper A4 | 12 | 3.50 |
| Toner black | 2 | 41.00 |

Total: 124.00 EUR
"""


class Item(BaseModel):
    item: str
    quantity: int
    unit_price: float


class Invoice(BaseModel):
    """An invoice."""

    invoice_number: str
    date: str = Field(json_schema_extra={"format": "date"})
    vendor: str
    items: list[Item]
    total: float
    currency: Literal["EUR", "USD", "GBP"]


class InvoiceDict(TypedDict):
    """An invoice."""

    invoice_number: str
    total: float


Method = Literal["json_schema", "function_calling", "json_mode"]
Make = Callable[..., ChatPremEncrypted]


def check(invoice: Any) -> None:
    assert isinstance(invoice, Invoice)
    assert invoice.invoice_number == "INV-1042"
    assert invoice.date == "2026-03-12"
    assert invoice.vendor == "Northwind Traders Ltd"
    assert [(i.item, i.quantity, i.unit_price) for i in invoice.items] == [
        ("Paper A4", 12, 3.5),
        ("Toner black", 2, 41.0),
    ]
    assert (invoice.total, invoice.currency) == (124.0, "EUR")


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
async def test_an_invoice_is_extracted_into_pydantic(llm: Make, method: Method) -> None:
    model = llm().with_structured_output(Invoice, method=method)
    check(model.invoke(LETTER))
    check(await model.ainvoke(LETTER))
    check(list(model.stream(LETTER))[-1])
    check([partial async for partial in model.astream(LETTER)][-1])


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("schema", [InvoiceDict, {"title": "invoice", **Invoice.model_json_schema()}])
def test_a_typed_dict_or_a_json_schema_gives_a_dict(llm: Make, method: Method, schema: Any) -> None:
    invoice = llm().with_structured_output(schema, method=method).invoke(LETTER)
    assert isinstance(invoice, dict)
    assert invoice["invoice_number"] == "INV-1042"
    assert invoice["total"] == 124.0


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_openais_forms_of_a_schema_are_accepted_by_both_methods(
    llm: Make, method: Method, wrapped: bool
) -> None:
    named = {"name": "invoice", "schema": Invoice.model_json_schema()}
    schema = {"type": "json_schema", "json_schema": named} if wrapped else named
    answer: Any = llm().with_structured_output(schema, method=method).invoke(LETTER)
    assert answer["invoice_number"] == "INV-1042"


def test_json_mode_gives_the_requested_keys(llm: Make) -> None:
    asked = LETTER + "\nReturn JSON with the keys 'vendor' and 'total'. Return nothing other than JSON."
    answer = llm().with_structured_output(method="json_mode").invoke(asked)
    assert set(answer) == {"vendor", "total"}


def test_include_raw_gives_the_message_and_the_value(llm: Make) -> None:
    answer: Any = llm().with_structured_output(Invoice, include_raw=True).invoke(LETTER)
    check(answer["parsed"])
    assert isinstance(answer["raw"], AIMessage)
    assert answer["parsing_error"] is None


def test_include_raw_gives_a_parsing_error_instead_of_raising_it(scripted: Make) -> None:
    model = scripted(delta(content="no json"), finish()).with_structured_output(Invoice, include_raw=True)
    answer: Any = model.invoke("?")
    assert answer["parsed"] is None
    assert isinstance(answer["parsing_error"], OutputParserException)
    assert answer["raw"].content == "no json"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("content", ['{"total": 12', '{"total": "zebra-17"}', "zebra-17"])
def test_an_answer_that_does_not_validate_is_an_error_that_does_not_quote_it(
    scripted: Make, content: str, streamed: bool
) -> None:
    class Total(BaseModel):
        total: float

    model = scripted(delta(content=content), finish()).with_structured_output(Total)
    with pytest.raises(OutputParserException) as caught:
        list(model.stream("?")) if streamed else model.invoke("?")
    error: BaseException | None = caught.value
    while error is not None:
        assert "zebra" not in f"{error!r} {error} {getattr(error, 'llm_output', '')}"
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
@pytest.mark.parametrize("streamed", [False, True])
def test_json_truncated_by_the_token_limit_is_an_error_and_not_completed(
    scripted: Make, method: Method, streamed: bool
) -> None:
    class Amount(BaseModel):
        amount: int

    model = scripted(delta(content='{"amount": 10'), finish("length")).with_structured_output(
        Amount, method=method
    )
    with pytest.raises(LengthFinishReasonError):
        list(model.stream("?")) if streamed else model.invoke("?")


@pytest.mark.parametrize("streamed", [False, True])
def test_a_refusal_is_a_refusal_error(scripted: Make, streamed: bool) -> None:
    model = scripted(delta(refusal="I cannot."), finish()).with_structured_output(Invoice)
    with pytest.raises(RefusalError):
        list(model.stream("?")) if streamed else model.invoke("?")


@pytest.mark.parametrize("streamed", [False, True])
def test_a_missing_tool_call_is_an_error_and_not_none(scripted: Make, streamed: bool) -> None:
    model = scripted(delta(content="Hello"), finish()).with_structured_output(
        Invoice, method="function_calling"
    )
    with pytest.raises(OutputParserException, match="did not make the requested tool call"):
        list(model.stream("?")) if streamed else model.invoke("?")


def test_partial_values_are_yielded_while_the_answer_is_streamed(scripted: Make) -> None:
    chunks = [delta(content=piece) for piece in ('{"a": "x', 'y", ', '"b": [1', ", 2]}")]
    model = scripted(*chunks, finish()).with_structured_output(
        {"title": "t", "type": "object", "properties": {}}
    )
    seen = list(model.stream("?"))
    assert seen[0] == {"a": "x"}
    assert seen[-1] == {"a": "xy", "b": [1, 2]}


def test_markdown_fences_around_json_are_removed(scripted: Make) -> None:
    fenced = scripted(delta(content='```json\n{"a": 1}\n```'), finish())
    assert fenced.with_structured_output(method="json_mode").invoke("?") == {"a": 1}


def test_tools_may_be_offered_in_addition_to_a_schema(llm: Make, seen: Any) -> None:
    def send_fax(telephone: str) -> str:
        """Send a fax."""
        return telephone

    check(llm().with_structured_output(Invoice, tools=[send_fax]).invoke(LETTER))
    assert "tools" in Opened.request(seen.chats[0].request_body).params


def test_a_tool_call_made_before_the_answer_is_in_raw(scripted: Make) -> None:
    model = scripted(delta(tool_calls=[tool_call(0, "1", "g", "{}")]), finish("tool_calls"))
    structured: Any = model.with_structured_output(Invoice, tools=TOOLS, include_raw=True)
    answer = structured.invoke("?")
    assert answer["parsed"] is None
    assert answer["parsing_error"] is None
    assert [call["name"] for call in answer["raw"].tool_calls] == ["g"]


@pytest.mark.parametrize(
    ("kwargs", "why"),
    [
        ({"schema": Invoice, "method": "yaml"}, "method must be"),
        ({"schema": None}, "schema must be given"),
        ({"schema": Invoice, "method": "json_mode", "strict": True}, "strict has no effect"),
        ({"schema": Invoice, "method": "function_calling", "tools": [Item]}, "tools cannot be combined"),
    ],
)
def test_arguments_that_contradict_each_other_are_an_error(
    llm: Make, kwargs: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        llm().with_structured_output(**kwargs)


def test_strict_is_sent_and_closes_the_schema(engine: ScriptedEngine, scripted: Make) -> None:
    answer = Item(item="a", quantity=1, unit_price=2).model_dump_json()
    scripted(delta(content=answer), finish()).with_structured_output(Item, strict=True).invoke("?")
    form = engine.requests[-1].params["response_format"]["json_schema"]
    assert form["strict"] is True
    assert form["schema"]["additionalProperties"] is False


TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    for name in "fg"
]


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        ("auto", "auto"),
        ("none", "none"),
        ("any", "required"),
        ("required", "required"),
        (True, "required"),
        ("g", {"type": "function", "function": {"name": "g"}}),
        ({"type": "function", "function": {"name": "g"}}, {"type": "function", "function": {"name": "g"}}),
        ({"type": "function", "name": "g"}, {"type": "function", "function": {"name": "g"}}),
        (None, None),
        (False, None),
    ],
)
def test_every_form_of_tool_choice_reaches_the_model(
    engine: ScriptedEngine, scripted: Make, choice: Any, sent: Any
) -> None:
    answer = [delta(tool_calls=[tool_call(0, "1", "g", "{}")]), finish("tool_calls")]
    scripted(*answer).bind_tools(TOOLS, tool_choice=choice).invoke("?")
    assert engine.requests[-1].params.get("tool_choice") == sent


@pytest.mark.parametrize("choice", ["h", {"type": "function", "function": {"name": "h"}}])
def test_a_tool_choice_that_names_no_tool_is_an_error(llm: Make, choice: Any) -> None:
    with pytest.raises(InvalidParameterError, match="must name one of the tools: f, g"):
        llm().bind_tools(TOOLS, tool_choice=choice)


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("streamed", [True, False])
def test_without_parallel_tool_calls_the_first_one_is_kept_and_the_others_are_counted(
    engine: ScriptedEngine, scripted: Make, parallel: bool, streamed: bool
) -> None:
    model = scripted(
        delta(tool_calls=[tool_call(0, "1", "f", '{"a":'), tool_call(1, "2", "g", "{}")]),
        delta(tool_calls=[tool_call(0, arguments="1}")]),
        finish("tool_calls"),
    )
    for bound in (
        model.bind_tools(TOOLS, parallel_tool_calls=parallel),
        model.bind_tools(TOOLS).bind(parallel_tool_calls=parallel),
    ):
        answer = functools.reduce(operator.add, bound.stream("?")) if streamed else bound.invoke("?")
        assert [(call["id"], call["args"]) for call in answer.tool_calls] == [("1", {"a": 1}), ("2", {})][
            : 2 if parallel else 1
        ]
        assert answer.invalid_tool_calls == []
        assert answer.response_metadata.get("left_out_tool_calls") == (None if parallel else 1)
        assert "parallel_tool_calls" not in engine.requests[-1].params


def test_bind_tools_does_not_name_parallel_tool_calls() -> None:
    # langgraph-supervisor passes False to every model whose bind_tools names it.
    assert "parallel_tool_calls" not in inspect.signature(ChatPremEncrypted.bind_tools).parameters


def test_a_bound_response_format_may_be_a_schema(engine: ScriptedEngine, scripted: Make) -> None:
    scripted(delta(content="{}"), finish()).bind_tools(TOOLS, response_format=Item).invoke("?")
    form = engine.requests[-1].params["response_format"]
    assert form["type"] == "json_schema"
    assert form["json_schema"]["name"] == "Item"
    assert json.dumps(form)
