"""Runs of a batch against the embedded enclave: resume, errors, order and limits."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.batch_files import chat_line, ids, objects, text_of, write_input
from support.paths import CLINIC_NOTE
from support.recordings import TRANSCRIPTION
from support.security.representations import package_locals

from prem_core import (
    APIStatusError,
    AsyncPremClient,
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    InternalServerError,
    PermissionDeniedError,
)
from prem_core import batch as prem_batch
from prem_core.enclave import LocalEnclave, ScriptedEngine, reply


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """The input, the output and the errors."""
    return tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "out.errors.jsonl"


@pytest.fixture
def options(scripted_options: dict[str, Any], engine: ScriptedEngine) -> dict[str, Any]:
    engine.respond = lambda request: request.text.upper()
    return scripted_options


async def test_every_request_gets_its_own_answer(files: Any, options: dict[str, Any]) -> None:
    requests, output, errors = files
    progress = await prem_batch.arun(write_input(requests, 40), output, **options)
    assert (progress.total, progress.done, progress.failed, progress.remaining) == (40, 40, 0, 0)
    assert sorted(ids(output)) == sorted(f"r{number}" for number in range(40))
    for line in objects(output):
        assert text_of(line) == line["custom_id"].upper()
        assert (line["response"]["status_code"], line["error"]) == (200, None)
    assert not errors.exists()


def test_a_batch_runs_without_asyncio(files: Any, options: dict[str, Any]) -> None:
    requests, output, _ = files
    assert prem_batch.run(write_input(requests, 3), output, **options).done == 3


async def test_a_second_run_sends_only_what_has_no_answer(
    files: Any, options: dict[str, Any], engine: ScriptedEngine
) -> None:
    requests, output, _ = files
    write_input(requests, 10)
    first = await prem_batch.arun(requests, output, limit=4, **options)
    assert (first.done, first.stopped) == (4, "limit")
    second = await prem_batch.arun(requests, output, **options)
    assert (second.done, second.skipped, second.stopped) == (6, 4, None)
    assert len(engine.requests) == 10
    assert len(set(ids(output))) == 10


async def test_an_output_cut_at_any_byte_is_completed(files: Any, options: dict[str, Any]) -> None:
    requests, output, _ = files
    await prem_batch.arun(write_input(requests, 3), output, **options)
    image = output.read_bytes()
    last = image[:-1].rfind(b"\n") + 1
    for end in range(last, len(image), 29):
        output.write_bytes(image[:end])
        assert (await prem_batch.arun(requests, output, **options)).done == 1
        assert sorted(ids(output)) == ["r0", "r1", "r2"]


async def test_invalid_lines_and_duplicates_have_one_error_each_in_every_run(
    files: Any, options: dict[str, Any]
) -> None:
    requests, output, errors = files
    more = ["{", chat_line("r1"), chat_line("p", temperature=9), chat_line("s", stream=True), chat_line("r0")]
    write_input(requests, 3, *more)
    for _ in range(3):
        progress = await prem_batch.arun(requests, output, **options)
        assert progress.failed == 5
        found = {(line["custom_id"], line["error"]["code"]) for line in objects(errors)}
        assert found == {
            (None, "invalid_line"),
            ("r1", "duplicate_id"),
            ("p", "invalid_request"),
            ("s", "invalid_request"),
            ("r0", "duplicate_id"),
        }
        assert len(objects(errors)) == 5
    assert sorted(ids(output)) == ["r0", "r1", "r2"]


async def test_what_the_service_refuses_is_not_sent_again_unless_asked_for(
    files: Any, options: dict[str, Any], engine: ScriptedEngine
) -> None:
    requests, output, errors = files
    engine.respond = lambda request: BadRequestError("no") if request.text == "r1" else "yes"
    write_input(requests, 3)
    assert (await prem_batch.arun(requests, output, **options)).failed == 1
    again = await prem_batch.arun(requests, output, **options)
    assert (again.skipped, again.failed_before, len(engine.requests)) == (2, 1, 3)
    assert ids(errors) == ["r1"]
    engine.respond = lambda request: "yes"
    assert (await prem_batch.arun(requests, output, retry_failed=True, **options)).done == 1
    assert not errors.exists()


async def test_a_failure_of_the_service_is_retried_by_the_next_run(
    files: Any, options: dict[str, Any], engine: ScriptedEngine
) -> None:
    requests, output, errors = files
    engine.respond = lambda request: InternalServerError("down") if request.text == "r1" else "yes"
    write_input(requests, 3)
    assert (await prem_batch.arun(requests, output, **options)).failed == 1
    assert objects(errors)[0]["response"]["status_code"] == 500
    engine.respond = lambda request: "yes"
    assert (await prem_batch.arun(requests, output, **options)).done == 1
    assert not errors.exists()


@pytest.mark.parametrize(
    "error",
    [
        AuthenticationError("no"),
        PermissionDeniedError("no"),
        APIStatusError("no", status_code=402),
    ],
    ids=["401", "403", "402"],
)
async def test_a_rejected_key_and_a_payment_that_is_due_stop_everything(
    error: APIStatusError, files: Any, options: dict[str, Any], engine: ScriptedEngine
) -> None:
    requests, output, errors = files
    engine.respond = lambda request: error
    with pytest.raises(type(error)):
        await prem_batch.arun(write_input(requests, 100), output, max_concurrency=2, **options)
    assert len(engine.requests) <= 2
    assert not errors.exists()


async def test_many_failures_in_a_row_stop_the_run(
    files: Any, options: dict[str, Any], engine: ScriptedEngine
) -> None:
    requests, output, errors = files
    engine.respond = lambda request: InternalServerError("down")
    write_input(requests, 100)
    with pytest.raises(prem_batch.BatchStoppedError, match="after 6 failed requests in a row") as caught:
        await prem_batch.arun(requests, output, max_failures=6, max_concurrency=2, **options)
    assert isinstance(caught.value.__cause__, InternalServerError)
    assert 6 <= len(objects(errors)) <= 7
    engine.respond = lambda request: "yes"
    assert (await prem_batch.arun(requests, output, **options)).done == 100


async def test_ordered_answers_are_in_the_order_of_the_input(
    files: Any, options: dict[str, Any], engine: ScriptedEngine
) -> None:
    requests, output, _ = files
    engine.respond = lambda request: reply("yes", delay=0.02 if int(request.text[1:]) % 3 == 0 else 0)
    write_input(requests, 12, "{", chat_line("last", "r1"))
    await prem_batch.arun(requests, output, ordered=True, **options)
    assert ids(output) == [*(f"r{number}" for number in range(12)), "last"]


async def test_a_set_event_ends_the_run_after_the_requests_in_flight(
    files: Any, options: dict[str, Any], engine: ScriptedEngine
) -> None:
    requests, output, _ = files
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def respond(request: Any) -> str:
        loop.call_soon_threadsafe(stop.set)
        return "yes"

    engine.respond = respond
    progress = await prem_batch.arun(
        write_input(requests, 50), output, stop=stop, max_concurrency=2, **options
    )
    assert progress.stopped == "interrupted"
    assert progress.done == len(engine.requests) == len(ids(output)) < 50


async def test_never_more_than_max_concurrency_requests_are_in_flight(
    files: Any, options: dict[str, Any], engine: ScriptedEngine
) -> None:
    requests, output, _ = files
    most = 0

    def on_progress(progress: prem_batch.Progress) -> None:
        nonlocal most
        most = max(most, progress.in_flight)

    async def respond(request: Any) -> str:
        nonlocal open_now, most_open
        open_now += 1
        most_open = max(most_open, open_now)
        await asyncio.sleep(0)
        open_now -= 1
        return "yes"

    open_now = most_open = 0
    engine.respond = respond
    await prem_batch.arun(
        write_input(requests, 30), output, max_concurrency=3, on_progress=on_progress, **options
    )
    assert most <= 3
    assert most_open <= 3


async def test_a_second_process_on_the_same_output_is_refused(files: Any, options: dict[str, Any]) -> None:
    from prem_core.batch.journal import Journal

    requests, output, _ = files
    with Journal.open(output), pytest.raises(ConfigurationError, match="another process"):
        await prem_batch.arun(write_input(requests, 1), output, **options)


async def test_a_file_that_is_no_output_is_not_changed(files: Any, options: dict[str, Any]) -> None:
    requests, output, _ = files
    output.write_text("my notes\n")
    with pytest.raises(ConfigurationError, match="line 1 is not an answer of a batch"):
        await prem_batch.arun(write_input(requests, 1), output, **options)
    assert output.read_text() == "my notes\n"
    with pytest.raises(ConfigurationError, match="is the input, too"):
        await prem_batch.arun(requests, requests, **options)


async def test_a_full_disk_stops_the_run_and_a_further_run_resumes_it(
    files: Any, options: dict[str, Any], engine: ScriptedEngine
) -> None:
    resource = pytest.importorskip("resource")
    requests, output, _ = files
    write_input(requests, 30)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(OSError, match=r"out\.jsonl"):
            await prem_batch.arun(requests, output, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    written = len(ids(output))
    assert 0 < written < 30
    progress = await prem_batch.arun(requests, output, **options)
    assert (progress.skipped, progress.done) == (written, 30 - written)


async def test_an_id_with_a_lone_surrogate_is_written_and_found_again(
    files: Any, options: dict[str, Any]
) -> None:
    requests, output, _ = files
    requests.write_text(chat_line("\ud800é") + "\n")
    for done in (1, 0):
        assert (await prem_batch.arun(requests, output, **options)).done == done
    assert output.read_bytes().isascii()
    (line,) = objects(output)
    assert line["custom_id"] == "\ud800é"


async def test_recordings_are_transcribed_and_translated(
    files: Any, options: dict[str, Any], engine: ScriptedEngine
) -> None:
    requests, output, errors = files
    shutil.copy(CLINIC_NOTE, requests.parent / "note.wav")
    line = (
        '{"custom_id":"%s","method":"POST","url":"/v1/audio/%s",'
        '"body":{"file":"%s","response_format":"%s"}}\n'
    )
    requests.write_text(
        line % ("a", "transcriptions", "note.wav", "verbose_json")
        + line % ("b", "translations", "note.wav", "text")
        + line % ("c", "transcriptions", "none.wav", "json")
    )
    engine.respond = lambda request: TRANSCRIPTION
    progress = await prem_batch.arun(requests, output, ordered=True, **options)
    assert (progress.done, progress.failed) == (2, 1)
    verbose, text = (each["response"]["body"] for each in objects(output))
    assert verbose["segments"][0]["text"] == " Anna darf nach Hause."
    assert text == TRANSCRIPTION["text"]
    assert {request.task for request in engine.requests} == {"transcribe", "translate"}
    assert "no such file" in objects(errors)[0]["error"]["message"]


async def test_parameters_that_are_options_of_the_client_are_not_accepted(
    files: Any, options: dict[str, Any]
) -> None:
    requests, output, errors = files
    write_input(requests, 0, chat_line("a", timeout=1), chat_line("b", self=1), chat_line("c", model=None))
    assert (await prem_batch.arun(requests, output, **options)).failed == 3
    assert {line["error"]["code"] for line in objects(errors)} == {"invalid_request"}


async def test_extra_body_is_sent_without_a_check(files: Any, options: dict[str, Any]) -> None:
    requests, output, errors = files
    write_input(requests, 0, chat_line("a", extra_body={"top_k": 3}))
    await prem_batch.arun(requests, output, **options)
    (refused,) = objects(errors)
    assert refused["response"]["status_code"] == 400  # by the service


async def test_a_client_of_the_caller_is_used_and_stays_open(files: Any, options: dict[str, Any]) -> None:
    requests, output, _ = files
    async with AsyncPremClient(**options) as client:
        await prem_batch.arun(write_input(requests, 2), output, client=client)
        await client.models.list()
        with pytest.raises(ConfigurationError, match="either client or its options"):
            await prem_batch.arun(requests, output, client=client, max_retries=1)


async def test_an_answer_that_reached_its_token_limit_is_kept_and_counted(
    files: Any, options: dict[str, Any], engine: ScriptedEngine
) -> None:
    requests, output, _ = files
    engine.respond = lambda request: reply("half of", finish_reason="length")
    assert (await prem_batch.arun(write_input(requests, 2), output, **options)).truncated == 2
    assert len(ids(output)) == 2


async def test_the_sealed_form_resumes_and_hides_the_errors_too(
    files: Any, options: dict[str, Any], engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIENT_KEK", "0123456789abcdef" * 4)
    requests, output, errors = files
    engine.respond = lambda request: BadRequestError("no") if request.text == "r1" else "secret word"
    write_input(requests, 4)
    assert (await prem_batch.arun(requests, output, seal=True, limit=2, **options)).done == 1
    again = await prem_batch.arun(requests, output, seal=True, **options)
    assert (again.done, again.skipped, again.failed_before) == (2, 1, 1)
    assert b"custom_id" not in output.read_bytes()
    assert b"custom_id" not in errors.read_bytes()
    assert sorted(line["custom_id"] for line in prem_batch.read_results(output)) == ["r0", "r2", "r3"]
    assert [line["custom_id"] for line in prem_batch.read_results(errors)] == ["r1"]
    with pytest.raises(ConfigurationError, match="is sealed"):
        await prem_batch.arun(requests, output, **options)


async def test_answers_in_one_piece_are_required_with_nonce_reuse_error(files: Any) -> None:
    requests, output, _ = files
    with LocalEnclave(respond=lambda request: "yes", whole_replies="stream") as prem:
        from prem_core import NonceReuseError

        with pytest.raises(NonceReuseError):
            await prem_batch.arun(
                write_input(requests, 5), output, nonce_reuse="error", **prem.client_options
            )
    assert ids(output) == []


async def test_an_error_keeps_no_prompt_and_no_key_in_its_traceback(
    files: Any, options: dict[str, Any], engine: ScriptedEngine
) -> None:
    requests, output, _ = files
    write_input(requests, 0, chat_line("a", "The zebra is ill."))
    kek = bytes(range(32))
    settings: dict[str, Any] = {"seal": True, "kek": kek, **options}
    caught: list[BaseException] = []
    for error in (AuthenticationError("no"), InternalServerError("down")):
        engine.respond = lambda request, error=error: error
        with pytest.raises((AuthenticationError, prem_batch.BatchStoppedError)) as failed:
            await prem_batch.arun(requests, output, max_failures=1, **settings)
        caught.append(failed.value)
    with pytest.raises(ConfigurationError) as refused:
        await prem_batch.arun(requests, output, **{**settings, "kek": kek[::-1]})
    with pytest.raises(ConfigurationError) as unread:
        list(prem_batch.read_results(output, kek[::-1]))
    for each in (*caught, refused.value, unread.value):
        for place, text in package_locals(each):
            for secret in ("zebra", options["api_key"], repr(kek), repr(kek[::-1])):
                assert secret not in text, place
