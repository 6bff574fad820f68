"""A constitution: what is shipped, what a user's file must hold, and what each fault is called."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from alignkit_constitutional import read_constitution
from alignkit_constitutional.constitution import MAX_BYTES
from alignkit_rlaif.prompts import principles_of

from alignkit import ConfigError

SHARED = Path(os.environ.get("ALIGNKIT_SHARED", Path(__file__).parents[3].parent / "shared")) / "data"
GOOD: dict[str, Any] = {
    "name": "two",
    "critique_revision": [
        {"id": "a", "critique": "Is it rude?", "revision": "Be polite."},
        {"id": "b", "critique": "Is it false?", "revision": "Be right."},
    ],
    "preference": [{"id": "p", "text": "The polite one."}],
}


def write(folder: Path, content: Any) -> str:
    file = folder / "constitution.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return str(file)


def changed(name: str, entry: int, **fields: Any) -> dict[str, Any]:
    """`GOOD` with fields of one entry set otherwise; None takes a field away."""
    copy = json.loads(json.dumps(GOOD))
    copy[name][entry] |= fields
    copy[name][entry] = {k: v for k, v in copy[name][entry].items() if v is not None}
    return copy


def test_the_shipped_one_has_sixteen_of_each_and_examples() -> None:
    ours = read_constitution()
    assert min(len(ours.critique_revision), len(ours.preference)) >= 16
    assert len(ours.examples) >= 2
    assert ours.texts == tuple(entry["text"] for entry in ours.preference)


def test_the_shipped_one_is_in_our_own_words() -> None:
    file = SHARED / "constitution.json"
    if not file.is_file():
        pytest.skip(f"{file} is not there (ALIGNKIT_SHARED names the folder above data)")
    theirs, ours = read_constitution(file), read_constitution()
    assert len(theirs.critique_revision) == len(theirs.preference) == 16  # another's file in the same form is read
    words = [
        {text for c in (x.critique_revision, x.preference) for e in c for k, text in e.items() if k != "id"}
        for x in (theirs, ours)
    ]
    assert not words[0] & words[1]


def test_a_users_file_takes_its_place_and_a_judge_reads_the_same_file(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD)
    found = read_constitution(file)
    assert [entry["id"] for entry in found.critique_revision] == ["a", "b"]
    assert found.examples == ()
    assert principles_of(file) == found.texts == ("The polite one.",)


def test_its_digest_is_that_of_its_words(tmp_path: Path) -> None:
    first = read_constitution(write(tmp_path, GOOD)).digest()
    assert read_constitution(write(tmp_path, {**GOOD, "note": "another note"})).digest() == first
    assert read_constitution(write(tmp_path, changed("preference", 0, text="The kind one."))).digest() != first
    assert read_constitution(write(tmp_path, changed("critique_revision", 1, revision="Be sure."))).digest() != first


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{not json", "not JSON"),
        (b'{"a": 1, "a": 2}', "occurs twice"),
        (b"\xff\xfe", "no UTF-8 at byte 0"),
        (b" " * (MAX_BYTES + 1), "longer than"),
        ([], "a list where an object is expected"),
        ({k: v for k, v in GOOD.items() if k != "preference"}, "the key 'preference' is missing"),
        ({k: v for k, v in GOOD.items() if k != "critique_revision"}, "the key 'critique_revision' is missing"),
        ({**GOOD, "preference": []}, "at least one entry"),
        ({**GOOD, "critique_revision": {}}, "at least one entry"),
        ({**GOOD, "preferences": []}, "unknown key 'preferences'; did you mean 'preference'"),
        ({**GOOD, "preference": ["The polite one."]}, r"preference\[0\]: a str where an object with id, text"),
        (changed("critique_revision", 1, critique=None), r"critique_revision\[1\]: 'critique' is missing"),
        (changed("critique_revision", 0, revision="  "), r"critique_revision\[0\]: 'revision' is no text"),
        (changed("critique_revision", 0, revision=7), r"critique_revision\[0\]: 'revision' is no text"),
        (changed("preference", 0, text=None, words="x"), r"preference\[0\]: 'text' is missing"),
        (changed("preference", 0, texts="x"), "unknown key 'texts'; did you mean 'text'"),
        (changed("preference", 0, text="a\0b"), "a NUL"),
        (changed("critique_revision", 1, id="a"), "critique_revision: the id 'a' occurs 2 times.*Remedy: keep one"),
        (changed("critique_revision", 1, critique="is it  RUDE?"), "the critique 'is it rude.' occurs 2 times"),
        ({**GOOD, "examples": [{"prompt": "Hi"}]}, r"examples\[0\]: 'response' is missing"),
    ],
)
def test_a_bad_file_is_refused_with_what_is_wrong(tmp_path: Path, content: Any, says: str) -> None:
    file = write(tmp_path, content)
    with pytest.raises(ConfigError, match=says) as error:
        read_constitution(file)
    assert "constitution.json" in str(error.value)


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json: there is no such file"):
        read_constitution("nowhere.json")


def test_two_principles_may_end_in_the_same_revision_request(tmp_path: Path) -> None:
    same = changed("critique_revision", 1, revision="Be polite.")
    assert len(read_constitution(write(tmp_path, same)).critique_revision) == 2
