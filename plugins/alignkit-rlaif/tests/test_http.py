"""The judge over HTTP: a server with log-probs, servers without, hostile ones. A failure is missing, never a number."""

from __future__ import annotations

import asyncio
import gzip
import importlib.util
import json
import logging
import math
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import certifi
import httpx
import pytest
from alignkit_rlaif import Endpoint, Judge
from alignkit_rlaif import http as http_module
from alignkit_rlaif.direct import Direct
from alignkit_rlaif.http import HttpBackend
from alignkit_rlaif.prompts import Question
from alignkit_rlaif.replies import label_said, retry_after

from alignkit import ConfigError, DataError, Groups, Policy

CANARY = "canary-7f3a9c51e2"
QUESTION = Question(({"role": "user", "content": "Which?"},), ("1", "2"))
PAIRS = Groups.from_rows(
    [
        {"prompt": "Say hello.", "responses": ["Hi.", "Hello to you, dear friend."]},
        {"prompt": "Say bye.", "responses": ["A long farewell to all of you.", "Bye."]},
        {"prompt": "Say yes.", "responses": ["Yes.", "Yes."]},
    ]
)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_module, "FIRST_WAIT", 0.01)


def endpoint(served: Any, **options: Any) -> Endpoint:
    quick = {"attempts": 2, "timeout": 30.0, "deadline": 60.0, "max_wait": 0.05, "max_bytes": 100_000}
    return Endpoint(served.url, **{**quick, **options})


def asked(served: Any, **options: Any) -> Any:
    """The answer to one question."""
    (answer,) = HttpBackend(endpoint(served, **options)).ask([QUESTION])
    return answer


# -- servers that behave -----------------------------------------------------------------------------------------------


def test_log_probs_are_read_in_both_spellings_and_both_orders(serve: Any, http_rules: Any) -> None:
    served = serve(http_rules.logprobs(http_rules.longer))
    found = Judge(model=endpoint(served, model="m")).compare(PAIRS)
    assert [c.prob for c in found] == pytest.approx([0.2, 0.8, 0.5])
    assert [c.mass for c in found] == pytest.approx([0.9] * 3)
    assert {vote.by for c in found for vote in c.votes} == {"logprobs"}
    assert len(served.bodies) == 5  # identical responses make one question
    assert {body["model"] for body in served.bodies} == {"m"}
    assert all(body["max_tokens"] == 1 for body in served.bodies)


@pytest.mark.parametrize("refuses", [True, False])
def test_without_log_probs_verdicts_are_drawn_in_both_orders(
    serve: Any, http_rules: Any, refuses: bool, caplog: pytest.LogCaptureFixture
) -> None:
    served = serve(http_rules.draws(http_rules.longer, refuses))
    judge = Judge(model=endpoint(served, draws=24))
    found = judge.compare(PAIRS, seed=1)
    assert [c.prob for c in found[:2]] == pytest.approx([0.2, 0.8], abs=0.2)
    assert found[2].prob == 0.5
    assert [c.mass for c in found] == pytest.approx([0.9] * 3, abs=0.2)
    assert {vote.by for c in found for vote in c.votes} == {"sampled"}
    assert "no log-probs" in caplog.text
    draws = [body for body in served.bodies if "logprobs" not in body]
    assert len(draws) == 5 * 24
    assert len({body["seed"] for body in draws}) == len(draws)


def test_the_same_seed_draws_the_same_verdicts(serve: Any, http_rules: Any) -> None:
    served = serve(http_rules.draws(http_rules.longer))
    judge = Judge(model=endpoint(served, draws=5))
    one, two, other = ([c.prob for c in judge.compare(PAIRS, seed=s)] for s in (1, 1, 2))
    assert one == two != other


def test_a_chain_of_thought_is_written_first_and_sent_back(serve: Any, http_rules: Any) -> None:
    def behave(handler: Any, body: dict[str, Any]) -> None:
        if "logprobs" not in body:
            return http_rules.answer(handler, http_rules.completed("Both greet; the second at more length."))
        return http_rules.answer(handler, http_rules.completed("2", {"2": 0.9, "1": 0.05}))

    served = serve(behave)
    (found,) = Judge(model=endpoint(served), cot=True).compare(PAIRS.select([0]))
    assert found.prob == pytest.approx(0.5)
    assert [len(body["messages"]) for body in served.bodies] == [1, 1, 3, 3]
    assert served.bodies[-1]["messages"][1] == {
        "role": "assistant",
        "content": "Both greet; the second at more length.",
    }


