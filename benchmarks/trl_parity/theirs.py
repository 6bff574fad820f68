"""TRL's losses: the methods of its trainers, called on objects made without `__init__`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from trl_parity.data import EOS, PAIRS, Bigram, Data


class OneProcess:
    """What the trainers ask of accelerate, where there is one process."""

    device = torch.device("cpu")
    num_processes = 1
    process_index = 0
    is_main_process = True
    parallelism_config = None

    def __init__(self) -> None:
        self.differentiated: Tensor | None = None

    def gather(self, x: Any, **_: Any) -> Any:
        return x

    gather_for_metrics = reduce = unwrap_model = gather

    def backward(self, loss: Tensor, **_: Any) -> None:
        self.differentiated = loss


class Settings(SimpleNamespace):
    """A configuration in which everything that a loss does not need is off."""

    def __getattr__(self, name: str) -> None:
        return None


def trainer(cls: Any, data: Data, **attributes: Any) -> Any:
    """A trainer without its `__init__`: only what its loss reads."""
    made = object.__new__(cls)
    common = {
        "accelerator": OneProcess(),
        "model": Bigram(data.weights),
        "ref_model": Bigram(data.reference),
        "args": Settings(),
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": 0,
        "_tp_size": 1,
        "aux_loss_enabled": False,
        "is_encoder_decoder": False,
    }
    for name, value in (common | attributes).items():
        setattr(made, name, value)
    return made


def dpo_trainer(data: Data, loss_type: str, **settings: Any) -> Tensor:
    from trl import DPOTrainer

    defaults = {"beta": 0.1, "label_smoothing": 0.0, "f_divergence_type": "reverse_kl", "ld_alpha": None}
    off = {"use_weighting": False, "precompute_ref_logps": False, "loss_types": [loss_type], "loss_weights": [1.0]}
    made = trainer(DPOTrainer, data, args=Settings(discopop_tau=0.05), **(defaults | off | settings))
    inputs = {"input_ids": data.ids, "attention_mask": data.attention_mask, "completion_mask": data.completion_mask}
    return made._compute_loss(made.model, inputs, False)


def kto_trainer(data: Data, unpaired: bool = False, **settings: Any) -> Tensor:
    from trl import KTOTrainer

    inputs = {
        "input_ids": data.ids,
        "attention_mask": data.attention_mask,
        "completion_mask": data.completion_mask,
        "KL_input_ids": data.kl_ids,
        "KL_attention_mask": torch.ones_like(data.kl_ids),
        "KL_completion_mask": torch.cat([torch.zeros(data.rows, data.prompt), data.kl_mask], 1),
        "label": torch.arange(data.rows) < PAIRS,
    }
    loss_type = "apo_zero_unpaired" if unpaired else "kto"
    fixed = {"loss_type": loss_type, "calculate_KL": not unpaired, "precompute_ref_logps": False}
    made = trainer(KTOTrainer, data, **fixed, **settings)
    return made._compute_loss(made.model, inputs, False)


def pair_batch(data: Data) -> dict[str, Tensor]:
    """Of CPO's and ORPO's trainers: chosen and rejected apart."""
    labels = data.ids.where(data.completion_mask.bool(), -100)
    columns = {"input_ids": data.ids, "attention_mask": data.attention_mask, "labels": labels}
    halves = {"chosen": slice(None, PAIRS), "rejected": slice(PAIRS, None)}
    return {f"{side}_{name}": value[half] for side, half in halves.items() for name, value in columns.items()}


def cpo_trainer(data: Data, **settings: Any) -> Tensor:
    from trl.experimental.cpo import CPOTrainer

    fixed = {"alpha": 0.0, "cpo_alpha": 0.0, "label_smoothing": 0.0, "pad_token_id": 0}
    made = trainer(CPOTrainer, data, **(fixed | settings))
    return made.get_batch_loss_metrics(made.model, pair_batch(data))[0]


def orpo_trainer(data: Data, beta: float) -> Tensor:
    """The odds-ratio half."""
    from trl.experimental.orpo import ORPOTrainer

    made = trainer(ORPOTrainer, data, beta=beta, padding_value=0)
    chosen, rejected, *_ = made.concatenated_forward(made.model, pair_batch(data))
    return -made.odds_ratio_loss(chosen, rejected)[0].mean()


def orpo_trainer_whole(data: Data, beta: float) -> Tensor:
    from trl.experimental.orpo import ORPOTrainer

    made = trainer(ORPOTrainer, data, beta=beta, padding_value=0)
    return made.get_batch_loss_metrics(made.model, pair_batch(data))[0]


def tpo_trainer(data: Data, loss_type: str, **settings: Any) -> Tensor:
    from trl.experimental.tpo import TPOTrainer

    made = trainer(TPOTrainer, data, loss_type=loss_type, tpo_alpha=0.0, label_smoothing=0.0, **settings)
    inputs = {"input_ids": data.ids, "attention_mask": data.attention_mask, "completion_mask": data.completion_mask}
    return made._compute_loss(made.model, inputs, False)


def reward_trainer(data: Data, scores: Tensor, margin: Tensor | None = None, centring: float | None = None) -> Tensor:
    from trl import RewardTrainer

    made = trainer(RewardTrainer, data, args=Settings(center_rewards_coefficient=centring))
    inputs = {"attention_mask": data.attention_mask} | ({} if margin is None else {"margin": margin})
    return made.compute_loss(lambda **_: SimpleNamespace(logits=scores.unsqueeze(-1)), inputs)


def sft_trainer(data: Data) -> Tensor:
    from trl import SFTTrainer

    made = trainer(
        SFTTrainer, data, args=Settings(loss_type="nll"), compute_loss_func=None, label_smoother=None, sequential=None
    )
    labels = data.ids.where(data.completion_mask.bool(), -100)
    inputs = {"input_ids": data.ids, "labels": labels, "attention_mask": data.attention_mask}
    return made.compute_loss(made.model, inputs)


def own_logps(data: Data) -> Callable[..., tuple[Tensor, Tensor, None]]:
    """In place of GRPO's and RLOO's forward pass: log-probs and entropies of the completion tokens."""

    def forward(model: Bigram, *_: Any, **__: Any) -> tuple[Tensor, Tensor, None]:
        logprobs = data.logprobs(model.weights)
        return logprobs, torch.zeros_like(logprobs), None

    return forward


def completions(data: Data) -> dict[str, Tensor]:
    ids = {"prompt_ids": data.ids[:, : data.prompt], "completion_ids": data.ids[:, data.prompt :]}
    masks = {"prompt_mask": torch.ones_like(ids["prompt_ids"]), "completion_mask": data.mask.long()}
    return {**ids, **masks, "advantages": data.advantages, "num_items_in_batch": data.mask.sum()}


def grpo_trainer(data: Data, loss_type: str, beta: float = 0.0, high: float = 0.2) -> Tensor:
    from trl import GRPOTrainer

    fixed = {"importance_sampling_level": "token", "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None}
    off = {"use_vllm": False, "_entropy_bonus_enabled": False, "current_gradient_accumulation_steps": 1}
    made = trainer(
        GRPOTrainer,
        data,
        args=Settings(steps_per_generation=1),
        loss_type=loss_type,
        beta=beta,
        epsilon_low=0.2,
        epsilon_high=high,
        max_completion_length=8,
        **{"_get_per_token_logps_and_entropies": own_logps(data), **fixed, **off},
    )
    logps = {name: data.logprobs(weights) for name, weights in (("old", data.old), ("ref", data.reference))}
    inputs = completions(data) | {f"{name}_per_token_logps": value for name, value in logps.items()}
    return made._compute_loss(made.model, inputs)


def rloo_trainer(data: Data) -> Tensor:
    from trl import RLOOTrainer

    forward = own_logps(data)
    made = trainer(RLOOTrainer, data, epsilon_low=0.2, epsilon_high=0.2, _get_per_token_logps_and_entropies=forward)
    with torch.no_grad():  # the policy that sampled is the one being trained, as in the first step of a round
        old = (data.logprobs(data.weights) * data.mask).sum(1)
    return made._compute_loss(made.model, completions(data) | {"old_logps": old})


def group_advantages_of(name: str, data: Data, groups: int, **settings: Any) -> Tensor:
    """What GRPO's and RLOO's trainers make of `data.scores`, from their own scoring of completions."""
    import trl

    generated = ([row[: data.prompt].tolist() for row in data.ids], answers_of(data))
    words = ["a"] * data.rows
    of_grpo: tuple[Any, ...] = (*generated, None, words, None, {}, None, None)
    made = trainer(
        getattr(trl, name),
        data,
        args=Settings(steps_per_generation=1, gradient_accumulation_steps=1, per_device_train_batch_size=data.rows),
        num_generations=data.rows // groups,
        num_iterations=1,
        reward_weights=torch.ones(1),
        reward_funcs=[None],
        reward_func_names=["r"],
        _tokenizer=SimpleNamespace(pad_token_id=0),
        _generate=lambda prompts: of_grpo if name == "GRPOTrainer" else (*generated, words),
        _calculate_rewards=lambda *_: data.scores.unsqueeze(1),
        _get_per_token_logps_and_entropies=own_logps(data),
        _logs=defaultdict(lambda: _Log()),
        _pending_extra_logs={},
        _pending_metrics={},
        environment_factories=None,
        environments=None,
        tools=None,
        pad_to_multiple_of=None,
        mask_truncated_completions=False,
        use_vllm=False,
        eos_token_ids=[EOS],
        **settings,
    )
    return made._generate_and_score_completions([{"prompt": "p"}] * data.rows)["advantages"]


class _Log(list):
    """A list, or lists by name."""

    def __getitem__(self, name: Any) -> list:  # type: ignore[override]
        return []


def answers_of(data: Data) -> list[list[int]]:
    return [row[data.prompt :][shown].tolist() for row, shown in zip(data.ids, data.mask, strict=True)]


def online_dpo_trainer(data: Data, loss_type: str) -> Tensor:
    """TRL scores two samples of each prompt, orders them by their reward, and takes the step itself."""
    from trl.experimental.online_dpo import OnlineDPOTrainer

    prompts = {"prompt": ["p"] * PAIRS}
    made = trainer(
        OnlineDPOTrainer,
        data,
        args=Settings(use_vllm=False, loss_type=loss_type, n_gpu=1, gradient_accumulation_steps=1, optim=""),
        model=SimpleNamespace(train=lambda: None, weights=data.weights),
        eos_token_ids=[EOS],
        processing_class=SimpleNamespace(batch_decode=lambda ids, **_: ["a"] * len(ids)),
        reward_funcs=[None],
        state=SimpleNamespace(global_step=0, epoch=0),
        stats=defaultdict(list),
        _generate=lambda *_: (data.ids[:, : data.prompt], None, data.ids[:, data.prompt :], data.mask.long(), None),
        _forward=lambda model, *_: data.logprobs(model.weights),
        _calculate_rewards_from_functions=lambda **_: data.scores.clone(),
        _beta=0.1,
    )
    made.training_step(made.model, prompts)
    return made.accelerator.differentiated
