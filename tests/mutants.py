"""One-line breakages that the tests must catch: the list, and the program that tries them.

Each mutant names a file, a text that occurs in it exactly once, what to write instead, and the test that must then fail
(a pytest node id, or how it begins). `python tests/mutants.py [WORDS]` tries them, or those whose name contains WORDS,
and prints a JSON object of exit statuses: 1 is caught, 0 is missed.

A mutant costs a fraction of a second: this process imports the heavy third-party libraries once, and each mutant runs
pytest in a fork of it, where an import hook serves the mutated source. A mutant with `fresh=True` runs in a new process
on a mutated copy of the package, for tests that start processes of their own.
"""

from __future__ import annotations

import gc
import importlib.abc
import importlib.machinery
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
FUNCTIONAL = "alignkit/functional.py"
MARGIN = "plugins/alignkit-margin-rm/src/alignkit_margin_rm.py"
REJECTION = "plugins/alignkit-rejection-sampling/src/alignkit_rejection_sampling.py"
PPO = "plugins/alignkit-ppo/src/alignkit_ppo.py"
COLLATE = "alignkit/models/batch.py"
FORWARD = "alignkit/models/forward.py"
HEAD = "alignkit/models/head.py"
POLICY = "alignkit/models/policy.py"
LORA = "alignkit/models/lora.py"
DECODE = "alignkit/sampling/decode.py"
SAMPLER = "alignkit/sampling/sampler.py"
ROUNDS = "alignkit/engine/training_data.py"
REDUCTION = "alignkit/engine/reduction.py"
MODULE = "alignkit/engine/learner.py"
IMPROVE = "alignkit/engine/improve.py"
REWARDS = "alignkit/rewards.py"
IN_FUNCTIONAL = "tests/test_functional.py::test_"
IN_MARGIN = "plugins/alignkit-margin-rm/tests/test_margin_rm.py::test_"
IN_REJECTION = "plugins/alignkit-rejection-sampling/tests/test_rejection_sampling.py::test_"
IN_PPO = "plugins/alignkit-ppo/tests/test_ppo.py::test_"
TIMEOUT = 120.0
"""Seconds after which a mutant counts as not caught by its test."""
FAILED = 1
"""pytest's exit status when tests ran and failed; any other one means that the mutant was not really tried."""


