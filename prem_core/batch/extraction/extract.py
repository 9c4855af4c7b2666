"""Extract rows from documents: `extract_document` for one, `extract` for many, which can be resumed."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Unpack

import pydantic

from prem_core._adapters.content import text_part
from prem_core._audio.batch import atranscribe, transcribe
from prem_core._audio.transcripts import ChunkTranscript, TranscriptionRequest, segments
from prem_core._config import not_negative, positive
from prem_core._crypto.keyfile import quote_path
from prem_core._crypto.redaction import without_locals
from prem_core._errors import APIResponseValidationError, ConfigurationError, PremError
from prem_core.batch.api import RunOptions, read_results, run_items
from prem_core.batch.errors_file import errors_path
from prem_core.batch.extraction.documents import Document, find_documents, read_document
from prem_core.batch.extraction.steps import Extraction, Reply
from prem_core.batch.extraction.tables import SOURCE, TABLES, check_table, write_table
from prem_core.batch.lines import to_line
from prem_core.batch.progress import Progress
from prem_core.batch.runner import DEFAULT_MAX_FAILURES, Answer, Item, Job, OnUsage

if TYPE_CHECKING:
    from prem_core import AsyncPremClient, ChatCompletion, PremClient
    from prem_core._client.options import AsyncClientOptions

Path_ = str | os.PathLike[str]


@without_locals
def extract_document(
    client: PremClient, document: Path_ | Document, schema: Any, *, model: str, **params: Any
) -> Any:
    """Extract one value from a document.

    Args:
        client: Sends the requests.
        document: The path of a text, a PDF, an image or a recording, or what `text_document` returns.
        schema: A Pydantic class, a JSON Schema of an object, or an `Extraction`, for instructions.
        model: The chat model.
        **params: Further parameters of the chat, for example `max_tokens`.

    Returns:
        An instance of the Pydantic class, or an object.

    Raises:
        ExtractionError: The answer does not have the form.
        LengthFinishReasonError: The answer was truncated, also with a larger token limit.
        PremError: What the client raises.
    """
    steps = _extraction(schema).steps(read_parts(client, document), {**params, "model": model})
    while steps.request is not None:
        try:
            completion = client.chat.completions.create(**steps.request)
        except PremError as error:
            steps.fail(error)
        else:
            steps.answer(_reply(completion))
    return steps.value


@without_locals
async def aextract_document(
    client: AsyncPremClient,
    document: Path_ | Document,
    schema: Any,
    *,
    model: str,
    on_usage: OnUsage = lambda usage: None,
    **params: Any,
) -> Any:
    """`extract_document`, awaited. `on_usage` is called with the token counts of each answer."""
    steps = _extraction(schema).steps(await aread_parts(client, document), {**params, "model": model})
    while steps.request is not None:
        try:
            completion = await client.chat.completions.create(**steps.request)
        except PremError as error:
            steps.fail(error)
        else:
            on_usage(completion.usage)
            steps.answer(_reply(completion))
    return steps.value


def read_parts(client: PremClient, document: Path_ | Document) -> list[dict[str, Any]]:
    """A document's content as parts of a message. A recording is transcribed."""
    found = document if isinstance(document, Document) else read_document(document)
    if found.recording is None:
        return found.parts
    request = TranscriptionRequest()
    return _spoken(found.source, transcribe(client, found.recording, request), request)


async def aread_parts(client: AsyncPremClient, document: Path_ | Document) -> list[dict[str, Any]]:
    """`read_parts`, awaited."""
    found = document if isinstance(document, Document) else await asyncio.to_thread(read_document, document)
    if found.recording is None:
        return found.parts
    request = TranscriptionRequest()
    return _spoken(found.source, await atranscribe(client, found.recording, request), request)


