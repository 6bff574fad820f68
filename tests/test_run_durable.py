"""A run: stages found again, changes told, nothing half-made, entered midway, planned, exported."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass

import pytest

from alignkit import Groups, LoRA, Piecewise, PolicyOptimizer, Run, Term
from alignkit.annotators import Annotator
from alignkit.errors import AlignkitError, ConfigError, DataError
from alignkit.identity import difference, function_key, plain
from alignkit.optimizers import Batch
from alignkit.run import compare_runs, free_run, list_runs, open_policy

PROMPTS = Groups.from_prompts([f"prompt {i}" for i in range(6)])
HELDOUT = Groups.from_prompts([f"other {i}" for i in range(4)])


def letters(response):
    return sum("a" <= c <= "z" for c in response) / max(len(response), 1)


@dataclass(frozen=True)
class Longest(Annotator):
    """Prefers the longer response."""

    def key(self):
        return "longest"

    def annotate(self, groups, seed=0):
        def judge(row):
            a, b = map(len, row["responses"])
            return {"ranks": [1, 2] if a >= b else [2, 1], "rating": "better", "dimension": "preference"}

        return {"preference": groups.map_rows(judge)}


def ranking(chosen_rewards, rejected_rewards):
    import torch

    return -torch.nn.functional.logsigmoid(chosen_rewards - rejected_rewards)


@dataclass(frozen=True)
class Winners(PolicyOptimizer):
    """Imitates the best of two."""

    samples_per_prompt: int = 2
    batch_size: int = 3
    learning_rate: float = 1e-3

    def prepare(self, groups, state, *, reward_name, history):
        values, _ = groups.rewards(reward_name)
        best = [max(range(len(v)), key=v.__getitem__) for v in values]
        rows = [
            {
                **row,
                "responses": [row["responses"][k]],
                **dict.fromkeys(("response_ids", "logprobs", "finished", "sampled_by", "rewards")),
            }
            for row, k in zip(groups, best, strict=True)
        ]
        return Batch(Groups.from_rows(rows), metrics={"history": float(len(history))})

    def terms(self):
        return {"loss": Term(reduction="token")}


def pipeline(run, learning_rate=1e-3, noise=0):
    v0 = run.policy("tiny", lora=LoRA(r=4))
    pairs = run.annotate(run.sample(v0, PROMPTS, 2, max_new_tokens=8), Longest())["preference"]
    reward = run.train_reward(v0, pairs, loss=ranking, batch_size=3, heldout_fraction=0.4, name="rm")
    first = run.improve(
        v0, PROMPTS, optimizer=Winners(), reward=reward, reference=v0, max_new_tokens=8, iteration=1, name="v1"
    )
    second = run.improve(
        first.policy,
        PROMPTS,
        optimizer=Winners(learning_rate=learning_rate),
        reward=reward,
        reference=v0,
        history=[first.rollouts],
        max_new_tokens=8,
        iteration=2,
        name="v2",
    )
    scores = {"letters": letters, "rm": reward}
    before = run.evaluate(v0, HELDOUT, scores, max_new_tokens=8, reference=v0, label="V0", name="e0")
    after = run.evaluate(second.policy, HELDOUT, scores, max_new_tokens=8, reference=v0, label="V2", name="e2")
    run.report()
    return v0, reward, second, before, after


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    with Run(folder, quiet=True) as run:
        results = pipeline(run)
    return folder, results


def stage_files(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted((folder / "stages").rglob("*"))
        if p.is_file()
        and p.name != "stage.json"
        and "arrow" not in p.name
        and p.name not in ("manifest.json", "state.json")
    }


def test_everything_is_there(done):
    folder, (_, reward, second, before, after) = done
    run = json.loads((folder / "run.json").read_text())
    assert run["status"] == "complete"
    assert len(run["stages"]) == 8
    assert second.rollouts.groups[0]["iteration"] == 2
    assert second.result["budget"]["generated_tokens"] > 0
    assert set(after.metrics) >= {"letters", "rm", "kl", "response_length", "finished"}
    assert before.metrics["kl"]["mean"] == 0.0
    learned = [json.loads(line) for line in (reward.handle.path / "metrics.jsonl").read_text().splitlines()]
    assert {"accuracy", "accuracy_better"} <= set(learned[0])
    assert all(0 <= row["accuracy"] <= 1 for row in learned)
    assert after.result["paired_to_first"]["letters"]["n"] == 4
    assert (folder / "report.html").stat().st_size > 5000
    steps = [json.loads(line) for line in (second.policy.path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps] == [1, 2]
    assert {"reward_mean", "kl_per_token", "kl_per_sequence", "eos_rate", "response_length", "entropy"} <= set(steps[0])
    assert steps[0]["history"] == 6


def test_the_same_script_again_makes_nothing(done, capsys):
    folder, _ = done
    before = stage_files(folder)
    with Run(folder) as run:
        pipeline(run)
    out = capsys.readouterr().out
    assert out.count("done already") == 8
    assert stage_files(folder) == before


def test_a_changed_argument_remakes_what_depends_on_it_and_says_so(done, capsys, tmp_path):
    folder = shutil.copytree(done[0], tmp_path / "copy")  # a run may be moved
    with Run(folder) as run:
        pipeline(run, learning_rate=2e-3)
    out = capsys.readouterr().out
    assert out.count("done already") == 6
    assert "v2: changed config.optimizer.learning_rate: 0.001 -> 0.002" in out
    assert len(list((folder / "stages").glob("*-v2-*"))) == 2
    assert free_run(folder) > 0
    assert len(list((folder / "stages").glob("*-v2-*"))) == 1


def test_same_seed_same_bytes_in_another_folder(done, tmp_path):
    _, (_, _, second, _, after) = done
    with Run(tmp_path / "again", quiet=True) as run:
        _, _, other, _, other_after = pipeline(run)
    ours, theirs = second.policy.path / "model", other.policy.path / "model"
    name = "adapter_model.safetensors"
    assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    assert second.rollouts.groups.map_rows(_no_digest).digest() == other.rollouts.groups.map_rows(_no_digest).digest()
    assert after.metrics == other_after.metrics


def _no_digest(row):
    return {"sampled_by": None}


def test_another_seed_makes_other_stages(done, tmp_path):
    folder, _ = done
    with Run(tmp_path / "other", seed=1, quiet=True) as run:
        samples = run.sample(run.policy("tiny", lora=LoRA(r=4)), PROMPTS, 2, max_new_tokens=8)
    first = sorted((folder / "stages").glob("*-sample-*"))
    assert samples.path.name != first[0].name
    assert Groups.load(first[0] / "groups")[0]["response_ids"] != samples.groups[0]["response_ids"]


def test_interrupted_stage_leaves_nothing_and_is_made_anew(tmp_path):
    def interrupting(response):
        raise KeyboardInterrupt

    folder = tmp_path / "cut"

    def script(reward):
        with Run(folder, quiet=True) as run:
            v0 = run.policy("tiny", lora=LoRA(r=4))
            run.evaluate(v0, HELDOUT, {"x": reward}, max_new_tokens=4, name="e")

    with pytest.raises(KeyboardInterrupt):
        script(interrupting)
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    assert len(list((folder / "stages").glob("[0-9]*"))) == 1
    script(letters)
    assert len(list((folder / "stages").iterdir())) == 2


def test_damaged_stage_is_refused_with_the_remedy(tmp_path):
    with Run(tmp_path / "r", quiet=True) as run:
        v0 = run.policy("tiny")
    next(v0.path.rglob("model.safetensors")).write_bytes(b"")
    with pytest.raises(AlignkitError, match="delete the folder"), Run(tmp_path / "r", quiet=True) as run:
        run.policy("tiny")


def test_plan_spends_nothing_and_shows_every_stage(done, tmp_path):
    run = Run(tmp_path / "planned", plan=True)
    pipeline(run)
    table = run.plan_table()
    for name in ("policy", "sample", "annotate", "rm", "v1", "v2", "e0", "e2"):
        assert name in table
    assert "cached" not in table
    assert not (tmp_path / "planned").exists()
    folder, _ = done
    again = Run(folder, plan=True)
    pipeline(again)
    assert again.plan_table().count("cached") == 8


def test_entered_midway(done, tmp_path):
    """A policy and a reward model of another run, annotations from a file: no stage before them is needed."""
    _, (_, reward, second, _, _) = done
    with Run(tmp_path / "midway", quiet=True) as run:
        policy = run.policy(second.policy.model_folder, lora=LoRA(r=4))
        model = run.reward_model(reward.model_folder, column="rm")
        data = run.groups(second.rollouts.groups)
        assert len(data) == 6
        v3 = run.improve(
            policy, PROMPTS, optimizer=Winners(), reward=model, reference=policy, max_new_tokens=8, name="v3"
        )
        end = run.evaluate(v3.policy, HELDOUT, {"rm": model}, max_new_tokens=8, reference=policy, name="e")
    assert end.metrics["rm"]["n"] == 4


def test_sft_lowers_the_loss_on_what_it_learns(tmp_path):
    demos = Groups.from_rows({"prompt": f"say {w}", "responses": [w * 3]} for w in ["ab", "cd", "ef", "gh"] * 4)
    with Run(tmp_path / "sft", quiet=True) as run:
        v0 = run.policy("tiny", lora=None)
        tuned = run.sft(v0, demos, epochs=4, batch_size=4, learning_rate=1e-2)
    rows = [json.loads(line) for line in (tuned.path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]
    assert len(rows) == 16


def test_useless_rows_are_refused_before_training(tmp_path):
    demos = Groups.from_rows([{"prompt": "a", "responses": ["b"]}, {"prompt": "c", "responses": [""]}])
    with Run(tmp_path / "bad", quiet=True) as run:
        v0 = run.policy("tiny")
        with pytest.raises(DataError, match="empty"):
            run.sft(v0, demos)
        kept = run.sft(v0, demos, drop_bad=True, name="dropped")
    assert kept.result["rows"] == 1


def with_values(logprobs, values, returns):
    return {"loss": -logprobs, "value_loss": (values - returns) ** 2}


@dataclass(frozen=True)
class Valued(PolicyOptimizer):
    """Learns that everything is worth 1."""

    loss: object = with_values
    learning_rate: float = 1e-3
    value_learning_rate: float = 3e-2

    def prepare(self, groups, state, *, response_mask, values):
        return Batch(groups, {"returns": response_mask.float()}, {"value": float(values.sum() / response_mask.sum())})

    def terms(self):
        return {"loss": Term(weight=0.01), "value_loss": Term()}


@pytest.mark.parametrize("lora", [None, LoRA(r=4)])
@pytest.mark.parametrize("value_model", ["head", "separate"])
def test_value_model_goes_on_in_the_next_version(tmp_path, value_model, lora):
    with Run(tmp_path / "values", quiet=True) as run:
        v0 = run.policy("tiny", lora=lora)
        shared = {"optimizer": Valued(), "reward": letters, "max_new_tokens": 6, "value_model": value_model}
        first = run.improve(v0, PROMPTS, name="v1", **shared)
        second = run.improve(first.policy, PROMPTS, name="v2", **shared)
    assert first.result["last"]["value"] == 0.0  # a fresh head says 0
    assert second.result["last"]["value"] > 0.005  # and what it learned is there for the next version


def test_transform_may_sample(tmp_path):
    def twice(groups, ctx):
        return ctx.sample(groups, 2, max_new_tokens=4)

    with Run(tmp_path / "t", quiet=True) as run:
        out = run.transform(PROMPTS, twice, policy=run.policy("tiny"))
    assert out.groups.num_responses == 12


def test_export_is_a_plain_folder_with_its_lineage(done, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = shutil.copytree(done[0], tmp_path / "copy")
    with Run(folder, quiet=True) as run:
        path = run.export(pipeline(run)[2].policy)
    AutoModelForCausalLM.from_pretrained(path)
    card = (path / "README.md").read_text()
    for name in ("rm", "v1", "v2", "sample"):
        assert f"**{name}**" in card
    assert open_policy(folder).chat.vocab_size > 256


def test_listing_and_comparing(done, tmp_path):
    folder, _ = done
    rows = list_runs(folder.parent)
    assert rows[0]["name"] == "first"
    assert rows[0]["bytes"] > 0
    with Run(tmp_path / "b", seed=2, quiet=True) as run:
        run.policy("tiny", lora=LoRA(r=4))
    text = compare_runs(folder, tmp_path / "b")
    assert "seed: " in text
    with pytest.raises(ConfigError, match="not a run folder"):
        compare_runs(folder, tmp_path)


def test_stage_names_are_unique(tmp_path):
    with Run(tmp_path / "n", quiet=True) as run:
        run.policy("tiny")
        with pytest.raises(ConfigError, match="two stages"):
            run.policy("tiny")


def test_functions_count_by_source_defaults_and_closure():
    def make(limit):
        def reward(response, scale=2.0):
            return min(len(response) * scale, limit)

        return reward

    assert function_key(make(3)) == function_key(make(3))
    assert function_key(make(3)) != function_key(make(4))
    namespace = {}
    exec("def unseen(response): return 1.0", namespace)
    with pytest.raises(ConfigError, match="version="):
        function_key(namespace["unseen"])
    assert function_key(namespace["unseen"], version="2")["version"] == "2"
    with pytest.raises(ConfigError, match="key"):
        plain(object())


def test_differences_are_named():
    assert difference({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2}) == ["a.b: 1 -> 3"]


def test_piecewise_of_two_models_logs_its_parts(done, tmp_path):
    _, (_, reward, _, _, _) = done
    with Run(tmp_path / "pw", quiet=True) as run:
        v0 = run.policy("tiny", lora=LoRA(r=4))
        safe = run.reward_model(reward.model_folder, column="safety", name="s")
        helpful = run.reward_model(reward.model_folder, column="helpfulness", name="h")
        made = run.improve(
            v0, PROMPTS, optimizer=Winners(), reward=Piecewise(safe, helpful), reference=v0, max_new_tokens=8
        )
    names = made.rollouts.groups.reward_names()
    assert names == ["helpfulness", "piecewise", "safety"]


def test_the_code_of_required_plugins_counts():
    """A recipe's plugin needs the task's, whose code decides what it scores; the core is not among them."""
    from alignkit.identity import module_code, required_plugins

    needed = set(required_plugins("alignkit-recipes"))
    assert "alignkit-tasks" in needed
    assert not {"alignkit", "alignkit-recipes", "torch"} & needed
    assert required_plugins("no-such-distribution") == ()
    import alignkit_recipes.method
    import alignkit_tasks.annotator

    codes = [module_code(alignkit_recipes.method.__name__), module_code(alignkit_tasks.annotator.__name__)]
    assert all(codes)
    assert codes[0] != codes[1]


def test_a_stage_names_the_plugins_that_its_plugin_requires(tmp_path):
    from alignkit.stages import Context, Transform

    with Run(tmp_path, quiet=True) as run:
        context = Context(run.host)
        stage = Transform(PROMPTS, lambda groups, ctx: groups).resolved(context)
        context.used.append((run.host.resolve("recipe", "llama2"), None))
        identity = run.identity(stage, context)
    assert {"alignkit", "alignkit-recipes", "alignkit-tasks"} <= set(identity["code"])
