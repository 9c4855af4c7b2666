"""A process that never closes its clients: garbage collection, exit and fork.

Each script runs in its own process, against the embedded enclave in this one, because a defect would be a hang, a
message at the interpreter's exit, or would only show in a child process.
"""

import json
import os
import subprocess
import sys

import pytest

COLLECTED = """
import faulthandler, gc, json, sys
faulthandler.dump_traceback_later(100, exit=True)
from prem_core import PremClient
# Without a limit: a thread that waits for a permit runs no garbage collection.
client = PremClient(**json.loads(sys.argv[1]), max_concurrency=None)
def begin():
    messages = [{"role": "user", "content": "hi " * 50}]
    return client.chat.completions.create(model="openai/gpt-oss-120b", messages=messages, stream=True)
class Box: pass
begin().close()
gc.collect()
gc.set_threshold(7, 1, 1)
for _ in range(200):
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
        pytest.param(COLLECTED, id="streams freed by the garbage collector"),
        pytest.param(BROKEN_OFF, id="event loops that end in mid-response"),
        pytest.param(
            FORKED,
            id="processes forked with open connections",
            marks=pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
        ),
    ],
)
def test_a_process_that_never_closes_its_clients_exits_cleanly(script, enclave):
    settings = json.dumps({**enclave.client_options, "nonce_reuse": "allow"})
    command = [sys.executable, "-W", "error", "-c", script, settings]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "done\n", "")
