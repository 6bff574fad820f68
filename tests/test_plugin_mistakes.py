"""A plugin's mistake ends in one message that names the plugin, its hook, the round and the row."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from alignkit import Annotator, Batch, FunctionReward, PolicyOptimizer, Reward, Run, Sampler, Term
from alignkit.annotators import FunctionAnnotator, annotated
from alignkit.calls import calling, never_exits, release, releasing, whose, within
from alignkit.cli import main
from alignkit.errors import AlignkitError, ConfigError, NumericError, PluginError
from alignkit.metrics import Metric
from alignkit.rewards import Scores, metered_scores
from alignkit.sampling.decode import pick_tokens
from alignkit.sampling.drawing import Drawing
from alignkit.testing import DEMOS, PAIRS, PROMPTS, learn, one_step, rollouts, tiny_policy

HERE = "test_plugin_mistakes"


def nll(logprobs):
    return -logprobs


@dataclass(frozen=True)
class Mine(PolicyOptimizer):
    """Learns from its samples; `make` changes what `prepare` returns, `also` other hooks."""

    loss: Any = nll
    samples_per_prompt: int = 2
    batch_size: int = 0
    make: Any = None
    also: Any = field(default_factory=dict)

    def prepare(self, groups, state):
        return Batch(groups) if self.make is None else self.make(groups)

    def keep(self, groups):
        return self.also["keep"](groups) if "keep" in self.also else None

    def update(self, state, metrics):
        return self.also["update"](state) if "update" in self.also else {}

    def stop_epochs(self, metrics):
        return self.also["stop_epochs"]() if "stop_epochs" in self.also else False

    def initial_state(self):
        return self.also["initial_state"]() if "initial_state" in self.also else {}


def fail(*_args, **_named):
    raise KeyError("oh")


def leave(*_args, **_named):
    sys.exit(0)


def learned(method, **options):
    return learn(rollouts(tiny_policy(), method, **options), method)


# -- the losses --------------------------------------------------------------------------------------------------------


def leaving(logprobs):
    sys.exit(0)


def failing(logprobs):
    return -logprobs[:, 1000]


def nothing(logprobs):
    return None


def deep(logprobs):
    return -logprobs.unsqueeze(-1)


def short(logprobs):
    return -logprobs[:, :-1]


def flat(logprobs):
    return -logprobs.sum(0)


def detached(logprobs):
    return -logprobs.detach()


def elsewhere(logprobs):
    return -logprobs.to("meta")


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (leaving, r"called sys.exit\(0\)"),
        (failing, r"raised IndexError: .* at test_plugin_mistakes.py:\d+"),
        (nothing, "returned .*NoneType"),
        (deep, r"shape \[10, \d+, 1\]"),
        (short, r"a token term here has \[10, \d+\]"),
        (flat, "a response term here has"),
        (detached, "weight 1.0 and no gradient"),
        (elsewhere, "is on meta"),
    ],
)
def test_a_loss_is_named_with_its_step_and_prompts(loss, said):
    with pytest.raises(PluginError, match=said) as found:
        one_step(tiny_policy(), DEMOS, loss, Term(reduction="token"))
    assert f"{HERE}.{loss.__name__}" in found.value.where
    assert "round 0, step 1, prompts " in found.value.where


def test_one_detached_term_among_others_is_refused():
    def two(logprobs):
        return {"one": -logprobs, "two": logprobs.detach() ** 2}

    with pytest.raises(PluginError, match=r"term 'two' has weight 1\.0 and no gradient"):
        one_step(tiny_policy(), DEMOS, two, {"one": Term(), "two": Term()})
    one_step(tiny_policy(), DEMOS, two, {"one": Term(), "two": Term(weight=0.0)})


def test_a_term_of_zeros_needs_no_gradient():
    """Where a micro-batch holds nothing to learn from, zeros are as good as any."""

    def two(logprobs):
        return {"one": -logprobs, "two": torch.zeros(len(logprobs))}

    one_step(tiny_policy(), DEMOS, two, {"one": Term(), "two": Term()})


def test_a_nan_names_loss_round_and_the_row_that_prepare_made():
    def weighted(logprobs, advantages):
        return -logprobs * advantages.unsqueeze(-1) if advantages.ndim == 1 else -logprobs * advantages

    def make(groups):
        values = torch.ones(groups.num_responses, 64)
        values[3] = float("nan")
        return Batch(groups, {"advantages": values})

    method = Mine(loss=weighted, make=make)
    with pytest.raises(NumericError) as found:
        learned(method)
    prompt = PROMPTS[1]["prompt_id"]
    assert f"advantages is not, for response 1 to prompt {prompt}" in str(found.value)
    assert "weighted" in found.value.where
    assert "round 0, step 1" in found.value.where


# -- the optimizer -----------------------------------------------------------------------------------------------------


def tensors(values):
    return lambda groups: Batch(groups, {"advantages": values(groups.num_responses)})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (fail, "raised KeyError: 'oh'"),
        (leave, r"called sys.exit\(0\)"),
        (lambda groups: None, "returned a NoneType"),
        (lambda groups: Batch(list(groups)), "returned a Batch of a list"),
        (tensors(lambda r: torch.ones(r - 1, 64)), "advantages of"),
        (tensors(lambda r: torch.ones(r // 2, 2)), "advantages of"),
        (tensors(lambda r: torch.ones(r, 3)), "advantages has 3 tokens, the longest response"),
        (tensors(lambda r: torch.ones(r)), "one number per token"),
        (tensors(lambda r: [1.0] * r), "advantages of list"),
        (lambda groups: Batch(groups, state=[1]), "the state is a list"),
        (lambda groups: Batch(groups, state={"seen": {1}}), "the state cannot be kept"),
        (lambda groups: Batch(groups, metrics={"seen": "many"}), "a metric that is no number"),
        (lambda groups: Batch(groups, metrics=None), "metrics that are a NoneType"),
        (lambda groups: Batch(groups, tensors=None), "tensors that are a NoneType"),
        (lambda groups: Batch(groups, tensors=[1]), "tensors that are a list"),
        (lambda groups: Batch(groups, pairs=[(0, 0)]), "made the pair"),
        (lambda groups: Batch(groups, pairs=[(0, 99)]), "made the pair"),
        (lambda groups: Batch(groups, pairs=[(0, -1)]), "made the pair"),
        (lambda groups: Batch(groups, pairs=[(0,)]), "made the pair"),
        (lambda groups: Batch(groups, pairs=[(0.0, 1.5)]), "made the pair"),
        (lambda groups: Batch(groups, pairs=[None]), "made the pair"),
        (lambda groups: Batch(groups, pairs=[("a", "b")]), "made the pair"),
        (tensors(lambda r: torch.ones(r, 64, device="meta")), "without values"),
        (tensors(lambda r: torch.ones(r, 64, dtype=torch.complex64)), "complex"),
        (tensors(lambda r: torch.ones(r, 64, requires_grad=True)), "not detached"),
    ],
)
def test_prepare_is_named_with_its_round(make, said):
    with pytest.raises(PluginError, match=said) as found:
        learned(Mine(make=make))
    assert f"{HERE}.Mine.prepare" in found.value.where
    assert found.value.where.count("round 0") == 1


@pytest.mark.parametrize(
    ("hook", "wrong", "said"),
    [
        ("keep", fail, "raised KeyError"),
        ("keep", leave, "sys.exit"),
        ("keep", lambda groups: [True], "1 flags for"),
        ("keep", lambda groups: 5, "raised TypeError"),
        ("update", fail, "raised KeyError"),
        ("update", lambda state: None, "the state is a NoneType"),
        ("update", lambda state: {"mean": float("nan")}, "cannot be kept"),
        ("stop_epochs", fail, "raised KeyError"),
        ("stop_epochs", leave, "sys.exit"),
    ],
)
def test_other_hooks_are_named_with_their_round(hook, wrong, said):
    with pytest.raises(PluginError, match=said) as found:
        learned(Mine(also={hook: wrong}))
    assert f"{HERE}.Mine" in found.value.where
    assert "round 0" in found.value.where


@pytest.mark.parametrize("wrong", [fail, leave, lambda: None])
def test_a_state_to_begin_with_is_looked_at(wrong):
    with pytest.raises(PluginError, match=r"Mine\.initial_state"):
        learned(Mine(also={"initial_state": wrong}))


@pytest.mark.parametrize(
    ("hook", "wrong", "said"),
    [
        ("terms", lambda self: None, "returned None"),
        ("terms", lambda self: {"loss": 1.0}, "returned"),
        ("streams", leave, "sys.exit"),
        ("extra_losses", lambda self: [nll], "returned a list"),
    ],
)
def test_declarations_are_looked_at_before_a_model_is_loaded(tmp_path, hook, wrong, said):
    @dataclass(frozen=True)
    class Theirs(Mine):
        pass

    method = Theirs()
    with Run(tmp_path / "r", quiet=True, plan=True) as run:
        v0 = run.policy("tiny")
        setattr(Theirs, hook, wrong)
        with pytest.raises(AlignkitError, match=said):
            run.improve(v0, PROMPTS, optimizer=method, reward=lambda response: 1.0)


def test_a_check_of_the_stage_is_named_before_a_model_is_loaded(tmp_path):
    @dataclass(frozen=True)
    class Theirs(Mine):
        def check_use(self, *, max_new_tokens, losses):
            raise KeyError("oh")

    with Run(tmp_path / "r", quiet=True, plan=True) as run:
        v0 = run.policy("tiny")
        with pytest.raises(PluginError, match=r"check_use: raised KeyError"):
            run.improve(v0, PROMPTS, optimizer=Theirs(), reward=lambda response: 1.0)


# -- what judges -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda response: {}["score"], "raised KeyError: 'score'"),
        (lambda response: "good", "raised TypeError: a score is a number, not the text 'good'"),
        (lambda response: "1.5", "not the text"),
        (lambda response: [1.0], "raised TypeError"),
        (leave, "sys.exit"),
    ],
)
def test_a_reward_function_is_named_with_the_prompt(function, said):
    reward = FunctionReward(lambda response: function(response), name="mine")
    with pytest.raises(PluginError, match=said) as found:
        metered_scores(PAIRS, reward)
    assert f"response 0 to prompt {PAIRS[0]['prompt_id']}" in found.value.where


class Given(Reward):
    name = "given"

    def __init__(self, answer):
        self.answer = answer

    def score(self, groups):
        return self.answer(groups)


def scores(change):
    def answer(groups):
        values = [[1.0] * size for size in groups.sizes()]
        return Scores(change(values), [[None] * size for size in groups.sizes()])

    return answer


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (fail, "raised KeyError"),
        (lambda groups: None, "returned a NoneType"),
        (lambda groups: [1.0], "returned a list"),
        (scores(lambda values: values[:-1]), "values for 3 groups of 4"),
        (scores(lambda values: [values[0][:1], *values[1:]]), "1 values for the 2 responses to prompt"),
        (scores(lambda values: [5.0, *values[1:]]), "a float values for the 2 responses"),
        (scores(lambda values: [["high", 1.0], *values[1:]]), "not the text 'high'"),
    ],
)
def test_a_rewards_answer_is_looked_at(answer, said):
    assert len(PAIRS) == 4
    with pytest.raises(PluginError, match=said) as found:
        metered_scores(PAIRS, Given(answer))
    assert f"{HERE}.Given.score" in found.value.where


def test_nan_of_a_reward_class_is_missing_as_that_of_a_function():
    found = metered_scores(PAIRS, Given(scores(lambda values: [[float("nan"), 1.0], *values[1:]])))
    assert found.values[0] == [None, 1.0]
    assert found.reasons[0] == ["the reward returned nan", None]


def test_a_reward_in_a_round_is_named_with_the_round():
    with pytest.raises(PluginError, match="raised KeyError") as found:
        learned(Mine(), reward=FunctionReward(fail_on_response))
    assert "round 0" in found.value.where


def fail_on_response(response):
    raise KeyError("oh")


class Clings(Given):
    """Fails to give back what it holds."""

    def key(self):
        return "clings"

    def release(self):
        raise KeyError("held")


class Held(Given):
    def release(self):
        self.given_back = True


def test_a_release_is_named_and_the_others_take_place():
    other = Held(fail)
    with pytest.raises(PluginError, match="raised KeyError: 'held'") as found, releasing(None, Clings(fail), other):
        pass
    assert f"{HERE}.Clings.release" in found.value.where
    assert other.given_back


def test_a_release_after_a_failure_hides_nothing(caplog):
    other = Held(fail)
    with pytest.raises(ValueError, match="the work's own"), releasing(Clings(fail), other):
        raise ValueError("the work's own")
    assert "Clings.release" in caplog.text
    assert other.given_back


@pytest.mark.parametrize("verb", ["score", "evaluate", "improve", "annotate"])
def test_every_verb_names_a_release(tmp_path, verb):
    clings = Clings(scores(lambda values: values))
    ranker = Ranks(lambda groups: {"preference": ranked(groups)})
    ranker.release, ranker.key = clings.release, clings.key
    with Run(tmp_path / "r", quiet=True) as run:
        v0 = run.policy("tiny", lora=None)
        calls = {
            "score": lambda: run.score(PAIRS, clings),
            "evaluate": lambda: run.evaluate(v0, PROMPTS, {"r": clings}, max_new_tokens=2),
            "improve": lambda: run.improve(v0, PROMPTS, optimizer=Mine(), reward=clings, max_new_tokens=2),
            "annotate": lambda: run.annotate(PAIRS, ranker),
        }
        with pytest.raises(PluginError, match=r"release: raised KeyError: 'held'"):
            calls[verb]()


class Ranks(Annotator):
    def __init__(self, answer):
        self.answer = answer

    def annotate(self, groups, seed=0):
        return self.answer(groups)


def ranked(groups, first=1):
    return groups.with_columns({"ranks": [list(range(first, first + size)) for size in groups.sizes()]})


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (fail, "raised KeyError"),
        (lambda groups: None, "returned a NoneType"),
        (lambda groups: {"preference": list(groups)}, "returned a dict of list"),
        (lambda groups: {"safety": ranked(groups)}, "gave .'safety'., it declares .'preference'."),
        (lambda groups: {"preference": groups.with_columns({"ranks": [None] * len(groups)})}, "has the ranks None"),
        (lambda groups: {"preference": ranked(groups, first=0)}, "has the ranks"),
        (lambda groups: {"preference": ranked(DEMOS)}, "that it was not given"),
        (lambda groups: {"preference": ranked(groups.select([0, 0]))}, "2 times, and was asked 1"),
        (lambda groups: {"preference": groups.with_columns({"ranks": [[1, None]] * len(groups)})}, "has the ranks"),
    ],
)
def test_an_annotators_answer_is_looked_at(answer, said):
    with pytest.raises(PluginError, match=said) as found:
        annotated(PAIRS, Ranks(answer), 0)
    assert f"{HERE}.Ranks.annotate" in found.value.where


def by_length(groups, seed):
    return ranked(groups)


@pytest.mark.parametrize("wrong", [fail, leave])
def test_what_gives_nothing_back_is_named(wrong):
    class Holds(Ranks):
        def release(self):
            wrong()

    with pytest.raises(PluginError, match=r"Holds\.release: (raised KeyError|called sys.exit)"):
        release(Holds(ranked))


def test_a_plain_function_is_an_annotator(tmp_path):
    with Run(tmp_path / "r", quiet=True) as run:
        found = run.annotate(PAIRS, by_length, name="a")
    assert found["preference"].groups.column("ranks") == [[1, 2]] * 4
    assert annotated(PAIRS, FunctionAnnotator(lambda groups: ranked(groups)), 0)["preference"][0]["ranks"] == [1, 2]
    with pytest.raises(PluginError, match=r"asks for .'b'."):
        FunctionAnnotator(lambda a, b: a)


# -- what samples ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers(Sampler):
    """What the sampler gives, changed."""

    change: Any = None

    def sample(self, *args, **named):
        return self.change(super().sample(*args, **named))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (fail, "raised KeyError"),
        (lambda groups: groups.rows, "returned a list"),
        (lambda groups: groups.select(range(len(groups))[::-1]), "row 0 answers prompt"),
        (lambda groups: groups.select([0]), "answered 1 of"),
        (lambda groups: groups.select([0] * len(groups)), "row 1 answers prompt"),
        (lambda groups: groups.with_columns({"response_ids": [None] * len(groups)}), "without their token ids"),
    ],
)
def test_a_sampler_answers_the_prompts_that_it_was_given(change, said):
    with pytest.raises(PluginError, match=said) as found:
        Drawing(tiny_policy(), Answers(max_new_tokens=2, change=change)).draw(PROMPTS, 2, seed=(0,))
    assert f"{HERE}.Answers.sample" in found.value.where


@pytest.mark.parametrize(
    ("warp", "said"),
    [
        (lambda logprobs: logprobs[:, :3], r"returned \[2, 3\] for log-probs \[2, 5\]"),
        (lambda logprobs: None, "returned a NoneType"),
        (lambda logprobs: torch.full_like(logprobs, -torch.inf), "in 2 of 2 rows"),
        (lambda logprobs: logprobs.masked_fill(torch.eye(2, 5) > 0, torch.nan), "in 2 of 2 rows"),
    ],
)
def test_a_truncation_leaves_something_in_every_row(warp, said):
    with pytest.raises(PluginError, match=said):
        pick_tokens(torch.zeros(2, 5), None, 1.0, warp)


# -- the rest ----------------------------------------------------------------------------------------------------------


class Broken(Metric):
    """Raises."""

    def update(self, logprobs):
        raise KeyError("oh")

    def compute(self):
        return torch.zeros(())


def test_a_metric_is_named_with_its_step():
    with pytest.raises(PluginError, match="raised KeyError") as found:
        one_step(tiny_policy(), DEMOS, nll, Term(), metrics={"broken": Broken()})
    assert f"{HERE}.Broken.update, round 0, step 1" in found.value.where


@pytest.mark.parametrize("wrong", [fail, leave, lambda groups, ctx: None])
def test_a_transform_is_named_with_its_stage(tmp_path, wrong):
    with Run(tmp_path / "r", quiet=True) as run, pytest.raises(PluginError) as found:
        run.transform(PAIRS, wrong, name="change")
    assert HERE in found.value.where
    assert "change" in found.value.where


@pytest.mark.parametrize("place", ["main", "import", "callback"])
def test_sys_exit_is_never_a_success(tmp_path, capsys, place):
    leaves = "import sys; sys.exit(0)"
    file = tmp_path / "mine.py"
    file.write_text(
        "import lightning\n"
        + (leaves + "\n" if place == "import" else "")
        + "from alignkit import Groups\n"
        + "class Leaves(lightning.Callback):\n    def on_train_start(self, *_):\n        import sys; sys.exit(0)\n"
        + "def main(run):\n"
        + (f"    {leaves}\n" if place == "main" else "")
        + "    run.trainer = {'callbacks': [Leaves()], 'accelerator': 'cpu'}\n"
        + "    run.sft(run.policy('tiny'), Groups.from_rows([{'prompt': 'a', 'responses': ['b']}]))\n",
        encoding="utf-8",
    )
    assert main(["run", str(file), "--run-dir", str(tmp_path / "r")]) == 2
    assert re.search(r"called sys\.exit\(0\) at mine.py:2|sys\.exit\(0\) was called", capsys.readouterr().err)


def test_what_explains_itself_goes_through():
    with pytest.raises(ConfigError, match="mine"), within("round 1"), calling(nll, ""):
        raise ConfigError("mine")
    with pytest.raises(KeyboardInterrupt), within("round 1"), calling(nll, ""), never_exits("here"):
        raise KeyboardInterrupt


def test_components_are_called_by_module_and_name():
    assert whose(Mine()) == whose(Mine) == f"{__name__}.Mine"
    assert whose(FunctionReward(letters)) == f"{__name__}.letters"


def letters(response):
    return 1.0


def raises(_self):
    raise AttributeError("oh")


@pytest.mark.parametrize("name", ["on_policy", "own_samples", "rounds_over"])
def test_what_a_method_says_of_itself_is_named(name):
    wrong = raises if name == "rounds_over" else property(raises)
    theirs = type("Theirs", (Mine,), {name: (lambda self, _prompts: raises(self)) if name == "rounds_over" else wrong})
    with pytest.raises(PluginError, match=rf"{HERE}.*Theirs\.{name}"):
        rollouts(tiny_policy(), theirs())


def test_a_number_of_rounds_is_a_whole_number():
    theirs = type("Theirs", (Mine,), {"rounds_over": lambda _self, _prompts: 2.5})
    with pytest.raises(PluginError, match=r"rounds_over is 2\.5"):
        rollouts(tiny_policy(), theirs())


def test_what_a_sampler_says_of_itself_is_named(tmp_path):
    theirs = dataclass(frozen=True)(type("Theirs", (Sampler,), {"truncates": property(raises), "__annotations__": {}}))
    with pytest.raises(PluginError, match=rf"{HERE}.*Theirs\.truncates"):
        rollouts(tiny_policy(), Mine(), sampler=theirs(max_new_tokens=4))
    run = Run(tmp_path)
    policy = run.policy("tiny")
    with pytest.raises(PluginError, match=r"Theirs\.truncates"):
        run.improve(policy, PROMPTS, optimizer=Mine(), reward=lambda response: 0.0, sampler=theirs(max_new_tokens=4))


@pytest.mark.parametrize("dimensions", [None, "preference", (), (1,)])
def test_an_annotator_of_any_class_says_its_dimensions(tmp_path, dimensions):
    class Duck:
        def annotate(self, groups, seed=0):
            return groups

        def key(self):
            return "duck"

    duck = Duck()
    if dimensions is not None:
        duck.dimensions = dimensions
    run = Run(tmp_path)
    with pytest.raises(PluginError, match=r"dimensions.*Duck|Duck.*dimensions"):
        run.annotate(PAIRS, annotator=duck)
    with pytest.raises(PluginError, match=r"dimensions.*Duck|Duck.*dimensions"):
        run.improve(run.policy("tiny"), PROMPTS, optimizer=Mine(), annotator=duck)
