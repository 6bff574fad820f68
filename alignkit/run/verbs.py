"""The work of each verb: given a folder to write into, do it and return the small results."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.annotators import Annotator
from alignkit.errors import DataError
from alignkit.run.handles import EvaluationHandle, GroupsHandle, PolicyHandle, RewardHandle
from alignkit.types import Groups

if TYPE_CHECKING:
    from alignkit.engine.module import Learner
    from alignkit.optimizers import PolicyOptimizer
    from alignkit.plugins.records import BoundLoss
    from alignkit.rewards import Reward
    from alignkit.run.run import Run
    from alignkit.sampling import Sampler


# -- models ------------------------------------------------------------------------------------------------------------


def import_policy(spec: str, work: Path) -> dict[str, Any]:
    """Make the model loadable from a folder: converted here (GGUF, tiny), or where it lies."""
    from alignkit.models import Policy
    from alignkit.models.loading import load_causal, resolve_source, save_plain
    from alignkit.models.policy import adapter_base

    if adapter_base(spec) is not None:
        return {"model": str(Path(spec).resolve()), "parameters": _count(Policy.load(spec))}
    source = resolve_source(spec)
    model, tokenizer = load_causal(source)
    parameters = sum(p.numel() for p in model.parameters())
    if source.kind in ("tiny", "gguf"):
        save_plain(model, tokenizer, work / "model")
        return {"parameters": parameters}
    return {"model": source.path, "parameters": parameters}


def guess_parameters(spec: str) -> int:
    """Weights of a model that is not loaded yet, from the size of its files."""
    from alignkit.models.loading import resolve_source

    source = resolve_source(spec)
    if source.kind == "gguf":
        return int(Path(source.path).stat().st_size * 8 / 5)
    files = list(Path(source.path).glob("*.safetensors")) if source.kind == "folder" else []
    return sum(file.stat().st_size for file in files) // 4 or 200_000


def _count(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def reward_identity(spec: str) -> str:
    """Digest of a reward model that exists already."""
    from alignkit.models.loading import folder_digest, resolve_source

    return folder_digest(Path(spec)) if Path(spec).is_dir() else resolve_source(spec).digest()


def import_reward_model(spec: str, work: Path) -> dict[str, Any]:
    """Keep a reward model of elsewhere by reference: checked that it loads and has one output."""
    from alignkit.models import RewardModel

    model = RewardModel.load(spec)
    if getattr(model.model.config, "num_labels", 1) != 1:
        raise DataError(f"{model.model.config.num_labels} outputs", where=spec, remedy="a reward model has one output")
    (work / "model").symlink_to(Path(spec).resolve(), target_is_directory=True)
    return {"parameters": _count(model)}


def export(run: Run, work: Path, policy: PolicyHandle) -> dict[str, Any]:
    """A plain Hugging Face folder with a model card."""
    from alignkit.models import Policy
    from alignkit.run.card import model_card

    Policy.load(policy.model_folder).export(work / "model")
    (work / "model" / "README.md").write_text(model_card(run, policy), encoding="utf-8")
    return {"parameters": policy.parameters}


# -- data --------------------------------------------------------------------------------------------------------------


def keep_groups(work: Path, groups: Groups) -> dict[str, Any]:
    groups.save(work / "groups")
    return {"rows": len(groups), "responses": groups.num_responses}


def sample(
    run: Run,
    work: Path,
    policies: Sequence[PolicyHandle],
    prompts: Groups,
    n: int,
    samplers: Sequence[Sampler],
    name: str,
) -> dict[str, Any]:
    """Each policy at each temperature, side by side. Only the first process samples."""
    from alignkit.engine.scoring import dtype_of
    from alignkit.sampling import sample_side_by_side

    if run.rank:
        return {}
    parts = []
    for index, handle in enumerate(policies):
        policy = handle.load(dtype=dtype_of(run.precision))
        for place, sampler in enumerate(samplers):
            seed = (run.seed, name, index, place)
            parts.append(
                sampler.sample(policy, prompts, n, seed=seed, name=handle.key[:16], progress=_progress(run, name))
            )
    groups = sample_side_by_side(parts)
    tokens = sum(len(ids) for row in groups for ids in row["response_ids"] or [])
    return {**keep_groups(work, groups), "generated_tokens": tokens}


def _progress(run: Run, name: str) -> Callable[[int, int, int, float], None]:
    def tell(done: int, total: int, tokens: int, seconds: float) -> None:
        left = seconds / max(done, 1) * (total - done)
        run.console.tick(
            f"{name}: {done}/{total} responses, {tokens / max(seconds, 1e-6):.0f} tokens/s, {left:.0f} s left"
        )

    return tell


def annotate(run: Run, work: Path, groups: Groups, annotator: Annotator, name: str) -> dict[str, Any]:
    """One folder per dimension."""
    from alignkit.sampling.counter import derived_seed

    if run.rank:
        return {}
    found = annotator.annotate(groups, seed=derived_seed(run.seed, name))
    if set(found) != set(annotator.dimensions):
        raise DataError(f"the annotator gave {sorted(found)}, it declares {sorted(annotator.dimensions)}", where=name)
    result: dict[str, Any] = {}
    for dimension, part in found.items():
        part.save(work / f"groups-{dimension}")
        ratings = [row["rating"] for row in part]
        result[dimension] = {
            "rows": len(part),
            "ratings": {r: ratings.count(r) for r in sorted({r for r in ratings if r})},
        }
    return result


@dataclass(frozen=True)
class TransformContext:
    """What a transform may use.

    Args:
        sample: `(prompts, n, **sampler arguments) -> Groups` from the policy given to the verb.
        seed: of whatever is random.
        policy: the live policy, or None.
    """

    sample: Callable[..., Groups]
    seed: int
    policy: Any = None


def transform(
    run: Run, work: Path, groups: Groups, built: Any, policy: PolicyHandle | None, name: str
) -> dict[str, Any]:
    """Apply a transform."""
    from alignkit.sampling import Sampler
    from alignkit.sampling.counter import derived_seed

    if run.rank:
        return {}
    live = policy.load() if policy else None
    calls = iter(range(10**9))

    def draw(prompts: Groups, n: int = 1, **options: Any) -> Groups:
        if live is None:
            raise DataError("the transform samples, but no policy was given", where=name, remedy="pass policy=…")
        return Sampler(**options).sample(live, prompts, n, seed=(run.seed, name, next(calls)), name=name)

    return keep_groups(work, built(groups, TransformContext(draw, derived_seed(run.seed, name), live)))


# -- training ----------------------------------------------------------------------------------------------------------


@dataclass
class OneRound:
    """A source with one fixed round: supervised fine-tuning and reward models.

    Args:
        data: the round.
        steps: all its steps.
    """

    data: Any
    steps: Any
    rounds: int = 1

    def start(self, index: int) -> Any:
        return self.data, self.steps

    def finish(self, index: int, metrics: Mapping[str, float]) -> bool:
        return False

    def round_metrics(self) -> Mapping[str, float]:
        return {}

    def skip_rest(self, metrics: Mapping[str, float]) -> bool:
        return False


def _recorder(run: Run, work: Path, name: str, learner: Callable[[], Learner]) -> Callable[[dict[str, Any]], None]:
    """Append each step to metrics.jsonl and show where training is."""
    import time

    path, started = work / "metrics.jsonl", time.monotonic()

    def record(row: dict[str, Any]) -> None:
        with path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row, sort_keys=True) + "\n")
        here = learner()
        total = len(here.steps) * here.source.rounds
        done = row["round"] * len(here.steps) + (row["step"] - 1) % max(len(here.steps), 1) + 1
        left = (time.monotonic() - started) / max(row["step"], 1) * max(total - done, 0)
        run.console.tick(f"{name}: step {row['step']}/{total}, loss {row['loss']:.4f}, {left:.0f} s left")

    return record


def _train(run: Run, work: Path, name: str, learner_arguments: dict[str, Any], checkpointing: bool) -> Learner:
    """Build the learner and fit it."""
    from alignkit.engine.fit import fit
    from alignkit.engine.module import Learner

    box: list[Learner] = []
    learner = Learner(**learner_arguments, record=_recorder(run, work, name, lambda: box[0]))
    box.append(learner)
    fit(learner, precision=run.precision, trainer=run.trainer, checkpointing=checkpointing)
    return learner


def _split(groups: Groups, fraction: float, seed: Sequence[int | str]) -> tuple[Groups, Groups]:
    """(train, held out), split by prompt, so that no prompt is on both sides."""
    from alignkit.sampling.counter import permutation

    prompts = sorted({row["prompt_id"] for row in groups})
    order = permutation(len(prompts), *seed)
    kept_back = {prompts[i] for i in order[: int(len(prompts) * fraction)]}
    return groups.filter(lambda r: r["prompt_id"] not in kept_back), groups.filter(
        lambda r: r["prompt_id"] in kept_back
    )


def _drawn(groups: Groups, fraction: float, seed: Sequence[int | str]) -> Groups:
    """A share of the rows, drawn by counter, in their order."""
    from alignkit.sampling.counter import permutation

    if fraction == 1:
        return groups
    return groups.select(sorted(permutation(len(groups), *seed)[: round(len(groups) * fraction)]))


def _checked_round(groups: Groups, model: Any, kind: Any, config: Mapping[str, Any], train: Any, where: str) -> Any:
    """Check, refuse or drop, encode."""
    from alignkit.data import check_groups, encode_groups, refuse_or_drop
    from alignkit.engine.rounds import Round

    most = config["max_length"]
    problems = check_groups(groups, kind, model.chat, max_prompt_tokens=most, max_response_tokens=most)
    groups = refuse_or_drop(groups, problems, config["drop_bad"], where)
    encoded, left = encode_groups(groups, model.chat, max_prompt_tokens=most, max_response_tokens=most, train=train)
    groups = refuse_or_drop(groups, left, config["drop_bad"], where)
    return Round(groups, list(encoded), shared=model.shares_prompts, pad_id=model.chat.pad_id)


def _training(training: Mapping[str, Any]) -> Any:
    from alignkit.engine.module import Training

    return Training(**training)


def sft(
    run: Run,
    work: Path,
    start: PolicyHandle,
    groups: Groups,
    loss: BoundLoss,
    config: Mapping[str, Any],
    training: Mapping[str, Any],
    name: str,
) -> dict[str, Any]:
    """Supervised fine-tuning."""
    from alignkit.optimizers import Term

    policy = _trainable(run, start, name)
    learn, heldout = _split(groups, config["heldout_fraction"], (run.seed, name, "split"))
    data = _checked_round(learn, policy, "demonstrations", config, config["train"], name)
    steps = data.steps(config["batch_size"], config["epochs"], run.max_tokens, (run.seed, name, "order"), run.world)
    learner = _train(
        run,
        work,
        name,
        {
            "model": policy,
            "loss": loss,
            "terms": {"loss": Term(reduction="token")},
            "training": _training(training),
            "source": OneRound(data, steps),
        },
        config["checkpointing"],
    )
    result: dict[str, Any] = {"steps": learner.steps_done, "rows": len(data.groups), "parameters": start.parameters}
    if len(heldout):
        result["heldout_loss"] = _mean_nll(
            policy, _checked_round(heldout, policy, "demonstrations", config, config["train"], name), run.max_tokens
        )
    if not run.rank:
        policy.save(work / "model")
    return result


def _mean_nll(policy: Any, data: Any, max_tokens: int) -> float:
    """Mean negative log-likelihood per learned token, in nats."""
    import torch

    total, tokens = 0.0, 0
    with torch.no_grad():
        for numbers in data.micro_batches(list(range(len(data.encoded))), max_tokens):
            batch = data.collate(numbers).to(policy.device)
            total -= float(policy.tensors(batch)["logprobs"].sum())
            tokens += int(batch.response_mask.sum())
    return total / max(tokens, 1)


def _trainable(run: Run, handle: PolicyHandle, name: str) -> Any:
    """The live policy, its adapter (if it is to have one) initialised from the stage's own seed."""
    import torch

    from alignkit.engine.scoring import dtype_of
    from alignkit.sampling.counter import derived_seed

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(run.seed, name, "init"))
        return handle.load(lora=handle.lora, trainable=True, dtype=dtype_of(run.precision))