@dataclass(frozen=True)
class Mutant:
    """One breakage.

    Args:
        name: what is broken, in words.
        file: path from the repository's root.
        old: a text that occurs in the file exactly once.
        new: what is written instead.
        test: the pytest node id that must fail, or how it begins.
        fresh: try it in a new process on a mutated copy of the package.
    """

    name: str
    file: str
    old: str
    new: str
    test: str
    fresh: bool = False

    def source(self) -> str:
        """The mutated source.

        Raises:
            ValueError: when `old` does not occur exactly once.
        """
        text = (ROOT / self.file).read_text()
        if text.count(self.old) != 1:
            raise ValueError(f"mutant {self.name!r}: {self.old!r} occurs {text.count(self.old)} times in {self.file}")
        return text.replace(self.old, self.new)

    @property
    def module(self) -> str:
        """The name under which the file is imported."""
        parts = Path(self.file).with_suffix("").parts
        parts = parts[parts.index("src") + 1 :] if "src" in parts else parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MUTANTS = [
    # functional
    Mutant("mask ignored", FUNCTIONAL, "x = x.where(mask.bool(), 0)  #", "x = x + 0  #", IN_FUNCTIONAL + "token_mean"),
    Mutant(
        "mean over padding too",
        FUNCTIONAL,
        "shown = torch.ones_like(x) if mask is None else mask.to(x.dtype)",
        "shown = torch.ones_like(x)",
        IN_FUNCTIONAL + "token_mean",
    ),
    Mutant(
        "mean of means",
        FUNCTIONAL,
        "return masked_sum(x, mask, dim) / count.clamp(min=1)",
        "return masked_sum(x, mask, dim) / count.clamp(min=1) if dim else masked_mean(x, mask, -1).mean()",
        IN_FUNCTIONAL + "token_mean",
    ),
    Mutant(
        "unbiased variance",
        FUNCTIONAL,
        "** 2, mask)\n\n\ndef whiten",
        "** 2, mask) * x.numel() / (x.numel() - 1)\n\n\ndef whiten",
        IN_FUNCTIONAL + "whiten_golden",
    ),
    Mutant(
        "whitening keeps the mean",
        FUNCTIONAL,
        "white if shift_mean else white + mean",
        "white + mean if shift_mean else white",
        IN_FUNCTIONAL + "whiten_golden",
    ),
    Mutant(
        "sign of KL",
        FUNCTIONAL,
        "return logprobs - ref_logprobs",
        "return ref_logprobs - logprobs",
        IN_FUNCTIONAL + "kl_est",
    ),
    Mutant(
        "k3 of the wrong side",
        FUNCTIONAL,
        "torch.expm1(-log_ratio) +",
        "torch.expm1(log_ratio) -",
        IN_FUNCTIONAL + "kl_est",
        fresh=True,
    ),
    Mutant("mask off by one", FUNCTIONAL, ".amax(1) - 1", ".amax(1) - 2", IN_FUNCTIONAL + "where_a_score"),
    Mutant(
        "score after EOS", FUNCTIONAL, "    return last\n", "    return last + 1\n", IN_FUNCTIONAL + "where_a_score"
    ),
    Mutant(
        "gamma and lambda swapped",
        FUNCTIONAL,
        "rewards[:, t] + gamma * next_value",
        "rewards[:, t] + gae_lambda * next_value",
        IN_FUNCTIONAL + "gae_discount",
    ),
    Mutant(
        "lambda forgotten",
        FUNCTIONAL,
        "gamma * gae_lambda * advantage",
        "gamma * advantage",
        IN_FUNCTIONAL + "gae_golden",
    ),
    Mutant(
        "padding bootstraps",
        FUNCTIONAL,
        "next_value = values[:, t].where(shown[:, t], next_value)",
        "next_value = values[:, t]",
        IN_FUNCTIONAL + "gae_golden",
    ),
    Mutant(
        "returns without values",
        FUNCTIONAL,
        "(advantages + values).where(shown, 0)",
        "advantages.where(shown, 0)",
        IN_FUNCTIONAL + "gae_monte",
    ),
    Mutant(
        "min for max",
        FUNCTIONAL,
        "return torch.max(-adv",
        "return torch.min(-adv",
        IN_FUNCTIONAL + "clipped_surrogate_golden",
    ),
    Mutant(
        "clip bounds swapped",
        FUNCTIONAL,
        "ratio.clamp(1 - clip_low, 1 + clip_high)",
        "ratio.clamp(1 - clip_high, 1 + clip_low)",
        IN_FUNCTIONAL + "clipped_surrogate_golden",
    ),
    Mutant(
        "margin added",
        FUNCTIONAL,
        "logsigmoid(difference - margin)",
        "logsigmoid(difference + margin)",
        IN_MARGIN + "margin_ranking_golden",
    ),
    Mutant(
        "logsigmoid taken apart",
        FUNCTIONAL,
        "-torch.nn.functional.logsigmoid(difference - margin)",
        "-torch.log(torch.sigmoid(difference - margin))",
        IN_FUNCTIONAL + "logistic_ranking",
    ),
    # alignkit-margin-rm
    Mutant(
        "ratings shifted by one",
        MARGIN,
        "levels[rating.long() + 1]",
        "levels[rating.long()]",
        IN_MARGIN + "margin_ranking_golden",
    ),
    Mutant(
        "table of margins", MARGIN, '"large": (3.0, 2.0,', '"large": (2.0, 3.0,', IN_MARGIN + "margin_ranking_golden"
    ),
    Mutant(
        "chosen and rejected swapped",
        MARGIN,
        "(chosen_rewards - rejected_rewards,",
        "(rejected_rewards - chosen_rewards,",
        IN_MARGIN + "against",
    ),
    Mutant(
        "rating outside the table let through",
        MARGIN,
        "if bool(outside.any()):",
        "if False:",
        IN_MARGIN + "a_rating_outside",
    ),
    Mutant(
        "unknown safety counted as unsafe", MARGIN, "loss.where(safe >= 0, 0)", "loss", IN_MARGIN + "without_safety"
    ),
    # alignkit-rejection-sampling
    Mutant("argmin", REJECTION, "max(places, key", "min(places, key", IN_REJECTION + "best_of_against"),
    Mutant(
        "the last of equals wins", REJECTION, "max(places, key", "max(places[::-1], key", IN_REJECTION + "of_equals"
    ),
    Mutant("NaN may win", REJECTION, "if able and not math.isnan(r)]", "if able]", IN_REJECTION + "nan_never"),
    Mutant("missing rewards may win", FUNCTIONAL, "[there and (done", "[True and (done", IN_REJECTION + "a_missing"),
    Mutant("cut off responses win", FUNCTIONAL, "done is not False or", "True or", IN_REJECTION + "a_response_cut"),
    Mutant("older wins a tie", REJECTION, "or value > best[", "or value >= best[", IN_REJECTION + "on_a_tie"),
    Mutant(
        "pool forgotten",
        REJECTION,
        "compete([now, old], reward_name)",
        "compete([now], reward_name)",
        IN_REJECTION + "winners_of_all",
    ),
    Mutant(
        "oldest version for the last",
        REJECTION,
        "key=lambda i: -versions[i]",
        "key=lambda i: versions[i]",
        IN_REJECTION + "the_pool_can_be",
    ),
    Mutant(
        "temperature of the sampler",
        REJECTION,
        "return 1.0  # it",
        "return self.temperature  # it",
        IN_REJECTION + "what_the_engine",
    ),
    # alignkit-ppo
    Mutant(
        "ratio upside down",
        PPO,
        "torch.exp(logprobs - old_logprobs)",
        "torch.exp(old_logprobs - logprobs)",
        IN_PPO + "policy_loss",
    ),
    Mutant("smaller value loss", PPO, "0.5 * torch.max(unclipped", "0.5 * torch.min(unclipped", IN_PPO + "value_loss"),
    Mutant(
        "value clipped around the return",
        PPO,
        "(old_values + (values - old",
        "(returns + (values - old",
        IN_PPO + "value_loss",
    ),
    Mutant("detach removed", PPO, "ratio.detach()", "ratio", IN_PPO + "diagnostics"),
    Mutant("KL rewarded", PPO, "score_at) - kl_coef * kl", "score_at) + kl_coef * kl", IN_PPO + "kl_is_taken"),
    Mutant("KL of padding", PPO, "kl_coef * kl.where(mask.bool(), 0)", "kl_coef * kl", IN_PPO + "kl_is_taken"),
    Mutant("controller turned around", PPO, "kl / target - 1,", "1 - kl / target,", IN_PPO + "kl_controller"),
    Mutant("controller without limit", PPO, "MAX_KL_ERROR = 0.2", "MAX_KL_ERROR = 9.0", IN_PPO + "kl_controller"),
    Mutant(
        "penalty for a bonus",
        PPO,
        "scores - self.missing_eos_penalty",
        "scores + self.missing_eos_penalty",
        IN_PPO + "a_response_without_eos",
    ),
    Mutant(
        "missing rewards learned from",
        PPO,
        "rewards[present]",
        "rewards[: present.sum()]",
        IN_PPO + "a_response_without_reward",
    ),
    Mutant(
        "returns whitened", PPO, '"returns": returns}', '"returns": whiten(returns, mask)}', IN_PPO + "prepare_against"
    ),
    Mutant("scores never whitened", PPO, "whiten(rewards) if", "rewards if", IN_PPO + "scores_are"),
    Mutant(
        "coefficient of an earlier run",
        PPO,
        "return self.kl_coef if self.kl_target is None else",
        "return",
        IN_PPO + "a_fixed",
    ),
    # the batch and the forward
    Mutant(
        "prediction off by one",
        COLLATE,
        "before = [len(row.prompt) - 1, *range(start, end - 1)]",
        "before = [len(row.prompt) - 2, *range(start - 1, end - 2)]",
        "tests/test_forward_equivalence.py::test_plain_rows_equal_the_models_own_forward",
    ),
    Mutant(
        "responses see one another",
        FORWARD,
        "((key == 0) | (key == query))",
        "(key >= 0)",
        "tests/test_forward_equivalence.py::test_responses_do_not_see_one_another",
    ),
    Mutant(
        "window one too wide",
        FORWARD,
        "positions[:, None, :] < window",
        "positions[:, None, :] <= window",
        "tests/test_forward_equivalence.py::test_shared_prompts_equal_one_response_a_row",
    ),
    Mutant(
        "score read one token early",
        FORWARD,
        "hidden[batch.row, batch.last_index]",
        "hidden[batch.row, batch.last_index - 1]",
        "tests/test_engine.py::test_scores_are_read_at_the_last_token",
    ),
    Mutant(
        "temperature dropped in the head",
        HEAD,
        "torch.nn.functional.linear(part, weight, bias).float() / temperature",
        "torch.nn.functional.linear(part, weight, bias).float()",
        "tests/test_forward_equivalence.py::test_token_logprobs_equal_full_log_softmax",
    ),
    Mutant(
        "temperature dropped in the gradient",
        HEAD,
        "probs.to(weight.dtype) @ weight) / temperature)",
        "probs.to(weight.dtype) @ weight))",
        "tests/test_forward_equivalence.py::test_token_logprobs_equal_full_log_softmax",
    ),
    # the sampler
    Mutant(
        "temperature dropped in sampling",
        DECODE,
        "torch.log_softmax(logits.float() / temperature, -1)",
        "torch.log_softmax(logits.float(), -1)",
        "tests/test_sampling.py::test_logprobs_are_before_truncation",
    ),
    Mutant(
        "log-probs after truncation",
        DECODE,
        "taken = logprobs.gather",
        "taken = warped.gather",
        "tests/test_sampling.py::test_logprobs_are_before_truncation",
    ),
    Mutant(
        "a token of probability 0 is drawn",
        DECODE,
        "wanted, right=True",
        "wanted, right=False",
        "tests/test_sampling.py::test_choose_never_takes_probability_zero",
    ),
    Mutant(
        "a repeated prompt gets the same samples",
        SAMPLER,
        "stream_key(*seed, i, time, k)",
        "stream_key(*seed, i, 0, k)",
        "tests/test_sampling.py::test_other_seed_and_repeated_prompt_differ",
    ),
    # the engine
    Mutant(
        "count of one micro-batch",
        ROUNDS,
        "float(sum(sum(self.learned_tokens[i]) for i in numbers))",
        "float(max(sum(self.learned_tokens[i]) for i in numbers))",
        "tests/test_engine.py::test_token_reduction_is_the_mean_over_all_tokens",
    ),
    Mutant(
        "a ranking weighs by its pairs",
        REDUCTION,
        'if how.reduction == "group" and level != "group":',
        'if how.reduction == "group" and level == "response":',
        "tests/test_engine.py::test_pairs_weigh_by_prompt",
    ),
    Mutant(
        "padding reaches the gradient",
        REDUCTION,
        "term = torch.where(mask.bool(), term, torch.zeros_like(term))",
        "term = term * mask",
        "tests/test_engine.py::test_masked_positions_reach",
    ),
    Mutant(
        "a NaN takes its step",
        MODULE,
        "if not bad and math.isfinite(norm):",
        "if bad or not math.isfinite(norm) or norm >= 0:",
        "tests/test_engine.py::test_nan_stops_before_the_step",
    ),
    Mutant(
        "the rate of values is forgotten",
        MODULE,
        '"lr": value_rate if is_value else',
        '"lr": config.learning_rate if is_value else',
        "tests/test_engine.py::test_value_weights_have_a_rate",
    ),
    Mutant(
        "sign of the reported KL",
        IMPROVE,
        '(known["logprobs"] - known["ref_logprobs"]) * mask',
        '(known["ref_logprobs"] - known["logprobs"]) * mask',
        "tests/test_engine.py::test_kl_starts_at_exactly_zero",
    ),
    Mutant(
        "old log-probs from another temperature",
        IMPROVE,
        "temperature = temperature or self.optimizer.logprob_temperature",
        "temperature = temperature or 1.0",
        "tests/test_engine.py::test_ratio_is_exactly_one",
    ),
    Mutant(
        "history keeps its old scores",
        IMPROVE,
        'self._score(self.history, "history") if scored else self.history',
        "self.history",
        "tests/test_engine.py::test_history_is_scored_again",
    ),
    Mutant(
        "the reference is adapter off",
        POLICY,
        "self._states[name] = adapter\n",
        "self._states[name] = None\n",
        "tests/test_engine.py::test_reference_is_a_named_state",
    ),
    Mutant(
        "switching leaves gradients off",
        LORA,
        "parameter.requires_grad_(flag)",
        "parameter.requires_grad_(False)",
        "tests/test_engine.py::test_switching_states_leaves_gradients",
    ),
    Mutant(
        "the threshold on the wrong scale",
        REWARDS,
        "safe < self.raw_threshold",
        "safe < self.threshold",
        "tests/test_rewards.py::test_threshold_is_compared_on_the_raw_scale",
    ),
    Mutant(
        "tags are ignored",
        REWARDS,
        'set(row["tags"]) & set(self.tags) or safe',
        "safe",
        "tests/test_rewards.py::test_piecewise_golden",
    ),
]

