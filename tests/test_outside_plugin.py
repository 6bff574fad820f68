"""A method from outside the repository: built, installed with pip, listed and used by name, with no edit to the core.

Three distributions stand beside one another: a good one (a loss, a sampler, an optimizer), one that fails at import,
and one that asks for another core version. Everything runs in processes of its own, as for someone who typed it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

PROJECT = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "1.2.3"
dependencies = ["alignkit{version}"]

[project.entry-points.alignkit]
{module} = "{module}"

[tool.setuptools]
py-modules = ["{module}"]
"""

GOOD = '''
"""Best minus mean: of each prompt's samples, those above the mean become likelier and those below it less likely."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from alignkit.plugin import Batch, Groups, PolicyOptimizer, Sampler, Term, hookimpl


def outside_loss(logprobs: Tensor, spread: Tensor, *, scale: float = 1.0) -> Tensor:
    """-scale (R - mean R) log pi, per token."""
    return -scale * spread * logprobs


@dataclass(frozen=True)
class OutsideSampler(Sampler):
    """min-p: tokens less likely than `min_p` times the likeliest are never taken."""

    min_p: float = 0.5

    def warp(self, logprobs: Tensor) -> Tensor:
        floor = logprobs.max(-1, keepdim=True).values + math.log(self.min_p)
        return logprobs.masked_fill(logprobs < floor, -math.inf)


@dataclass(frozen=True)
class OutsideOptimizer(PolicyOptimizer):
    """Imitates samples, each weighted by its reward minus the mean of its prompt's samples."""

    loss: Any = "outside_loss"
    samples_per_prompt: int = 3
    batch_size: int = 4
    learning_rate: float = 1e-2
    provides: ClassVar[Mapping[str, str]] = {"spread": "[responses, tokens], the reward minus its prompt's mean"}

    @property
    def logprob_temperature(self) -> float:
        return 1.0  # it imitates text, however that was sampled

    def terms(self) -> Mapping[str, Term]:
        return {"loss": Term(reduction="token")}

    def prepare(
        self, groups: Groups, state: Mapping[str, Any], *, rewards: Tensor, response_mask: Tensor
    ) -> Batch:
        of_prompt = rewards.view(len(groups), self.samples_per_prompt)
        spread = (of_prompt - of_prompt.mean(1, keepdim=True)).flatten()
        tokens = spread.unsqueeze(1) * response_mask
        return Batch(groups, {"spread": tokens}, metrics={"outside_spread": float(spread.abs().mean())})


def ratio_loss(logprobs: Tensor, old_logprobs: Tensor, spread: Tensor) -> Tensor:
    """-rho (R - mean R): compares with the probabilities of the sampler."""
    return -torch.exp(logprobs - old_logprobs) * spread


@dataclass(frozen=True)
class RatioOptimizer(OutsideOptimizer):
    loss: Any = "ratio_loss"


@hookimpl
def register_losses(register):
    register("outside_loss", outside_loss)
    register("ratio_loss", ratio_loss)


@hookimpl
def register_samplers(register):
    register("outside_min_p", OutsideSampler)


@hookimpl
def register_optimizers(register):
    register("outside_optimizer", OutsideOptimizer)
    register("ratio_optimizer", RatioOptimizer)
'''

BROKEN = "from alignkit import hookimpl\nimport a_module_that_nobody_has\n"
FOREIGN = "raise RuntimeError('a plugin for another core version was imported')\n"

