"""A process that never closes its clients: garbage collection, exit and fork.

Each script runs in its own process, against the embedded enclave in this one, because a defect would be a hang, a
message at the interpreter's exit, or would only show in a child process.
"""

import json
import os
import subprocess
import sys
import threading

import pytest
from support.probed_gateway import ProbedGateway, in_an_envelope
from support.waiting import SOON

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


FORKED_WHILE_PROBING = """
import json, os, sys, threading
from prem_core import PremClient
client = PremClient(**json.loads(sys.argv[1]))
def ask():
    messages = [{"role": "user", "content": "Hello!"}]
    return client.chat.completions.create(model="m", messages=messages).choices[0].message.content
probing = threading.Thread(target=ask)
probing.start()
sys.stdin.readline()
child = os.fork()
if child == 0:
    print("child", ask(), flush=True)
    os._exit(0)
os.waitpid(child, 0)
probing.join()
print("parent", ask(), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_process_forked_during_a_probe_sends_its_own():
    arrived, released = threading.Event(), threading.Event()

    def held(call):
        if not arrived.is_set():
            arrived.set()
            released.wait(SOON)
        in_an_envelope(call)

    with ProbedGateway(probe=held) as gateway:
        settings = json.dumps(gateway.settings(nonce_reuse="error"))
        with subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", FORKED_WHILE_PROBING, settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as run:
            assert run.stdin is not None
            assert run.stdout is not None
            try:
                assert arrived.wait(SOON)
                run.stdin.write("fork\n")
                run.stdin.flush()
                assert run.stdout.readline() == "child Hello\n"
                released.set()
                assert run.stdout.readline() == "parent Hello\n"
                assert run.wait(SOON) == 0
            finally:
                released.set()
                run.kill()
    assert (len(gateway.probes), len(gateway.prompts)) == (2, 3)