IN_KEYS = "tests/test_keys_see_code.py::test_"
USED = IN_KEYS + "what_a_reward_uses_changes_its_key"
REACH = "alignkit/identity/reach.py"
MUTANTS += [
    Mutant("closures are not looked into", REACH, "if name in scope.cells:", "if not scope:", USED + "[closure"),
    Mutant("globals are not looked into", REACH, "if name in scope.space and", "if not scope and", USED + "[helper"),
    Mutant(
        "imports inside functions are not followed",
        REACH,
        "found[str(each)] = self.imported(each, uses.chains.get(each.bound) or {()}, scope)",
        "found[str(each)] = str(each)",
        IN_KEYS + "a_sibling_module_counts_however_it_is_imported[lazy",
    ),
    Mutant(
        "evaluated names are not seen",
        REACH,
        "if uses.evaluates:",
        "if not uses:",
        USED + "[evaluated name",
    ),
    Mutant(
        "what the code itself changes counts as it stands",
        REACH,
        "if source is not None and (",
        "if source is None and (",
        IN_KEYS + "what_the_code_itself_changes_keeps_its_key",
    ),
    Mutant(
        "base classes do not count",
        "alignkit/identity/classes.py",
        "ledger.code(base) for base in kind.__bases__",
        "base.__name__ for base in kind.__bases__",
        USED + "[mixin",
    ),
    Mutant(
        "defaults do not count",
        "alignkit/identity/code.py",
        "if k not in memos}",
        "if k is None}",
        USED + "[default made elsewhere",
    ),
    Mutant(
        "which name stands for which helper does not count",
        "alignkit/identity/ledger.py",
        'digest({**node, "texts"',
        'digest({"texts"',
        USED + "[swapped helpers",
    ),
    Mutant(
        "the order of a dict does not count",
        "alignkit/identity/forms.py",
        "[[form(key), form(item)] for key, item in value.items()]",
        "sorted([form(key), form(item)] for key, item in value.items())",
        USED + "[order of a dict",
    ),
    Mutant(
        "an edited file lends its text to the old code",
        "alignkit/identity/source.py",
        "return any(made == code for made in",
        "return True or any(made == code for made in",
        IN_KEYS + "an_edit_before_the_first_look",
    ),
    Mutant(
        "comments and docstrings count",
        "alignkit/identity/source.py",
        "ast.unparse(node if documented else _undocumented(node))",
        "ast.unparse(node)",
        IN_KEYS + "what_a_reward_does_not_use_keeps_its_key",
    ),
]

