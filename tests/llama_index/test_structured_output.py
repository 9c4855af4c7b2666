"""Structured prediction: by JSON schema and by tool calls, in four ways each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
from llama_index.core.llms import ChatMessage, MessageRole
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from llama_index.core.types import PydanticProgramMode
from pydantic import BaseModel, Field
from support.scripted_upstream import delta, finish, tool_call
from support.wire_schemas import Opened

from llama_index_prem import PremEncrypted, RefusalError
from prem_core import LengthFinishReasonError
from prem_core.enclave import ScriptedEngine

Make = Callable[..., PremEncrypted]
Predict = Callable[..., Any]

LETTER = """
Invoice number: INV-1042
Date: 12 March 2026
Vendor: {vendor}

| item | quantity | unit_price |
| --- | --- | --- |
| Paper A4 | 12 | 3.50 |
| Toner black | 2 | 41.00 |

Total: 124.00 EUR
"""
PROMPT = PromptTemplate(LETTER)


class Item(BaseModel):
    item: str
    quantity: int
    unit_price: float


class Invoice(BaseModel):
    """An invoice."""

    invoice_number: str
    vendor: str
    items: list[Item]
    total: float
    currency: Literal["EUR", "USD", "GBP"]


class Payment(BaseModel):
    amount: int


INVOICE = Invoice(
    invoice_number="INV-1042",
    vendor="Northwind Traders Ltd",
    items=[
        Item(item="Paper A4", quantity=12, unit_price=3.5),
        Item(item="Toner black", quantity=2, unit_price=41.0),
    ],
    total=124.0,
    currency="EUR",
)

PREDICTIONS = [
    "structured_predict",
    "astructured_predict",
    "stream_structured_predict",
    "astream_structured_predict",
]
BOTH_MODES = pytest.mark.parametrize("mode", [PydanticProgramMode.DEFAULT, PydanticProgramMode.FUNCTION])


@pytest.fixture
def predicted() -> Predict:
    """`await predicted(model, way, …)` gives every value of that way of predicting."""

    async def predict(model: PremEncrypted, way: str, *args: Any, **kwargs: Any) -> list[Any]:
        made = getattr(model, way)(*args, **kwargs)
        if way.startswith("astream"):
            return [value async for value in await made]
        if way.startswith("stream"):
            return list(made)
        return [await made if way.startswith("a") else made]

    return predict


@BOTH_MODES
@pytest.mark.parametrize("way", PREDICTIONS)
async def test_an_invoice_is_extracted_into_pydantic(
    llm: Make, predicted: Predict, way: str, mode: PydanticProgramMode
) -> None:
    model = llm(pydantic_program_mode=mode)
    values = await predicted(model, way, Invoice, PROMPT, vendor="Northwind Traders Ltd")
    assert values[-1] == INVOICE
    assert type(values[-1]) is Invoice


@pytest.mark.parametrize("way", PREDICTIONS)
async def test_structured_prediction_sends_the_schema_and_no_tool(
    llm: Make, predicted: Predict, seen: Any, way: str
) -> None:
    model = llm(system_prompt="Read carefully.")
    given = {"temperature": 0, "tool_choice": "required", "tool_required": True}
    await predicted(model, way, Invoice, PROMPT, given, vendor="Northwind")
    params = Opened.request(seen.chats[-1].request_body).params
    form = params["response_format"]["json_schema"]
    assert (form["name"], form["description"]) == ("Invoice", "An invoice.")
    assert form["schema"] == Invoice.model_json_schema()
    assert {"tools", "tool_choice", "tool_required"}.isdisjoint(params)
    assert params["temperature"] == 0
    assert [m["role"] for m in params["messages"]] == ["system", "user"]
    assert given == {"temperature": 0, "tool_choice": "required", "tool_required": True}


@pytest.mark.parametrize("way", PREDICTIONS)
async def test_function_mode_requires_the_tool_call(
    llm: Make, predicted: Predict, seen: Any, way: str
) -> None:
    model = llm(pydantic_program_mode=PydanticProgramMode.FUNCTION)
    await predicted(model, way, Invoice, PROMPT, vendor="Northwind")
    params = Opened.request(seen.chats[-1].request_body).params
    assert params["tool_choice"] == "required"
    assert params["tools"][0]["function"]["name"] == "Invoice"
    assert "response_format" not in params


@pytest.mark.parametrize("way", PREDICTIONS[2:])
async def test_a_stream_yields_partial_values_and_none_twice(
    scripted: Make, predicted: Predict, way: str
) -> None:
    pieces = ["{", '"invoice_number": "I', 'NV"', ', "vendor": ', '"N", "items": [{"item": "P"', "}]"]
    model = scripted(*(delta(content=piece) for piece in pieces), finish("stop"))
    values = []
    with pytest.raises(ValueError, match="does not fit Invoice: the value: Invalid JSON"):
        await predicted(_Collecting(model, values), way, Invoice, PromptTemplate("?"))
    assert [value.model_dump(exclude_none=True) for value in values] == [
        {},
        {"invoice_number": "I"},
        {"invoice_number": "INV"},
        {"invoice_number": "INV", "vendor": "N", "items": [{"item": "P"}]},
    ]


class _Collecting:
    """A model whose streamed values are kept, though the stream ends in an error."""

    def __init__(self, model: PremEncrypted, values: list[Any]) -> None:
        self._model, self._values = model, values

    def stream_structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        for value in self._model.stream_structured_predict(*args, **kwargs):
            self._values.append(value)
            yield value

    async def astream_structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        stream = await self._model.astream_structured_predict(*args, **kwargs)

        async def values() -> Any:
            async for value in stream:
                self._values.append(value)
                yield value

        return values()


@pytest.mark.parametrize("way", PREDICTIONS)
async def test_json_truncated_by_the_token_limit_is_an_error_and_not_completed(
    scripted: Make, predicted: Predict, way: str
) -> None:
    model = scripted(delta(content='{"amount": 10'), finish("length"))
    with pytest.raises(LengthFinishReasonError):
        await predicted(model, way, Payment, PromptTemplate("?"))


@pytest.mark.parametrize("way", PREDICTIONS)
async def test_a_tool_call_truncated_by_the_token_limit_is_an_error_in_function_mode(
    scripted: Make, predicted: Predict, way: str
) -> None:
    cut = delta(tool_calls=[tool_call(0, "a", "Payment", '{"amount": 10')])
    model = scripted(cut, finish("length"), pydantic_program_mode=PydanticProgramMode.FUNCTION)
    with pytest.raises(LengthFinishReasonError):
        await predicted(model, way, Payment, PromptTemplate("?"))


@pytest.mark.parametrize("way", PREDICTIONS[:2])
async def test_a_refusal_in_function_mode_is_a_refusal_error(
    scripted: Make, predicted: Predict, way: str
) -> None:
    model = scripted(delta(refusal="No."), finish(), pydantic_program_mode=PydanticProgramMode.FUNCTION)
    with pytest.raises(RefusalError):
        await predicted(model, way, Payment, PromptTemplate("?"))


@pytest.mark.parametrize("way", PREDICTIONS)
@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ('{"amount": "Quillonbury"}', "amount: Input should be a valid integer"),
        ("Quillonbury", "the value: Invalid JSON"),
        ('["Quillonbury"]', "the value: Input should be an object"),
        ("", "the value: Invalid JSON"),
        ('{"sum": 1}', "amount: Field required"),
    ],
)
async def test_an_answer_that_does_not_validate_names_the_field_and_not_the_value(
    scripted: Make, predicted: Predict, way: str, answer: str, why: str
) -> None:
    model = scripted(delta(content=answer), finish())
    with pytest.raises(ValueError, match=f"^the answer does not fit Payment: {why}") as caught:
        await predicted(model, way, Payment, PromptTemplate("?"))
    assert "Quillonbury" not in str(caught.value)
    assert caught.value.__context__ is None or isinstance(caught.value.__context__, StopIteration)


def test_markdown_fences_around_json_are_removed(scripted: Make) -> None:
    model = scripted(delta(content='```json\n{"amount": 10}\n```'), finish())
    assert model.structured_predict(Payment, PromptTemplate("?")) == Payment(amount=10)
    assert list(model.stream_structured_predict(Payment, PromptTemplate("?")))[-1] == Payment(amount=10)


# Core's StructuredLLM streams through pydantic's deprecated `json`.
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")
@pytest.mark.parametrize("way", ["chat", "achat", "stream_chat", "astream_chat", "complete", "acomplete"])
async def test_a_structured_llm_answers_with_instances(llm: Make, asked: Any, way: str) -> None:
    model = llm().as_structured_llm(Invoice)
    responses = await asked(model, way, LETTER.format(vendor="Northwind Traders Ltd"))
    assert responses[-1].raw == INVOICE


def test_characters_that_a_schemas_name_may_not_have_are_replaced(
    engine: ScriptedEngine, scripted: Make
) -> None:
    class Odd(BaseModel):
        model_config = {"title": "An odd[name]"}
        amount: int = Field(description="How much.")

    scripted(delta(content='{"amount": 1}'), finish()).structured_predict(Odd, PromptTemplate("?"))
    assert engine.requests[-1].params["response_format"]["json_schema"]["name"] == "An_odd_name_"


@pytest.mark.parametrize("way", PREDICTIONS)
async def test_instrumentation_has_a_start_and_an_end_event_for_a_prediction(
    llm: Make, predicted: Predict, events: list[str], way: str
) -> None:
    await predicted(llm(), way, Invoice, PROMPT, vendor="Northwind")
    for event in ("LLMStructuredPredictStartEvent", "LLMStructuredPredictEndEvent", "LLMChatEndEvent"):
        assert events.count(event) == 1


def test_a_chat_template_is_filled(llm: Make) -> None:
    prompt = ChatPromptTemplate([ChatMessage(LETTER, role=MessageRole.USER)])
    assert llm().structured_predict(Invoice, prompt, vendor="Northwind Traders Ltd") == INVOICE
