"""What the Hub refuses, really refused: a small server answers as the Hub does, and the public command says why.

One process asks for everything, since it is the imports that take long. The server is named by HF_ENDPOINT.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rlhf_lib.engine import hub
from tests.pipeline.test_bad_input import the_line
from tests.tldr_data import write_data, write_model

KEY = "hf_thisKeyMustNotBeShown"
ASK_FOR_ALL = """
import contextlib, io, json, sys
from rlhf_lib import cli
for name, arguments in json.loads(sys.argv[1]).items():
    sys.argv, said = ["rlhf", *arguments], io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            cli.main()
        except SystemExit as leaving:
            status = leaving.code
    print(json.dumps([name, status, said.getvalue()]))
"""
ANSWERS = {  # by what stands in the path
    "Llama-3.2-1B": (403, "GatedRepo"),
    "gated-without-a-key": (401, "GatedRepo"),
    "private": (401, "RepoNotFound"),
    "gated-data": (403, "GatedRepo"),
    "": (404, "RepoNotFound"),
}
CASES: dict[str, tuple[dict[str, str], str]] = {
    "a gated model": (
        {"world.model": "meta-llama/Llama-3.2-1B"},
        "(it is gated): accept its licence at https://huggingface.co/meta-llama/Llama-3.2-1B, then log in with `hf "
        "auth login` or put your key into HF_TOKEN",
    ),
    "gated, without a key": ({"world.model": "some/gated-without-a-key"}, "(it is gated): accept its licence at"),
    "a private model": ({"world.model": "some/private"}, "(the Hub has no such name, or not for you): check the name"),
    "no such model": ({"world.model": "some/misspelt"}, "(the Hub has no such name, or not for you): check the name"),
    "gated data": (
        {"data.references": "some/gated-data"},
        "(it is gated): accept its licence at https://huggingface.co/datasets/some/gated-data, then log in",
    ),
    "no such data": ({"data.preferences": "some/misspelt"}, "some/misspelt is no file or folder here, and its split"),
}


class Answer(BaseHTTPRequestHandler):
    """As the Hub answers to what it will not give; that gated data are there, and gated, is no secret."""

    def answer(self) -> None:
        status, code = next(ANSWERS[part] for part in ANSWERS if part in self.path)
        body = b""
        if self.path == "/api/datasets/some/gated-data":
            status, body = 200, json.dumps({"id": "some/gated-data", "gated": "manual", "siblings": []}).encode()
        self.send_response(status)
        if status != 200:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_HEAD = do_POST = answer

    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="module")
def hub_says_no():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def said(hub_says_no, tmp_path_factory):
    """By case: the status, all that was said, and the folder to write to."""
    folder = tmp_path_factory.mktemp("hub")
    here = {f"data.{name}": str(place) for name, place in write_data(folder / "data").items()}
    here["world.model"] = str(write_model(folder / "model", "neox"))
    requests = {}
    for number, (name, (changes, _)) in enumerate(CASES.items()):
        sets = [part for key, value in {**here, **changes}.items() for part in ("--set", f"{key}={value}")]
        requests[name] = ["run", "--preset", "tldr-t4", "--out", str(folder / str(number)), *sets]
    environment = {
        **os.environ, "HF_ENDPOINT": hub_says_no, "HF_HUB_OFFLINE": "0", "HF_TOKEN": KEY, "OMP_NUM_THREADS": "1",
        "HF_HOME": str(folder / "home"), "RLHF_CACHE": str(folder / "cache"), "NO_PROXY": "127.0.0.1",
        "HF_DATASETS_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0",
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", ASK_FOR_ALL, json.dumps(requests)], env=environment,
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert KEY not in done.stdout + done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return {name: (status, text, folder / str(place)) for place, (name, status, text) in enumerate(answers)}


@pytest.mark.parametrize("case", CASES)
def test_what_the_hub_refuses(said, case):
    """Rejects a traceback, "no network" for what only lacks a licence, advice that does not help, a key on the screen,
    and a folder that looks as if a run had begun in it.
    """
    status, text, out = said[case]
    assert CASES[case][1] in the_line(status, text)
    assert not [path for path in out.rglob("*") if path.name != ".lock"]


def refusal(kind: str, text: str = "") -> Exception:
    """An error of this kind, wrapped as Transformers wraps them."""
    wrapped = OSError("We couldn't connect to the Hub")
    wrapped.__cause__ = type(kind, (OSError,), {})(text)
    return wrapped


@pytest.mark.parametrize("offline", [True, False])
def test_no_network(monkeypatch, offline):
    """Rejects advice to look for a cable where a variable forbids the network, and the other way round. The real thing
    takes half a minute of retries.
    """
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    for kind in ("LocalEntryNotFoundError", "ConnectionError", "OfflineModeIsEnabled"):
        what, advice = hub.why(refusal(kind), "some/model")
        assert ("HF_HUB_OFFLINE" in what) == offline and "connect to the network" in advice


def test_a_revision_that_is_not_there():
    """Rejects "no such name" for a name that is right, and a page that has the revision in its address."""
    what, advice = hub.why(refusal("RevisionNotFoundError"), "some/model@v9")
    assert "revision" in what and "https://huggingface.co/some/model for" in advice


def test_anything_else():
    """Rejects a guess where nothing is known: the error's own first line is shown."""
    assert hub.why(ValueError("odd\nvery"), "some/model")[0] == "ValueError: odd"