EXTRAS = "tests/test_engine_extras.py::test_"
OBJECTIVES = "alignkit/engine/objectives.py"
ASSEMBLE = "alignkit/engine/assemble.py"
MUTANTS += [
    # what an optimizer may add to a step
    Mutant("extra losses never weigh", OBJECTIVES, "**self.terms}", "**{}}", EXTRAS + "an_extra_loss_with"),
    Mutant(
        "streams shrink at the end of a lap",
        OBJECTIVES,
        "divmod(index, rows // size)",
        "divmod(index, -(-rows // size))",
        EXTRAS + "a_stream_goes_around",
    ),
    Mutant(
        "paired prompts parted",
        ROUNDS,
        "units = [unit for unit in self.units if unit[0] in wanted]",
        "units = [[i] for i in numbers]",
        EXTRAS + "pairs_between_prompts",
    ),
    Mutant("unknown labels are bad", ROUNDS, "-1.0 if flag is None", "0.0 if flag is None", EXTRAS + "labels_reach"),
    Mutant(
        "mean over the wrong axis", HEAD, "logits.mean(-1) - logsumexp", "logits.mean(-1)", EXTRAS + "mean_logprobs"
    ),
    Mutant(
        "the online reference is the policy",
        ASSEMBLE,
        'tensors["ref_logprobs"] = reference(batch, temperature)',
        'tensors["ref_logprobs"] = reference(batch, temperature) * 0',
        EXTRAS + "reference_kept",
    ),
    Mutant(
        "soft labels stay",
        REWARDS,
        '"preference_prob": None',
        '"preference_prob": row["preference_prob"]',
        EXTRAS + "new_ranks",
    ),
    Mutant(
        "ties are broken",
        REWARDS,
        "sum(other > score for other",
        "sum(other >= score for other",
        EXTRAS + "ranks_by_reward",
    ),
    Mutant(
        "a lap is one round",
        IMPROVE,
        "self.optimizer.rounds or lap\n",
        "self.optimizer.rounds or 1\n",
        EXTRAS + "rounds_zero",
    ),
    Mutant(
        "missing rewards by part",
        IMPROVE,
        "self._unscored[part] = gone, scored",
        "self._unscored.clear()",
        EXTRAS + "missing_rewards_are_counted",
    ),
]