def train_reward(
    run: Run,
    work: Path,
    init: PolicyHandle | RewardHandle,
    parts: Sequence[Groups],
    replay: Sequence[Groups],
    loss: BoundLoss,
    config: Mapping[str, Any],
    training: Mapping[str, Any],
    name: str,
) -> dict[str, Any]:
    """A reward model from comparisons or rankings, with its accuracy on prompts kept back."""
    from alignkit.engine.comparisons import comparison_report
    from alignkit.engine.scoring import Scorer, dtype_of
    from alignkit.models import RewardModel
    from alignkit.optimizers import Term
    from alignkit.sampling.counter import derived_seed

    dtype = dtype_of(run.precision)
    if isinstance(init, RewardHandle):
        model = RewardModel.load(init.model_folder, trainable=True, dtype=dtype)
    else:
        seed = derived_seed(run.seed, name, "init")
        model = RewardModel.from_policy(init.model_folder, lora=init.lora, dtype=dtype, seed=seed)
    groups = Groups.concat(
        [*parts, _drawn(Groups.concat(list(replay)), config["replay_fraction"], (run.seed, name, "replay"))]
    )
    # The split depends on prompts alone, not on the stage, so that a model trained on later has never seen what is
    # kept back.
    learn, heldout = _split(groups, config["heldout_fraction"], (run.seed, "reward split"))
    data = _checked_round(learn, model, "comparisons", config, "last", name)
    steps = data.steps(config["batch_size"], config["epochs"], run.max_tokens, (run.seed, name, "order"), run.world)
    terms = {
        "loss": Term(reduction="group")
    }  # a prompt with many comparisons weighs no more than one with a single one
    learner = _train(
        run,
        work,
        name,
        {
            "model": model,
            "loss": loss,
            "terms": terms,
            "training": _training(training),
            "source": OneRound(data, steps),
        },
        config["checkpointing"],
    )
    result: dict[str, Any] = {"steps": learner.steps_done, "pairs": len(data.pairs.group), "parameters": _count(model)}
    if len(heldout):
        result |= comparison_report(heldout, Scorer(model, run.max_tokens, config["max_length"]).score(heldout))
    if not run.rank:
        model.save(work / "model")
    return result


