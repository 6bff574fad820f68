"""Metrics: numbers worked out by hand, whatever the micro-batch and the process; what they ask for is checked early."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from alignkit import Groups, LoRA, Run, hookimpl, use
from alignkit.engine.answer_metrics import answer_logprobs, answers_offered, measure_answers
from alignkit.engine.comparisons import comparison_report
from alignkit.engine.step_metrics import RoundMeans, StepMetrics
from alignkit.errors import ConfigError, DataError, NumericError, PluginError
from alignkit.groups import RATINGS
from alignkit.metrics import (
    KL,
    OFFERS,
    Accuracy,
    CalibrationError,
    Distinct,
    Entropy,
    Finished,
    Length,
    Mean,
    Metric,
    MetricSpec,
    Perplexity,
    SelfBLEU,
    states,
    values_of,
)
from alignkit.metrics.specs import ANSWERS, ASKED, COMPARISONS, CORE, ROUNDS, STEPS, spec_of
from alignkit.registry.host import PluginHost, default_host
from alignkit.report import version_table, write_report
from alignkit.rewards import Scores

ROOT = Path(__file__).resolve().parent.parent
MASK = torch.tensor([[True, True, True], [True, False, False]])
VALUES = torch.tensor([[1.0, 2.0, 3.0], [10.0, 77.0, 77.0]])


class Asking(Mean):
    """Share of answers that end with a mark."""

    spec = MetricSpec("share of answers that ask back", "it rises", title="Asking", unit="share", place="first")
    per_prompt = True

    def __init__(self, mark: str = "?") -> None:
        super().__init__()
        self.mark = mark

    def update(self, responses):
        super().update(torch.tensor([response.endswith(self.mark) for response in responses]))


class AskingOverAll(Asking):
    per_prompt = False


class Spread(Metric):
    """Longest less shortest answer, and both: a metric over all prompts, with several numbers."""

    spec = MetricSpec("how far lengths lie apart", unit="tokens", head="spread")

    def __init__(self):
        super().__init__()
        self.add_state("longest", torch.tensor(0.0), dist_reduce_fx="max")
        self.add_state("shortest", torch.tensor(1e9), dist_reduce_fx="min")

    def update(self, lengths):
        self.longest = torch.maximum(self.longest, lengths.max().float())
        self.shortest = torch.minimum(self.shortest, lengths.min().float())

    def compute(self):
        return {"": self.longest - self.shortest, "longest": self.longest}


def fed(metric, *updates):
    for update in updates:
        metric.update(**update)
    return values_of("m", metric)


# -- numbers by hand ---------------------------------------------------------------------------------------------------


def test_tokens_weigh_the_same_whatever_the_micro_batch():
    whole = fed(Entropy(), {"entropy": VALUES, "response_mask": MASK})
    parts = [{"entropy": VALUES[i : i + 1], "response_mask": MASK[i : i + 1]} for i in range(2)]
    assert whole == fed(Entropy(), *parts) == {"m": 4.0}  # (1 + 2 + 3 + 10) / 4; a mean of means would give 6


def test_perplexity_is_exp_of_the_mean_over_tokens():
    logprobs = torch.log(torch.tensor([[0.5, 0.25, 0.5], [0.125, 0.9, 0.9]]))
    whole = fed(Perplexity(), {"logprobs": logprobs, "response_mask": MASK})
    assert whole["m"] == pytest.approx(2 ** ((1 + 2 + 1 + 3) / 4))
    parts = [{"logprobs": logprobs[i : i + 1], "response_mask": MASK[i : i + 1]} for i in range(2)]
    assert fed(Perplexity(), *parts)["m"] == pytest.approx(whole["m"])


def pairs(chosen, rejected, rating):
    return {
        "chosen_rewards": torch.tensor(chosen),
        "rejected_rewards": torch.tensor(rejected),
        "rating": torch.tensor(rating),
    }


def test_accuracy_counts_a_tie_as_wrong_and_leaves_out_levels_without_pairs():
    first, second = pairs([1.0, 2.0, 0.0], [0.0, 2.0, 1.0], [0, 0, 3]), pairs([5.0], [4.0], [-1])
    expected = {"m": 2 / 4, f"m_{RATINGS[0]}": 1 / 2, f"m_{RATINGS[3]}": 0.0}
    assert fed(Accuracy(), first, second) == expected
    both = {name: torch.cat([first[name], second[name]]) for name in first}
    assert fed(Accuracy(), both) == expected


def test_calibration_compares_the_confidence_in_the_preferred_with_how_often_it_is_the_chosen():
    odds = math.log(3.0)  # confidence 3/4 in the preferred response
    right = {"chosen_rewards": torch.full((3,), odds), "rejected_rewards": torch.zeros(3)}
    wrong = {"chosen_rewards": torch.zeros(1), "rejected_rewards": torch.full((1,), odds)}
    assert fed(CalibrationError(), right, wrong)["m"] == pytest.approx(0.0, abs=1e-6)
    assert fed(CalibrationError(), wrong)["m"] == pytest.approx(0.75)
    tie = {"chosen_rewards": torch.ones(2), "rejected_rewards": torch.ones(2)}
    assert fed(CalibrationError(), tie)["m"] == pytest.approx(0.5)
    # In one bin: confidences 1/2 (the ties) and 3/4, of which none of two and three of three are right.
    assert fed(CalibrationError(n_bins=1), right, tie)["m"] == pytest.approx(abs((3 * 0.75 + 2 * 0.5) / 5 - 3 / 5))


def test_calibration_bins_are_those_that_are_asked_for():
    confidences = (0.6, 0.9)
    updates = [
        {"chosen_rewards": torch.tensor([math.log(p / (1 - p))]), "rejected_rewards": torch.zeros(1)}
        for p in confidences
    ]
    updates[0] = {"chosen_rewards": torch.zeros(1), "rejected_rewards": updates[0]["chosen_rewards"]}  # 0.6 is wrong
    assert fed(CalibrationError(n_bins=1), *updates)["m"] == pytest.approx(0.75 - 0.5)
    assert fed(CalibrationError(n_bins=10), *updates)["m"] == pytest.approx((0.6 + 0.1) / 2)


def test_self_bleu_is_one_for_equal_answers_and_zero_for_different_ones():
    same, other = "a b c d e", "v w x y z"
    assert fed(SelfBLEU(), {"responses": [same, same, same]})["m"] == pytest.approx(1.0)
    assert fed(SelfBLEU(), {"responses": [same, other]})["m"] == 0.0
    assert fed(SelfBLEU(), {"responses": [same]}) == {}
    # unigrams: "a b" has 2 of 2 in the other, "a b c d" has 2 of 4; brevity: 6 words against 6.
    assert fed(SelfBLEU(n_gram=1), {"responses": ["a b", "a b c d"]})["m"] == pytest.approx(4 / 6)


def test_distinct_n_grams_are_counted_over_all_answers():
    answers = {"responses": ["a b a b", "a b"]}  # bigrams ab, ba, ab, ab
    assert fed(Distinct(), answers)["m"] == pytest.approx(2 / 4)
    assert fed(Distinct(), {"responses": ["a b a b"]}, {"responses": ["a b"]})["m"] == pytest.approx(2 / 4)
    assert fed(Distinct(n=1), answers)["m"] == pytest.approx(2 / 6)
    assert fed(Distinct(n=5), answers) == {}
    with pytest.raises(ConfigError, match="n=0"):
        Distinct(n=0)


def test_means_of_answers_leave_out_what_nobody_knows():
    values = torch.tensor([2.0, float("nan"), 4.0], dtype=torch.float64)
    for metric, name in ((KL(), "kl"), (Length(), "lengths"), (Finished(), "finished")):
        assert fed(metric, {name: values}) == {"m": 3.0}
        metric.reset()
        assert fed(metric, {name: values[1:2]}) == {}


def test_nothing_counted_says_nothing_and_no_number_is_refused():
    for metric in (Entropy(), Perplexity(), Accuracy(), CalibrationError(), KL(), SelfBLEU(), Distinct()):
        assert values_of("m", metric) == {}
    with pytest.raises(NumericError, match="metric m"):
        fed(Entropy(), {"entropy": torch.tensor([[float("nan")]]), "response_mask": torch.tensor([[True]])})


def test_counts_stay_in_float64_when_the_model_is_in_bfloat16():
    learner = torch.nn.ModuleList([StepMetrics({"entropy": Entropy(), "response_length": Length()})])
    learner.to(torch.bfloat16).bfloat16().half()
    for metric in learner[0].metrics:
        assert {value.dtype for value in metric.metric_state.values()} == {torch.float64}
        assert metric.to("meta").metric_state.popitem()[1].device.type == "meta"
    length = Length()
    length.to("cpu")
    assert fed(length, {"lengths": torch.tensor([1.0 + 2.0**-40], dtype=torch.float64)})["m"] == 1.0 + 2.0**-40


# -- steps and rounds --------------------------------------------------------------------------------------------------


def test_a_step_starts_anew_when_it_is_read_and_an_idle_process_counts_nothing():
    step = StepMetrics({"entropy": Entropy()})
    tensors = {"entropy": VALUES, "response_mask": MASK}
    step.update(tensors)
    step.idle = True
    step.update({"entropy": VALUES * 100, "response_mask": MASK})
    assert step.read() == {"entropy": 4.0}
    assert step.read() == {}
    step.idle = False
    with pytest.raises(ConfigError, match="entropy"):
        step.update({"response_mask": MASK})


def test_means_of_a_round_are_over_the_steps_that_logged_a_name():
    means = RoundMeans()
    for row in ({"loss": 1.0, "a": 0.1}, {"loss": 2.0}, {"loss": 6.0, "a": 0.2}):
        means.update(row)
    assert means.read() == {"loss": 3.0, "a": (0.1 + 0.2) / 2}
    kept = means.state()
    assert all(isinstance(value, torch.Tensor) for value in kept.values())
    again = RoundMeans()
    again.load(kept)
    for each in (means, again):
        each.update({"loss": 3.0})
    assert again.read() == means.read() == {"loss": 3.0, "a": (0.1 + 0.2) / 2}
    means.reset()
    assert means.read() == {}


@pytest.mark.slow
def test_two_processes_read_what_one_does():
    """Ten seconds: two processes import torch. Idle ones take part in the same exchanges."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(Path(__file__).with_name("metrics_script.py"))],
        capture_output=True, text=True, timeout=170, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = json.loads([line for line in done.stdout.splitlines() if line.startswith("[")][-1])
    assert first == second
    alone = 1 / (1 + math.exp(-2.0)), 1 / (1 + math.exp(-1.0))
    both = {"entropy": 3.0, "accuracy": 0.5, f"accuracy_{RATINGS[0]}": 1.0, f"accuracy_{RATINGS[3]}": 0.0}
    assert first[0] == first[1] == pytest.approx({**both, "calibration_error": sum(alone) / 2 - 0.5, "distinct": 3 / 4})
    last = {"entropy": 1.5, "accuracy": 1.0, f"accuracy_{RATINGS[0]}": 1.0}
    assert first[2] == pytest.approx({**last, "calibration_error": 1 - alone[0], "distinct": 1.0})