for listed in sorted(ROOT.glob("plugins/*/tests/mutants.json")):  # each plugin brings its own
    MUTANTS += [Mutant(**row) for row in json.loads(listed.read_text(encoding="utf-8"))]


# -- trying them -------------------------------------------------------------------------------------------------------

PRELOAD = (
    "pytest",
    "torch",
    "hypothesis",
    "hypothesis.strategies",
    "hypothesis.extra",
    "datasets",
    "numpy",
    "pluggy",
    "lightning",
    "transformers",
    "peft",
    "transformers.models.llama",
)
"""What every fork would import by itself; nothing of alignkit, whose modules must come from the mutated source."""
DISPENSABLE = ("cacheprovider", "anyio", "unraisableexception", "threadexception", "warnings", "junitxml", "doctest")
"""Plugins of pytest that cost time in every fork."""


class _Mutated(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):  # type: ignore[misc]
    """Serves one module from a text, before any other finder is asked."""

    def __init__(self, name: str, path: str, source: str) -> None:
        self.name, self.path, self.source = name, path, source

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        package = self.path.endswith("__init__.py")
        return importlib.util.spec_from_file_location(
            fullname,
            self.path,
            loader=self,
            submodule_search_locations=[str(Path(self.path).parent)] if package else None,
        )

    def get_filename(self, fullname: str) -> str:
        return self.path

    def get_data(self, path: str) -> bytes:
        return self.source.encode()


