"""Secrets stand in nothing that a run leaves or says: records, pages, metrics, messages, the command."""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from alignkit import Groups, Run, use
from alignkit.calls import calling
from alignkit.cli import main
from alignkit.errors import AlignkitError, ConfigError, PluginError
from alignkit.hidden import command, inline, is_secret, scrubbed, shown
from alignkit.identity import plain
from alignkit.registry.checks import check_component

CANARY = "canary-7F3a9c51e2"
WORDS = "correct horse battery staple"
"""A secret of plain words, which nothing but the name that it stands under gives away."""

THE_KEY = CANARY


def closing(key: str) -> Any:
    def score(response: str) -> float:
        return float(len(response) + len(key))

    return score


def by_default(response: str, api_key: str = CANARY, words: str = WORDS) -> float:
    return float(len(response) + len(api_key) + len(words))


def by_global(response: str) -> float:
    return float(len(response) + len(THE_KEY))


def asked(response: str, headers: dict[str, str]) -> float:
    return float(len(response) + len(headers))


class Client:
    """Holds a secret under names of its own."""

    def __init__(self) -> None:
        self.api_key, self.session, self.x = CANARY, {"Authorization": f"Bearer {CANARY}"}, WORDS

    def __call__(self, response: str) -> float:
        return float(len(response))


@dataclass(frozen=True)
class Settings:
    """Whose fields count one by one."""

    host: str = "example.org"
    access_token: str = CANARY
    passwords: tuple[str, ...] = (WORDS,)
    nested: dict[str, Any] = field(default_factory=lambda: {"clientSecret": WORDS, "max_tokens": 7})

    def __call__(self, response: str) -> float:
        return float(len(response))


WAYS = {
    "closure": closing(CANARY),
    "words": closing(WORDS),
    "default": by_default,
    "global": by_global,
    "place": functools.partial(asked, headers={"X": CANARY, "Authorization": f"Bearer {CANARY}"}),
    "object": Client(),
    "fields": Settings(),
}


def holding(folder: Path, *texts: str) -> list[str]:
    """The files below a folder, by name or content, that hold one of the texts."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [
        str(path.relative_to(folder))
        for path in files
        if any(t.encode() in path.read_bytes() or t in str(path.relative_to(folder)) for t in texts)
    ]


def test_a_secret_that_rewards_hold_stands_in_no_file_and_no_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for attempt in range(2):  # the second says what changed
        changed = {"closure": closing(CANARY + "x")} if attempt else {}
        with Run(tmp_path / "run") as run:
            run.evaluate(
                run.policy("tiny", lora=None), Groups.from_prompts(["a"]), {**WAYS, **changed}, max_new_tokens=2
            )
            run.report()
    said = "".join(capfd.readouterr())
    assert "changed" in said
    assert len(list((tmp_path / "run").rglob("*.json*"))) > 5  # the search is of something
    assert holding(tmp_path / "run", CANARY, WORDS) == []
    assert CANARY not in said
    assert WORDS not in said


RECIPE = """
from alignkit import Groups, Run


def main(run: Run, api_key: str = "", db_password: str = "", reward: str = "") -> None:
    def score(response: str) -> float:
        raise ValueError(f"401 for the key {api_key}")

    run.evaluate(run.policy("tiny", lora=None), Groups.from_prompts(["a"]), {"score": score}, max_new_tokens=2)
