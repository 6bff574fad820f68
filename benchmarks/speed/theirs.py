"""One job by TRL in its fastest setting: `python theirs.py JOB PRECISION STEPS ROWS MODEL`, with TRL installed.

TRL 1.16 for all jobs but PPO, whose trainer went with version 1.13: for that one, TRL 1.12.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from typing import Any

from datasets import Dataset
from texts import comparisons, demonstrations, questions
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)

GROUP, NEW_TOKENS = 8, 48


class Clock(TrainerCallback):
    """Notes the seconds from one step's end to the next."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_begin(self, *given: Any, **named: Any) -> None:
        self.last = time.perf_counter()

    def on_step_end(self, *given: Any, **named: Any) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def trainer(job: str, path: str, options: dict[str, Any], steps: int, rows: int) -> Any:
    """The trainer of a job."""
    import trl

    tokenizer = AutoTokenizer.from_pretrained(path)
    common = {"processing_class": tokenizer}
    if job == "sft":
        data = [
            {"prompt": each["prompt"], "completion": answer(each["response"])} for each in demonstrations(steps * rows)
        ]
        model = AutoModelForCausalLM.from_pretrained(path)
        return trl.SFTTrainer(model, trl.SFTConfig(**options), train_dataset=Dataset.from_list(data), **common)
    if job in ("dpo", "reward"):
        data = [
            {"prompt": each["prompt"], "chosen": answer(each["chosen"]), "rejected": answer(each["rejected"])}
            for each in comparisons(steps * rows)
        ]
        if job == "dpo":
            model, reference = (AutoModelForCausalLM.from_pretrained(path) for _ in range(2))
            config = trl.DPOConfig(**options)
            return trl.DPOTrainer(model, reference, config, train_dataset=Dataset.from_list(data), **common)
        model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1)
        model.config.pad_token_id = tokenizer.pad_token_id
        return trl.RewardTrainer(model, trl.RewardConfig(**options), train_dataset=Dataset.from_list(data), **common)
    samples = 2 * rows
    if job.startswith("ppo"):
        return ppo_trainer(path, options | {"per_device_train_batch_size": samples}, samples * steps, tokenizer)
    group = min(GROUP, samples)
    options |= {"per_device_train_batch_size": samples, "num_generations": group, "shuffle_dataset": False}
    config = trl.GRPOConfig(**options, max_completion_length=NEW_TOKENS, beta=0.0)
    data = [{"prompt": each} for each in questions(steps * (samples // group))]

    def length(completions: list[Any], **_: Any) -> list[float]:
        return [float(len(each[0]["content"]) % 17) for each in completions]

    return trl.GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(path), length, config, Dataset.from_list(data), **common
    )


def ppo_trainer(path: str, options: dict[str, Any], episodes: int, tokenizer: Any) -> Any:
    """PPO with a value model of its own, the only kind there is; the reward model is one layer and costs nothing.

    Raises:
        SystemExit: a version without PPO.
    """
    import trl

    try:
        from trl.experimental.ppo import PPOConfig, PPOTrainer
    except ImportError:
        raise SystemExit(f"TRL {trl.__version__} has no PPO; 1.12 is the last that has it") from None
    policy, reference = (AutoModelForCausalLM.from_pretrained(path) for _ in range(2))
    value = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1)
    reward = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, num_hidden_layers=1)
    asked = [tokenizer.apply_chat_template(each, add_generation_prompt=True) for each in questions(episodes)]
    ids = [each if isinstance(each, list) else each["input_ids"] for each in asked]
    data = Dataset.from_list([{"input_ids": each} for each in ids])
    config = PPOConfig(
        **{name: option for name, option in options.items() if name != "max_steps"},
        total_episodes=episodes,
        num_ppo_epochs=4,
        num_mini_batches=1,
        num_sample_generations=0,
        response_length=NEW_TOKENS,
        stop_token="eos",
    )
    return PPOTrainer(config, tokenizer, policy, reference, reward, data, value, eval_dataset=data)


def main(job: str, precision: str, steps: int, rows: int, path: str) -> None:
    """Run it and print."""
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {
            "output_dir": folder,
            "per_device_train_batch_size": rows,
            "max_steps": steps,
            "bf16": precision == "bf16-mixed",
            "gradient_checkpointing": False,
            "use_cpu": True,
            "report_to": [],
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
        }
        clock, made = Clock(), trainer(job, path, options, steps, rows)
        made.add_callback(clock)
        made.train()
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": clock.seconds, "items": rows, "peak": peak}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