SOURCES = {
    "outside-method": (GOOD, ">=0.1,<0.2"),
    "outside-broken": (BROKEN, ">=0.1"),
    "outside-next": (FOREIGN, ">=9"),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the three distributions."""
    built, target = tmp_path_factory.mktemp("outside"), tmp_path_factory.mktemp("site")
    for name, (source, version) in SOURCES.items():
        module = name.replace("-", "_")
        (built / name).mkdir()
        (built / name / f"{module}.py").write_text(source, encoding="utf-8")
        project = PROJECT.format(name=name, module=module, version=version)
        (built / name / "pyproject.toml").write_text(project, encoding="utf-8")
    flags = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--target", str(target)]
    folders = [str(built / name) for name in SOURCES]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", *flags, *folders], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return target


def typed(site: Path, folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run Python with the installed distributions on its path."""
    env = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    return done


def stage(run: Path, name: str) -> tuple[Path, dict[str, Any]]:
    """The folder and the record of a stage."""
    found = [path for path in run.glob("stages/*/stage.json") if json.loads(path.read_text())["name"] == name]
    assert len(found) == 1, f"{len(found)} stages are named {name}"
    return found[0].parent, json.loads(found[0].read_text())


def test_listed_with_the_reason_of_each_that_is_not_used(site: Path, tmp_path: Path) -> None:
    listed = json.loads(typed(site, tmp_path, "-m", "alignkit.cli", "plugins", "--json").stdout)
    states = {entry["distribution"]: (entry["state"], entry["reason"]) for entry in listed}
    assert states["outside-method"] == ("enabled", "")
    assert states["outside-broken"] == ("enabled", "")  # nothing was imported, so nobody knows yet
    assert states["outside-next"][0] == "disabled"
    assert "0.1.0" in states["outside-next"][1]
    assert ">=9" in states["outside-next"][1]

    found = json.loads(typed(site, tmp_path, "-m", "alignkit.cli", "plugins", "--components", "--json").stdout)
    brought = {entry["distribution"]: [c["qualified"] for c in entry["components"]] for entry in found}
    assert brought["outside-method"] == [
        "outside-method/outside_loss",
        "outside-method/ratio_loss",
        "outside-method/outside_min_p",
        "outside-method/outside_optimizer",
        "outside-method/ratio_optimizer",
    ]
    reasons = {entry["distribution"]: (entry["state"], entry["reason"]) for entry in found}
    assert reasons["outside-broken"][0] == "failed"
    assert "a_module_that_nobody_has" in reasons["outside-broken"][1]
    assert brought["outside-next"] == []
    assert {"alignkit-ppo/ppo", "alignkit-recipes/llama2"} <= {name for names in brought.values() for name in names}


def test_an_outside_optimizer_makes_a_version_of_the_shipped_recipe(site: Path, tmp_path: Path) -> None:
    algorithms = "outside_optimizer(learning_rate=0.02),ppo(rounds=1,epochs=1)"
    small = ["--prompts-per-version", "8", "--heldout", "8", "--max-new-tokens", "6"]
    command = ["-m", "alignkit.cli", "run", "llama2", "--policy", "tiny", "--algorithms", algorithms, *small]
    done = typed(site, tmp_path, *command, "--run-dir", "out")
    assert "outside-broken" in done.stderr + done.stdout, "the broken plugin was not mentioned"

    folder, record = stage(tmp_path / "out", "v1")
    optimizer = record["config"]["optimizer"]
    assert (optimizer["component"], optimizer["learning_rate"]) == ("outside-method/outside_optimizer", 0.02)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2, "8 prompts in steps of 4"
    assert all(row["outside_spread"] > 0 for row in rows)
    assert any(row["grad_norm"] > 0 for row in rows)
    code = record["identity"]["code"]
    assert any("outside-method" in key for key in code), "the plugin's code must be part of the stage's key"
    assert stage(tmp_path / "out", "v2")[1]["config"]["optimizer"]["component"] == "alignkit-ppo/ppo"
    assert (tmp_path / "out" / "report.html").is_file()
    assert {"V0", "V1", "V2"} <= set(done.stdout.split())


@pytest.mark.parametrize(
    ("suite", "start", "measured"),
    [
        ("enumerable", [], {"gap", "kl", "objective"}),
        ("embedded(kind='tiny', prompts=4, heldout=4)", ["--policy", "tiny", "--max-new-tokens", "4"], {"kl"}),
    ],
)
def test_an_outside_optimizer_stands_on_the_leaderboard_of_both_suites(
    site: Path, tmp_path: Path, suite: str, start: list[str], measured: set[str]
) -> None:
    """By its name and without any change here: an interpreter each, and two rounds."""
    method = "outside_optimizer(rounds=2)"
    done = typed(
        site, tmp_path, "-m", "alignkit.cli", "compare", suite, method, "--seeds", "1", "--run-dir", "o", *start
    )
    found = json.loads((tmp_path / "o/comparison.json").read_text())
    by_name = {each["method"]: each for each in found["methods"]}
    assert set(by_name) == {"start", method}
    ours = by_name[method]
    assert (ours["seeds"], ours["failed"]) == ([0], {})
    assert ours["rank"]
    assert measured <= set(ours["besides"])
    assert ours["spent"]["optimizer_steps"] > 0
    assert ours["spent"]["generated_tokens"] > 0
    assert method in done.stdout
    if "gap" in measured:  # the suite knows no optimum of its own for a stranger: that of the whole problem counts
        assert ours["besides"]["gap"] == pytest.approx(1 - ours["mean"]["mean"])


SCRIPT = """
import json, sys
from pathlib import Path
from alignkit import AlignkitError, Groups, LoRA, Run, use

def vowels(response: str) -> float:
    return sum(letter in "aeiou" for letter in response) / 10 + len(response) / 100

prompts = Groups.from_prompts([f"Say {word}." for word in ("tea", "rain", "chess", "bread")])
out = {}
with Run("out", quiet=True) as run:
    v0 = run.policy("tiny", lora=LoRA(r=4))
    def improve(name, **options):
        options = {"reward": vowels, "reference": v0, "max_new_tokens": 6, "name": name, **options}
        return run.improve(v0, prompts, **options)

    sampled = run.sample(v0, prompts, 2, sampler=use("outside_min_p", min_p=0.9), max_new_tokens=6).groups
    out["raised"] = [
        [s - l for row, cut in zip(sampled.dataset["logprobs"], sampled.dataset["sampled_logprobs"])
         for a, b in zip(row, cut) for l, s in zip(a, b)]
    ]
    out["finite"] = all(v == v and v <= 0 for row in sampled.dataset["logprobs"] for r in row for v in r)

    for scale in (0.0, 1.0):
        optimizer = use("outside_optimizer", loss=use("outside_loss", scale=scale), temperature=0.9)
        done = improve(f"scale{scale}", optimizer=optimizer, sampler=use("outside_min_p", min_p=0.2))
        rows = [json.loads(line) for line in (done.policy.folder / "metrics.jsonl").open()]
        out[f"scale{scale}"] = [row["grad_norm"] for row in rows]
        out[f"truncated{scale}"] = all(row["sampled_logprobs"] is not None for row in done.rollouts.groups)

    imitating = use("rejection_sampling", samples_per_prompt=2, require_finished=False)
    out["imitating"] = len(improve("imitating", optimizer=imitating, sampler="outside_min_p").rollouts.groups)
    for name in ("ppo", "ratio_optimizer"):
        try:
            improve(f"refused {name}", optimizer=use(name, rounds=1), sampler="outside_min_p")
            out[name] = "accepted"
        except AlignkitError as error:
            out[name] = str(error)
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def used(site: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a script that uses the plugin in Python found."""
    folder = tmp_path_factory.mktemp("script")
    (folder / "use_it.py").write_text(textwrap.dedent(SCRIPT), encoding="utf-8")
    return json.loads(typed(site, folder, "use_it.py").stdout.splitlines()[-1])


def test_the_outside_sampler_truncates_and_keeps_both_log_probs(used: dict[str, Any]) -> None:
    raised = used["raised"][0]
    assert used["finite"]
    assert min(raised) >= -1e-5, "what was left after truncation cannot be less likely than before"
    assert max(raised) > 1.0, "at min_p=0.9 few of some 260 tokens are left"


def test_the_outside_loss_and_its_hyperparameter_reach_the_gradient(used: dict[str, Any]) -> None:
    assert used["scale0.0"] == [0.0]
    assert used["scale1.0"][0] > 0
    assert used["truncated1.0"]


def test_truncated_samples_are_refused_where_ratios_are_taken_and_accepted_where_text_is_imitated(
    used: dict[str, Any],
) -> None:
    assert used["imitating"] == 4
    assert "truncates" in used["ppo"]
    assert "Remedy" in used["ppo"]


def test_a_loss_with_old_logprobs_counts_as_taking_ratios(used: dict[str, Any]) -> None:
    assert "truncates" in used["ratio_optimizer"], "its loss compares with the sampler although `prepare` does not"


OWN_HOOKS = """
from alignkit import Groups, LoRA, Run, hookimpl

def own_ranking(chosen_rewards, rejected_rewards):
    return (1.0 - chosen_rewards + rejected_rewards).clamp(min=0)

@hookimpl
def register_losses(register):
    register("own_ranking", own_ranking)

def main(run: Run, pairs: int = 4):
    rows = [{"prompt": f"Name {n}.", "responses": [f"{n}", "no"], "ranks": [1, 2]} for n in range(pairs)]
    run.train_reward(run.policy("tiny", lora=LoRA(r=4)), Groups.from_rows(rows), loss="own_ranking")
"""


def test_a_recipe_file_uses_hooks_of_its_own(site: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN_HOOKS, encoding="utf-8")
    typed(site, tmp_path, "-m", "alignkit.cli", "run", "mine.py", "--run-dir", "out")
    assert stage(tmp_path / "out", "reward")[1]["config"]["loss"]["component"] == "mine/own_ranking"
