"""Prices, the cost of a run, its maximum, and the estimate before a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.batch_files import PricedModels, chat_line, ids, write_input
from support.paths import CLINIC_NOTE

from prem_core import ConfigurationError, Model, PermissionDeniedError
from prem_core import batch as prem_batch
from prem_core.batch.cost import CostMeter
from prem_core.enclave import ScriptedEngine, reply


@pytest.fixture
async def options(scripted_options: dict[str, Any], engine: ScriptedEngine) -> AsyncIterator[dict[str, Any]]:
    engine.respond = lambda request: reply("yes", usage=(1000, 500))
    async with httpx.AsyncClient(transport=PricedModels([("m", "0.2", 0.4)])) as http_client:
        yield {**scripted_options, "http_client": http_client}


async def test_the_cost_is_that_of_the_tokens_by_the_models_list(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    progress = await prem_batch.arun(write_input(tmp_path / "in", 10), tmp_path / "out", **options)
    assert (progress.prompt_tokens, progress.completion_tokens, progress.unpriced) == (10_000, 5_000, 0)
    assert progress.cost == pytest.approx(10 * 0.2 + 5 * 0.4)


async def test_no_request_starts_above_the_maximum_and_a_further_run_goes_on(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    requests = write_input(
        tmp_path / "in", 0, *(chat_line(f"r{number}", max_tokens=500) for number in range(20))
    )
    progress = await prem_batch.arun(requests, tmp_path / "out", max_cost=2.05, max_concurrency=2, **options)
    assert progress.stopped == "max_cost"
    assert progress.cost is not None
    # An answer costs 0.4; the estimate of a prompt of 1,000 tokens is too low by at most 0.2 a request.
    assert 1.6 <= progress.cost <= 2.05 + 2 * 0.2
    assert len(ids(tmp_path / "out")) == progress.done
    assert (progress.remaining or 0) == 20 - progress.done
    assert (await prem_batch.arun(requests, tmp_path / "out", **options)).done == 20 - progress.done


async def test_a_maximum_needs_the_price_of_the_model(tmp_path: Path, options: dict[str, Any]) -> None:
    requests = write_input(tmp_path / "in", 0, chat_line("a", model="other"))
    with pytest.raises(ConfigurationError, match="no price for 'other'"):
        await prem_batch.arun(requests, tmp_path / "out", max_cost=1, **options)


async def test_answers_without_a_price_are_counted(tmp_path: Path, options: dict[str, Any]) -> None:
    requests = write_input(tmp_path / "in", 1, chat_line("a", model="other"))
    progress = await prem_batch.arun(requests, tmp_path / "out", **options)
    assert progress.cost == pytest.approx(0.4)
    assert progress.unpriced == 1


@pytest.mark.parametrize(
    "config",
    [
        None,
        {},
        [],
        {"confidential": None},
        {"confidential": {"default": {"prompt_price_per_k": 1}}},
        {"confidential": {"default": {"prompt_price_per_k": -1, "completion_price_per_k": 1}}},
        {"confidential": {"default": {"prompt_price_per_k": "free", "completion_price_per_k": 1}}},
        {"confidential": {"default": {"prompt_price_per_k": "nan", "completion_price_per_k": True}}},
    ],
)
def test_a_price_of_another_form_is_not_known(config: Any) -> None:
    assert prem_batch.read_prices([Model(id="x", model="m", price_config=config)]) == {}


def test_a_reserved_price_is_given_back() -> None:
    meter = CostMeter({"m": prem_batch.Price(0.001, 0.002)}, 1.0)
    estimate = meter.estimate("m", 400, 200)
    assert estimate == pytest.approx(0.1 + 0.4)
    assert meter.reserve(estimate)
    assert meter.reserve(estimate)
    assert not meter.reserve(estimate)
    meter.release(estimate)
    assert meter.reserve(estimate)


def test_a_check_counts_and_estimates_without_a_network(tmp_path: Path) -> None:
    requests = write_input(
        tmp_path / "in",
        2,
        chat_line("limited", max_tokens=100),
        chat_line("r0"),
        chat_line("bad", temperature=9),
        chat_line("other", model="other"),
        "{",
    )
    (tmp_path / "out").write_text('{"custom_id":"r1","response":{}}\n')
    invalid: list[prem_batch.InvalidLineError] = []
    report = prem_batch.check(
        requests,
        tmp_path / "out",
        prices={"m": prem_batch.Price(0.0, 0.01)},
        on_invalid=invalid.append,
    )
    assert (report.total, report.answered, report.invalid) == (7, 1, 3)
    assert [error.line for error in invalid] == [4, 5, 7]
    assert [error.code for error in invalid] == ["duplicate_id", "invalid_request", "invalid_line"]
    assert (report.max_completion_tokens, report.unlimited, report.unpriced) == (100, 2, 1)
    assert report.cost == pytest.approx(1.0)
    assert report.prompt_tokens > 0


def test_a_check_reads_recordings_and_their_parameters(tmp_path: Path) -> None:
    shutil.copy(CLINIC_NOTE, tmp_path / "note.wav")
    bodies = [
        {"file": "note.wav"},
        {"file": "none.wav"},
        {"file": "note.wav", "language": "german"},
        {"model": "whisper"},
    ]
    (tmp_path / "in").write_text(
        "".join(
            json.dumps(
                {
                    "custom_id": str(number),
                    "method": "POST",
                    "url": "/v1/audio/transcriptions",
                    "body": body,
                }
            )
            + "\n"
            for number, body in enumerate(bodies)
        )
    )
    invalid: list[prem_batch.InvalidLineError] = []
    report = prem_batch.check(tmp_path / "in", on_invalid=invalid.append)
    assert (report.total, report.invalid, report.unpriced) == (4, 3, 1)
    assert [error.custom_id for error in invalid] == ["1", "2", "3"]


async def test_without_a_models_list_a_run_has_no_cost_and_a_maximum_is_an_error(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    requests = write_input(tmp_path / "in", 2)
    async with httpx.AsyncClient(transport=PricedModels([], status=403)) as http_client:
        options["http_client"] = http_client
        with pytest.raises(PermissionDeniedError):
            await prem_batch.arun(requests, tmp_path / "out", max_cost=1, **options)
        progress = await prem_batch.arun(requests, tmp_path / "out", **options)
    assert (progress.done, progress.cost) == (2, None)
