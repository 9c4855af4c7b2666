"""The runnable that extracts values from documents."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import langchain_core.exceptions as core
import pydantic
import pytest
from langchain_core.documents import Document
from support.paths import CLINIC_NOTE
from support.recordings import TRANSCRIPTION

from langchain_prem import ChatPremEncrypted, extractor
from prem_core import BadRequestError, LengthFinishReasonError
from prem_core.batch import ExtractionError
from prem_core.enclave import ScriptedEngine, reply


class Invoice(pydantic.BaseModel):
    """An invoice."""

    number: int


@pytest.fixture
def llm(scripted_options: dict[str, Any]) -> ChatPremEncrypted:
    return ChatPremEncrypted(model="m", **scripted_options)


async def test_a_document_or_a_path_gives_a_value(
    llm: ChatPremEncrypted, engine: ScriptedEngine, tmp_path: Path
) -> None:
    engine.respond = lambda request: f'{{"number": {request.text[-1]}}}'
    (tmp_path / "a.txt").write_text("Invoice 2")
    runnable = extractor(llm, Invoice)
    assert runnable.invoke(Document("Invoice 1")) == Invoice(number=1)
    assert await runnable.ainvoke(tmp_path / "a.txt") == Invoice(number=2)
    assert runnable.batch([Document("Invoice 3"), str(tmp_path / "a.txt")]) == [
        Invoice(number=3),
        Invoice(number=2),
    ]


async def test_a_recording_is_transcribed(
    llm: ChatPremEncrypted, engine: ScriptedEngine, tmp_path: Path
) -> None:
    shutil.copy(CLINIC_NOTE, tmp_path / "call.wav")
    engine.respond = lambda request: '{"number": 1}' if request.task == "chat" else TRANSCRIPTION
    assert extractor(llm, Invoice).invoke(tmp_path / "call.wav") == Invoice(number=1)
    assert await extractor(llm, Invoice).ainvoke(tmp_path / "call.wav") == Invoice(number=1)


async def test_the_fallback_and_the_larger_limit_work(llm: ChatPremEncrypted, engine: ScriptedEngine) -> None:
    refusal, short = BadRequestError("response_format is not supported"), reply('{"n', finish_reason="length")
    engine.replies = [refusal, short, '{"number": 1}', short, '{"number": 2}']
    runnable = extractor(llm, Invoice)
    assert runnable.invoke(Document("Invoice")) == Invoice(number=1)
    assert await runnable.ainvoke(Document("Invoice")) == Invoice(number=2)
    engine.replies = [short, short]
    with pytest.raises(LengthFinishReasonError):
        runnable.invoke(Document("Invoice"))


async def test_errors_are_those_of_both_packages(llm: ChatPremEncrypted, engine: ScriptedEngine) -> None:
    engine.respond = lambda request: BadRequestError("no")
    with pytest.raises(core.ModelInvalidRequestError):
        extractor(llm, Invoice).invoke("/no/such/file")
    with pytest.raises(BadRequestError, match="no"):
        await extractor(llm, Invoice).ainvoke(Document("Invoice"))
    engine.respond = lambda request: "[]"
    with pytest.raises(ExtractionError, match="Invoice"):
        extractor(llm, Invoice).invoke(Document("Invoice"))