def thinking(http_rules: Any, thought: str, status: int = 200) -> Callable[..., None]:
    """A server that thinks this and prefers the second response."""

    def behave(handler: Any, body: dict[str, Any]) -> None:
        if "logprobs" not in body:
            return http_rules.answer(handler, http_rules.completed(thought), status)
        return http_rules.answer(handler, http_rules.completed("2", {"2": 0.9, "1": 0.05}))

    return behave


def test_a_chain_of_thought_that_no_call_could_send_back_is_missing(serve: Any, http_rules: Any) -> None:
    (found,) = Judge(model=endpoint(serve(thinking(http_rules, "\ud800"))), cot=True).compare(PAIRS.select([0]))
    assert found.failed
    assert found.reason == "the reply's text is not Unicode"


def test_a_chain_of_thought_that_fails_says_why(serve: Any, http_rules: Any) -> None:
    down = Judge(model=endpoint(serve(thinking(http_rules, "", 500))), cot=True).compare(PAIRS.select([0]))
    assert (down[0].failed, down[0].reason) == (True, "HTTP 500, 2 times")
    long = Judge(model=endpoint(serve(thinking(http_rules, "x" * 100))), cot=True, max_thought_tokens=1).compare(
        PAIRS.select([0])
    )
    assert (long[0].failed, long[0].reason) == (True, "the text has 100 characters where 32 are allowed")


def test_an_empty_chain_of_thought_is_an_abstention(serve: Any, http_rules: Any) -> None:
    judge = Judge(model=endpoint(serve(thinking(http_rules, " \n"))), cot=True)
    (found,) = judge.compare(PAIRS.select([0]))
    assert (found.prob, found.failed, found.reason) == (None, False, "abstains: empty chain of thought")
    assert len(judge.annotate(PAIRS.select([0]))["preference"]) == 0


def test_direct_draws_its_scores_where_one_label_begins_another(serve: Any, http_rules: Any) -> None:
    served = serve(lambda handler, _body: http_rules.answer(handler, http_rules.completed("10")))
    scores = Direct(model=endpoint(served, draws=3)).score(PAIRS.select([0]))
    assert scores.values == [[1.0, 1.0]]
    assert all("logprobs" not in body for body in served.bodies)


def test_it_runs_inside_an_event_loop(serve: Any, http_rules: Any) -> None:
    served = serve(http_rules.logprobs(http_rules.longer))

    async def notebook() -> float | None:
        return Judge(model=endpoint(served)).compare(PAIRS.select([0]))[0].prob

    assert asyncio.run(notebook()) == pytest.approx(0.2)


# -- servers that do not -----------------------------------------------------------------------------------------------


def tops(**entries: Any) -> dict[str, Any]:
    return tops_listed(*entries.items())


def tops_listed(*entries: tuple[str, Any]) -> dict[str, Any]:
    top = [{"token": token, "logprob": value} for token, value in entries]
    choice = {"message": {"content": "1"}, "logprobs": {"content": [{"top_logprobs": top}]}}
    return {"choices": [choice]}


def completed_with(text: str) -> dict[str, Any]:
    return {"choices": [{"message": {"content": text}}]}


