"""Values from documents: kinds of documents, the fallback to json_object, truncated answers, and tables."""

from __future__ import annotations

import base64
import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pydantic
import pytest
from support.batch_files import objects
from support.paths import CLINIC_NOTE
from support.recordings import TRANSCRIPTION

from prem_core import (
    AsyncPremClient,
    BadRequestError,
    ConfigurationError,
    InvalidParameterError,
    LengthFinishReasonError,
    PremClient,
    RefusalError,
)
from prem_core import batch as prem_batch
from prem_core.enclave import ScriptedEngine, reply

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class Invoice(pydantic.BaseModel):
    """An invoice."""

    number: int
    total: float | None = None


SCHEMA = {
    "title": "Invoice",
    "type": "object",
    "properties": {"number": {"type": "integer"}, "lines": {"type": "array"}},
    "required": ["number"],
}


@pytest.fixture
def letter(tmp_path: Path) -> Path:
    path = tmp_path / "letter.txt"
    path.write_text("Invoice 17 over 12.50 EUR")
    return path


async def extract_both(options: dict[str, Any], document: Any, schema: Any, **more: Any) -> list[Any]:
    """The value, by the synchronous function and by the asynchronous one."""
    with PremClient(**options) as client:
        first = prem_batch.extract_document(client, document, schema, model="m", **more)
    async with AsyncPremClient(**options) as aclient:
        return [first, await prem_batch.aextract_document(aclient, document, schema, model="m", **more)]


async def test_a_pydantic_class_and_a_json_schema_give_a_validated_value(
    letter: Path, scripted_options: dict[str, Any], engine: ScriptedEngine
) -> None:
    engine.respond = lambda request: '```json\n{"number": 17}\n```'
    assert await extract_both(scripted_options, letter, Invoice) == [Invoice(number=17)] * 2
    assert await extract_both(scripted_options, letter, SCHEMA) == [{"number": 17}] * 2
    form = engine.requests[0].params["response_format"]
    assert form["json_schema"]["name"] == "Invoice"
    assert engine.requests[0].text == "Invoice 17 over 12.50 EUR"


@pytest.mark.parametrize("schema", [Invoice, SCHEMA], ids=["class", "schema"])
@pytest.mark.parametrize(
    ("answer", "problem"),
    [("secret words", "not JSON"), ('{"number": "secret"}', "number"), ("[]", "Invoice")],
)
async def test_an_answer_of_another_form_is_an_error_that_does_not_quote_it(
    answer: str,
    problem: str,
    schema: Any,
    letter: Path,
    scripted_options: dict[str, Any],
    engine: ScriptedEngine,
) -> None:
    engine.respond = lambda request: answer
    with pytest.raises(prem_batch.ExtractionError, match=problem) as caught:
        await extract_both(scripted_options, letter, schema)
    assert "secret" not in str(caught.value)
    assert caught.value.__context__ is None or caught.value.__suppress_context__


async def test_a_model_that_refuses_json_schema_is_asked_for_json_object(
    letter: Path, scripted_options: dict[str, Any], engine: ScriptedEngine
) -> None:
    def respond(request: Any) -> Any:
        if request.params["response_format"]["type"] == "json_schema":
            return BadRequestError("response_format of type json_schema is not supported")
        return '{"number": 17}'

    engine.respond = respond
    extraction = prem_batch.Extraction(Invoice, instructions="Amounts in euros.")
    assert await extract_both(scripted_options, letter, extraction) == [Invoice(number=17)] * 2
    kinds = [request.params["response_format"]["type"] for request in engine.requests]
    assert kinds == ["json_schema", "json_object", "json_object"]  # the refusal is remembered
    system = engine.requests[1].messages[0]["content"]
    assert '"number"' in system
    assert "Amounts in euros." in system


async def test_another_error_of_the_service_is_raised(
    letter: Path, scripted_options: dict[str, Any], engine: ScriptedEngine
) -> None:
    engine.respond = lambda request: BadRequestError("no")
    with pytest.raises(BadRequestError, match="no"):
        await extract_both(scripted_options, letter, Invoice)
    assert len(engine.requests) == 1


async def test_a_truncated_answer_is_requested_once_more_with_a_larger_limit(
    letter: Path, scripted_options: dict[str, Any], engine: ScriptedEngine
) -> None:
    short, whole = reply('{"num', finish_reason="length", usage=(5, 50)), '{"number": 17}'
    engine.replies = [short, whole, short, whole]
    assert await extract_both(scripted_options, letter, Invoice, max_tokens=10) == [Invoice(number=17)] * 2
    assert [request.params["max_tokens"] for request in engine.requests] == [10, 40, 10, 40]
    engine.replies = [short, short]
    with pytest.raises(LengthFinishReasonError):
        await extract_both(scripted_options, letter, Invoice)
    assert engine.requests[-1].params["max_tokens"] == 200


async def test_a_refusal_is_an_error(
    letter: Path, scripted_options: dict[str, Any], engine: ScriptedEngine
) -> None:
    engine.respond = lambda request: reply(refusal="no")
    with pytest.raises(RefusalError):
        await extract_both(scripted_options, letter, Invoice)


