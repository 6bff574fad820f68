"""Run by test_processes.py, alone and under torchrun: one stage of each kind of training; prints where each one is."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

from alignkit import Groups, LoRA, PolicyOptimizer, Run, Term
from alignkit.optimizers import Batch, Stream
from alignkit.processes import sum_gradients

torch.set_num_threads(1)
PROMPTS = Groups.from_prompts([f"prompt {i} {'x' * i}" for i in range(5)])
TEXTS = Groups.from_rows([{"prompt": [], "responses": [f"some plain text number {i}"]} for i in range(3)])
PAIRS = Groups.from_rows(
    [{"prompt": f"question {i}", "responses": [f"yes {'very ' * i}much", "no"], "ranks": [1, 2]} for i in range(5)]
)

ANSWERS = Groups.from_rows([{"prompt": f"question {i}", "responses": [f"yes {'very ' * i}much"]} for i in range(5)])


def letters(response):
    return sum("a" <= c <= "z" for c in response) / max(len(response), 1)


def actor_critic(logprobs, old_logprobs, values, advantages):
    return {"actor": -(logprobs - old_logprobs).exp() * advantages, "critic": (values - 1) ** 2}


def ranking(chosen_rewards, rejected_rewards):
    return -torch.nn.functional.logsigmoid(chosen_rewards - rejected_rewards)


@dataclass(frozen=True)
class ActorCritic(PolicyOptimizer):
    loss: object = actor_critic
    samples_per_prompt: int = 2
    rounds: int = 2
    epochs: int = 2
    batch_size: int = 3  # the last step of an epoch has two prompts
    learning_rate: float = 1e-3
    value_learning_rate: float | None = 3e-3
    weight_decay: float = 0.1
    max_grad_norm: float = 0.05  # every step is clipped
    mixed: bool = True

    def terms(self):
        return {"actor": Term(reduction="token"), "critic": Term(0.5, reduction="token")}

    def streams(self) -> Mapping[str, Stream]:
        return {"texts": Stream(weight=0.5, batch_size=1)} if self.mixed else {}

    def prepare(self, groups, state, *, rewards, response_mask):
        return Batch(groups, {"advantages": (rewards - rewards.mean()).unsqueeze(1) * response_mask})


def improved(run, policy, name, value_model="head", mixed=True):
    given = {"streams": {"texts": TEXTS}} if mixed else {}
    return run.improve(
        policy, PROMPTS, optimizer=ActorCritic(mixed=mixed), reward=letters, max_new_tokens=8, name=name,
        value_model=value_model, **given,
    ).policy  # fmt: skip


def work(run):
    whole, adapted = run.policy("tiny", lora=None, name="whole"), run.policy("tiny", lora=LoRA(r=4), name="adapted")
    step = {"batch_size": 3, "max_grad_norm": 0.05, "learning_rate": 1e-3}
    return [
        improved(run, whole, "stream beside a value head"),
        improved(run, whole, "separate value model", "separate", mixed=False),
        improved(run, whole, "both", "separate"),
        improved(run, adapted, "both with adapters", "separate"),
        run.sft(whole, ANSWERS, name="sft", **step),
        run.train_reward(whole, PAIRS, loss=ranking, name="reward", **step).handle,
    ]


def unlike_gradients(rank):
    """Each process has a gradient that the other one has not, as an expert's, and one has nobody."""
    mine = [torch.nn.Parameter(torch.zeros(2, 3, dtype=dtype)) for dtype in (torch.float32, torch.float64)]
    mine += [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    for place in (0, 1, 2 + rank):
        mine[place].grad = torch.full_like(mine[place], rank + 1.0)
    sum_gradients(mine)
    return [None if p.grad is None else p.grad.flatten().tolist() for p in mine]


if __name__ == "__main__":
    processes = {"strategy": "ddp", "devices": 2} if len(sys.argv) > 2 else {}
    # Micro-batches of one or two responses: several for each process, and one process idle in some.
    with Run(sys.argv[1], quiet=True, max_tokens=60, trainer={"accelerator": "cpu", **processes}) as run:
        stages = {made.name: str(made.path) for made in work(run)}
        gradients = unlike_gradients(run.rank) if dist.is_initialized() else None
    if run.rank == 0:
        print(json.dumps({"stages": stages, "gradients": gradients}))
