"""What happens to connections when nobody closes them: collections, shutdowns and forks.

Each script runs in a process of its own, against the embedded enclave in this one: what is looked for shows as a
hang, as a message at the interpreter's end, or in another process.
"""

import concurrent.futures
import json
import os
import subprocess
import sys
import time

import pytest
from support.fake_gateway import Gateway

from prem_core import PremClient
from prem_core import _errors as errors

COLLECTED = """
import faulthandler, gc, json, sys, time
faulthandler.dump_traceback_later(20, exit=True)
from prem_core import PremClient
client = PremClient(**json.loads(sys.argv[1]))
def begin():
    messages = [{"role": "user", "content": "hi " * 50}]
    return client.chat.completions.create(model="openai/gpt-oss-120b", messages=messages, stream=True)
class Box: pass
begin().close()
gc.collect()
gc.set_threshold(7, 1, 1)
end = time.monotonic() + 4
while time.monotonic() < end:
    box = Box()
    box.itself, box.stream = box, begin()
    next(box.stream)
    del box
gc.set_threshold(700, 10, 10)
print("done")
"""

BROKEN_OFF = """
import asyncio, json, sys
from prem_core import AsyncPremClient
settings = json.loads(sys.argv[1])
params = {"model": "openai/gpt-oss-120b", "messages": [{"role": "user", "content": "hi " * 100}]}
async def main():
    client = AsyncPremClient(**settings)
    for i in range(30):
        task = asyncio.create_task(client.chat.completions.create(**params))
        await asyncio.sleep(0.001 * i / 3)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass
    async for chunk in await client.chat.completions.create(**params, stream=True):
        break
for _ in range(4):
    asyncio.run(main())
print("done")
"""

FORKED = """
import json, multiprocessing, sys
from prem_core import PremClient
client = PremClient(**json.loads(sys.argv[1]))
def ask(i):
    messages = [{"role": "user", "content": f"Q{i}"}]
    answer = client.chat.completions.create(model="openai/gpt-oss-120b", messages=messages)
    return f"Q{i}" in answer.choices[0].message.content
assert ask(0)
with multiprocessing.get_context("fork").Pool(4) as pool:
    assert all(pool.map(ask, range(40), chunksize=1))
assert ask(1)
print("done")
"""


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(COLLECTED, id="streams that only the collector finds"),
        pytest.param(BROKEN_OFF, id="loops that end in the middle of answers"),
        pytest.param(
            FORKED,
            id="processes forked from one that has connections",
            marks=pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
        ),
    ],
)
def test_a_process_that_leaves_connections_behind_ends_well(script, enclave):
    settings = json.dumps(enclave.client_options)
    command = [sys.executable, "-W", "error", "-c", script, settings]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "done\n", "")


def test_a_key_that_cannot_be_had_fails_all_who_wait_for_it_at_once():
    def silent(call):
        time.sleep(0.6)
        call.drop()

    with Gateway(key=silent) as gateway, PremClient(**gateway.settings(timeout=0.3, max_retries=0)) as client:
        params = {"model": "m", "messages": [{"role": "user", "content": "Hello!"}]}
        start = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            calls = [pool.submit(client.chat.completions.create, **params) for _ in range(8)]
            found = [type(call.exception()) for call in calls]
        took = time.monotonic() - start
    assert found == [errors.APITimeoutError] * 8
    assert took < 8 * 0.3