@without_locals
async def aextract(
    documents: Iterable[Path_],
    schema: Any,
    output: Path_,
    *,
    model: str,
    client: AsyncPremClient | None = None,
    instructions: str | None = None,
    max_tokens: int | None = None,
    ordered: bool = False,
    limit: int | None = None,
    max_cost: float | None = None,
    max_failures: int | None = DEFAULT_MAX_FAILURES,
    retry_failed: bool = False,
    seal: bool = False,
    kek: bytes | str | None = None,
    on_progress: Callable[[Progress], object] | None = None,
    stop: asyncio.Event | None = None,
    **options: Unpack[AsyncClientOptions],
) -> Progress:
    """Extract a row from each document, and go on where the last call ended.

    A row has the document's path as ``_source``, and the schema's properties.

    Args:
        documents: Files and directories.
        schema: See `extract_document`.
        output: JSONL; or a name that ends in .csv or .parquet, for a table that is written at the end from the rows in
            ``OUT.rows.jsonl``. Errors are written next to the rows.
        model: See `extract_document`.
        client: Sends the requests; by default a client with `options`.
        instructions: What to extract, in addition to the schema.
        max_tokens: The limit of each answer. An answer that reaches it is requested once more, with a larger one.
        ordered: See `arun`, as all further options.
        limit: Documents at most.
        max_cost: See `arun`.
        max_failures: See `arun`.
        retry_failed: See `arun`.
        seal: See `arun`. Not for a table.
        kek: See `arun`.
        on_progress: See `arun`.
        stop: See `arun`.
        **options: Options of the client.

    Returns:
        The counts.

    Raises:
        ConfigurationError: An option or a file cannot be used.
        ImportError: A package that the output or the schema needs is not installed.
        PremError: See `arun`.
        OSError: See `arun`.
    """
    given = RunOptions(ordered, limit, max_cost, max_failures, retry_failed, seal, kek, on_progress, stop)
    extraction = _extraction(schema, instructions)
    form = extraction.form
    if SOURCE in form.columns:
        raise ConfigurationError(f"schema: {form.name} may not have a property named {SOURCE}")
    if max_tokens is not None:
        positive("max_tokens", not_negative("max_tokens", max_tokens))
    output = os.fsdecode(output)
    table = output if output.endswith(TABLES) else None
    if table is not None:
        if seal:
            raise ConfigurationError(f"seal needs a JSONL output: {quote_path(table)} would not be sealed")
        check_table(table)
        output = f"{table}.rows.jsonl"
    params = {} if max_tokens is None else {"max_tokens": max_tokens}
    sources = await asyncio.to_thread(_sources, documents, (output, errors_path(output), table or output))
    perform = functools.partial(_row, extraction=extraction, params={**params, "model": model})

    def items() -> Iterator[Item]:
        for number, source in enumerate(sources, 1):
            size = os.path.getsize(source) if os.path.exists(source) else 0
            job = Job(source, model, size, max_tokens, functools.partial(perform, source))
            yield Item(number, source, 0, functools.partial(_same, job))

    progress = await run_items(items(), lambda: len(sources), output, client, given, options)
    if table is not None:
        await asyncio.to_thread(write_table, table, read_results(output), form.columns)
    return progress


@without_locals
def extract(documents: Iterable[Path_], schema: Any, output: Path_, **options: Any) -> Progress:
    """`aextract`, without asyncio. Takes the same options."""
    return asyncio.run(aextract(documents, schema, output, **options))


def _same(job: Job) -> Job:
    return job


def _extraction(schema: Any, instructions: str | None = None) -> Extraction:
    return schema if isinstance(schema, Extraction) else Extraction(schema, instructions=instructions)


def _sources(documents: Iterable[Path_], outputs: Iterable[str]) -> list[str]:
    """The documents, once each, without what this batch writes into their folder."""
    own = set(map(os.path.realpath, outputs))
    return [each for each in dict.fromkeys(find_documents(documents)) if os.path.realpath(each) not in own]


async def _row(
    source: str, client: AsyncPremClient, on_usage: OnUsage, *, extraction: Extraction, params: dict[str, Any]
) -> Answer:
    value = await aextract_document(client, source, extraction, on_usage=on_usage, **params)
    row = value.model_dump(mode="json") if isinstance(value, pydantic.BaseModel) else value
    try:
        line = to_line({SOURCE: source, **row})
    except ValueError:
        raise APIResponseValidationError("the answer holds a number that JSON does not have") from None
    return Answer(line)


def _reply(completion: ChatCompletion) -> Reply:
    if not completion.choices:
        raise APIResponseValidationError("the answer has no choice")
    choice = completion.choices[0]
    usage = completion.usage
    return Reply(
        choice.message.content or "",
        choice.finish_reason,
        refused=bool(choice.message.refusal),
        completion_tokens=usage.completion_tokens if usage else None,
    )


def _spoken(
    source: str, transcripts: list[ChunkTranscript], request: TranscriptionRequest
) -> list[dict[str, Any]]:
    (text,) = segments(source, transcripts, request)
    return [text_part(text.text)]