def test_states_are_kept_as_tensors_and_taken_up_again(tmp_path):
    made = {"entropy": Entropy, "calibration_error": CalibrationError, "distinct": Distinct, "self_bleu": SelfBLEU}
    updates = {
        "entropy": {"entropy": VALUES, "response_mask": MASK},
        "calibration_error": {"chosen_rewards": torch.ones(2), "rejected_rewards": torch.zeros(2)},
        "distinct": {"responses": ["a b c", "a b d"]},
        "self_bleu": {"responses": ["a b c d e", "a b c d f"]},
    }
    before, after = ({name: kind() for name, kind in made.items()} for _ in range(2))
    for name, metric in before.items():
        metric.update(**updates[name])
    states.save(tmp_path, states.states_of(before))
    states.restore(after, states.load(tmp_path))
    for name in made:
        assert values_of(name, after[name]) == values_of(name, before[name]) != {}
        after[name].update(**updates[name])
        before[name].update(**updates[name])
        assert values_of(name, after[name]) == values_of(name, before[name])
    with pytest.raises(DataError, match=r"accuracy.right is missing"):
        states.restore({"accuracy": Accuracy()}, states.load(tmp_path))
    with pytest.raises(DataError, match="shape"):
        states.restore({"self_bleu": SelfBLEU(n_gram=2)}, states.load(tmp_path))
    states.save(tmp_path / "nowhere", {})