"""


def test_a_secret_on_the_command_line_or_in_an_exception_stands_in_no_file_and_no_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipe.py").write_text(RECIPE)
    words = ["run", str(tmp_path / "recipe.py"), "--api-key", CANARY, f"--db-password={WORDS}"]
    words += ["--reward", f"judge(token='{WORDS}')", "--run-dir", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["alignkit", *words])
    assert main(words) == 2
    main(["report", str(tmp_path / "run")])
    said = "".join(capfd.readouterr())
    assert "401 for the key ***" in said
    assert holding(tmp_path / "run", CANARY, WORDS) == []
    assert CANARY not in said
    assert WORDS not in said
    assert "--api-key ***" in (tmp_path / "run" / "run.json").read_text()


def test_a_secret_of_the_environment_is_struck_out_of_what_others_say(monkeypatch: pytest.MonkeyPatch) -> None:
    assert scrubbed("401: Nobody-knows-7") == "401: Nobody-knows-7"
    monkeypatch.setenv("SOME_API_KEY", "Nobody-knows-7")
    with pytest.raises(PluginError) as caught, calling("it", "score"):
        raise ValueError(f"401: {os.environ['SOME_API_KEY']}")
    assert "ValueError: 401: ***" in str(caught.value)


def test_another_secret_is_another_key_and_the_same_one_the_same() -> None:
    keys = [plain({"api_key": value})["api_key"] for value in (WORDS, WORDS, CANARY)]
    assert keys[0] == keys[1] != keys[2]
    assert keys[0].startswith("*** ")
    assert plain(Settings()) == plain(Settings())
    assert plain(Settings()) != plain(Settings(access_token="other"))
    assert plain(Settings())["nested"]["max_tokens"] == 7
    assert plain(Settings())["host"] == "example.org"


@pytest.mark.parametrize(
    ("names", "secret"),
    [
        ("key token secret password api_key apiKey hfToken CLIENT_SECRET OPENAI_API_KEY api_keys db_passwords", True),
        ("aws_secret_access_key private-key secret_value Authorization passphrase token2 apikey credentials", True),
        ("monkey tokenizer max_tokens eos_token stop_tokens max_new_tokens key_env token_file keyboard", False),
        ("password_length secretary passing token_ids reward_column author", False),
    ],
)
def test_names_say_what_is_secret(names: str, secret: bool) -> None:
    assert [name for name in names.split() if is_secret(name) != secret] == []


def test_counts_are_shown_and_passwords_of_digits_are_not() -> None:
    assert shown({"generated_tokens": 200_000, "tokens": "200k", "key": 3, "token": True, "api_key": None}) == {
        "generated_tokens": 200_000,
        "tokens": "200k",
        "key": 3,
        "token": True,
        "api_key": None,
    }
    assert shown({"password": 1234, "secret": ["a"], "deep": [{"token": "x"}]}) == {
        "password": "***",
        "secret": "***",
        "deep": [{"token": "***"}],
    }


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["a", "--api-key", "x", "y"], "a --api-key *** y"),
        (["--hf_token=x"], "'--hf_token=***'"),
        (["--max-tokens", "20", "--budget", "generated_tokens=200k"], "--max-tokens 20 --budget generated_tokens=200k"),
        (["--key", "--plan"], "--key --plan"),
        (["--url", "https://me:pw@host/x?token=abc"], "--url 'https://***@host/x?token=***'"),
        (["judge(api_key='a b', n=2)"], "'judge(api_key=***, n=2)'"),
        (['{"headers": {"Authorization": "Bearer abc"}}'], """'{"headers": {"Authorization": ***}}'"""),
        (["hf_abcdefghijklmnopqrst"], "'***'"),
    ],
)
def test_a_command_is_told_without_its_secrets(words: list[str], told: str) -> None:
    assert command(words) == told


def test_the_key_of_a_stage_is_no_secret() -> None:
    stage = "0123456789abcdef" * 4
    assert shown({"key": stage, "api_key": stage}) == {"key": stage, "api_key": "***"}


def test_what_an_object_says_of_itself_by_key_is_not_taken_for_a_secret() -> None:
    class Scored:
        def key(self) -> dict[str, str]:
            return {"version": "Version-of-2026"}

        def __call__(self, response: str) -> float:
            return 0.0

    def score(response: str) -> float:
        return 0.0

    score.key = lambda: {"version": "Another-of-2026"}  # type: ignore[attr-defined]
    plain([Scored(), score])
    assert scrubbed("Version-of-2026 Another-of-2026") == "Version-of-2026 Another-of-2026"


def test_a_plain_word_under_such_a_name_stays_where_it_is_no_secret() -> None:
    assert inline("groups(key='prompt')") == "groups(key=***)"
    assert inline("groups(sort_key='prompt_id')") == "groups(sort_key=***)"
    assert scrubbed("the prompt, prompt_id") == "the prompt, prompt_id"


def test_what_a_component_is_configured_with_is_quoted_by_no_error() -> None:
    made = use("judge", api_key=f"{CANARY}-9")
    assert repr(made) == "<judge(api_key=***)>"
    assert str(ConfigError(f"{made} does not fit")) == "judge(api_key='***') does not fit."
    assert str(AlignkitError("x", remedy=f"not {CANARY}-9")) == "x. Remedy: not ***"


def test_a_default_in_a_plugin_is_not_listed() -> None:
    def score(response: str, *, api_key: str = WORDS, key_env: str = "NAME", tokens: int = 3) -> float:
        return 0.0

    told = check_component("reward", "mine", score).to_json()
    assert told["hyperparameters"] == {"api_key": "***", "key_env": "'NAME'", "tokens": "3"}
    assert WORDS not in str(told)


def test_a_logger_is_recorded_by_its_class(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    class Told(CSVLogger):
        def __repr__(self) -> str:
            return f"Told({CANARY})"

    with Run(tmp_path / "run", quiet=True, trainer={"logger": Told(tmp_path / "logs")}) as run:
        run.policy("tiny", lora=None)
    assert holding(tmp_path / "run", CANARY) == []
