"""What do the conformance kit's loss checks say of TRL's own losses?

`python benchmarks/trl_conformance.py` needs TRL 1.16 beside what `make setup` installs (`pip install --no-deps
trl==1.16.0`, anywhere on the path); TRL is no dependency of alignkit.

TRL's code is called as `trl_losses.py` calls it: methods of its trainers, on objects made without `__init__`, with a
stand-in for the model whose log-probs are the tensors that the kit made. TRL returns means; what an element costs
stands in a local variable of the method (`per_sequence_loss`, `per_token_loss`), which is read when the method returns.
"As returned" are the means themselves. Writes results/trl_conformance.md and .json.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from trl_parity.theirs import Settings, trainer

from alignkit.registry.hookspecs import hookimpl
from alignkit.registry.host import PluginHost
from alignkit.testing.conformance import Outcome, checks_of, examine, find

RESULTS = Path(__file__).parent / "results"
DPO_TYPES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sigmoid_norm",
)  # fmt: skip
GRPO_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo")
KEPT = ("documented", "refuses-negative", "infinite-is-refused-or-harmless", "key-sees-settings")
"""Checks of how a component is declared, which says nothing of TRL."""


SAID = """- `aot` and `aot_unpaired` sort log-ratios over the micro-batch, so that a pair's value and gradient depend on
  its neighbours and on the size of the micro-batch.
- `discopop` multiplies an exponential that overflows by a weight that is 0, where a comparison is lost by far (two
  thousand nats): not finite.
- `cispo` detaches the clipped ratio on purpose, so that autograd is not the derivative of the value. A component says
  so by `declined`.
- "As returned": what `_compute_loss` and `compute_loss` give is a mean over the micro-batch, and a mean of means over
  accumulated micro-batches is not the mean of the step."""
"""What the table means."""


class Given(torch.nn.Module):
    """A model that answers with log-probs [rows, tokens] that it was given."""

    is_gradient_checkpointing = False

    def __init__(self, logprobs: Tensor) -> None:
        super().__init__()
        self.logprobs = logprobs

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **_: Any) -> SimpleNamespace:
        shown = torch.ones_like(self.logprobs).bool() if labels is None else labels[:, 1:] != -100
        nothing = torch.zeros_like(self.logprobs)
        return SimpleNamespace(
            log_probs=self.logprobs.where(shown, 0),
            label_mask=shown,
            entropy=nothing,
            mean_logits=nothing,
            is_top1=shown,
        )


def local_of(call: Callable[[], Any], method: str, name: str) -> Any:
    """The value of a local variable when a method, called somewhere in `call`, returns."""
    found: list[Any] = []

    def watch(frame: Any, event: str, _: Any) -> None:
        if event == "return" and frame.f_code.co_name == method and name in frame.f_locals:
            found.append(frame.f_locals[name])

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found[-1]


def stand_in(weights: Any = None) -> Any:
    """What `trainer` reads of its data."""
    return SimpleNamespace(weights=weights, reference=weights)


def rows_of_pairs(chosen: Tensor, rejected: Tensor, width: int) -> Tensor:
    """[rows, width]: the log-prob of each response on its first token, 0 on the others."""
    first = torch.cat([chosen, rejected]).unsqueeze(1)
    return torch.cat([first, torch.zeros(len(first), width - 1, dtype=first.dtype)], 1)


def dpo(loss_type: str) -> Callable[..., Tensor]:
    def loss(
        chosen_logprobs: Tensor,
        rejected_logprobs: Tensor,
        ref_chosen_logprobs: Tensor,
        ref_rejected_logprobs: Tensor,
        chosen_lengths: Tensor,
        rejected_lengths: Tensor,
    ) -> Tensor:
        from trl import DPOTrainer

        lengths = torch.cat([chosen_lengths, rejected_lengths])
        width = int(lengths.max())
        mask = torch.arange(width) < lengths.unsqueeze(1)
        whole = torch.cat([torch.ones(len(lengths), 1, dtype=torch.bool), mask], 1)
        smoothing = {"robust": 0.1, "exo_pair": 1e-3}.get(loss_type, 0.0)
        completion = torch.cat([torch.zeros(len(lengths), 1, dtype=torch.bool), mask], 1)
        made = trainer(
            DPOTrainer, stand_in(), model=Given(rows_of_pairs(chosen_logprobs, rejected_logprobs, width)),
            ref_model=Given(rows_of_pairs(ref_chosen_logprobs, ref_rejected_logprobs, width)),
            args=Settings(discopop_tau=0.05), beta=0.1, label_smoothing=smoothing,
            f_divergence_type="reverse_kl", ld_alpha=None, use_weighting=False, precompute_ref_logps=False,
            loss_types=[loss_type], loss_weights=[1.0],
        )  # fmt: skip
        inputs = {"input_ids": whole.long(), "attention_mask": whole.long(), "completion_mask": completion.long()}
        return local_of(lambda: made._compute_loss(made.model, inputs, False), "_compute_loss", "per_sequence_loss")  # type: ignore[no-any-return]

    return loss


def grpo(loss_type: str, name: str = "per_token_loss") -> Callable[..., Tensor]:
    def loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, response_mask: Tensor) -> Tensor:
        from trl import GRPOTrainer

        high = 5.0 if loss_type == "cispo" else 0.2  # there it is the largest ratio itself
        made = trainer(
            GRPOTrainer, stand_in(),
            args=Settings(steps_per_generation=1, sapo_temperature_pos=1.0, sapo_temperature_neg=1.05),
            loss_type=loss_type, beta=0.0,
            epsilon_low=0.2, epsilon_high=high, max_completion_length=8, importance_sampling_level="token",
            top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False, _entropy_bonus_enabled=False,
            current_gradient_accumulation_steps=1,
            _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
        )  # fmt: skip
        ids = torch.ones(response_mask.shape, dtype=torch.long)
        inputs = {
            "prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1], "completion_ids": ids,
            "completion_mask": response_mask.long(), "advantages": advantages, "old_per_token_logps": old_logprobs,
            "num_items_in_batch": response_mask.sum(),
        }  # fmt: skip
        return local_of(lambda: made._compute_loss(None, inputs), "_compute_loss", name)  # type: ignore[no-any-return]

    return loss


def cpo(loss_type: str) -> Callable[..., Tensor]:
    def loss(chosen_logprobs: Tensor, rejected_logprobs: Tensor) -> Tensor:
        from trl.experimental.cpo import CPOTrainer

        made = trainer(
            CPOTrainer, stand_in(), model=None, loss_type=loss_type, beta=0.1, label_smoothing=0.0, alpha=0.0,
            simpo_gamma=0.5,
        )  # fmt: skip
        return made.cpo_loss(chosen_logprobs, rejected_logprobs)[0]  # type: ignore[no-any-return]

    return loss


def reward(chosen_rewards: Tensor, rejected_rewards: Tensor) -> Tensor:
    from trl import RewardTrainer

    made = trainer(RewardTrainer, stand_in(), args=Settings(center_rewards_coefficient=None))
    scores = torch.cat([chosen_rewards, rejected_rewards]).unsqueeze(-1)
    inputs = {"attention_mask": torch.ones(len(scores), 2)}
    return made.compute_loss(lambda **_: SimpleNamespace(logits=scores), inputs)  # type: ignore[no-any-return]


def losses() -> dict[str, Callable[..., Tensor]]:
    """TRL's losses as losses of tensors, by a name of ours."""
    return {
        **{f"dpo_{kind}": dpo(kind) for kind in DPO_TYPES},
        **{f"cpo_{kind}": cpo(kind) for kind in ("sigmoid", "hinge", "ipo")},
        **{f"grpo_{kind}": grpo(kind) for kind in GRPO_TYPES},
        "grpo_as_returned": grpo("grpo", "loss"),
        "reward_as_returned": reward,
    }