# -- what a metric may ask for -----------------------------------------------------------------------------------------


def metric_class(update, **attributes):
    body = {"update": update, "compute": lambda self: 0.0, "spec": MetricSpec("a number"), **attributes}
    return type("Made", (Metric,), body)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (metric_class(lambda self, response: None), "'response'.*did you mean.*responses"),
        (metric_class(lambda self, logprob, response_mask: None), "'logprob'.*did you mean.*logprobs"),
        (metric_class(lambda self, advantages, responses: None), "'advantages', which training.*'responses'"),
        (metric_class(lambda self, *things: None), r"\*things hides"),
        (metric_class(lambda self, **things: None), r"\*\*things hides"),
        (metric_class(lambda self: None), "asks for nothing"),
        (metric_class(lambda self, responses: None, spec=None), "says nowhere what it is"),
        (type("Bare", (Metric,), {"spec": MetricSpec("x"), "compute": lambda self: 0.0}), "lacks update"),
        (dict, "not a class derived"),
    ],
)
def test_what_cannot_be_served_is_refused_at_registration(made, message):
    def register_metrics(register):
        register("made", made)

    with pytest.raises(PluginError, match=message):
        PluginHost(path=[]).register(SimpleNamespace(register_metrics=hookimpl(register_metrics)), "maker")