@dataclass(frozen=True)
class ImproveRequest:
    """The arguments of `Run.improve`, resolved."""

    policy: PolicyHandle
    prompts: Groups | GroupsHandle
    optimizer: PolicyOptimizer
    loss: Any
    sampler: Sampler
    reward: Reward | None
    reference: PolicyHandle | None
    init: PolicyHandle
    history: Sequence[GroupsHandle | Groups]
    heldout: Groups | None
    patience: int
    max_missing: float
    value_model: str
    checkpointing: bool
    iteration: int | None
    name: str


def improve(run: Run, work: Path, request: ImproveRequest) -> dict[str, Any]:
    """Sample, score, learn, round by round."""
    from alignkit.engine.improve import Rollouts
    from alignkit.engine.module import Training
    from alignkit.engine.scoring import dtype_of, release

    opt, dtype = request.optimizer, dtype_of(run.precision)
    loss = run.host.build("loss", request.loss)
    policy = _trainable(run, request.init, request.name)
    behaviour = policy if request.init.key == request.policy.key else request.policy.load(dtype=dtype)
    reference, state_name = _reference(request.reference, policy, dtype)
    values = bool({"values", "old_values"} & {*loss.tensor_names, *opt.prepare_arguments()})
    value_model = _value_model(run, request, policy) if values else None
    source = Rollouts(
        policy=policy,
        behaviour=behaviour,
        reference=reference,
        reference_state=state_name,
        optimizer=opt,
        loss=loss,
        sampler=request.sampler,
        reward=request.reward,
        prompts=_open(request.prompts),
        history=Groups.concat([_open(h) for h in request.history]),
        seed=(run.seed, request.name),
        max_tokens=run.max_tokens,
        max_response_tokens=max(request.sampler.max_new_tokens, 1024),
        state=opt.initial_state(),
        heldout=request.heldout,
        patience=request.patience,
        max_missing=request.max_missing,
        value_model=value_model,
        world=(run.rank, run.world),
        say=lambda text: run.console.say(f"{request.name}: {text}"),
        tick=lambda text: run.console.tick(f"{request.name}: {text}"),
    )
    config = Training(**{f: getattr(opt, f) for f in Training.__dataclass_fields__})
    learner = _train(
        run,
        work,
        request.name,
        {
            "model": policy,
            "loss": loss,
            "terms": opt.terms(),
            "training": config,
            "source": source,
            "temperature": opt.logprob_temperature,
            "value_model": value_model,
        },
        request.checkpointing,
    )
    best = source.restore_best()
    release(request.reward)
    return _keep_improved(run, work, request, source, learner, policy, best)