def _pytest(tests: Sequence[str]) -> int:
    """Run tests in this process; node ids may end in the beginning of a test's name."""
    import hypothesis
    import pytest

    files = sorted({test.split("::")[0] for test in tests})
    wanted = [test.split("::")[-1] for test in tests]

    class Select:
        def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
            items[:] = [item for item in items if any(item.name.startswith(name) for name in wanted)]

    # Whether a test fails is all that counts: no rewritten assertions, no further plugins, no shrinking of examples.
    options = ["-x", "-q", "--tb=no", "--assert=plain", f"--rootdir={ROOT}", *(f"-pno:{name}" for name in DISPENSABLE)]
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutants", phases=phases, database=None)
    hypothesis.settings.load_profile("mutants")
    return int(pytest.main([*options, *files], plugins=[Select()]))


def _fork(tests: Sequence[str], mutant: Mutant | None) -> int:
    """Run tests in a fork, with the mutated source if there is one; returns pytest's exit status, -1 past `TIMEOUT`."""
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            if mutant is not None:
                sys.meta_path.insert(0, _Mutated(mutant.module, str(ROOT / mutant.file), mutant.source()))
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                status = _pytest(tests)
        finally:
            os._exit(status)
    return _wait(pid)


def _wait(pid: int) -> int:
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return -1