MALFORMED: dict[str, Any] = {
    "not JSON": b"<html>busy</html>",
    "cut off": b'{"choices": [{"message": {"content": "1',
    "NaN": json.dumps(tops(**{"1": math.nan, "2": -3})).encode(),
    "1e999": json.dumps(tops(**{"1": -7})).replace("-7", "-1e999").encode(),
    "a key twice": b'{"choices": [], "choices": [{"message": {"content": "1"}}]}',
    "nested": b"[" * 90_000,
    "not text": b"\xff\xfe\x00",
    "a list": [1, 2],
    "no choices": {"object": "error"},
    "two choices": {"choices": [{"message": {"content": "1"}}] * 2},
    "a number for a text": {"choices": [{"message": {"content": 1}}]},
    "log-prob as text": tops(**{"1": "-0.1", "2": -3}),
    "log-prob as bool": tops(**{"1": False, "2": -3}),
    "log-prob as a huge integer": tops(**{"1": -(10**400), "2": -3}),
    "log-prob below everything": tops(**{"1": -2e4, "2": -3}),
    "lone surrogates": completed_with("\ud800"),
    "a token twice": tops_listed(("1", -1.2), ("2", -3), ("1", -1.3)),
    "positive log-prob": tops(**{"1": 0.5, "2": -3}),
    "more than all": tops(**{"1": -0.01, "2": -0.01}),
    "no log-prob": tops(**{"1": None}),
    "log-probs as a list": {"choices": [{"message": {"content": "1"}, "logprobs": [1]}]},
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_reply_is_missing_with_a_reason(serve: Any, http_rules: Any, name: str) -> None:
    served = serve(lambda handler, _body: http_rules.answer(handler, MALFORMED[name]))
    answer = asked(served)
    assert answer.probs is None
    assert answer.reason
    assert len(served.bodies) <= 2  # nonsense is not tried again, at most asked for without log-probs


def test_a_prompt_echo_is_no_verdict(serve: Any, http_rules: Any) -> None:
    served = serve(
        lambda handler, body: http_rules.answer(handler, http_rules.completed(body["messages"][0]["content"]))
    )
    (found,) = Judge(model=endpoint(served, draws=2)).compare(PAIRS.select([0]))
    assert found.prob is None
    assert not found.failed  # it answered; it only did not judge


def test_a_redirect_is_not_followed(serve: Any, http_rules: Any) -> None:
    elsewhere = serve(http_rules.logprobs(http_rules.longer))
    target = f"{elsewhere.url}/chat/completions"
    served = serve(lambda handler, _body: http_rules.answer(handler, {}, 307, location=target))
    assert "redirect" in (asked(served).reason or "")
    assert elsewhere.bodies == []
    assert len(served.bodies) == 1


@pytest.mark.parametrize("status", [401, 403, 404, 413])
def test_a_refusal_is_not_repeated(serve: Any, http_rules: Any, status: int) -> None:
    served = serve(lambda handler, _body: http_rules.answer(handler, {"error": CANARY}, status))
    where = f" at {served.url}/chat/completions" if status == 404 else ""
    assert asked(served).reason == f"HTTP {status}{where}"
    assert len(served.bodies) == 1


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_refuses_everything_fails_and_is_not_taken_for_one_without_log_probs(
    serve: Any, http_rules: Any, status: int
) -> None:
    served = serve(lambda handler, _body: http_rules.answer(handler, {}, status))
    backend = HttpBackend(endpoint(served))
    assert backend.ask([QUESTION])[0].reason == f"HTTP {status}"
    assert backend.gives_logprobs is None


def test_errors_that_may_pass_are_tried_again_and_then_given_up(serve: Any, http_rules: Any) -> None:
    served = serve(lambda handler, _body: http_rules.answer(handler, {}, 500))
    assert asked(served, attempts=3).reason == "HTTP 500, 3 times"
    assert len(served.bodies) == 3
    left = [503, 502]

    def recovers(handler: Any, body: dict[str, Any]) -> None:
        if left:
            return http_rules.answer(handler, {}, left.pop())
        return http_rules.answer(handler, http_rules.completed("1", {"1": 0.6, "2": 0.3}))

    assert asked(serve(recovers), attempts=3).probs == pytest.approx((0.6, 0.3))


def test_a_storm_of_429_cannot_hold_the_run(serve: Any, http_rules: Any) -> None:
    served = serve(lambda handler, _body: http_rules.answer(handler, {}, 429, retry_after="86400"))
    started = time.monotonic()
    assert asked(served, attempts=4, max_wait=0.1, deadline=10.0).reason == "HTTP 429, 4 times"
    assert 0.3 <= time.monotonic() - started < 20  # the wait asked for is kept, up to max_wait


def test_retry_after_is_a_bounded_number_or_nothing() -> None:
    values = [None, "3", " 7 ", "-1", "nan", "1e9", "99999999999", "Wed, 21 Oct 2026 07:28:00 GMT"]
    assert [retry_after(value) for value in values] == [0, 3, 7, 0, 0, 0, 0, 0]


def test_waits_grow_with_jitter_from_the_seed() -> None:
    backend = HttpBackend(Endpoint("http://127.0.0.1:1/v1", max_wait=1000.0))
    waits = [backend._wait(attempt, 0.0, (1, "q")) for attempt in range(8)]
    assert waits == [backend._wait(attempt, 0.0, (1, "q")) for attempt in range(8)]
    assert waits != [backend._wait(attempt, 0.0, (2, "q")) for attempt in range(8)]
    assert all(0.005 * 2**n <= wait <= 0.01 * 2**n for n, wait in enumerate(waits))


def _drip(handler: Any, _body: dict[str, Any], headers_too: bool = False) -> None:
    if headers_too:
        data = b"HTTP/1.1 200 OK\r\nx-slow: " + b"y" * 10**6
    else:
        handler.send_response(200)
        handler.send_header("content-length", "1000000")
        handler.end_headers()
        data = b" " * 10**6
    for byte in data:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        time.sleep(0.05)


@pytest.mark.parametrize("headers_too", [False, True])
def test_a_slow_drip_ends_at_the_deadline(serve: Any, headers_too: bool) -> None:
    served = serve(lambda handler, body: _drip(handler, body, headers_too))
    started = time.monotonic()
    answer = asked(served, attempts=50, timeout=0.3, deadline=0.8)
    assert time.monotonic() - started < 20  # it would take half a day
    assert answer.reason == "no reply within 0.8 s"


def test_a_huge_body_is_dropped_at_the_cap(serve: Any) -> None:
    sent = []

    def behave(handler: Any, _body: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(3000):
            handler.wfile.write(b" " * 65536)
            sent.append(65536)

    answer = asked(serve(behave))
    assert answer.reason == "the reply is longer than 100000 bytes"
    time.sleep(0.1)
    assert sum(sent) < 50_000_000


def test_a_compressed_bomb_is_not_unpacked(serve: Any, http_rules: Any) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    served = serve(lambda handler, _body: http_rules.answer(handler, bomb, content_encoding="gzip"))
    assert "compressed" in (asked(served).reason or "")
    assert served.headers[0]["Accept-Encoding"] == "identity"


def test_a_truncated_body_is_missing(serve: Any) -> None:
    def behave(handler: Any, _body: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("content-length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"choices": [')
        handler.close_connection = True

    served = serve(behave)
    assert "RemoteProtocolError" in (asked(served).reason or "")
    assert len(served.bodies) == 2


def test_an_endpoint_that_is_down_is_given_up() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    backend = HttpBackend(Endpoint(url, attempts=2, workers=2))
    questions = [Question(({"role": "user", "content": f"{i}?"},), ("1", "2")) for i in range(40)]
    answers = backend.ask(questions)
    assert all(answer.probs is None for answer in answers)
    assert backend.calls == 2
    assert "not asked" in (answers[-1].reason or "")


def test_a_server_that_recovers_is_asked_again(serve: Any, http_rules: Any) -> None:
    up: list[bool] = []

    def behave(handler: Any, _body: dict[str, Any]) -> None:
        http_rules.answer(handler, http_rules.completed("1", {"1": 0.6, "2": 0.3}), 200 if up else 500)

    backend = HttpBackend(endpoint(serve(behave), attempts=1, workers=1))
    assert "not asked" in (backend.ask([QUESTION] * 3)[-1].reason or "")
    up.append(True)
    assert backend.ask([QUESTION])[0].probs == pytest.approx((0.6, 0.3))


def test_a_bad_certificate_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(*_args: Any, **_options: Any) -> Any:
        try:
            raise ssl.SSLCertVerificationError("self-signed")
        except ssl.SSLError as error:
            raise httpx.ConnectError("failed") from error

    monkeypatch.setattr(httpx.AsyncClient, "stream", stream)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    backend = HttpBackend(Endpoint("https://127.0.0.1:1/v1", attempts=3))
    assert backend.ask([QUESTION])[0].reason == "the endpoint's certificate is not valid"
    assert backend.calls == 1
    monkeypatch.setenv("SSL_CERT_FILE", certifi.where())
    (answer,) = HttpBackend(Endpoint("https://127.0.0.1:1/v1")).ask([QUESTION])
    assert answer.reason == "the endpoint's certificate is not valid by those that SSL_CERT_FILE names"


def test_failures_are_counted_by_vote(serve: Any, http_rules: Any, caplog: pytest.LogCaptureFixture) -> None:
    good = http_rules.logprobs(http_rules.longer)

    def half(handler: Any, body: dict[str, Any]) -> None:
        return http_rules.answer(handler, b"oops") if "Be true." in str(body) else good(handler, body)

    model = endpoint(serve(half))
    principles = {"principles": ["Be kind.", "Be true."], "n_principles": 2}
    with pytest.raises(DataError, match=r"3 of 6 votes failed.*valid JSON"):
        Judge(model=model, **principles).annotate(PAIRS)
    caplog.clear()
    assert len(Judge(model=model, max_failed=0.5, **principles).annotate(PAIRS)["preference"]) == 3
    assert "3 of 6 votes failed: the reply is not valid JSON" in caplog.text


def test_a_vote_that_failed_is_named_before_one_that_abstains(serve: Any, http_rules: Any) -> None:
    shy = http_rules.logprobs(lambda *_shown: (0.1, 0.1))

    def half(handler: Any, body: dict[str, Any]) -> None:
        return http_rules.answer(handler, b"oops") if "Be true." in str(body) else shy(handler, body)

    judge = Judge(model=endpoint(serve(half)), principles=["Be kind.", "Be true."], n_principles=2)
    for found in judge.compare(PAIRS):  # whichever principle comes first
        assert found.failed
        assert found.reason == "the reply is not valid JSON"


def test_failed_calls_leave_groups_out_and_too_many_stop_the_run(serve: Any, http_rules: Any) -> None:
    good = http_rules.logprobs(http_rules.longer)

    def sometimes(handler: Any, body: dict[str, Any]) -> None:
        if "Say bye." in body["messages"][0]["content"]:
            return http_rules.answer(handler, b"oops")
        return good(handler, body)

    judge = Judge(model=endpoint(serve(sometimes)), max_failed=0.5)
    kept = judge.annotate(PAIRS)["preference"]
    assert [row["prompt"][0]["content"] for row in kept] == ["Say hello.", "Say yes."]
    strict = Judge(model=endpoint(serve(sometimes)))
    with pytest.raises(DataError, match=r"1 of 3 votes failed.*valid JSON"):
        strict.annotate(PAIRS)


# -- answers that are kept ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["logprobs", "draws"])
def test_after_a_stop_only_what_failed_is_asked_again(serve: Any, http_rules: Any, tmp_path: Path, kind: str) -> None:
    good = getattr(http_rules, kind)(http_rules.longer)
    broken = ["Say bye."]

    def behave(handler: Any, body: dict[str, Any]) -> None:
        if broken and broken[0] in str(body):
            return http_rules.answer(handler, b"oops")
        return good(handler, body)

    served = serve(behave)
    options = {"model": endpoint(served, draws=3), "cache": str(tmp_path / "kept"), "min_mass": 0.0}
    with pytest.raises(DataError, match="failed"):
        Judge(**options).annotate(PAIRS)
    broken.clear()
    served.bodies.clear()
    (file,) = (tmp_path / "kept").iterdir()
    file.write_bytes(file.read_bytes() + b'{"name": "torn')
    found = Judge(**options).compare(PAIRS)
    assert all("Say bye." in str(body) for body in served.bodies)
    asked = len(served.bodies)
    assert asked >= 2
    again = Judge(**options).compare(PAIRS)
    assert len(served.bodies) == asked
    plain = Judge(**{**options, "cache": None}).compare(PAIRS)
    assert [c.prob for c in found] == [c.prob for c in again] == [c.prob for c in plain]
    if kind == "draws":
        served.bodies.clear()
        Judge(**options).compare(PAIRS, seed=1)
        assert served.bodies  # other draws


def test_a_kept_chain_of_thought_is_not_written_again(serve: Any, http_rules: Any, tmp_path: Path) -> None:
    served = serve(thinking(http_rules, "Both greet."))
    judge = Judge(model=endpoint(served), cot=True, cache=str(tmp_path))
    one, two = (judge.compare(PAIRS.select([0])) for _ in range(2))
    assert one == two
    assert len(served.bodies) == 4
    other = Judge(model=endpoint(served, model="another"), cot=True, cache=str(tmp_path))
    other.compare(PAIRS.select([0]))
    assert len(served.bodies) == 8
    uncached = Judge(model=judge.model, cot=True)
    assert json.dumps(judge.key()) == json.dumps(uncached.key())


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot keep answers"):
        HttpBackend(Endpoint("http://127.0.0.1:1/v1"), str(tmp_path / "file" / "kept"))


# -- verdicts, addresses, keys -----------------------------------------------------------------------------------------


def test_only_the_label_itself_is_a_verdict() -> None:
    said = {"1": "1", " 2.": "2", "**1**": "1", "(2)\n": "2", "1 or 2": None, "12": None, "Response 1": None, "": None}
    assert {text: label_said(text, ("1", "2")) for text in said} == said
    assert label_said("10", [str(i) for i in range(1, 11)]) == "10"


def test_addresses_that_would_leak_are_refused() -> None:
    for url in (
        "http://example.org/v1",
        "https://user:secret@example.org/v1",
        "https://example.org/v1?key=secret",
        "ftp://example.org/v1",
        "http://127.0.0.1.example.org/v1",
        "https://example.org:99999/v1",
        "https://example.org/v1 x",
    ):
        with pytest.raises(ConfigError) as caught:
            Endpoint(url)
        assert "secret" not in str(caught.value)
    for url in ("http://127.0.0.1:8000/v1", "http://localhost/v1", "http://[::1]:8000/v1", "https://example.org/v1"):
        Endpoint(url)
    Endpoint("http://example.org/v1", insecure_http=True)


def test_a_key_that_is_not_there_or_cannot_be_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RLAIF_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"environment variable .* is not set"):
        Endpoint("https://example.org/v1", key_env="RLAIF_KEY").headers()
    monkeypatch.setenv("RLAIF_KEY", f"{CANARY}\nx")
    with pytest.raises(ConfigError) as caught:
        Endpoint("https://example.org/v1", key_env="RLAIF_KEY").headers()
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("make", [Judge, Direct, lambda key_env: Endpoint("https://example.org/v1", key_env=key_env)])
def test_a_key_in_place_of_its_name_is_refused_and_not_repeated(make: Callable[..., Any]) -> None:
    for wrong in (CANARY, f"sk_{CANARY}".replace("-", "_") + "x" * 64, "1A", "A B", f"A\n{CANARY}"):
        with pytest.raises(ConfigError, match="key_env is not the name") as caught:
            make(key_env=wrong)
        assert CANARY not in str(caught.value)
        assert wrong not in str(caught.value)
    assert "MY_KEY" not in repr(make(key_env="MY_KEY"))


def test_the_key_is_sent_and_stands_in_no_file_key_log_or_message(
    serve: Any, http_rules: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    from alignkit import Run

    monkeypatch.setenv("RLAIF_KEY", CANARY)
    caplog.set_level(logging.DEBUG)
    good = http_rules.logprobs(http_rules.longer)

    def indiscreet(handler: Any, body: dict[str, Any]) -> None:
        if "Say bye." in body["messages"][0]["content"]:
            return http_rules.answer(handler, {"error": handler.headers["authorization"]}, 403)
        return good(handler, body)

    served = serve(indiscreet)
    judge = Judge(model=endpoint(served, key_env="RLAIF_KEY"), max_failed=1.0)
    with Run(tmp_path / "run", quiet=True) as run:
        run.annotate(PAIRS, judge)
    assert served.headers[0]["Authorization"] == f"Bearer {CANARY}"
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert written
    assert not [file for file in written if CANARY.encode() in file.read_bytes()]
    assert CANARY not in caplog.text + repr(judge) + json.dumps(judge.key())


# -- the real thing ----------------------------------------------------------------------------------------------------

MISSING = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]


@pytest.fixture
def transformers_serve(tmp_path: Path) -> Iterator[Callable[[], str]]:
    Policy.load("tiny").save(tmp_path / "tiny")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    command = [str(program), "serve", str(tmp_path / "tiny"), "--port", str(port), "--host", "127.0.0.1"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    log = (tmp_path / "serve.log").open("wb")
    process = subprocess.Popen([*command, "--device", "cpu"], stdout=log, stderr=log, env=env)
    try:
        for _ in range(600):
            time.sleep(0.2)
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, (tmp_path / "serve.log").read_text()
        yield lambda: f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"transformers serve needs {', '.join(MISSING)}, which are not installed")
def test_transformers_serve_is_asked_by_draws(transformers_serve: Callable[[], str], tmp_path: Path) -> None:
    """Starts a server process (half a minute); a random model says no verdict, which is what must come out."""
    judge = Judge(model=Endpoint(transformers_serve(), model=str(tmp_path / "tiny"), draws=2), min_mass=0.0)
    found = judge.compare(PAIRS)
    assert not any(c.failed for c in found), [c.reason for c in found]
    assert {vote.by for c in found for vote in c.votes} == {"sampled"}
    assert all(c.prob is None or math.isfinite(c.prob) for c in found)