def _keep_improved(
    run: Run, work: Path, request: ImproveRequest, source: Any, learner: Learner, policy: Any, best: int | None
) -> dict[str, Any]:
    sampled = Groups.concat(source.sampled)
    sampled = sampled.map_rows(lambda row: {"iteration": request.iteration})
    if not run.rank:
        sampled.save(work / "groups")
        policy.save(work / "model")
        policy.save_value_head(work / "model")
    result = {
        "rows": len(sampled),
        "steps": learner.steps_done,
        "state": source.state,
        "parameters": request.init.parameters,
        "budget": {**source.counts, "optimizer_steps": learner.steps_done},
        "last": dict(source.round_metrics()),
    }
    if request.reward is not None and request.optimizer.samples_per_prompt > 1:
        result |= _best_of_n(sampled, request.reward.name)
    return result | ({"best_round": best} if best is not None else {})


def _best_of_n(sampled: Groups, name: str) -> dict[str, Any]:
    """Maximum and median reward among n samples of a prompt, over the prompts whose samples all have a reward."""
    from alignkit.evaluation import best_of_n_curve

    values, present = sampled.rewards(name)
    whole = [row for row, there in zip(values, present, strict=True) if all(there)]
    if not whole:
        return {}
    return {"best_of_n": {str(n): point for n, point in best_of_n_curve(whole).items()}, "best_of_n_score": name}