def _fresh(mutant: Mutant) -> int:
    """Run the mutant's test in a new process, on a copy of what it breaks; returns pytest's exit status."""
    with tempfile.TemporaryDirectory() as folder:
        top = Path(mutant.file).parts[0]
        source = ROOT / "alignkit" if top == "alignkit" else (ROOT / mutant.file).parent
        copy = Path(folder) / ("alignkit" if top == "alignkit" else "")
        shutil.copytree(source, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        broken = Path(folder) / mutant.file if top == "alignkit" else Path(folder) / Path(mutant.file).name
        broken.write_text(mutant.source())
        # PYTHONSAFEPATH keeps the repository's root, which holds the sound package, off the path.
        paths = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
        environment = {**os.environ, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, str(Path(__file__)), "--test", mutant.test]
        try:
            return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=TIMEOUT).returncode
        except subprocess.TimeoutExpired:
            return -1


def try_all(mutants: Sequence[Mutant]) -> dict[str, int]:
    """Exit status of each mutant's test; under "" the one of all these tests on the sound source (0 if they pass)."""
    import torch

    torch.set_num_threads(1)  # a fork must not inherit a pool of threads
    for name in PRELOAD:
        importlib.import_module(name)
    torch.testing.assert_close(torch.ones(1), torch.ones(1))  # a second of imports, the first time
    gc.freeze()
    results = {"": _fork(sorted({mutant.test for mutant in mutants}), None)}
    for mutant in mutants:
        results[mutant.name] = _fresh(mutant) if mutant.fresh else _fork([mutant.test], mutant)
    return results


def main(arguments: Sequence[str]) -> int:
    """Try the mutants whose name contains the argument; 0 when all were caught."""
    os.chdir(ROOT)
    if arguments[:1] == ["--test"]:
        return _pytest(arguments[1:])
    chosen = [mutant for mutant in MUTANTS if not arguments or arguments[0] in mutant.name]
    results = try_all(chosen)
    print(json.dumps(results))
    return 0 if results.pop("") == 0 and set(results.values()) <= {FAILED} else 1


if __name__ == "__main__":
    sys.path[:] = [entry for entry in sys.path if entry and Path(entry).resolve() != ROOT]
    sys.exit(main(sys.argv[1:]))
