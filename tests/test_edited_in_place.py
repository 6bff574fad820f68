"""A plugin that is installed from a wheel counts by its files as they are: edited in place it is another plugin."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignkit.identity.distributions import distribution_key

FILES = {
    "plug/__init__.py": "from plug.loss import sign\n",
    "plug/loss.py": "sign = 1\n",
    "plug/words.json": "{}\n",
    "plug_one.py": "x = 1\n",
    "plug-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n",
    "plug-1.0.dist-info/entry_points.txt": "[alignkit]\nplug = plug\n",
    "plug-1.0.dist-info/INSTALLER": "pip\n",
}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    listed = [*FILES, "plug/__pycache__/loss.cpython-311.pyc", "../../bin/plug", "plug-1.0.dist-info/RECORD"]
    (tmp_path / "plug-1.0.dist-info/RECORD").write_text("".join(f"{name},,\n" for name in listed))
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def key(site: Path) -> dict[str, str]:
    """As a process that starts now would have it."""
    distribution_key.cache_clear()
    found = distribution_key("plug")
    distribution_key.cache_clear()
    return found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plug/loss.py", "sign = -1\n"),
        ("plug/words.json", '{"a": 1}\n'),
        ("plug_one.py", "x = 2\n"),
        ("plug/helper.py", "new = 1\n"),  # RECORD does not list it: it came later
        ("plug-1.0.dist-info/entry_points.txt", "[alignkit]\nplug = other\n"),
        ("plug/loss.py", None),
    ],
)
def test_an_edited_an_added_or_a_removed_file_makes_another_plugin(site: Path, name: str, text: str | None) -> None:
    before = key(site)
    assert (before["plug"], sorted(before)) == ("1.0", ["files", "plug"])
    if text is None:
        (site / name).unlink()
    else:
        (site / name).write_text(text)
    assert key(site) != before


@pytest.mark.parametrize("name", ["plug/__pycache__/loss.cpython-311.pyc", "plug-1.0.dist-info/INSTALLER", "other.py"])
def test_what_pip_and_python_write_and_what_is_anothers_does_not(site: Path, name: str) -> None:
    before = key(site)
    (site / name).parent.mkdir(exist_ok=True)
    (site / name).write_text("other")
    assert key(site) == before


def test_a_namespace_is_shared_and_only_its_own_part_counts(site: Path) -> None:
    for name in ("space/mine/__init__.py", "space/theirs/__init__.py"):
        (site / name).parent.mkdir(parents=True)
        (site / name).write_text("")
    with (site / "plug-1.0.dist-info/RECORD").open("a") as record:
        record.write("space/mine/__init__.py,,\n")
    before = key(site)
    (site / "space/theirs/__init__.py").write_text("x = 1")
    assert key(site) == before
    (site / "space/mine/__init__.py").write_text("x = 1")
    assert key(site) != before


def test_a_file_outside_is_never_read(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RECORD is anybody's text."""
    read: list[Path] = []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (read.append(path), real(path))[1])
    with (site / "plug-1.0.dist-info/RECORD").open("a") as record:
        record.write("../secret,,\n/etc/hostname,,\nplug/../../secret,,\n")
    (site.parent / "secret").write_text("x")
    key(site)
    assert {path.name for path in read if path.is_relative_to(site)} >= {"loss.py", "words.json"}
    assert [path for path in read if not path.resolve().is_relative_to(site.resolve())] == []
