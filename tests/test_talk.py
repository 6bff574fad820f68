"""Talking to results: what is written is told as it is written, side by side, whatever the terminal can show."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from alignkit import ConfigError, Groups, LoRA, Policy, Run, Sampler, cli, read_groups
from alignkit.run.talk import HELP, Columns, Lines, converse
from alignkit.sampling import Voice

SHORT = ["--max-new-tokens", "12"]
USER = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy.load("tiny")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two versions that speak differently."""
    folder = tmp_path_factory.mktemp("talk") / "r"
    rows = Groups.from_rows([{"prompt": "hi", "responses": ["good day"]}] * 4)
    with Run(folder, quiet=True) as run:
        run.sft(run.policy("tiny", lora=LoRA(r=8), name="v0"), rows, epochs=30, learning_rate=2e-2, name="v1")
    return folder


def said(monkeypatch: pytest.MonkeyPatch, text: str | bytes, encoding: str = "utf-8") -> None:
    raw = text if isinstance(text, bytes) else text.encode(encoding)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding=encoding))


def alignkit(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(list(arguments)) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(list(arguments)) == 2
    return capsys.readouterr().err


# ---- a voice ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_an_answer_is_told_in_pieces_that_are_the_samplers_own_text(policy: Policy, seed: int) -> None:
    sampler = Sampler(max_new_tokens=40)
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    with Voice(policy, sampler, seed) as voice:
        pieces = list(voice.answer(talk))
        assert "".join(voice.answer(talk)) == "".join(pieces), "ready again"
    row = sampler.sample(policy, Groups.from_prompts([talk]), seed=(seed, "chat"))[0]
    assert "".join(pieces) == row["responses"][0]
    assert len(pieces) > 5


def test_an_answer_that_nobody_reads_on_is_not_written_on(policy: Policy) -> None:
    with Voice(policy, Sampler(max_new_tokens=10_000)) as voice:
        answer = voice.answer([{"role": "user", "content": "hi"}])
        first = next(answer)
        answer.close()  # type: ignore[attr-defined]
        assert next(voice.answer([{"role": "user", "content": "hi"}])) == first


def test_a_voice_says_what_does_not_fit(policy: Policy) -> None:
    shown: list[str] = []
    with Voice(policy, Sampler(max_new_tokens=4, max_prompt_tokens=30)) as voice:
        converse({"v": voice}, ["x" * 100, "hi"], Lines(shown.append))
    told = "".join(shown).splitlines()
    assert "prompts cannot be sampled" in told[0]
    assert told[0].endswith("(/new begins anew)")
    assert len(told) >= 2, "what did not fit was not kept, so that the next is answered"


# ---- a conversation ---------------------------------------------------------------------------------------------


class Echo:
    """Answers with how it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def answer(self, messages: Any) -> Any:
        self.asked.append([f"{m['role'][0]}:{m['content']}" for m in messages])
        yield from (f"{len(messages)}", " ", "x")


def test_each_voice_has_its_own_conversation_and_lines_with_a_slash_are_commands() -> None:
    one, other, shown = Echo(), Echo(), list[str]()
    other.answer = lambda messages: iter(["other"])  # type: ignore[method-assign]
    lines = ["a", "b", "", "/what", "//c", "/new", "d", "/system S", "e", "/quit", "f"]
    converse({"one": one, "two": other}, lines, Lines(shown.append))
    assert one.asked == [
        ["u:a"],
        ["u:a", "a:1 x", "u:b"],
        ["u:a", "a:1 x", "u:b", "a:3 x", "u:/c"],
        ["u:d"],
        ["s:S", "u:e"],
    ]
    told = "".join(shown)
    assert told.startswith("[one] 1 x\n[two] other\n[one] 3 x\n")
    assert HELP in told


def test_an_interrupt_ends_the_answer_alone() -> None:
    def answer(messages: Any) -> Any:
        yield "begun"
        raise KeyboardInterrupt

    voice, shown = Echo(), list[str]()
    voice.answer = answer  # type: ignore[method-assign]
    converse({"v": voice}, ["a", "b"], Lines(shown.append))
    assert "".join(shown) == "begun\nbegun\n"


def test_an_escape_sequence_that_comes_in_pieces_is_not_shown() -> None:
    voice, shown = Echo(), list[str]()
    voice.answer = lambda messages: iter(["a\x1b", "[3", "1m", "b", "\x1b[2J"])  # type: ignore[method-assign]
    converse({"v": voice}, ["x"], Lines(shown.append, cli.printable))
    assert "".join(shown) == "ab\n"


def test_columns_show_two_answers_beside_one_another(capsys: pytest.CaptureFixture[str]) -> None:
    one, other = Echo(), Echo()
    other.answer = lambda messages: iter(["the ", "other\x1b[31m [bold]"])  # type: ignore[method-assign]
    found = Columns(cli.printable).show({"v0": one.answer([USER, USER]), "v1": other.answer([])})
    assert found == {"v0": "2 x", "v1": "the other\x1b[31m [bold]"}
    last = [line for line in capsys.readouterr().out.splitlines() if "2 x" in line][-1]
    assert "the other [bold]" in last
    assert "31m" not in last


# ---- the commands -----------------------------------------------------------------------------------------------


def test_chat_answers_each_line_of_standard_input_in_one_conversation(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, policy: Policy
) -> None:
    said(monkeypatch, "hi\nand then?\n")
    told = alignkit(capsys, "chat", "tiny", *SHORT, "--seed", "3", "--system", "Be brief.")
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    answers = []
    for question in ("and then?", ""):
        row = Sampler(max_new_tokens=12).sample(policy, Groups.from_prompts([talk]), seed=(3, "chat"))[0]
        answers += row["responses"]
        talk += [{"role": "assistant", "content": answers[-1]}, {"role": "user", "content": question}]
    assert told == "".join(f"{cli.printable(answer)}\n" for answer in answers)


def test_chat_begins_with_what_sample_answers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said(monkeypatch, "hi\n")
    assert alignkit(capsys, "chat", "tiny", *SHORT) == alignkit(capsys, "sample", "tiny", "--prompt", "hi", *SHORT)


def test_two_versions_answer_beside_one_another(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, run: Path
) -> None:
    new, old = (
        alignkit(capsys, "sample", str(run), "--version", name, "--prompt", "hi", "--greedy", *SHORT)
        for name in ("v1", "v0")
    )
    assert new != old
    assert alignkit(capsys, "sample", str(run), "--prompt", "hi", "--greedy", *SHORT) == new, "the newest"
    for beside, name in (("v0", "v0"), ("tiny", "tiny")):
        said(monkeypatch, "hi\n")
        told = alignkit(capsys, "chat", str(run), "--beside", beside, "--greedy", *SHORT)
        assert told == f"[v1] {new}[{name}] {old}"
    assert "did you mean v1?" in refused(capsys, "chat", str(run), "--version", "v11")
    assert "this is no run's folder" in refused(capsys, "sample", "tiny", "--version", "v0", "--prompt", "x")


def test_prompts_of_a_file_are_answered_into_a_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = [{"prompt": "hi"}, {"prompt": [{"role": "user", "content": "größer?"}], "tags": ["t"]}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    flags = ["--prompts", str(tmp_path / "in.jsonl"), "--n", "2", *SHORT]
    told = alignkit(capsys, "sample", "tiny", *flags, "--out", str(tmp_path / "out.jsonl"))
    assert told == f"2 prompts answered in {tmp_path / 'out.jsonl'}\n"
    again = read_groups(tmp_path / "out.jsonl")
    assert [row["prompt"][0]["content"] for row in again] == ["hi", "größer?"]
    assert again.sizes() == [2, 2]
    assert again[1]["tags"] == ["t"]
    assert alignkit(capsys, "sample", "tiny", *flags) == (tmp_path / "out.jsonl").read_text(encoding="utf-8")
    said(monkeypatch, "hi\n\ngrößer?\n")
    printed = alignkit(capsys, "sample", "tiny", "--prompts", "-", "--n", "2", *SHORT)
    assert [json.loads(line)["responses"] for line in printed.splitlines()] == again.column("responses")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "cp932", "utf-16"])
def test_what_a_terminal_cannot_show_is_replaced(
    encoding: str, monkeypatch: pytest.MonkeyPatch, policy: Policy
) -> None:
    monkeypatch.setattr(Policy, "load", lambda *_: policy)
    monkeypatch.setattr(policy.chat, "decode", lambda ids: "grüße 世界 🎉")
    for arguments in (["sample", "tiny", "--prompt", "hi"], ["chat", "tiny"]):
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
        monkeypatch.setattr(sys, "stdout", out)
        said(monkeypatch, "hi\n")
        assert cli.main([*arguments, *SHORT]) == 0
        out.flush()
        shown = out.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
        assert shown == "grüße 世界 🎉\n".encode(encoding, "replace").decode(encoding)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["sample", "tiny", "--prompt", "hi", "--n", "0"], "n=0 must be positive"),
        (["sample", "tiny", "--prompt", "caf\udce9"], "caf: character 4 is no text in the encoding"),
        (["sample", "tiny", "--prompts", "no_such.jsonl"], "no_such.jsonl"),
        (["sample", "tiny", "--prompt", "x", "--out", "answers.txt"], "name a .jsonl file"),
        (["sample", "tiny", "--prompt", "x", "--out", "no_such/answers.jsonl"], "cannot be written"),
        (["sample", "tiny", "--prompt", "x", "--temperature", "0"], "use greedy=true"),
        (["chat", "tiny", "--system", "\udcff"], "is no text in the encoding"),
        (["chat", "no/such/model"], "no such model folder"),
    ],
)
def test_a_wrong_argument_is_one_message(capsys: pytest.CaptureFixture[str], arguments: list[str], part: str) -> None:
    error = refused(capsys, *arguments)
    assert part in error
    assert error.count("\n") == 1


def test_standard_input_that_is_no_text_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said(monkeypatch, b"hi\ncaf\xe9\n")
    assert "line 2 is no text in the encoding utf-8: byte 4" in refused(capsys, "chat", "tiny", *SHORT)


def test_both_or_no_prompt_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for flags in ([], ["--prompt", "x", "--prompts", "y"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(["sample", "tiny", *flags])
        assert caught.value.code == 2
    assert "--prompts" in capsys.readouterr().err


def test_n_starts_at_one_in_python_too(policy: Policy) -> None:
    for n in (0, -1):
        with pytest.raises(ConfigError, match=f"n={n} must be positive"):
            Sampler().sample(policy, Groups.from_prompts(["x"]), n)
