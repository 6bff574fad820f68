"""Planted judges: a local model and an HTTP server whose verdicts follow a rule, to check the machinery with."""

from __future__ import annotations

import itertools
import json
import math
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch

from alignkit import Policy
from alignkit.testing import tiny_model

Rule = Callable[[str, str, str], tuple[float, float]]
"""(the question, the response shown first, the one shown second) -> probabilities of the verdicts 1 and 2."""

SHOWN = re.compile(
    r"\[conversation ([0-9a-f]{8})\].*?\[response 1 \1\]\n(.*?)\n\[end \1\].*?\[response 2 \1\]\n(.*?)\n\[end \1\]",
    re.S,
)


def longer_wins(_question: str, first: str, second: str) -> tuple[float, float]:
    """The longer of the two, with odds of 4 to 1, and a tenth of the mass elsewhere."""
    if len(first) == len(second):
        return 0.45, 0.45
    return (0.72, 0.18) if len(first) > len(second) else (0.18, 0.72)


def by_rule(rule: Rule, question: str) -> tuple[float, float]:
    shown = SHOWN.search(question)
    assert shown, question
    return rule(question, shown.group(2), shown.group(3))


def text_up_to(batch: Any, row: int, last: int) -> list[int]:
    """The ids of a text up to a place of its row: texts may share a row, and what they begin with."""
    if not batch.pieces:
        return list(batch.input_ids[row, : last + 1].tolist())
    ends = list(itertools.accumulate(size for size, _ in batch.pieces))
    piece = next(number for number, end in enumerate(ends) if last < end)
    size, before = batch.pieces[piece]
    own = batch.input_ids[row, ends[piece] - size : last + 1].tolist()
    return own if before < 0 else [*text_up_to(batch, row, ends[before] - 1), *own]


class PlantedPolicy(Policy):
    """The tiny model, whose log-probs of "1" and "2" follow a rule; everything before and after is the real thing."""

    def __init__(self, rule: Rule) -> None:
        super().__init__(*tiny_model())
        self.rule, self.asked = rule, 0
        self.prompts: list[str] = []

    def tensors(self, batch: Any, wanted: Any = ("logprobs",), **options: Any) -> dict[str, torch.Tensor]:
        out = torch.zeros(batch.targets.shape)
        for r, target in enumerate(batch.targets[:, 0].tolist()):
            prompt = self.tokenizer.decode(text_up_to(batch, int(batch.row[r]), int(batch.predict_index[r, 0])))
            first, second = by_rule(self.rule, prompt)
            self.asked += 1
            self.prompts.append(prompt)
            out[r, 0] = math.log({ord("1"): first, ord("2"): second}[target] or 1e-30)
        return {"logprobs": out}


@pytest.fixture
def planted() -> type[PlantedPolicy]:
    return PlantedPolicy


@pytest.fixture
def prefers_longer() -> PlantedPolicy:
    return PlantedPolicy(longer_wins)


class Served:
    """A server on this machine; `behave(handler, body)` writes its replies, `bodies` are what came in."""

    def __init__(self, behave: Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                served.bodies.append(body)
                served.headers.append(dict(self.headers))
                try:
                    behave(self, body)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True  # the client had enough

            def log_message(self, *_args: Any) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    running: list[Served] = []

    def start(behave: Callable[..., None]) -> Served:
        running.append(Served(behave))
        return running[-1]

    yield start
    for served in running:
        served.server.shutdown()
        served.server.server_close()


def reply(handler: BaseHTTPRequestHandler, payload: Any, status: int = 200, **headers: str) -> None:
    """Send JSON (or bytes as they are)."""
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    handler.send_response(status)
    for name, value in {"content-type": "application/json", "content-length": str(len(data)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(data)


def completion(content: str, tops: Any = None) -> dict[str, Any]:
    """A chat completion, with the log-probs of its first token where given: {token: probability}."""
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": content}}
    if tops is not None:
        listed = [{"token": t, "logprob": math.log(p)} for t, p in tops.items()]
        choice["logprobs"] = {"content": [{"token": content, "logprob": listed[0]["logprob"], "top_logprobs": listed}]}
    return {"choices": [choice]}


def gives_logprobs(rule: Rule) -> Callable[..., None]:
    def behave(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        first, second = by_rule(rule, body["messages"][0]["content"])
        reply(handler, completion("1", {"1": first / 2, " 1": first / 2, "2": second, "The": 1 - first - second}))

    return behave


def draws_only(rule: Rule, refuses: bool = True) -> Callable[..., None]:
    """The field `logprobs` is refused, or ignored as `transformers serve` does."""

    def behave(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        if "logprobs" in body and refuses:
            return reply(handler, {"detail": "unsupported field"}, 422)
        first, second = by_rule(rule, body["messages"][0]["content"])
        draw = (body.get("seed", 0) * 2654435761 % 2**32) / 2**32
        return reply(handler, completion("1" if draw < first else "2." if draw < first + second else "Well, 1"))

    return behave


@pytest.fixture
def http_rules() -> Any:
    class Rules:
        logprobs = staticmethod(gives_logprobs)
        draws = staticmethod(draws_only)
        answer = staticmethod(reply)
        completed = staticmethod(completion)
        longer = staticmethod(longer_wins)

    return Rules
