"""`run`, `arun`, `check` and `read_results`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Unpack

from prem_core._config import not_negative, positive
from prem_core._crypto.keyfile import quote_path, resolve_kek
from prem_core._crypto.redaction import clear_locals, without_locals, without_traceback
from prem_core._errors import APIError, AuthenticationError, ConfigurationError
from prem_core.batch.cost import BYTES_PER_TOKEN, CostMeter, Price, read_prices
from prem_core.batch.errors_file import ErrorsFile, errors_path
from prem_core.batch.index import ANSWERED, FAILED, SEEN, IdIndex
from prem_core.batch.journal import Journal, read_lines
from prem_core.batch.lines import InvalidLineError, id_of, is_final, read_raw_lines
from prem_core.batch.progress import Progress
from prem_core.batch.requests import check_request, read_items
from prem_core.batch.runner import DEFAULT_MAX_FAILURES, Item, Runner

if TYPE_CHECKING:
    from prem_core import AsyncPremClient
    from prem_core._client.options import AsyncClientOptions

Path_ = str | os.PathLike[str]

#: Requests in flight with a client that has no limit of its own.
_UNLIMITED: Final = 64


@dataclass(slots=True)
class RunOptions:
    """What `arun` and `aextract` have in common; see `arun`."""

    ordered: bool = False
    limit: int | None = None
    max_cost: float | None = None
    max_failures: int | None = DEFAULT_MAX_FAILURES
    retry_failed: bool = False
    seal: bool = False
    kek: bytes | str | None = field(default=None, repr=False)
    on_progress: Callable[[Progress], object] | None = None
    stop: asyncio.Event | None = None

    def __post_init__(self) -> None:
        for name in ("limit", "max_failures"):
            value = getattr(self, name)
            if value is not None:
                positive(name, not_negative(name, value))


@without_locals
async def arun(
    requests: Path_,
    output: Path_,
    *,
    client: AsyncPremClient | None = None,
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
    """Send the requests of a file in OpenAI's Batch format, and write their answers to another.

    Call it again with the same files to go on after any kind of end. Requests that are answered in `output` are not
    sent again, and neither are those that the service refused with a status of 400, 404, 413 or 422. A request that was
    being answered when the process was killed is sent again, and charged again.

    Args:
        requests: The input, JSONL. A path in it is relative to its folder.
        output: The output, JSONL. Errors are written to ``OUT.errors.jsonl`` for ``OUT.jsonl``.
        client: Sends the requests; by default a client with `options`.
        ordered: Write the answers in the order of the input, each run for itself. Twice `max_concurrency` answers may
            then be lost when the process is killed.
        limit: Requests to send at most.
        max_cost: Send no further request when the run would cost more than this, in the currency of the models list.
        max_failures: Failed requests in a row after which the run stops; None for no limit.
        retry_failed: Send requests again that the service refused.
        seal: Seal output and errors with `kek`, line by line.
        kek: The client's master key; None for the environment's CLIENT_KEK.
        on_progress: Called with the counts, several times a second and at the end.
        stop: Set it to send no further request, and to end when those in flight have ended.
        **options: Options of the client; `max_concurrency` is how many requests are in flight.

    Returns:
        The counts.

    Raises:
        ConfigurationError: An option or a file cannot be used, or another process writes to `output`.
        AuthenticationError: And any other error that every request would have.
        BatchStoppedError: `max_failures` requests in a row failed.
        OSError: A file cannot be read or written.
    """
    given = RunOptions(ordered, limit, max_cost, max_failures, retry_failed, seal, kek, on_progress, stop)
    with await asyncio.to_thread(_open_input, requests, output) as file:
        items = read_items(file, Path(requests).parent)
        count = functools.partial(_count_lines, requests)
        return await run_items(items, count, output, client, given, options)


@without_locals
def run(requests: Path_, output: Path_, **options: Any) -> Progress:
    """`arun`, without asyncio. Takes the same options."""
    return asyncio.run(arun(requests, output, **options))


def _open_input(requests: Path_, output: Path_) -> IO[bytes]:
    if os.path.exists(output) and os.path.exists(requests) and os.path.samefile(requests, output):
        raise ConfigurationError(f"{quote_path(output)} is the input, too: write another file")
    return open(requests, "rb")


def _count_lines(requests: Path_) -> int:
    with open(requests, "rb") as file:
        return sum(1 for _ in read_raw_lines(file))


async def run_items(
    items: Iterator[Item],
    count: Callable[[], int],
    output: Path_,
    client: AsyncPremClient | None,
    given: RunOptions,
    options: Mapping[str, Any],
) -> Progress:
    """Run the items of any input; see `arun`.

    Args:
        items: The items.
        count: Counts them.
        output: The output.
        client: Sends the requests; None for one with `options`.
        given: The options of the run.
        options: The options of the client.
    """
    from prem_core import AsyncPremClient

    kek = resolve_kek(given.kek) if given.seal else None
    if client is not None and options:
        raise ConfigurationError(f"pass either client or its options ({', '.join(sorted(options))})")
    async with contextlib.AsyncExitStack() as stack:
        if client is None:
            client = await stack.enter_async_context(AsyncPremClient(**options))
        index = IdIndex()
        # In threads: an output of a million lines takes seconds.
        on_line = _indexer(output, index)
        journal = stack.enter_context(await asyncio.to_thread(Journal.open, output, on_line, kek=kek))
        errors = ErrorsFile(errors_path(output), kek)
        stack.callback(errors.close)
        await asyncio.to_thread(errors.compact, _keeps(index, retry_failed=given.retry_failed))
        progress = Progress(total=await asyncio.to_thread(count))
        await Runner(
            items,
            client,
            journal,
            errors,
            index,
            CostMeter(await _prices(client, required=given.max_cost is not None), given.max_cost),
            progress,
            concurrency=client.limits.max_concurrency or _UNLIMITED,
            ordered=given.ordered,
            limit=given.limit,
            max_failures=given.max_failures,
            stop=given.stop,
            on_progress=given.on_progress or (lambda progress: None),
        ).run()
    return progress


def _indexer(path: Path_, index: IdIndex) -> Callable[[bytes], object]:
    number = 0

    def on_line(line: bytes) -> None:
        nonlocal number
        number += 1
        name = id_of(line)
        if name is None:
            raise ConfigurationError(
                f"{quote_path(path)}: line {number} is not an answer of a batch; remove it, or write another file"
            )
        index.add(name, ANSWERED)

    return on_line


def _keeps(index: IdIndex, *, retry_failed: bool) -> Callable[[bytes], bool]:
    """Which errors of earlier runs stay: those of requests that are not sent again, once each."""

    def keep(line: bytes) -> bool:
        name = None if retry_failed or not is_final(line) else id_of(line)
        if name is None or index.add(name, 0) & (ANSWERED | FAILED):
            return False
        index.add(name, FAILED)
        return True

    return keep


async def _prices(client: AsyncPremClient, *, required: bool) -> dict[str, Price]:
    try:
        return read_prices(await client.models.list())
    except AuthenticationError:
        raise
    except APIError:
        if required:
            raise
        return {}


@dataclass(slots=True)
class Report:
    """What `check` found.

    Attributes:
        total: Requests and invalid lines in the input.
        answered: Requests that the output has an answer to.
        invalid: Invalid lines and duplicate ids.
        prompt_tokens: An estimate, from the size of the requests that are left.
        max_completion_tokens: The sum of their token limits.
        unlimited: Requests without a token limit, which `max_completion_tokens` leaves out.
        cost: An estimate, from these two numbers; None if no price is known.
        unpriced: Requests that `cost` leaves out, because their model has no known price.
    """

    total: int = 0
    answered: int = 0
    invalid: int = 0
    prompt_tokens: int = 0
    max_completion_tokens: int = 0
    unlimited: int = 0
    cost: float | None = None
    unpriced: int = 0


@without_locals
def check(
    requests: Path_,
    output: Path_ | None = None,
    *,
    prices: Mapping[str, Price] | None = None,
    kek: bytes | str | None = None,
    on_invalid: Callable[[InvalidLineError], object] = lambda error: None,
) -> Report:
    """Check every line of an input without sending anything, and estimate what is left to do.

    Args:
        requests: The input.
        output: The output, if some of it is done.
        prices: By model, for an estimate of the cost.
        kek: The client's master key, for a sealed output; None for the environment's CLIENT_KEK.
        on_invalid: Called with each invalid line.

    Raises:
        ConfigurationError: `output` is not the output of a batch.
        OSError: A file cannot be read.
    """
    index, report = IdIndex(), Report(cost=0.0 if prices else None)
    if output is not None and os.path.exists(output):
        on_line = _indexer(output, index)
        for line in read_lines(output, _kek(kek)):
            on_line(line)
    with open(requests, "rb") as file:
        for number, raw in read_raw_lines(file):
            report.total += 1
            try:
                request, job = check_request(number, raw, Path(requests).parent)
                before = index.add(request.custom_id, SEEN)
                if before & SEEN:
                    raise InvalidLineError(
                        number,
                        "an earlier line has the same custom_id",
                        custom_id=request.custom_id,
                        code="duplicate_id",
                    )
            except InvalidLineError as error:
                report.invalid += 1
                on_invalid(error)
                continue
            if before & ANSWERED:
                report.answered += 1
                continue
            tokens = request.size // BYTES_PER_TOKEN
            report.prompt_tokens += tokens
            report.max_completion_tokens += job.max_tokens or 0
            report.unlimited += job.max_tokens is None
            price = (prices or {}).get(job.model)
            if price is None:
                report.unpriced += 1
            else:
                report.cost = (report.cost or 0.0) + price.of(tokens, job.max_tokens or 0)
    return report


def read_results(path: Path_, kek: bytes | str | None = None) -> Iterator[dict[str, Any]]:
    """The lines of an output or of its errors, sealed or not, as objects.

    Args:
        path: The file.
        kek: The client's master key, for a sealed file; None for the environment's CLIENT_KEK.

    Raises:
        ConfigurationError: It is sealed and there is no KEK, or a line does not open.
        OSError: It cannot be read.
    """
    lines = read_lines(path, _kek(kek))
    del kek
    try:
        for line in lines:
            yield json.loads(line)
    except BaseException as error:
        clear_locals(error)
        raise


@without_traceback
def _kek(kek: bytes | str | None) -> bytes | None:
    """The KEK, if there is one."""
    if kek is None and not os.environ.get("CLIENT_KEK", "").strip():
        return None
    return resolve_kek(kek)
