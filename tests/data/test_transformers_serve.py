"""Connectivity: the roles against ``transformers serve`` with a small base saved as a hub model
is."""

import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from helpers.endpoints_clinic import played, roles, tasks

from promedical_utils.core.profiles import CLINIC


@pytest.fixture(scope="module")
def served(tiny_base, tmp_path_factory):
    """URL of a server of the tiny random model, on a free loopback port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    command = [
        sys.executable,
        "-m",
        "transformers.cli.transformers",
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--device",
        "cpu",
        "--dtype",
        "float32",
        str(tiny_base),
    ]
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as out:
        server = subprocess.Popen(command, env={**os.environ, **quiet}, stdout=out, stderr=out)
    try:
        for _ in range(600):
            assert server.poll() is None, log.read_text()[-2000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(timeout=30)


def test_what_a_random_model_says_is_stored_and_never_a_pass(served, tiny_base, tmp_path):
    """It takes no response_format, so the schema stands in the prompt; what it says is no JSON."""
    world = played().world
    asked = world.instructions[:2]
    settings = {
        "model": str(tiny_base),
        "structured": "prompt",
        "max_tokens": 24,
        "timeout": 60.0,
        "retries": 1,
    }
    asking = roles(served, tmp_path, **settings)
    answers = asking.answer("terse", asked)
    assert all(a.value or a.reason for a in answers)
    screened = asking.screen([i.messages for i in asked[:1]])
    assert screened[0].value is None and "no usable answer" in screened[0].reason
    (row, *_) = asking.judge(tasks(world, 1)[:1])
    assert {v.verdict for v in row} == {"unknown"} and all(v.rationale for v in row)
    ledger = asking.answers.ledger()
    assert ledger["generator_terse"]["answered"] >= 2 and ledger["judge"]["tokens"] > 0
    assert set(ledger) < set(CLINIC)
    again = roles("http://127.0.0.1:9/v1", tmp_path, **settings)  # nobody there: all is stored
    assert again.answer("terse", asked) == answers
    assert again.answers.ledger() == ledger
