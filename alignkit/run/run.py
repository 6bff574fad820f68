"""`Run`: a durable pipeline. Each verb is a stage with a folder of its own, found again by the digest of what made
it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from alignkit import processes
from alignkit.errors import AlignkitError, ConfigError
from alignkit.files import write_json
from alignkit.groups import Groups
from alignkit.identity import (
    component_code,
    difference,
    digest,
    distribution_key,
    object_key,
    plain,
    remember_sources,
    required_plugins,
)
from alignkit.registry.grammar import Component
from alignkit.registry.host import PluginHost, default_host
from alignkit.run import plan as planning
from alignkit.run import verbs
from alignkit.run.console import Console
from alignkit.run.handles import EvaluationHandle, GroupsHandle, Handle, Improved, PolicyHandle, RewardHandle
from alignkit.run.store import Stage, Store, now
from alignkit.run.versions import versions

HARMLESS = ("logger", "enable_progress_bar", "enable_model_summary", "log_every_n_steps", "profiler")
"""Trainer arguments that change what is shown, and no result."""

COMPARISON_TOKENS = 150
"""Tokens of a comparison that a plan reckons with."""

Work = Callable[[Path], Mapping[str, Any]]


class Run:
    """A pipeline in a folder.

    Running the same script again skips the stages that are there; a changed argument makes a new stage, says what
    changed, and keeps the old one.

    Args:
        folder: of the run.
        seed: from which every random number is derived.
        plan: only say what would be done.
        precision: as Lightning names it; it is also the dtype that models load in.
        trainer: further arguments of `lightning.Trainer` (accelerator, devices, strategy, logger, callbacks …).
        max_tokens: padded cells of one micro-batch: the memory of a step.
        host: the plugins; default all that are installed.
        quiet: say nothing.

    Raises:
        ConfigError: a trainer argument that is alignkit's own.
    """

    def __init__(
        self,
        folder: str | Path,
        seed: int = 0,
        *,
        plan: bool = False,
        precision: str = "32-true",
        trainer: Mapping[str, Any] | None = None,
        max_tokens: int = 2048,
        host: PluginHost | None = None,
        quiet: bool = False,
    ) -> None:
        from alignkit.engine.fit import check_trainer

        self.folder, self.seed, self.precision = Path(folder), int(seed), precision
        self.trainer = dict(trainer or {})
        check_trainer(self.trainer)
        remember_sources()
        # As they are set up: a callback that counts is another one after the first stage.
        self._devices = {k: object_key(v) for k, v in self.trainer.items() if k not in HARMLESS}
        if precision == "16-mixed":
            raise ConfigError(
                "16-mixed scales the loss, and gradients would be clipped before they are scaled back",
                where="Run",
                remedy='use precision="bf16-mixed"',
            )
        self.max_tokens = max_tokens
        self.planning, self.planned = plan, list[planning.Planned]()
        self.host = host or default_host()
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.console = Console(quiet or self.rank > 0)
        self.store = Store(self.folder)
        self._stages: list[str] = []
        self._names: set[str] = set()
        self._created = now()
        self._first_evaluation: EvaluationHandle | None = None
        self._evaluations = 0
        self._reported = False
        if self.world == 1 and str(self.trainer.get("devices", 1)) not in ("1", "auto", "[0]"):
            raise ConfigError(
                f"devices={self.trainer['devices']} in a run of one process",
                where="Run",
                remedy="start the script with torchrun --nproc-per-node=N",
            )
        if not plan and self.rank == 0:
            self.store.lock()
        processes.join_processes(self.world)

    # -- the verbs -----------------------------------------------------------------------------------------------------

    def policy(self, spec: str | Path, *, lora: Any = "default", name: str = "policy") -> PolicyHandle:
        """Bring a model into the run: a folder, a hub name, a GGUF file, "package:NAME", "tiny", or a policy of
        another run.

        Args:
            spec: see `alignkit.models.loading.resolve_source`.
            lora: a `LoRA` for its training, or None for full fine-tuning; default rank 16.
            name: of the stage.
        """
        from alignkit.models import LoRA
        from alignkit.models.loading import folder_digest, resolve_source
        from alignkit.models.policy import CARD, adapter_base

        lora = LoRA() if lora == "default" else lora
        if adapter_base(spec) is not None:
            identity = folder_digest(Path(spec)) + digest((Path(spec) / CARD).read_text())
        else:
            identity = resolve_source(str(spec)).digest()
        stage = self._stage(
            "policy",
            name,
            {"spec": _label(spec), "identity": identity},
            {},
            lambda work: verbs.import_policy(str(spec), work),
        )
        where = stage.result.get("model") if stage else None
        path = (Path(where) if where else stage.folder / "model") if stage else None
        parameters = int(stage.result["parameters"]) if stage else verbs.guess_parameters(str(spec))
        return PolicyHandle(**self._common(stage, name), lora=lora, model_path=path, parameters=parameters)

    def sft(
        self,
        policy: PolicyHandle,
        demonstrations: Groups | GroupsHandle,
        *,
        loss: Any = "alignkit/nll",
        train: str = "last",
        epochs: int = 1,
        batch_size: int = 16,
        learning_rate: float = 1e-4,
        schedule: str = "cosine",
        warmup_ratio: float = 0.03,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        max_length: int = 1024,
        heldout_fraction: float = 0.0,
        drop_bad: bool = False,
        checkpointing: bool = False,
        name: str = "sft",
    ) -> PolicyHandle:
        """Supervised fine-tuning: the prompt is masked, the response learned.

        Args:
            policy: where to start.
            demonstrations: groups with one response each.
            loss: a token-level loss.
            train: "last": the response; "all": every assistant turn of the conversation too.
            epochs, batch_size, learning_rate, schedule, warmup_ratio, weight_decay, max_grad_norm: see
                `PolicyOptimizer`.
            max_length: tokens of a prompt and of a response, each.
            heldout_fraction: share of the rows kept back, on which the loss is measured afterwards.
            drop_bad: leave out useless rows rather than refuse them.
            checkpointing: gradient checkpointing.
            name: of the stage.
        """
        training = {
            "learning_rate": learning_rate,
            "schedule": schedule,
            "warmup_ratio": warmup_ratio,
            "weight_decay": weight_decay,
            "max_grad_norm": max_grad_norm,
        }
        record, bound = self.host.resolve("loss", loss), self.host.build("loss", loss)
        config = {
            "loss": record.qualified,
            "loss_arguments": _loss_key(bound),
            "train": train,
            "epochs": epochs,
            "batch_size": batch_size,
            **training,
            "max_length": max_length,
            "heldout_fraction": heldout_fraction,
            "drop_bad": drop_bad,
            "checkpointing": checkpointing,
            "lora": plain(policy.lora),
        }
        tokens = len(demonstrations) * max_length // 4 * epochs
        stage = self._stage(
            "sft",
            name,
            config,
            {"policy": policy, "demonstrations": demonstrations},
            lambda work: verbs.sft(self, work, policy, _groups(demonstrations), bound, config, training, name),
            plugins=[record.distribution],
            cost=planning.Cost(
                trained=tokens, parameters=policy.parameters, trainable=True, disk=_adapter_bytes(policy)
            ),
        )
        return self._trained(stage, name, policy)

    def sample(
        self,
        policy: PolicyHandle | Sequence[PolicyHandle],
        prompts: Groups | GroupsHandle,
        n: int = 1,
        *,
        sampler: Any = "default",
        temperature: float | Sequence[float] | None = None,
        max_new_tokens: int | None = None,
        name: str = "sample",
    ) -> GroupsHandle:
        """Sample `n` responses per prompt from each policy at each temperature, side by side in one group.

        Args:
            policy: one or several.
            prompts: what is answered.
            n: responses per prompt, policy and temperature.
            sampler: a registered sampler.
            temperature: one or several; default the sampler's own.
            max_new_tokens: default the sampler's own.
            name: of the stage.
        """
        policies = [policy] if isinstance(policy, PolicyHandle) else list(policy)
        several = isinstance(temperature, (list, tuple))
        temperatures: list[float | None] = list(temperature) if several else [temperature]  # type: ignore[arg-type,list-item]
        record = self.host.resolve("sampler", sampler)
        samplers = [self._sampler(sampler, t, max_new_tokens) for t in temperatures]
        config = {"n": n, "samplers": plain(samplers), "sampler": record.qualified}
        inputs = {**{f"policy{i}": p for i, p in enumerate(policies)}, "prompts": prompts}
        count = n * len(policies) * len(samplers)
        stage = self._stage(
            "sample",
            name,
            config,
            inputs,
            lambda work: verbs.sample(self, work, policies, _groups(prompts), n, samplers, name),
            plugins=[record.distribution],
            cost=planning.Cost(
                generated=len(prompts) * count * samplers[0].max_new_tokens, parameters=policies[0].parameters
            ),
        )
        return GroupsHandle(**self._common(stage, name), expected=len(prompts), responses=count)

    def annotate(
        self, groups: Groups | GroupsHandle, annotator: Any, *, name: str = "annotate"
    ) -> dict[str, GroupsHandle]:
        """Have the responses ranked; returns one handle per dimension.

        Args:
            groups: K >= 2 responses each.
            annotator: an `Annotator` or a registered name.
            name: of the stage.
        """
        built, distribution = self._build("annotator", annotator)
        stage = self._stage(
            "annotate",
            name,
            {"annotator": plain(built)},
            {"groups": groups},
            lambda work: verbs.annotate(self, work, _groups(groups), built, name),
            plugins=[distribution],
        )
        common = self._common(stage, name)
        return {
            d: GroupsHandle(**common, part=f"groups-{d}", expected=len(groups), responses=2) for d in built.dimensions
        }

    def train_reward(
        self,
        init: PolicyHandle | RewardHandle,
        comparisons: Groups | GroupsHandle | Sequence[Groups | GroupsHandle],
        *,
        loss: Any,
        replay: Sequence[Groups | GroupsHandle] = (),
        replay_fraction: float = 1.0,
        epochs: int = 1,
        batch_size: int = 16,
        learning_rate: float = 1e-4,
        schedule: str = "cosine",
        warmup_ratio: float = 0.03,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        max_length: int = 1024,
        heldout_fraction: float = 0.1,
        drop_bad: bool = False,
        checkpointing: bool = False,
        column: str | None = None,
        name: str = "reward",
    ) -> RewardHandle:
        """Train a reward model on comparisons or rankings.

        Args:
            init: a policy (its language head replaced), or a reward model to go on from.
            comparisons: what is new.
            loss: a registered ranking loss.
            replay: earlier comparisons, learned from beside the new ones.
            replay_fraction: share of their rows that is drawn.
            epochs, batch_size, learning_rate, schedule, warmup_ratio, weight_decay, max_grad_norm: see
                `PolicyOptimizer`.
            max_length: tokens of a prompt and of a response, each.
            heldout_fraction: share of the *prompts* kept back, on which accuracy is reported.
            drop_bad: leave out useless rows rather than refuse them.
            checkpointing: gradient checkpointing.
            column: name of its scores; default the last part of `name`.
            name: of the stage.
        """
        parts = [comparisons] if isinstance(comparisons, (Groups, GroupsHandle)) else list(comparisons)
        if not 0 <= replay_fraction <= 1:
            raise ConfigError(f"replay_fraction={replay_fraction} must be in [0, 1]", where=name)
        record, bound = self.host.resolve("loss", loss), self.host.build("loss", loss)
        training = {
            "learning_rate": learning_rate,
            "schedule": schedule,
            "warmup_ratio": warmup_ratio,
            "weight_decay": weight_decay,
            "max_grad_norm": max_grad_norm,
        }
        lora = init.lora if isinstance(init, PolicyHandle) else None
        config = {
            "loss": record.qualified,
            "loss_arguments": _loss_key(bound),
            "epochs": epochs,
            "batch_size": batch_size,
            **training,
            "max_length": max_length,
            "heldout_fraction": heldout_fraction,
            "drop_bad": drop_bad,
            "checkpointing": checkpointing,
            "lora": plain(lora),
            "replay_fraction": replay_fraction,
        }
        column = column or name.rsplit("/", 1)[-1]
        start = init if isinstance(init, PolicyHandle) else init.handle
        parameters = init.parameters if isinstance(init, PolicyHandle) else int(init.result.get("parameters", 0))
        rows = sum(map(len, parts)) + replay_fraction * sum(map(len, replay))
        tokens = int(rows * min(2 * max_length, COMPARISON_TOKENS)) * epochs
        inputs: dict[str, Any] = {"init": start, **{f"comparisons{i}": p for i, p in enumerate(parts)}}
        inputs |= {f"replay{i}": p for i, p in enumerate(replay)}
        stage = self._stage(
            "train_reward",
            name,
            config,
            inputs,
            lambda work: verbs.train_reward(
                self,
                work,
                init,
                [_groups(p) for p in parts],
                [_groups(p) for p in replay],
                bound,
                config,
                training,
                name,
            ),
            plugins=[record.distribution],
            cost=planning.Cost(trained=tokens, parameters=parameters, trainable=True, disk=2_000_000),
        )
        return RewardHandle(
            Handle(**self._common(stage, name)), column, self.max_tokens, self.precision, str(self.device)
        )

    def reward_model(self, spec: str | Path, *, column: str = "reward", name: str = "reward_model") -> RewardHandle:
        """Bring a reward model that exists already: one that a run trained, or any sequence classifier.

        Args:
            spec: folder or hub name.
            column: name of its scores.
            name: of the stage.
        """
        identity = verbs.reward_identity(str(spec))
        stage = self._stage(
            "reward_model",
            name,
            {"spec": _label(spec), "identity": identity},
            {},
            lambda work: verbs.import_reward_model(str(spec), work),
        )
        return RewardHandle(
            Handle(**self._common(stage, name)), column, self.max_tokens, self.precision, str(self.device)
        )

    def improve(
        self,
        policy: PolicyHandle,
        prompts: Groups | GroupsHandle,
        *,
        optimizer: Any,
        reward: Any = None,
        annotator: Any = None,
        reference: PolicyHandle | None = None,
        reference_logprobs: str = "kept",
        streams: Mapping[str, Groups | GroupsHandle] | None = None,
        init: PolicyHandle | None = None,
        history: Sequence[GroupsHandle | Groups] = (),
        heldout: Groups | None = None,
        patience: int = 0,
        sampler: Any = "default",
        max_new_tokens: int | None = None,
        max_missing: float = 0.05,
        value_model: str = "head",
        checkpointing: bool = False,
        iteration: int | None = None,
        name: str = "improve",
    ) -> Improved:
        """Make the next version of a policy with any registered optimizer.

        Args:
            policy: samples; and is trained, unless `init` says otherwise.
            prompts: prompts, or groups with responses for a method that samples nothing itself.
            optimizer: a registered policy optimizer.
            reward: what scores the responses.
            annotator: what ranks the responses of a round, along one dimension.
            reference: the policy that the KL is measured against (V0).
            reference_logprobs: "kept": the loss's reference log-probs are worked out once a round; "online": with every
                micro-batch, in less memory and more time.
            streams: groups of the second data streams that the optimizer declares, by name.
            init: whose weights are trained; default the policy's own.
            history: samples of earlier versions, scored again by the current reward.
            heldout: prompts on which the reward is measured after every round.
            patience: rounds without a better held-out reward before stopping; 0 never stops.
            sampler: a registered sampler; its temperature is the optimizer's.
            max_new_tokens: default the sampler's own.
            max_missing: the largest share of missing rewards a round may have.
            value_model: "head": a value head on the policy's trunk; "separate": a model of its own, started like the
                policy.
            checkpointing: gradient checkpointing.
            iteration: number of the version, kept with the samples.
            name: of the stage.
        """
        built, distribution = self._build("optimizer", optimizer)
        loss = self.host.resolve("loss", built.loss)
        sampler_record = self.host.resolve("sampler", sampler)
        sampler_built = self._sampler(sampler, built.temperature, max_new_tokens)
        if value_model not in ("head", "separate"):
            raise ConfigError(f"value_model {value_model!r}", where=name, remedy="use head or separate")
        reward, reward_distribution = self._reward(reward)
        judge, judge_distribution = self._build("annotator", annotator) if annotator is not None else (None, "")
        if reference_logprobs not in ("kept", "online"):
            raise ConfigError(f"reference_logprobs={reference_logprobs!r}", where=name, remedy="use kept or online")
        mixed = built.streams()
        if set(mixed) != set(streams or {}):
            raise ConfigError(
                f"the optimizer learns from the streams {sorted(mixed)}, given are {sorted(streams or {})}",
                where=name,
                remedy="pass streams={name: groups} for those that it declares",
            )
        others = [*built.extra_losses().values(), *(stream.loss for stream in mixed.values())]
        config = {
            "optimizer": {"name": self.host.resolve("optimizer", optimizer).qualified, **plain(built)},
            "loss": loss.qualified,
            "loss_arguments": _loss_key(self.host.build("loss", built.loss)),
            "sampler": {"name": sampler_record.qualified, **plain(sampler_built)},
            "patience": patience,
            "max_missing": max_missing,
            "value_model": value_model,
            "checkpointing": checkpointing,
            "iteration": iteration,
            "lora": plain((init or policy).lora),
            **({"reference_logprobs": reference_logprobs} if reference_logprobs != "kept" else {}),
        }
        if others:  # plain functions count by their source
            config["further_losses"] = [
                [self.host.resolve("loss", other).qualified, _loss_key(self.host.build("loss", other))]
                for other in others
            ]
            config["streams"] = {key: plain(stream) for key, stream in mixed.items()}
        inputs: dict[str, Any] = {"policy": policy, "prompts": prompts, "reference": reference, "init": init}
        inputs |= {f"history{i}": h for i, h in enumerate(history)} | {"reward": reward, "heldout": heldout}
        inputs |= {"annotator": judge} | {f"stream {key}": groups for key, groups in (streams or {}).items()}
        request = verbs.ImproveRequest(
            policy=policy,
            prompts=prompts,
            optimizer=built,
            loss=built.loss,
            sampler=sampler_built,
            reward=reward,
            annotator=judge,
            streams=dict(streams or {}),
            reference=reference,
            reference_logprobs=reference_logprobs,
            init=init or policy,
            history=list(history),
            heldout=heldout,
            patience=patience,
            max_missing=max_missing,
            value_model=value_model,
            checkpointing=checkpointing,
            iteration=iteration,
            name=name,
        )
        drawn = min(built.prompts_per_round or len(prompts), len(prompts))
        per_round = drawn * max(built.samples_per_prompt, 1)
        every = built.sample_every or built.rounds or 1
        rounds = built.rounds or -(-len(prompts) // max(drawn, 1)) * every
        draws = -(-rounds // every)
        generated = per_round * draws * sampler_built.max_new_tokens if built.samples_per_prompt else 0
        stage = self._stage(
            "improve",
            name,
            config,
            {k: v for k, v in inputs.items() if v is not None},
            lambda work: verbs.improve(self, work, request),
            plugins=[
                *(distribution, loss.distribution, sampler_record.distribution, reward_distribution),
                *(judge_distribution, *(self.host.resolve("loss", other).distribution for other in others)),
            ],
            cost=planning.Cost(
                generated=generated,
                trained=per_round * rounds * built.epochs * sampler_built.max_new_tokens * 2,
                forwarded=generated * 2,
                parameters=policy.parameters,
                trainable=True,
                disk=_adapter_bytes(policy),
            ),
        )
        trained = self._trained(stage, name, init or policy)
        rollouts = GroupsHandle(
            **self._common(stage, name), expected=per_round * draws, responses=built.samples_per_prompt or 1
        )
        state = stage.result.get("state", {}) if stage else {}
        return Improved(trained, rollouts, state, stage.result if stage else {})

    def transform(
        self,
        groups: Groups | GroupsHandle,
        transform: Any,
        *,
        policy: PolicyHandle | None = None,
        name: str = "transform",
    ) -> GroupsHandle:
        """Map groups to groups.

        Args:
            groups: what is changed.
            transform: a registered transform or a function `(groups, ctx)`; `ctx.sample(prompts, n, …)` samples from
                `policy`.
            policy: whom the transform may sample from.
            name: of the stage.
        """
        built, distribution = self._build("transform", transform)
        stage = self._stage(
            "transform",
            name,
            {"transform": plain(built)},
            {"groups": groups, **({"policy": policy} if policy else {})},
            lambda work: verbs.transform(self, work, _groups(groups), built, policy, name),
            plugins=[distribution],
        )
        return GroupsHandle(**self._common(stage, name), expected=len(groups), responses=1)

    def evaluate(
        self,
        policy: PolicyHandle,
        prompts: Groups | GroupsHandle,
        scores: Mapping[str, Any],
        *,
        n: int = 1,
        temperature: float = 1.0,
        greedy: bool = False,
        max_new_tokens: int = 128,
        reference: PolicyHandle | None = None,
        kl_prompts: int | None = None,
        label: str | None = None,
        baseline: EvaluationHandle | None = None,
        answers: str = "sampled",
        name: str = "evaluate",
    ) -> EvaluationHandle:
        """Answer held-out prompts and score the answers.

        Args:
            policy: the version.
            prompts: held-out prompts.
            scores: name -> reward or plain function; the first is the one that the report leads with.
            n: answers per prompt.
            temperature: of sampling.
            greedy: take the likeliest tokens.
            max_new_tokens: of an answer.
            reference: the policy for the KL (V0).
            kl_prompts: how many of the prompts the KL is measured on; default all.
            label: of the version, such as "V1".
            baseline: the evaluation to pair with; default the first of this run.
            answers: "sampled" from the policy, or "given": those that the groups hold, such as turns of a dialogue.
            name: of the stage.

        Raises:
            ConfigError: another word for `answers`.
        """
        if answers not in ("sampled", "given"):
            raise ConfigError(f"answers={answers!r}", where=name, remedy="use sampled or given")
        if answers == "given" and reference is not None:
            raise ConfigError(
                "answers='given' with a reference",
                where=name,
                effect="The KL of a policy is measured on its own samples, and these may be another's.",
                remedy="leave reference out, or sample",
            )
        found = {key: self._reward(value, key) for key, value in scores.items()}
        rewards = {key: reward for key, (reward, _) in found.items()}
        baseline = baseline or self._first_evaluation
        self._evaluations += 1
        order = self._evaluations
        config = {
            "n": n,
            "temperature": temperature,
            "greedy": greedy,
            "max_new_tokens": max_new_tokens,
            "label": label or name,
            "kl_prompts": kl_prompts,
            "scores": {key: plain(value) for key, value in rewards.items()},
            **({"answers": answers} if answers != "sampled" else {}),
        }
        inputs = {"policy": policy, "prompts": prompts, "reference": reference, "baseline": baseline}
        stage = self._stage(
            "evaluate",
            name,
            config,
            {k: v for k, v in inputs.items() if v is not None},
            lambda work: verbs.evaluate(
                self, work, policy, _groups(prompts), rewards, {**config, "order": order}, reference, baseline, name
            ),
            plugins=[distribution for _, distribution in found.values() if distribution],
            cost=planning.Cost(
                generated=len(prompts) * n * max_new_tokens if answers == "sampled" else 0,
                forwarded=len(prompts) * n * max_new_tokens * (len(rewards) + 1),
                parameters=policy.parameters,
            ),
        )
        handle = EvaluationHandle(**self._common(stage, name))
        self._first_evaluation = self._first_evaluation or handle
        return handle

    def report(self) -> Path | None:
        """Write report.html; returns where."""
        if self.planning or self.rank:
            return None
        from alignkit.report import version_table, write_report

        self._write_run("running")
        self._reported = True
        path = write_report(self.folder)
        self.console.say(f"report: {path}\n\n{version_table(self.folder)}")
        return path

    def export(self, policy: PolicyHandle, *, name: str = "export") -> Path | None:
        """Write a plain Hugging Face folder, adapter merged, with a model card that tells the lineage; returns
        where."""
        stage = self._stage(
            "export",
            name,
            {},
            {"policy": policy},
            lambda work: verbs.export(self, work, policy),
            cost=planning.Cost(disk=4 * policy.parameters),
        )
        return stage.folder / "model" if stage else None

    # -- entering midway -----------------------------------------------------------------------------------------------

    def groups(self, groups: Groups, *, name: str = "groups") -> GroupsHandle:
        """Bring data that exists already (annotations, rollouts) into the run as a stage."""
        stage = self._stage("groups", name, {}, {"groups": groups}, lambda work: verbs.keep_groups(work, groups))
        return GroupsHandle(**self._common(stage, name), expected=len(groups), responses=1)

    # -- the end -------------------------------------------------------------------------------------------------------

    def plan_table(self) -> str:
        """The plan as text."""
        return planning.table(self.planned, self.precision)

    def close(self, status: str = "complete") -> None:
        """Record that the script came to its end."""
        if self.planning or self.rank:
            return
        self._write_run(status)
        self.store.unlock()
        if self._reported:  # once more, now that it can say how the run ended
            from alignkit.report import write_report

            write_report(self.folder)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close("complete" if kind is None else "interrupted" if kind is KeyboardInterrupt else "failed")

    @property
    def device(self) -> Any:
        """Where models run that Lightning does not place: this process's CUDA device, unless the CPU is asked for."""
        import torch

        if self.trainer.get("accelerator") == "cpu" or not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))

    # -- stages --------------------------------------------------------------------------------------------------------

    def _stage(
        self,
        verb: str,
        name: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, Any],
        work: Work,
        *,
        plugins: Sequence[str] = (),
        cost: planning.Cost | None = None,
    ) -> Stage | None:
        """Find the stage or make it. None while planning a stage that is not there."""
        if name in self._names:
            raise ConfigError(f"two stages are named {name!r}", where=verb, remedy="give each call its own name=")
        self._names.add(name)
        identity = self._identity(verb, name, config, inputs, plugins)
        key = digest(identity)
        stage = self.store.find(key)
        if self.planning:
            self.planned.append(
                planning.Planned(
                    name, verb, stage is not None, cost or planning.Cost(), self._changed(name, verb, identity, stage)
                )
            )
            return stage
        if processes.agree(stage is not None, self.world):
            assert stage is not None
            self._stages.append(stage.folder.name)
            self.console.say(f"{name}: done already ({stage.record['seconds']:.0f} s saved)")
            self._write_run("running")
            return stage
        for line in self._changed(name, verb, identity, None):
            self.console.say(f"{name}: changed {line}")
        return self._make(verb, name, key, identity, work)

    def _identity(
        self, verb: str, name: str, config: Mapping[str, Any], inputs: Mapping[str, Any], plugins: Sequence[str]
    ) -> dict[str, Any]:
        code: dict[str, Any] = {}
        needed = {other for name in plugins for other in required_plugins(name)}
        for distribution in sorted({"alignkit", *plugins, *needed}):
            code |= {
                k if k != "source" else f"{distribution} source": v for k, v in distribution_key(distribution).items()
            }
        for record in self.host.components() if any(plugins) else ():
            if record.distribution in plugins and record.kind not in ("suite", "recipe"):
                found = component_code(record.object)  # of one registered by hand
                code |= {f"{record.kind} {record.qualified}": found} if found else {}
        return {
            "verb": verb,
            "name": name,
            "config": plain(config),
            "inputs": {label: _input_key(value) for label, value in inputs.items()},
            "seed": self.seed,
            "precision": self.precision,
            "devices": self._devices | ({"world": str(self.world)} if self.world > 1 else {}),
            "max_tokens": self.max_tokens,
            "code": code,
        }

    def _changed(self, name: str, verb: str, identity: Mapping[str, Any], stage: Stage | None) -> list[str]:
        before = None if stage else self.store.latest_of(name, verb)
        return difference(before.record["identity"], identity) if before else []

    def _make(self, verb: str, name: str, key: str, identity: dict[str, Any], work: Work) -> Stage:
        self.console.say(f"{name}: {verb} …")
        started, clock = now(), time.monotonic()
        folder = self.store.begin(name) if self.rank == 0 else self.store.stages_folder / f".rank{self.rank}"
        folder.mkdir(parents=True, exist_ok=True)
        self._write_run("running")
        try:
            result = dict(work(folder))
        except BaseException as error:
            self._write_run("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
            raise
        record = {
            "name": name,
            "verb": verb,
            "key": key,
            "identity": identity,
            "status": "complete",
            "config": identity["config"],
            "inputs": dict(identity["inputs"]),
            "seconds": round(time.monotonic() - clock, 3),
            "started": started,
            "cached": False,
            "versions": versions(),
            "result": plain(result),
        }
        if self.rank == 0:
            stage = self.store.commit(folder, record)
        processes.barrier(self.world)
        if self.rank:
            shutil.rmtree(folder, ignore_errors=True)
            self.store = Store(self.folder)
            found = self.store.find(key)
            assert found is not None
            stage = found
        self._stages.append(stage.folder.name)
        self.console.say(f"{name}: {verbs.summary(verb, record)}")
        self._write_run("running")
        return stage

    def _write_run(self, status: str) -> None:
        if self.rank:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(
            self.folder / "run.json",
            {
                "format": 1,
                "name": self.folder.name,
                "seed": self.seed,
                "created": self._created,
                "precision": self.precision,
                "trainer": {k: str(v) for k, v in self.trainer.items()},
                "versions": versions(),
                "command": verbs.command(),
                "stages": self._stages,
                "status": status,
            },
        )

    def _common(self, stage: Stage | None, name: str) -> dict[str, Any]:
        if stage is None:
            return {"key": f"planned:{name}", "name": name, "folder": None, "result": {}}
        return {"key": stage.key, "name": name, "folder": stage.folder, "result": stage.result}

    def _trained(self, stage: Stage | None, name: str, start: PolicyHandle) -> PolicyHandle:
        return PolicyHandle(**self._common(stage, name), lora=start.lora, parameters=start.parameters)

    def _build(self, kind: str, spec: Any) -> tuple[Any, str]:
        return self.host.build(kind, spec), self.host.resolve(kind, spec).distribution

    def _reward(self, value: Any, name: str | None = None) -> tuple[Any, str]:
        """A reward and the distribution it comes from: given as one, as a plain function, or by registered name."""
        if isinstance(value, (str, Component)):
            built, distribution = self._build("reward", value)
            return _as_reward(built, name or self.host.resolve("reward", value).name), distribution
        return _as_reward(value, name), ""

    def _sampler(self, spec: Any, temperature: float | None, max_new_tokens: int | None) -> Any:
        import dataclasses

        built = self.host.build("sampler", spec)
        changes = {"temperature": temperature, "max_new_tokens": max_new_tokens}
        return dataclasses.replace(built, **{k: v for k, v in changes.items() if v is not None})


def _groups(value: Groups | GroupsHandle) -> Groups:
    return value.groups if isinstance(value, GroupsHandle) else value


def _input_key(value: Any) -> Any:
    if isinstance(value, Groups):
        return {"groups": value.digest()}
    if isinstance(value, Handle):
        return value.to_json()
    return plain(value)


def _loss_key(bound: Any) -> Any:
    """Hyper-parameters of a registered loss; for a plain function its source too."""
    arguments = plain(dict(bound.hyperparameters))
    return arguments if bound.distribution else {**arguments, "function": plain(bound.fn)}


def _as_reward(value: Any, name: str | None = None) -> Any:
    from alignkit.rewards import FunctionReward, Reward

    if value is None or isinstance(value, Reward):
        return value
    if callable(value):
        return FunctionReward(value, name)
    raise AlignkitError(f"a {type(value).__name__} is not a reward", remedy="pass a Reward or a plain function")


def _label(spec: str | Path) -> str:
    """How a model is named in a key: the last part of a path, since its content counts and not where it lies."""
    return Path(spec).name if os.sep in str(spec) else str(spec)


def _adapter_bytes(policy: PolicyHandle) -> int:
    return 4 * policy.parameters if policy.lora is None else policy.parameters // 8


__all__ = ["Run"]