async def test_images_pdfs_and_recordings_are_read(
    tmp_path: Path, scripted_options: dict[str, Any], engine: ScriptedEngine
) -> None:
    (tmp_path / "scan").write_bytes(PNG)
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 broken")
    shutil.copy(CLINIC_NOTE, tmp_path / "call.wav")
    engine.respond = lambda request: '{"number": 1}' if request.task == "chat" else TRANSCRIPTION
    for name, kind in (("scan", "image_url"), ("broken.pdf", "file")):
        engine.requests.clear()
        await extract_both(scripted_options, tmp_path / name, Invoice)
        assert [part["type"] for part in engine.requests[0].messages[1]["content"]] == ["text", kind]
    engine.requests.clear()
    await extract_both(scripted_options, tmp_path / "call.wav", Invoice)
    assert [request.task for request in engine.requests] == ["transcribe", "chat"] * 2
    assert engine.requests[1].text == TRANSCRIPTION["text"]


def test_the_text_of_a_pdf_is_taken_out_here(tmp_path: Path) -> None:
    pytest.importorskip("pypdf")
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf("Invoice 17"))
    (part,) = prem_batch.read_document(path).parts
    assert part == {"type": "text", "text": "Invoice 17"}


@pytest.mark.parametrize(
    ("content", "problem"), [(b"\xff\x00\x01", "not UTF-8 text"), (b" \n", "empty"), (None, "cannot be read")]
)
def test_a_document_that_cannot_be_read_is_an_error_with_its_name(
    content: bytes | None, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "document.bin"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidParameterError, match=problem) as caught:
        prem_batch.read_document(path)
    assert "document.bin" in str(caught.value)


@pytest.mark.parametrize("schema", [3, {"type": "array"}, {"type": 7}, int], ids=str)
def test_a_schema_that_describes_no_object_is_refused(schema: Any) -> None:
    with pytest.raises(ConfigurationError, match="schema"):
        prem_batch.Extraction(schema)


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.txt").write_text(f"Invoice {number}")
    (folder / ".hidden").write_text("not a document")
    return folder


async def test_many_documents_give_rows_and_a_second_run_resumes(
    documents: Path, tmp_path: Path, scripted_options: dict[str, Any], engine: ScriptedEngine
) -> None:
    output = tmp_path / "rows.jsonl"
    (documents / "bad.txt").write_bytes(b"\xff")
    engine.respond = lambda request: json.dumps({"number": int(request.text[-1])})
    first = await prem_batch.aextract([documents], Invoice, output, model="m", limit=2, **scripted_options)
    assert first.done == 2
    second = await prem_batch.aextract([documents], Invoice, output, model="m", **scripted_options)
    assert (second.total, second.skipped, second.done, second.failed) == (5, 2, 2, 1)
    rows = {Path(row["_source"]).name: row["number"] for row in objects(output)}
    assert rows == {f"{number}.txt": number for number in range(4)}
    (error,) = objects(tmp_path / "rows.errors.jsonl")
    assert error["custom_id"].endswith("bad.txt")
    assert len(engine.requests) == 4


async def test_an_output_in_the_folder_of_the_documents_is_no_document(
    documents: Path, scripted_options: dict[str, Any], engine: ScriptedEngine
) -> None:
    engine.respond = lambda request: '{"number": 1}' if request.text != "Invoice 3" else "none"
    for _ in range(2):
        progress = await prem_batch.aextract(
            [documents], Invoice, documents / "rows.csv", model="m", **scripted_options
        )
        assert progress.total == 4


async def test_rows_are_written_as_csv_with_nested_values_as_json(
    documents: Path, tmp_path: Path, scripted_options: dict[str, Any], engine: ScriptedEngine
) -> None:
    output = tmp_path / "rows.csv"
    engine.respond = lambda request: json.dumps({"number": 1, "lines": [{"é": "\n"}]})
    await prem_batch.aextract([documents], SCHEMA, output, model="m", **scripted_options)
    with output.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert rows[0].keys() == {"_source", "number", "lines"}
    assert json.loads(rows[0]["lines"]) == [{"é": "\n"}]


async def test_parquet_without_pyarrow_is_an_error_before_anything_is_sent(
    documents: Path, tmp_path: Path, scripted_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ImportError, match="pip install pyarrow"):
        await prem_batch.aextract(
            [documents], Invoice, tmp_path / "rows.parquet", model="m", **scripted_options
        )
    assert not (tmp_path / "rows.parquet.rows.jsonl").exists()


async def test_rows_are_written_as_parquet(
    documents: Path, tmp_path: Path, scripted_options: dict[str, Any], engine: ScriptedEngine
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    engine.respond = lambda request: json.dumps({"number": 1, "total": 2.5})
    output = tmp_path / "rows.parquet"
    await prem_batch.aextract([documents], Invoice, output, model="m", **scripted_options)
    table = parquet.read_table(output)
    assert table.column_names == ["_source", "number", "total"]
    assert table["total"].to_pylist() == [2.5] * 4


async def test_a_table_cannot_be_sealed(documents: Path, tmp_path: Path, scripted_options: Any) -> None:
    with pytest.raises(ConfigurationError, match="needs a JSONL output"):
        await prem_batch.aextract(
            [documents],
            Invoice,
            tmp_path / "a.csv",
            model="m",
            seal=True,
            kek=bytes(range(32)),
            **scripted_options,
        )


def pdf(text: str) -> bytes:
    """A PDF of one page with this text."""
    stream = f"BT /F1 12 Tf 20 20 Td ({text}) Tj ET".encode()
    objects_ = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 100]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(stream), stream),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    out, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects_, 1):
        places.append(len(out))
        out += b"%d 0 obj%s endobj\n" % (number, content)
    start = len(out)
    out += b"xref\n0 6\n0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % place for place in places)
    return out + b"trailer<</Size 6/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % start