def test_a_registered_metric_is_listed_built_and_counts_in_keys():
    host = PluginHost(path=[])
    host.register(SimpleNamespace(register_metrics=hookimpl(lambda register: register("asking", Asking))), "maker")
    [record] = [record for record in host.components("metrics") if record.name == "asking"]
    assert (record.kind, record.signature, record.tensors) == ("metric", "asking(responses)", ("responses",))
    assert str(record.hyperparameters["mark"]) == "'?'"
    assert record.to_json()["logs"] == {"asking": Asking.spec.to_json()}
    assert host.metric_specs()["asking"] is Asking.spec
    built = host.build("metric", "asking(mark='!')")
    assert built.arguments == {"mark": "!"}
    assert built.clone().arguments == {"mark": "!"}
    assert built.key() != host.build("metric", "asking").key()
    with pytest.raises(PluginError, match=r"did you mean.*mark"):
        host.build("metric", "asking(marks='!')")


def test_the_metrics_of_the_core_are_components_with_the_declarations_of_the_core():
    records = {record.name: record for record in PluginHost(path=[]).components("metric")}
    assert {"entropy", "accuracy", "calibration_error", *ANSWERS, *ASKED} == set(records)
    for name, record in records.items():
        assert record.logs == {name: CORE[name]}
        assert record.object.higher_is_better == {"up": True, "down": False, None: None}[CORE[name].better]
        assert set(record.tensors) <= set(OFFERS) or name in ("entropy", "accuracy", "calibration_error")


# -- declarations ------------------------------------------------------------------------------------------------------


def test_every_declaration_stands_in_the_docs():
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    for name, spec in {**STEPS, **ROUNDS, **COMPARISONS, **ANSWERS, **ASKED}.items():
        assert f"| `{name}` | {spec.unit} |" in page
        assert f"| {spec.doc} | {spec.bad} |" in page
    for record in default_host().components("optimizer"):
        if record.distribution.startswith("alignkit-"):
            for name, spec in record.logs.items():
                assert f"| {spec.doc} | {spec.bad} |" in page, f"{record.name} logs {name}"


def test_names_with_a_part_of_their_own_are_declared_by_their_pattern():
    assert spec_of("reward_safety_mean") is ROUNDS["reward_<name>_mean"]
    assert spec_of("reward_mean") is ROUNDS["reward_mean"]
    assert spec_of("odd") is None
    assert spec_of("odd", {"odd": Asking.spec}) is Asking.spec
    assert spec_of("kl_per_token").caption("kl_per_token") == "KL per token (nats)"
    assert MetricSpec("x", unit="share").caption("kept") == "kept"


