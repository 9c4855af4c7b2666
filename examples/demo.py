"""The main job, end to end, on the embedded enclave: `make demo`.

A streamed chat, a tool-calling agent and a structured extraction through LangChain, a recording and a
question over it through LlamaIndex, and after each, what the gateway saw of it. Everything runs on this
machine: real keys, real sealing, real HTTP on loopback. Only the models are small: the embedded enclave's
default engine only quotes and extracts from the prompt; recordings are transcribed by pocketsphinx.

With PREM_API_KEY set and ``--live``, the same code uses Prem's service instead.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, Literal

from langchain.agents import create_agent
from langchain_core.tools import tool
from llama_index.core import SummaryIndex
from pydantic import BaseModel, Field

from langchain_prem import ChatPremEncrypted
from llama_index_prem import PremEncrypted, PremWhisperReader
from prem_core.enclave import Exchange, LocalEnclave

MODEL = "openai/gpt-oss-120b"
HERE = Path(__file__).parent
INVOICE = (HERE / "invoice.txt").read_text(encoding="utf-8")
RECORDING = HERE / "clinic_note.wav"

LETTER = """Context:
Anna Berg was admitted on 3 March with chest pain. The ECG was normal and both troponin tests were negative.
She may go home on Friday. She takes 5 mg of ramipril once a day, in the morning.
Her next appointment is on 19 March at 10:30 in the cardiology clinic.

Question: What does Anna Berg take?"""


@tool
def get_weather(location: str) -> str:
    """Get the current weather at a location."""
    return f"It is 18 degrees and sunny in {location}."


@tool
def get_time(city: str) -> str:
    """Get the local time in a city."""
    return f"It is 14:05 in {city}."


class Item(BaseModel):
    """One line of an invoice."""

    description: str
    quantity: int
    unit_price: float
    amount: float


class Invoice(BaseModel):
    """An invoice."""

    invoice_number: str
    date: date
    customer: str
    items: list[Item]
    total: float
    currency: Literal["EUR", "USD", "GBP"] = Field(description="currency of the total")


class Gateway:
    """What the gateway saw since it was last asked."""

    def __init__(self) -> None:
        self._seen: list[Exchange] = []

    def __call__(self, exchange: Exchange) -> None:
        self._seen.append(exchange)

    def show(self) -> None:
        chats = [exchange for exchange in self._seen if exchange.method == "POST"]
        self._seen.clear()
        for exchange in chats:
            print(f"\n  what the gateway saw: {exchange.method} {exchange.path} -> {exchange.status}")
            for name, value in json.loads(exchange.request_body).items():
                print(f"    {name:20} {_start(value)}")
            print(f"    {'reply':20} {_start(exchange.response_body.decode().replace(chr(10), ' '))}")


def _start(text: str) -> str:
    return textwrap.shorten(text[:72], 72, placeholder="") + f"… ({len(text):,} characters)"


@contextmanager
def service(*, live: bool) -> Iterator[tuple[dict[str, Any], Gateway]]:
    """Where to ask: Prem's service (settings from the environment), or an enclave of our own."""
    gateway = Gateway()
    if live:
        yield {}, gateway
    else:
        with LocalEnclave(on_exchange=gateway) as prem:
            yield prem.client_options, gateway


def heading(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m\n" if _colours() else f"\n{text}\n")


def _colours() -> bool:
    import sys

    return sys.stdout.isatty()


def chat(llm: ChatPremEncrypted) -> None:
    heading("1. A streamed chat")
    print(textwrap.indent(LETTER, "  > "), end="\n\n  ")
    for chunk in llm.stream(LETTER):
        print(chunk.text, end="", flush=True)
    print()


def agent(llm: ChatPremEncrypted) -> None:
    heading("2. An agent with two tools, called in parallel")
    question = "Get the weather in Paris and the time in Berlin."
    for message in create_agent(llm, [get_weather, get_time]).invoke({"messages": [("human", question)]})[
        "messages"
    ]:
        for call in getattr(message, "tool_calls", []):
            print(
                f"  {message.type:6} calls {call['name']}({', '.join(f'{k}={v!r}' for k, v in call['args'].items())})"
            )
        if message.text:
            print(f"  {message.type:6} {message.text}")


def extraction(llm: ChatPremEncrypted) -> None:
    heading("3. A structured extraction from examples/invoice.txt")
    invoice = llm.with_structured_output(Invoice).invoke(INVOICE)
    assert isinstance(invoice, Invoice)
    print(textwrap.indent(invoice.model_dump_json(indent=2), "  "))


def recording(where: dict[str, Any]) -> None:
    heading("4. A recording, examples/clinic_note.wav, and a question over it")
    documents = PremWhisperReader(mode="segments", **where).load_data(RECORDING)
    for document in documents:
        print(f"  {document.metadata['start']:5.2f}s - {document.metadata['end']:5.2f}s  {document.text}")
    index = SummaryIndex.from_documents(documents)
    question = "When will the doctor see the patient again?"
    answer = index.as_query_engine(llm=PremEncrypted(model=MODEL, **where)).query(question)
    print(f"\n  question  {question}\n  answer    {answer}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--live", action="store_true", help="ask Prem's service (needs PREM_API_KEY)")
    options = parser.parse_args()
    with service(live=options.live) as (where, gateway):
        llm = ChatPremEncrypted(model=MODEL, **where)
        for job in (chat, agent, extraction):
            job(llm)
            gateway.show()
        recording(where)
        gateway.show()
    if not options.live:
        print(
            "\nThe answers were found in the prompts by the embedded enclave's own engine; no model was asked."
        )


if __name__ == "__main__":
    main()
