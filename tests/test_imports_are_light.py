"""What must answer at once imports nothing heavy, and listing imports no plugin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "lightning", "transformers", "datasets", "peft", "matplotlib", "numpy", "jsonargparse", "pytest")

PROBE = """
import io, json, sys, contextlib
with contextlib.redirect_stdout(io.StringIO()):
    try:
        {code}
    except SystemExit as exit:
        assert not exit.code, exit.code
print(json.dumps(sorted(sys.modules)))
"""


def modules_after(code: str, folder: Path | None = None) -> set[str]:
    env = {**os.environ, "PYTHONPATH": str(folder)} if folder else dict(os.environ)
    probe = [sys.executable, "-c", PROBE.format(code=code)]
    result = subprocess.run(probe, capture_output=True, text=True, check=False, env=env)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout))


@pytest.mark.parametrize(
    "code",
    [
        "import alignkit; alignkit.hookimpl, alignkit.use, alignkit.PluginError",
        "import alignkit.plugin; from alignkit.plugin import Register, hookimpl, parse, use",
        "import alignkit.builtin, alignkit.vocabulary, alignkit.registry.checks, alignkit.meter",
        "import alignkit.registry.host; alignkit.registry.host.default_host().plugins()",
        "from alignkit.cli import main; main(['--help'])",
        "from alignkit.cli import main; assert main(['run', '--help']) == 0",
        "from alignkit.cli import main; assert main(['plugins']) == 0",
        "from alignkit.cli import main; assert main(['plugins', '--json']) == 0",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    assert not modules_after(code) & set(HEAVY)


def test_runs_and_stages_are_declared_without_torch() -> None:
    """Runs are listed, and a plan is written down, before a model is there."""
    assert not modules_after("import alignkit.stages, alignkit.run") & {"torch", "transformers", "lightning", "peft"}


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_listing_imports_no_plugin(tmp_path: Path, flags: list[str]) -> None:
    (tmp_path / "watched_plugin.py").write_text("raise SystemExit(7)")
    info = tmp_path / "watched_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: watched-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[alignkit]\nwatched = watched_plugin\n")
    code = f"from alignkit.cli import main; assert main(['plugins', *{flags}]) == 0"
    assert "watched_plugin" not in modules_after(code, tmp_path)
    seen = subprocess.run(
        [sys.executable, "-m", "alignkit.cli", "plugins", *flags],
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "watched-plugin" in seen.stdout