def test_declarations_survive_a_stage_and_nonsense_in_its_file():
    assert MetricSpec.from_json(json.loads(json.dumps(CORE["kl"].to_json()))) == CORE["kl"]
    assert MetricSpec.from_json({"doc": 3, "what": "?", "unit": "m"}) == MetricSpec("", unit="m")
    assert MetricSpec.from_json(None) == MetricSpec("")


COMPARED = Groups.from_rows(
    {"prompt": f"Name {n}.", "responses": [f"{n}, of course", "no"], "ranks": [1, 2]} for n in range(4)
)
SMALL = {
    "ppo": use("ppo", rounds=1, prompts_per_round=4, batch_size=4, epochs=2),
    "grpo": use("grpo", rounds=1, prompts_per_round=4, samples_per_prompt=2),
    "dpo": use("dpo", batch_size=2),
    "rejection_sampling": use("rejection_sampling", samples_per_prompt=2, epochs=1, require_finished=False),
}


def letters(response):
    return sum("a" <= c <= "z" for c in response) / max(len(response), 1)


@pytest.mark.parametrize("method", SMALL)
def test_every_number_that_a_method_logs_is_declared(tmp_path, method):
    with Run(tmp_path, quiet=True) as run:
        v0 = run.policy("tiny", lora=LoRA(r=2))
        reward = None if method == "dpo" else letters
        options = {"reward": reward, "reference": v0, "max_new_tokens": 8, "name": "v1"}
        made = run.improve(v0, COMPARED, optimizer=SMALL[method], **options)
    rows = [json.loads(line) for line in (made.policy.path / "metrics.jsonl").read_text().splitlines()]
    specs = {name: MetricSpec.from_json(spec) for name, spec in made.result["specs"].items()}
    names = {name for row in rows for name in row} - {"step", "round", "epoch"}
    assert {"loss", "lr", "grad_norm", "entropy"} <= names
    assert not [name for name in sorted(names) if spec_of(name, specs) is None]


# -- evaluations and training that ask for metrics ---------------------------------------------------------------------

ANSWERED = Groups.from_rows(
    [
        {"prompt": "a", "responses": ["x?", "y"], "finished": [True, None], "rewards": []},
        {"prompt": "b", "responses": ["z?", "z?"], "finished": [False, False], "rewards": []},
        {"prompt": "c", "responses": ["z"]},
    ]
)


def test_metrics_of_single_prompts_are_computed_prompt_by_prompt_and_others_over_all():
    offered = answers_offered(ANSWERED, [[1.0, 3.0]], None)
    ids = [row["prompt_id"] for row in ANSWERED]
    given = {
        "asking": Asking(),
        "kl": KL(),
        "finished": Finished(),
        "response_length": Length(),
        "distinct": Distinct(n=1),
    }
    given |= {"over_all": AskingOverAll(), "perplexity": Perplexity()}
    for name in ("asking", "over_all"):
        given[name].update(["stale?"] * 9)
    found = measure_answers(given, offered)
    assert found.by_prompt["asking"] == {ids[0]: 0.5, ids[1]: 1.0, ids[2]: 0.0}
    assert found.by_prompt["kl"] == {ids[0]: 2.0}
    assert found.by_prompt["finished"] == {ids[0]: 1.0, ids[1]: 0.0}
    assert found.by_prompt["distinct"] == {ids[0]: 1.0, ids[1]: 0.5, ids[2]: 1.0}
    assert "response_length" not in found.by_prompt
    assert found.values == {"over_all": 3 / 5}
    assert found.states["over_all.weight"] == 5
    kept = found.states["kl.per_prompt"]
    assert kept[0] == 2.0
    assert kept[1:].isnan().all()


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """One run with two versions, the second measured by more."""
    folder = tmp_path_factory.mktemp("evaluated")
    prompts = Groups.from_prompts([f"prompt {i} {'x' * i}" for i in range(5)])
    with Run(folder, quiet=True) as run:
        v0 = run.policy("tiny")
        options = {"n": 2, "max_new_tokens": 6, "reference": v0}
        # A score may have the name of a metric that was not asked for.
        plain = run.evaluate(v0, prompts, {"letters": letters, "perplexity": letters}, **options, name="plain")
        wanted = {"perplexity": "perplexity", "spread": Spread, "e": use("distinct", n=1), "asking": Asking(mark="e")}
        more = run.evaluate(v0, prompts, {"letters": letters}, **options, metrics=wanted, label="V1", name="more")
    return folder, plain, more


