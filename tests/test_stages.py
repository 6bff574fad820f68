"""A verb is one declaration: each of its fields counts in its key, or is marked and changes no byte of the result."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from alignkit import Groups, LoRA, PolicyOptimizer, Run, Sampler, use
from alignkit.errors import ConfigError, PluginError
from alignkit.identity import digest
from alignkit.optimizers import Batch, Term
from alignkit.plugin import Mean, MetricSpec
from alignkit.registry.hookspecs import hookimpl
from alignkit.registry.host import PluginHost
from alignkit.stages import CORE, NO_EFFECT, Cost, Made, Place, Stage
from alignkit.stages.base import Context
from alignkit.stages.handles import EvaluationHandle, GroupsHandle, Handle, PolicyHandle, RewardHandle
from alignkit.stages.verbs import documentation

HOST = PluginHost(allow=())
PROMPTS = Groups.from_prompts(["a", "b"])
PAIRS = Groups.from_rows({"prompt": p, "responses": ["yes", "no"], "ranks": [1, 2]} for p in "abcdef")


def policy(letter: str, lora: LoRA | None = None) -> PolicyHandle:
    return PolicyHandle(letter * 64, letter, None, {}, lora=lora, parameters=10)


def reward_model(letter: str) -> RewardHandle:
    return RewardHandle(Handle(letter * 64, letter, None, {}), "r")


def groups(letter: str) -> GroupsHandle:
    return GroupsHandle(letter * 64, letter, None, {}, expected=2)


def ranking(chosen_rewards, rejected_rewards, *, width=1.0):
    return width - (chosen_rewards - rejected_rewards)


def other_ranking(chosen_rewards, rejected_rewards):
    return rejected_rewards - chosen_rewards


def weighed_nll(logprobs, *, weight=1.0):
    return -weight * logprobs


def short(response):
    return -float(len(response))


def long(response):
    return float(len(response))


@dataclass(frozen=True)
class First:
    """An annotator whose key is its field."""

    dimensions: ClassVar[tuple[str, ...]] = ("preference",)
    place: int = 0

    def annotate(self, groups, seed=0):
        return {"preference": groups}

    def release(self):
        pass

    def key(self):
        return {"first": self.place}


@dataclass(frozen=True)
class Method(PolicyOptimizer):
    """Names a loss, an extra loss and a stream by fields of its own, and has a state."""

    loss: Any = weighed_nll
    extra: Any = None
    mixed: bool = False

    def prepare(self, groups, state):
        return Batch(groups)

    def initial_state(self):
        return {"seen": 0}

    def terms(self):
        return {"loss": Term(), **({"more": Term()} if self.extra else {})}

    def extra_losses(self):
        return {"more": self.extra} if self.extra else {}

    def streams(self):
        from alignkit.optimizers import Stream

        return {"mix": Stream()} if self.mixed else {}


def doubled(groups, ctx):
    return groups


def trebled(groups, ctx):
    return Groups.concat([groups])


class MeanChosen(Mean):
    """A metric of the user's own."""

    spec = MetricSpec("the mean log-prob")

    def update(self, logprobs, response_mask):
        super().update((logprobs * response_mask).sum(), response_mask.sum())


class Answered(Mean):
    """A metric of what every stage that trains has."""

    spec = MetricSpec("the share of tokens that are learned from")

    def update(self, response_mask):
        super().update(response_mask.double().mean())


