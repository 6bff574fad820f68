"""The core names no algorithm: it is the plugins that do, and the generated file of absent names.

Searched are names of components and of what brings them, in code and in text. Allowed is only the citation of a paper
by its title's word "Llama 2", which is where some defaults of the core come from, and a column that public data files
call after a method.
"""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "alignkit"

# The table of known methods, and the distributions of this repository. Names that are ordinary words of this field
# are left out: finding them proves nothing.
ORDINARY = {"direct", "gold", "hinge", "hir", "judge", "rest", "robust", "recipes"}
TABLE = runpy.run_path(str(ROOT / "tools" / "absent_names.py"))["PLANNED"]
DISTRIBUTIONS = {path.parent.name.removeprefix("alignkit-") for path in ROOT.glob("plugins/*/pyproject.toml")}
METHODS = {name for names in TABLE.values() for name in names}
NAMES = sorted((METHODS | DISTRIBUTIONS | {name.replace("-", "_") for name in DISTRIBUTIONS}) - ORDINARY)
FORBIDDEN = re.compile(
    rf"(?<![A-Za-z0-9])({'|'.join(map(re.escape, NAMES))}|rejection[ _-]sampling)(?![A-Za-z0-9])", re.I
)
CITATION = re.compile(r"Llama 2|\bkto_tag\b")


def algorithm_in(line: str) -> str:
    found = FORBIDDEN.search(CITATION.sub("", line))
    return found[0] if found else ""


def core_files() -> list[Path]:
    text = (
        path for path in CORE.rglob("*") if path.suffix in {".py", ".json", ".html", ".css", ".jinja", ".txt", ".md"}
    )
    return sorted(path for path in text if path.name != "absent.json")


def test_no_file_of_the_core_names_an_algorithm() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {name}: {line.strip()}"
        for path in core_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if (name := algorithm_in(line))
    ]
    assert not found, "\n".join(found)


def test_no_file_of_the_core_is_called_after_an_algorithm() -> None:
    assert not [path for path in core_files() if algorithm_in(str(path.relative_to(CORE).with_suffix("")))]


@pytest.mark.parametrize(
    "line",
    [
        'if name == "ppo":',
        "class PPO:",
        "ppo_clip = 0.2",
        "register('margin_ranking', f)",
        "as DPO does",
        "alignkit-grpo",
        "recipe llama2",
        "rejection sampling",
        "Rejection-Sampling",
    ],
)
def test_the_search_finds_a_name(line: str) -> None:
    assert algorithm_in(line)


@pytest.mark.parametrize("line", ["threshold 0.15 (Llama 2, section 3.2.3)", "for the rest", "oppose", "gold score"])
def test_the_search_passes_ordinary_text(line: str) -> None:
    assert not algorithm_in(line)


def test_the_file_of_absent_names_is_up_to_date() -> None:
    check = subprocess.run(
        [sys.executable, ROOT / "tools" / "absent_names.py", "--check"], capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stderr