class Plugin:
    """TRL's losses, registered by hand."""

    @hookimpl
    def register_losses(self, register: Callable[[str, Any], None]) -> None:
        for name, loss in losses().items():
            register(name, loss)


def outcomes() -> list[Outcome]:
    """Every check of every loss."""
    host = PluginHost(allow=())
    host.register(Plugin(), "trl")
    subjects = [find(f"loss:{name}", host)[0] for name in losses()]
    return [examine(s, one) for s in subjects for one in checks_of("loss") if one.name not in KEPT]


def table(found: list[Outcome]) -> str:
    """A row for each loss."""
    lines = ["| TRL | passed | do not apply | failed |", "|---|---|---|---|"]
    for name in dict.fromkeys(one.subject for one in found):
        own = [one for one in found if one.subject == name]
        counts = Counter(one.verdict for one in own)
        failed = "; ".join(f"`{one.check}`: {one.text}" for one in own if one.verdict == "fail") or "-"
        lines.append(f"| {name.removeprefix('loss:')} | {counts['pass']} | {counts['does not apply']} | {failed} |")
    return "\n".join(lines)


def main() -> int:
    """Check, print and write."""
    try:
        found_version = version("trl")
    except PackageNotFoundError:
        print("TRL is not installed, nothing is checked: pip install --no-deps trl==1.16.0")
        return 0
    found = outcomes()
    head = f"TRL {found_version}, torch {torch.__version__}, by `benchmarks/trl_conformance.py`."
    text = f"{head}\n\n{table(found)}\n\n{SAID}\n"
    print(text)
    (RESULTS / "trl_conformance.md").write_text(text, encoding="utf-8")
    (RESULTS / "trl_conformance.json").write_text(
        json.dumps({"trl": found_version, "outcomes": [asdict(one) for one in found]}, indent=1) + "\n",
        encoding="utf-8",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