# What each field is in the first place, and what it is changed to; a field that is not here fails the test.
SHARED = {
    "epochs": (1, 2), "batch_size": (16, 8), "learning_rate": (1e-4, 2e-4), "schedule": ("cosine", "linear"),
    "warmup_ratio": (0.03, 0.1), "min_lr_ratio": (0.1, 0.2), "betas": ((0.9, 0.95), (0.9, 0.99)), "eps": (1e-5, 1e-8),
    "weight_decay": (0.0, 0.1), "max_grad_norm": (1.0, 0.5), "max_length": (1024, 512), "drop_bad": (False, True),
    "checkpointing": (False, True), "metrics": ((), [Answered]), "name": ("one", "two"), "max_steps": (0, 5),
    "budget": (None, {"trained_tokens": "2k"}),
}  # fmt: skip
NO_CODE = hashlib.sha256().hexdigest()[:40]
FIELDS: dict[str, dict[str, tuple[Any, Any]]] = {
    "policy": {"spec": ("tiny", None), "lora": (LoRA(r=4), LoRA(r=8)), "chat_template": (None, "{{ x }}"),
               "chat_template_kwargs": (None, {"x": True}), "base": (None, "tiny"), "code_revision": (None, NO_CODE)},
    "sft": {
        "policy": (policy("a"), policy("b")), "demonstrations": (groups("c"), PROMPTS),
        "loss": (weighed_nll, use("alignkit/nll")), "train": ("last", "all"), "heldout_fraction": (0.0, 0.1), **SHARED,
    },
    "sample": {
        "policy": (policy("a"), [policy("a"), policy("b")]), "prompts": (groups("c"), PROMPTS), "n": (1, 2),
        "sampler": (Sampler(), Sampler(stop=("x",))), "temperature": (None, [0.8, 1.1]), "max_new_tokens": (None, 9),
        "budget": (None, {"generated_tokens": "2k"}),
    },
    "annotate": {"groups": (groups("c"), PAIRS), "annotator": (First(), First(1))},
    "train_reward": {
        "init": (policy("a"), reward_model("b")), "comparisons": (groups("c"), [groups("c"), PAIRS]),
        "loss": (ranking, other_ranking), "replay": ((), [groups("d")]), "replay_fraction": (1.0, 0.5),
        "heldout_fraction": (0.1, 0.2), "column": ("r", "s"), "pooling": (None, "mean"),
        "lora": ("default", LoRA(r=2)), "by_prompt": (False, True), **SHARED,
    },
    "reward_model": {"spec": (None, None), "column": ("r", "s"), "code_revision": (None, NO_CODE)},
    "improve": {
        "policy": (policy("a"), policy("b")), "data": (groups("c"), PROMPTS), "optimizer": (Method(), Method(epochs=2)),
        "reward": (short, long), "annotator": (None, First()), "reference": (None, policy("a")),
        "reference_logprobs": ("kept", "online"), "streams": (None, None), "init": (None, policy("d")),
        "state": (None, {"seen": 1}),
        "history": ((), [groups("e")]), "heldout": (None, PROMPTS), "patience": (0, 1), "max_new_tokens": (None, 9),
        "sampler": (Sampler(), Sampler(batch_size=2)), "max_length": (1024, 512), "max_missing": (0.05, 0.5),
        "drop_bad": (False, True), "value_model": ("head", "separate"),
        "checkpointing": (False, True), "iteration": (None, 1), "metrics": ((), [MeanChosen]), "max_steps": (0, 5),
        "budget": ({"generated_tokens": 1000}, {"generated_tokens": "2k"}),
    },
    "score": {"groups": (groups("c"), PAIRS), "reward": (short, long)},
    "transform": {
        "groups": (groups("c"), PROMPTS), "transform": (doubled, trebled), "policy": (None, policy("a")),
        "sampler": (Sampler(), Sampler(stop=("x",))),
    },
    "evaluate": {
        "policy": (policy("a"), policy("b")), "prompts": (groups("c"), PROMPTS), "n": (1, 2),
        "scores": ({"s": short}, {"s": long}), "sampler": (Sampler(), Sampler(stop=("x",))), "temperature": (1.0, 0.5),
        "greedy": (False, True), "max_new_tokens": (128, 9), "reference": (None, policy("a")), "kl_prompts": (None, 2),
        "label": ("V0", "V1"), "baseline": (None, EvaluationHandle("f" * 64, "f", None, {})),
        "answers": ("sampled", "given"), "metrics": ((), ["perplexity"]),
    },
    "groups": {"groups": (PROMPTS, PAIRS)},
    "export": {
        "model": (policy("a", LoRA(r=2)), policy("b", LoRA(r=2))), "dtype": (None, "float32"), "adapter": (False, True),
        "centre": (None, PROMPTS),
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A policy and two reward models on disk, made by a run."""
    with Run(tmp_path_factory.mktemp("made") / "run", quiet=True, host=HOST) as run:
        v0 = run.policy("tiny", lora=LoRA(r=4))
        first = run.train_reward(v0, PAIRS, loss=ranking, heldout_fraction=0.0, name="first")
        second = run.train_reward(v0, PAIRS, loss=other_ranking, heldout_fraction=0.0, name="second")
    return {"policy": v0, "pairs": PAIRS, "rewards": (first, second)}


def key(kind: type[Stage[Any]], values: dict[str, Any], tmp: Path) -> str:
    run = Run(tmp / "unused", plan=True, host=HOST, quiet=True)
    context = Context(HOST)
    stage = kind(**values).resolved(context)
    return digest(run.identity(stage, context))


def cases() -> list[tuple[type[Stage[Any]], str]]:
    records = HOST.components("stage")
    assert [record.name for record in records] == sorted(kind.verb for kind in CORE)
    return [(r.object, each.name) for r in records for each in dataclasses.fields(r.object)]


def pefts_folder(folder: Path, base: Path) -> Path:
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))
    return folder


@pytest.mark.parametrize(("kind", "name"), cases(), ids=lambda value: getattr(value, "verb", value))
def test_a_changed_field_changes_the_key_unless_it_is_marked(
    kind: Any, name: str, folders: dict[str, Any], tmp_path: Path
) -> None:
    table = {"name": SHARED["name"], **FIELDS[kind.verb]}
    if "spec" in table:  # its content counts: two folders, or a name and a folder
        first, second = (model.model_folder for model in folders["rewards"])
        given = ("tiny", folders["policy"].model_folder) if kind.verb == "policy" else (first, second)
        table["spec"] = given
    assert name in table, f"{kind.__name__}.{name} is a field of no test: say what it is and what it may be changed to"
    values = {each.name: table[each.name][0] for each in dataclasses.fields(kind)}
    changed = {**values, name: table[name][1]}
    if name == "base":  # of an adapter from elsewhere, which names another
        table["spec"] = (pefts_folder(tmp_path / "peft", folders["policy"].model_folder), None)
        values["spec"] = changed["spec"] = table["spec"][0]
    if name == "centre":  # of a reward model
        values["model"] = changed["model"] = folders["rewards"][0]
    if name == "patience":  # it waits for a better score on held-out prompts
        values, changed = ({**each, "heldout": PROMPTS} for each in (values, changed))
    if name == "streams":  # they come with a method that declares them
        values |= {"optimizer": Method(mixed=True), "streams": {"mix": groups("c")}}
        changed = {**values, "streams": {"mix": PROMPTS}}
    [field] = [each for each in dataclasses.fields(kind) if each.name == name]
    same = key(kind, values, tmp_path) == key(kind, changed, tmp_path)
    assert same is (not field.metadata.get("effect", True))


def test_the_walk_leaves_no_field_and_no_verb_out() -> None:
    for kind in CORE:
        fields = {each.name for each in dataclasses.fields(kind)} - {"name"}
        assert fields == set(FIELDS[kind.verb]) - {"name"}, kind.__name__


def bytes_of(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in ("stage.json", "manifest.json")
    }


MARKED = {
    ("policy", "lora"): lambda run, value, made: run.policy("tiny", lora=value),
    ("policy", "code_revision"): lambda run, value, made: run.policy(
        str(made["policy"].model_folder), code_revision=value
    ),
    ("train_reward", "column"): lambda run, value, made: (
        run.train_reward(made["policy"], PAIRS, loss=ranking, heldout_fraction=0.4, column=value).handle
    ),
    ("reward_model", "code_revision"): lambda run, value, made: (
        run.reward_model(made["rewards"][0].model_folder, code_revision=value).handle
    ),
    ("reward_model", "column"): lambda run, value, made: (
        run.reward_model(made["rewards"][0].model_folder, column=value).handle
    ),
}


def test_what_is_marked_changes_no_byte_of_the_result(folders: dict[str, Any], tmp_path: Path) -> None:
    marked = {
        (kind.verb, each.name)
        for kind in CORE
        for each in dataclasses.fields(kind)
        if each.metadata.get("effect") is NO_EFFECT["effect"]
    }
    assert marked == set(MARKED)
    for (verb, name), make in MARKED.items():
        results = []
        for number, value in enumerate(FIELDS[verb][name]):
            with Run(tmp_path / f"{verb}{number}", quiet=True, host=HOST) as run:
                handle = make(run, value, folders)
            record = json.loads((handle.path / "stage.json").read_text())
            results.append((bytes_of(handle.path), record["result"], record["key"]))
        assert results[0] == results[1], f"{verb}.{name} is marked, and changes the result"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Method(loss=use("alignkit/nll")), Method(loss=weighed_nll)),
        (Method(), Method(extra=weighed_nll)),
        (Method(extra=weighed_nll), Method(extra=other_ranking)),
    ],
)
def test_what_a_component_names_counts_too(one: Method, other: Method, tmp_path: Path) -> None:
    kind = next(kind for kind in CORE if kind.verb == "improve")
    shared = {"policy": policy("a"), "data": PROMPTS, "reward": short}
    first, second = (key(kind, {**shared, "optimizer": method}, tmp_path) for method in (one, other))
    assert first != second


def test_the_default_written_out_is_the_default(tmp_path: Path) -> None:
    """`None` for "the sampler's own" is settled before the key is taken."""
    kind = next(kind for kind in CORE if kind.verb == "sample")
    shared = {"policy": policy("a"), "prompts": PROMPTS}
    assert key(kind, shared, tmp_path) == key(kind, {**shared, "temperature": 1.0, "max_new_tokens": 128}, tmp_path)


def test_scores_are_kept_with_the_responses(tmp_path: Path) -> None:
    def sometimes(response):
        return None if response == "no" else float(len(response))

    with Run(tmp_path, quiet=True, host=HOST) as run:
        scored = run.score(PAIRS, sometimes)
    values, present = scored.groups.rewards("sometimes")
    assert (values[0], present[0]) == ([3.0, 0.0], [True, False])
    assert {k: scored.result[k] for k in ("rows", "mean", "missing")} == {"rows": 6, "mean": 3.0, "missing": 6}


# -- a plugin's own verb -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Longest(Stage[GroupsHandle]):
    """Keep the rows with the longest answers.

    Args:
        groups: rows.
        rows: how many.
    """

    verb: ClassVar[str] = "longest"
    makes: ClassVar[tuple[Any, ...]] = ("groups",)

    groups: Groups
    rows: int = 1

    def work(self, place: Place) -> dict[str, Any]:
        order = sorted(range(len(self.groups)), key=lambda i: -len(self.groups[i]["responses"][0]))
        self.groups.select(order[: self.rows]).save(place.folder / "groups")
        return {"rows": self.rows}

    def handle(self, made: Made) -> GroupsHandle:
        return GroupsHandle(**made.common(), expected=self.rows)


class Plugin:
    @hookimpl
    def register_stages(self, register):
        register("longest", Longest)


@pytest.fixture
def host() -> PluginHost:
    host = PluginHost(allow=())
    host.register(Plugin(), "mine")
    return host


def test_a_plugin_brings_a_verb(host: PluginHost, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = Groups.from_rows({"prompt": p, "responses": [p * n]} for n, p in enumerate("abc", start=1))
    for _ in range(2):
        with Run(tmp_path / "run", host=host) as run:
            kept = run.stage("longest", rows, rows=2, name="kept")
    assert [row["responses"] for row in kept.groups] == [["ccc"], ["bb"]]
    record = json.loads((kept.path / "stage.json").read_text())
    assert (record["verb"], record["made"], record["config"]) == ("longest", ["groups"], {"rows": 2})
    assert capsys.readouterr().out.count("kept: done already") == 1
    with pytest.raises(ConfigError, match="no_such"), Run(tmp_path / "run", host=host, quiet=True) as run:
        run.stage("longest", rows, no_such=1)
    with pytest.raises(PluginError, match="did you mean"), Run(tmp_path / "run", host=host, quiet=True) as run:
        run.stage("longes", rows)


def test_a_stage_that_lacks_something_is_refused_by_name() -> None:
    @dataclass(frozen=True, eq=False)
    class Nameless(Stage[None]):
        def work(self, place):
            return {}

        def handle(self, made):
            return None

    @dataclass(frozen=True, eq=False)
    class Idle(Stage[None]):
        verb: ClassVar[str] = "idle"

    for kind, reason in ((Nameless, "verb"), (Idle, "no work"), (dict, "Stage")):

        class Wrong:
            @hookimpl
            def register_stages(self, register, kind=kind):
                register("wrong", kind)

        with pytest.raises(PluginError, match=reason):
            PluginHost(allow=()).register(Wrong(), "wrong")


# -- declarations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CORE, ids=lambda kind: kind.verb)
def test_every_argument_is_documented_where_the_method_is(kind: type[Stage[Any]]) -> None:
    method = inspect.signature(getattr(Run, kind.verb))
    text = documentation(kind)
    fields = [each.name for each in dataclasses.fields(kind)]
    assert set(method.parameters) == {"self", *fields}
    assert list(method.parameters)[-1] == "name"
    assert [name for name in fields if f"\n    {name}: " not in text] == []
    assert getattr(Run, kind.verb).__doc__ == text


def test_words_and_ranges_are_refused_where_they_are_declared(tmp_path: Path) -> None:
    with Run(tmp_path / "r", quiet=True, host=HOST) as run:
        wrong = [
            (lambda: run.sft(policy("a"), PROMPTS, train="first"), "train='first'"),
            (lambda: run.sft(policy("a"), PROMPTS, learning_rate=-1.0), "learning_rate"),
            (lambda: run.sft(policy("a"), PROMPTS, schedule="square"), "schedule"),
            (lambda: run.sft(policy("a"), PROMPTS, heldout_fraction=2.0), "heldout_fraction"),
            (lambda: run.train_reward(policy("a"), PAIRS, loss=ranking, betas=(0.9, 1.0)), "betas"),
            (lambda: run.improve(policy("a"), PROMPTS, optimizer=Method(), value_model="none"), "value_model"),
            (lambda: run.improve(policy("a"), PROMPTS, optimizer=Method(), max_missing=2.0), "max_missing"),
            (lambda: run.improve(policy("a"), PROMPTS, optimizer=Method(), patience=-1), "patience"),
            (lambda: run.sample(policy("a"), PROMPTS, temperature=[1.0, 0.0]), "temperature"),
            (lambda: run.evaluate(policy("a"), PROMPTS, {}, answers="written"), "answers"),
        ]
        for call, what in wrong:
            with pytest.raises(ConfigError, match=what):
                call()
    assert not list((tmp_path / "r").glob("stages/*"))


def test_a_plan_asks_each_stage_for_its_cost() -> None:
    kind = next(kind for kind in CORE if kind.verb == "sample")
    stage = kind(policy("a"), groups("c"), 3, max_new_tokens=7).resolved(Context(HOST))  # type: ignore[call-arg]
    assert stage.cost() == Cost(generated=2 * 3 * 7, parameters=10)