def test_what_was_asked_for_stands_beside_the_scores(evaluated):
    _, plain, more = evaluated
    always = ["kl", "response_length", "finished"]
    assert set(plain.metrics) == {"letters", "perplexity", *always}
    assert set(more.metrics) == {"letters", *always, "e", "asking", "perplexity", "spread", "spread_longest"}
    for name in ("letters", *always):
        assert more.metrics[name] == plain.metrics[name]
    assert set(more.metrics["asking"]) == set(more.metrics["letters"]) == {"mean", "low", "high", "n"}
    assert more.metrics["asking"]["n"] == 5
    assert isinstance(more.metrics["perplexity"], float)
    rows = [json.loads(line) for line in (more.path / "evaluation.jsonl").read_text().splitlines()]
    assert more.metrics["spread_longest"] == max(row["response_length"] for row in rows)
    assert more.metrics["asking"]["mean"] == sum(row["response"].endswith("e") for row in rows) / len(rows)
    assert "specs" not in plain.result
    assert set(more.result["specs"]) == {"perplexity", "spread", "spread_longest", "e", "asking"}


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_log_probs_of_answers_are_those_at_temperature_one(tmp_path, temperature):
    """Compared with those that the sampler kept, and with a plain forward pass of the model, answer by answer."""
    prompts = Groups.from_prompts(["a", "what is b?", "c"])
    with Run(tmp_path, quiet=True) as run:
        v0 = run.policy("tiny")
        sampled = run.sample(v0, prompts, n=3, max_new_tokens=9, temperature=temperature).groups
    policy = v0.load()
    found = answer_logprobs(policy, sampled, 64, 512)
    for row, logprobs in zip(sampled, found, strict=True):
        assert logprobs is not None
        prompt = policy.chat.encode_prompt(row["prompt"])
        for k, ids in enumerate(row["response_ids"]):
            with torch.no_grad():
                logits = policy.model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
            plain = logits.log_softmax(-1).gather(-1, torch.tensor(ids).unsqueeze(-1)).squeeze(-1)
            assert logprobs[k, : len(ids)].tolist() == pytest.approx(plain.tolist(), abs=1e-4)
            assert logprobs[k, len(ids) :].isnan().all()
            same = row["logprobs"][k] == pytest.approx(plain.tolist(), abs=1e-4)
            assert same == (temperature == 1.0)


def test_the_perplexity_of_an_evaluation_is_over_all_its_tokens(evaluated):
    _, _, more = evaluated
    rows = [json.loads(line) for line in (more.path / "evaluation.jsonl").read_text().splitlines()]
    kept = states.load(more.path)
    assert kept["perplexity.count"] == sum(row["response_length"] for row in rows)
    assert more.metrics["perplexity"] == pytest.approx(math.exp(kept["perplexity.total"] / kept["perplexity.count"]))


def test_the_states_of_an_evaluation_are_kept_with_its_stage(evaluated):
    _, _, more = evaluated
    again = {"perplexity": Perplexity(), "spread": Spread()}
    states.restore(again, states.load(more.path))
    for name, metric in again.items():
        assert values_of(name, metric)[name] == more.metrics[name]
    assert states.load(more.path)["asking.per_prompt"].mean() == pytest.approx(more.metrics["asking"]["mean"])


def test_the_table_and_the_page_show_what_was_asked_for(evaluated):
    folder, _, _ = evaluated
    head, _, plain, more, *rest = version_table(folder).splitlines()
    fits = ["version", "letters", "perplexity", "KL", "tokens", "ended", "asking", "distinct", "perplexity"]
    assert head.split() == fits
    assert rest[0] == "(2 more columns in the report)"
    assert [line.split()[0] for line in (plain, more)] == ["plain", "V1"]
    page = write_report(folder).read_text(encoding="utf-8")
    assert ">Spread</th>" in page
    assert "<dt>asking</dt><dd>share of answers that ask back. Bad: it rises</dd>" in page


