"""`alignkit push`: a run's newest policy and its card on the hub, here a stand-in on this machine."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from alignkit import Groups, LoRA, Run
from alignkit.errors import ConfigError
from alignkit.models import Policy
from alignkit.run import push

TOKEN = "hf_canary7f3a9c51e2"
COMMIT = "0123456789012345678901234567890123456789"


class Hub:
    """Takes what `huggingface_hub` sends: a repository, then one commit with every file in it."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.created: list[dict[str, Any]] = []
        self.summary, self.status, self.keys = "", 200, set[str]()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_args: Any) -> None:
                """Quiet."""

            def do_GET(self) -> None:
                hub.reply(self, {"id": "me/mine", "sha": COMMIT, "siblings": []})

            def do_POST(self) -> None:
                hub.keys.add(self.headers.get("authorization", ""))
                hub.answer(self, self.rfile.read(int(self.headers.get("content-length") or 0)))

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        if self.status != 200:
            return self.reply(handler, {"error": "Invalid credentials"}, self.status)
        if handler.path == "/api/validate-yaml":  # of the card
            return self.reply(handler, {"errors": [], "warnings": []})
        if handler.path == "/api/repos/create":
            self.created.append(json.loads(body))
            return self.reply(handler, {"url": f"{self.url}/me/mine", "name": "me/mine"})
        if "/preupload/" in handler.path:
            asked = [entry["path"] for entry in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in asked]
            return self.reply(handler, {"files": modes})
        assert "/commit/" in handler.path, handler.path
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "header":
                self.summary = line["value"]["summary"]
            else:
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self.reply(handler, {"commitUrl": f"{self.url}/me/mine/commit/{COMMIT}", "commitOid": COMMIT})

    def reply(self, handler: BaseHTTPRequestHandler, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        handler.send_response(status)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)


@pytest.fixture
def hub() -> Iterator[Hub]:
    found = Hub()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: Any) -> Path:
    """A run with an adapter that was trained and not exported."""
    folder: Path = tmp_path_factory.mktemp("push") / "run"
    with Run(folder, quiet=True) as run:
        rows = Groups.from_rows([{"prompt": "p", "responses": ["ab"]}] * 4)
        run.sft(run.policy("tiny", lora=LoRA(r=2)), rows, learning_rate=1e-2, epochs=4, batch_size=1)
    return folder


def pushed(hub: Hub, *words: str) -> subprocess.CompletedProcess[str]:
    home = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", "import sys; from alignkit.cli import main; sys.exit(main())", "push", *words]
    return subprocess.run(command, env={**os.environ, **home}, capture_output=True, text=True, timeout=600)


def loads_to(hub: Hub, folder: Path) -> Policy:
    for name, content in hub.files.items():
        assert "/" not in name
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return Policy.load(folder)


def test_the_newest_policy_arrives_whole_with_its_card(hub: Hub, trained: Path, tmp_path: Path) -> None:
    done = pushed(hub, str(trained), "me/mine", "--private")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.url}/me/mine/commit/{COMMIT}"
    (made,) = hub.created
    assert (made["name"], made["organization"]) == ("mine", "me")
    assert made.get("visibility", made.get("private")) in ("private", True)  # as versions of huggingface_hub say it
    assert hub.summary == "sft of run, by alignkit"
    assert hub.keys == {f"Bearer {TOKEN}"}
    card = hub.files["README.md"].decode()
    assert "library_name: transformers" in card
    assert "**policy** (policy" in card
    assert "**sft** (sft" in card
    assert not any(TOKEN.encode() in content for content in hub.files.values())
    found = loads_to(hub, tmp_path / "found")
    stage = sorted((trained / "stages").glob("*-sft-*"))[-1]
    kept = Policy.load(stage / "model")
    kept.fold()
    first = Policy.load("tiny").model.state_dict()
    moved = False
    for name, weight in kept.model.state_dict().items():
        assert found.model.state_dict()[name].allclose(weight, atol=1e-6), name
        moved = moved or not first[name].allclose(weight, atol=1e-4)
    assert moved


def test_what_was_exported_is_pushed_as_it_is(hub: Hub, tmp_path: Path) -> None:
    with Run(tmp_path / "run", quiet=True) as run:
        v0 = run.policy("tiny", lora=None)
        folder = run.export(v0)
    done = pushed(hub, str(tmp_path / "run"), "me/mine", "--message", "first")
    assert done.returncode == 0, done.stderr
    assert hub.summary == "first"
    assert folder is not None

    def without_environment(content: bytes) -> bytes:  # transformers notes there whether HF_HUB_OFFLINE was set
        return content.replace(b'"local_files_only": true', b'"local_files_only": false')

    there = {file.name: without_environment(file.read_bytes()) for file in folder.iterdir()}
    assert {name: without_environment(content) for name, content in hub.files.items()} == there


def test_a_refusal_and_a_dead_hub_are_one_message(hub: Hub, trained: Path) -> None:
    hub.status = 401
    done = pushed(hub, str(trained), "me/mine")
    assert done.returncode == 2
    assert "push to me/mine: Client error '401 Unauthorized'" in done.stderr
    assert "HF_TOKEN" in done.stderr
    assert "Traceback" not in done.stderr
    assert TOKEN not in done.stderr
    hub.server.server_close()
    hub.server.shutdown()
    done = pushed(hub, str(trained), "me/mine")
    assert done.returncode == 2
    assert "the hub cannot be reached" in done.stderr


def test_what_cannot_be_pushed_is_said_before_anything_is_sent(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no name of a repository"):
        push(trained, "not a/name/at all")
    with pytest.raises(ConfigError, match="not a run folder"):
        push(tmp_path, "me/mine")
    with Run(tmp_path / "empty", quiet=True) as run:
        run.groups(Groups.from_prompts(["p"]))
    with pytest.raises(ConfigError, match="no policy yet"):
        push(tmp_path / "empty", "me/mine")
