"""Run by test_processes.py under torchrun: one improve stage; prints digests of what came out."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass

import torch

from alignkit import Groups, PolicyOptimizer, Run, Term
from alignkit.engine.learner import Learner
from alignkit.optimizers import Batch

torch.set_num_threads(1)
PROMPTS = Groups.from_prompts([f"prompt {i} {'x' * i}" for i in range(5)])
GRADIENTS: list[list[float]] = []


def letters(response):
    return sum("a" <= c <= "z" for c in response) / max(len(response), 1)


def surrogate(logprobs, old_logprobs, advantages):
    return -(logprobs - old_logprobs).exp() * advantages


@dataclass(frozen=True)
class Plain(PolicyOptimizer):
    loss: object = surrogate
    samples_per_prompt: int = 3
    batch_size: int = 5
    learning_rate: float = 1e-2

    def terms(self):
        return {"loss": Term(reduction="token")}

    def prepare(self, groups, state, *, rewards, logprobs, response_mask):
        return Batch(groups, {"advantages": (rewards - rewards.mean()).unsqueeze(1) * response_mask})


def watch(self):
    GRADIENTS.append([float(p.grad.double().sum()) for p in self.parameters() if p.grad is not None])
    GRADIENTS.append([float(p.grad.double().pow(2).sum()) for p in self.parameters() if p.grad is not None])
    return original(self)


original, Learner._clip = Learner._clip, watch

if __name__ == "__main__":
    folder = sys.argv[1]
    processes = {"strategy": "ddp", "devices": 2} if len(sys.argv) > 2 else {}
    # Five micro-batches, one for each prompt: the second process is idle during the last one.
    with Run(folder, quiet=True, max_tokens=40, trainer={"accelerator": "cpu", **processes}) as run:
        v0 = run.policy("tiny", lora=None)
        made = run.improve(v0, PROMPTS, optimizer=Plain(), reward=letters, reference=v0, max_new_tokens=10, name="v1")
        cut = run.improve(
            v0, PROMPTS, optimizer=Plain(rounds=3), reward=letters, reference=v0, max_new_tokens=10, name="v2",
            reference_logprobs="online", budget={"generated_tokens": 60},
        )  # fmt: skip
    records = [json.loads((one.policy.path / "stage.json").read_text()) for one in (made, cut)]
    meters = [{name: record["meter"][name] for name in ("counts", "flops")} for record in records]
    steps = [json.loads(line) for line in (made.policy.path / "metrics.jsonl").read_text().splitlines()]
    rows = [row["response_ids"] for row in made.rollouts.groups]
    if run.rank == 0:
        digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
        print(json.dumps({"samples": digest, "gradients": GRADIENTS, "stages": len(run.made), "steps": steps,
                          "meters": meters, "cut": cut.result["rows"]}))  # fmt: skip