@pytest.mark.parametrize(
    ("metrics", "options", "message"),
    [
        (["self_bleu"], {}, "needs 2 answers"),
        ([use("distinct", n=1), "distinct"], {}, "two metrics are called 'distinct'"),
        (["response_length"], {}, "always there"),
        ({"letters": "distinct"}, {}, "has this name"),
        (["entropy"], {}, "asks for entropy, which evaluations do not have"),
        ([metric_class(lambda self, kl: None)], {}, "no reference"),
        (["perplexities"], {}, "did you mean perplexity"),
    ],
)
def test_an_evaluation_refuses_what_it_cannot_feed_before_it_samples(tmp_path, metrics, options, message):
    with Run(tmp_path, quiet=True, plan=True) as run, pytest.raises((ConfigError, PluginError), match=message):
        run.evaluate(run.policy("tiny"), Groups.from_prompts(["a"]), {"letters": letters}, metrics=metrics, **options)


def test_another_setting_of_a_metric_is_another_stage(tmp_path):
    prompts = Groups.from_prompts(["a", "b"])

    def stage(folder, metrics):
        with Run(tmp_path / folder, quiet=True) as run:
            v0 = run.policy("tiny")
            options = {"max_new_tokens": 4, "metrics": metrics, "name": "e"}
            return run.evaluate(v0, prompts, {"letters": letters}, **options).key

    assert stage("a", [Asking(mark="!")]) == stage("a", [Asking(mark="!")]) == stage("b", [Asking("!")])
    assert stage("a", [Asking]) not in (stage("a", [Asking(mark="!")]), stage("a", []))


def test_training_measures_what_it_is_asked_for_and_learns_the_same(tmp_path):
    rows = Groups.from_rows({"prompt": f"{n}", "responses": [f"answer {n}" * (1 + n)]} for n in range(4))
    found = []
    for metrics in (["perplexity"], []):
        with Run(tmp_path / str(len(metrics)), quiet=True, max_tokens=64) as run:
            v0 = run.policy("tiny", lora=LoRA(r=2))
            tuned = run.sft(v0, rows, batch_size=2, metrics=metrics)
            with pytest.raises(ConfigError, match="responses, which this stage does not have"):
                run.sft(v0, rows, metrics=[Asking], name="never")
        steps = [json.loads(line) for line in (tuned.path / "metrics.jsonl").read_text().splitlines()]
        found.append((tuned, steps))
    (measured, steps), (bare, plain) = found
    assert [step.pop("perplexity") for step in steps] == pytest.approx([math.exp(step["loss"]) for step in plain])
    assert steps == plain
    assert len(steps) == 2
    assert measured.result["specs"]["perplexity"]["title"] == "Perplexity"
    assert "specs" not in bare.result


def test_a_held_out_report_tells_the_calibration_error_beside_the_accuracy():
    odds = math.log(3.0)
    report = comparison_report(COMPARED, Scores([[odds, 0.0]] * 3 + [[0.0, odds]], [[None, None]] * 4))
    assert report["accuracy"]["overall"]["mean"] == 0.75
    assert report["calibration_error"] == pytest.approx(0.0, abs=1e-6)
    sure = comparison_report(COMPARED, Scores([[50.0, 0.0]] * 3 + [[0.0, 50.0]], [[None, None]] * 4))
    assert sure["accuracy"] == report["accuracy"]
    assert sure["calibration_error"] == pytest.approx(0.25)


def test_what_a_stage_that_trains_has_counted_is_kept_and_taken_up_again(tmp_path):
    """Over all steps: the same number as of all tokens at once, since the rate is nearly nothing."""
    rows = Groups.from_rows({"prompt": f"{n}", "responses": [f"answer {n}" * (1 + n)]} for n in range(4))
    with Run(tmp_path, quiet=True, max_tokens=64) as run:
        v0 = run.policy("tiny", lora=LoRA(r=2))
        tuned = run.sft(v0, rows, batch_size=2, learning_rate=1e-12, metrics=["perplexity"])
        answers = run.evaluate(v0, rows, {}, answers="given", metrics=["perplexity"])
    again = Perplexity()
    states.restore({"perplexity": again}, states.load(tuned.path))
    assert float(again.compute()) == pytest.approx(answers.metrics["perplexity"], rel=1e-5)