def _open(value: Groups | GroupsHandle) -> Groups:
    return value.groups if isinstance(value, GroupsHandle) else value


def _reference(handle: PolicyHandle | None, policy: Any, dtype: Any) -> tuple[Any, str | None]:
    """A named state of the policy where it has the same base; else a model of its own, frozen."""
    if handle is None:
        return None, None
    if policy.add_state("reference", handle.model_folder):
        return None, "reference"
    return handle.load(dtype=dtype), None


def _value_model(run: Run, request: ImproveRequest, policy: Any) -> Any:
    """None after putting a head on the policy's trunk, or a model of its own."""
    if request.value_model == "head":
        policy.add_value_head(request.init.model_folder)
        return None
    separate = _trainable(run, request.init, request.name + "/value")
    separate.add_value_head(request.init.model_folder)
    return separate


# -- evaluation --------------------------------------------------------------------------------------------------------


def evaluate(
    run: Run,
    work: Path,
    handle: PolicyHandle,
    prompts: Groups,
    rewards: Mapping[str, Any],
    config: Mapping[str, Any],
    reference: PolicyHandle | None,
    baseline: EvaluationHandle | None,
    name: str,
) -> dict[str, Any]:
    """Sample, score, measure the KL; one row per prompt and sample."""
    from alignkit.engine.measure import kl_per_response
    from alignkit.engine.scoring import dtype_of, release
    from alignkit.evaluation import summarise_evaluation
    from alignkit.sampling import Sampler

    if run.rank:
        return {}
    dtype = dtype_of(run.precision)
    policy = handle.load(dtype=dtype)
    sampler = Sampler(
        temperature=config["temperature"], greedy=config["greedy"], max_new_tokens=config["max_new_tokens"]
    )
    # The same random numbers for every version: what differs is the policy.
    groups = sampler.sample(
        policy, prompts, config["n"], seed=(run.seed, "evaluate"), name=handle.key[:16], progress=_progress(run, name)
    )
    kl = None
    if reference is not None:
        second, state = (None, None) if reference.key == handle.key else _reference(reference, policy, dtype)
        kl = kl_per_response(policy, groups, second, state, config["temperature"], run.max_tokens)
    for label, reward in rewards.items():
        scores = reward.score(groups)
        groups = groups.with_rewards(label, scores.values, scores.reasons)
        release(reward)
    rows = _evaluation_rows(groups, kl)
    with (work / "evaluation.jsonl").open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, sort_keys=True) + "\n")
    first = read_rows(baseline.path / "evaluation.jsonl") if baseline is not None else None
    return {"label": config["label"], "order": config["order"], **summarise_evaluation(rows, first)}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _evaluation_rows(groups: Groups, kl: list[list[float]] | None) -> list[dict[str, Any]]:
    rows = []
    for number, row in enumerate(groups):
        for k, response in enumerate(row["responses"]):
            scores = {r["name"]: r["values"][k] for r in row["rewards"] or []}
            rows.append(
                {
                    "prompt_id": row["prompt_id"],
                    "prompt": [{"role": m["role"], "content": m["content"]} for m in row["prompt"]],
                    "tags": row["tags"],
                    "sample": k,
                    "response": response,
                    "finished": row["finished"][k],
                    "scores": scores,
                    "length": len(row["response_ids"][k]),
                    "kl": kl[number][k] if kl else None,
                }
            )
    return rows


# -- what is said ------------------------------------------------------------------------------------------------------


def command() -> str:
    """How this run was started, without the path of the interpreter or of any folder."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def summary(verb: str, record: Mapping[str, Any]) -> str:
    """One line about a finished stage."""
    result, seconds = record["result"], f"{record['seconds']:.0f} s"
    if verb == "evaluate" and result:
        parts = [f"{k} {v['mean']:.3f} [{v['low']:.3f}, {v['high']:.3f}]" for k, v in result["metrics"].items()]
        return f"{result['label']}: {', '.join(parts)} ({seconds})"
    if verb == "train_reward":
        overall = result.get("accuracy", {}).get("overall")
        text = f"accuracy {overall['mean']:.3f} on {overall['n']} held-out pairs" if overall else "no held-out pairs"
        return f"{result['pairs']} pairs, {text} ({seconds})"
    if "rows" in result:
        return f"{result['rows']} rows ({seconds})"
    return f"done ({seconds})"
