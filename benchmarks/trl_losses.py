"""Do our losses and TRL's agree? Both are computed from the same tensors, value and gradient, and compared.

`python benchmarks/trl_losses.py` needs TRL 1.16 beside what `make setup` installs; TRL is no dependency of alignkit.

TRL's side is TRL's own code: the methods of its trainers, called on objects made without `__init__`, with a stand-in
for the model. The stand-in is a bigram table, log p(y_t | y_{t-1}) = log_softmax(W[y_{t-1}]), and gradients are
compared in W, so that masks, the shift by one and the order of chosen and rejected are compared along with the formula.
Our side is the registered loss with the reduction that the optimizer declares, through the engine's `Objective`.

Prints a table, writes it to results/trl_losses.md (and .json), and ends with 1 when a difference exceeds 1e-6.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl_parity.data import Data
from trl_parity.ours import (
    of_pairs,
    of_tokens,
    our_advantages,
    our_kto,
    our_nll_of_chosen,
    our_online_dpo,
    our_orpo,
    our_reward_loss,
    our_rloo,
    reduced,
    token_tensors,
    without_reference,
)
from trl_parity.theirs import (
    cpo_trainer,
    dpo_trainer,
    group_advantages_of,
    grpo_trainer,
    kto_trainer,
    online_dpo_trainer,
    orpo_trainer,
    orpo_trainer_whole,
    reward_trainer,
    rloo_trainer,
    sft_trainer,
    tpo_trainer,
)

from alignkit.optimizers import Term

TRL = "1.16.0"
INSTALL = f"pip install --no-deps trl=={TRL}"
RESULTS = Path(__file__).parent / "results" / "trl_losses.json"
LIMIT = 1e-6
DTYPES = {"float64": torch.float64, "float32": torch.float32}


# -- what is compared --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One comparison.

    Args:
        trl: what TRL calls it.
        ours: the same here.
        source: (module, class and method, text of a line in it) of the code of TRL that is called.
        theirs: its value from the data.
        mine: ours.
        leaf: the tensor of `Data` in which gradients are compared; "" compares values alone.
        values: whether values are compared too, or gradients alone.
        aligned: how the two definitions were brought to say the same, where they do not as they are.
        tight: largest difference in float64.
        data: further arguments of `Data.draw`.
    """

    trl: str
    ours: str
    source: tuple[str, str, str]
    theirs: Callable[[Data], Tensor]
    mine: Callable[[Data], Tensor]
    leaf: str = "weights"
    values: bool = True
    aligned: str = ""
    tight: float = 1e-12
    data: Mapping[str, Any] | None = None


DPO = ("trl.trainer.dpo_trainer", "DPOTrainer._compute_loss")
KTO = ("trl.trainer.kto_trainer", "KTOTrainer._compute_loss")
REWARD = ("trl.trainer.reward_trainer", "RewardTrainer.compute_loss")
SFT = ("trl.trainer.sft_trainer", "SFTTrainer.compute_loss")
GRPO = ("trl.trainer.grpo_trainer", "GRPOTrainer._compute_loss")
GRPO_ADVANTAGES = ("trl.trainer.grpo_trainer", "GRPOTrainer._generate_and_score_completions")
RLOO = ("trl.trainer.rloo_trainer", "RLOOTrainer._compute_loss")
RLOO_ADVANTAGES = ("trl.trainer.rloo_trainer", "RLOOTrainer._generate_and_score_completions")
ONLINE = ("trl.experimental.online_dpo.online_dpo_trainer", "OnlineDPOTrainer.training_step")
CPO = ("trl.experimental.cpo.cpo_trainer", "CPOTrainer.cpo_loss")
ORPO = ("trl.experimental.orpo.orpo_trainer", "ORPOTrainer.odds_ratio_loss")
TPO = ("trl.experimental.tpo.tpo_trainer", "TPOTrainer._compute_loss")

UNIFORM = "ours with a reference under which every response is equally likely"
SINGLE = "TRL keeps this number in float32, whatever the model's dtype"


def dpo_cases() -> list[Case]:
    """The loss types of DPOTrainer, each with one beta on both sides."""
    matched = {
        "sigmoid": "dpo(beta=0.1)",
        "sigmoid_norm": "dpo_norm(beta=0.1)",
        "hinge": "hinge(beta=0.5)",
        "ipo": "ipo(beta=0.1, mean=True)",
        "exo_pair": "exo_pair(beta=0.1)",
        "nca_pair": "nca_pair(beta=0.1)",
        "robust": "robust(beta=0.1)",
        "bco_pair": "bco_pair(beta=0.1)",
        "sppo_hard": "sppo_hard(beta=0.1)",
        "apo_zero": "apo_zero(beta=0.1)",
        "apo_down": "apo_down(beta=0.1)",
        "discopop": "discopop(beta=0.1)",
    }
    smoothing = {"exo_pair": 1e-3, "robust": 0.1}
    betas = {"hinge": 0.5}  # so that some pairs are won, and some are not
    notes = {"ipo": "TRL divides by the lengths: ours with mean=True", "exo_pair": SINGLE + " (log of its epsilon)"}

    def theirs(loss_type: str) -> Callable[[Data], Tensor]:
        smoothed, beta = smoothing.get(loss_type, 0.0), betas.get(loss_type, 0.1)
        return lambda data: dpo_trainer(data, loss_type, label_smoothing=smoothed, beta=beta)

    cases = [
        Case(
            f"DPO {trl}", ours, (*DPO, f'loss_type == "{trl}"'), theirs(trl), of_pairs(ours), aligned=notes.get(trl, "")
        )
        for trl, ours in matched.items()
    ]
    note = 'TRL averages over all chosen tokens: ours is nll with reduction="token"'
    sft = Case("DPO sft", "alignkit/nll", (*DPO, 'loss_type == "sft"'), theirs("sft"), our_nll_of_chosen, aligned=note)
    return [*(replace(c, tight=LIMIT) if c.trl == "DPO exo_pair" else c for c in cases), sft]


def reference_free_cases() -> list[Case]:
    """CPO, SimPO, ORPO and TPO."""
    text = 'loss_type == "{}"'.format
    smooth = "dpo(beta=0.1, label_smoothing=0.1)"
    return [
        Case(
            "CPO sigmoid", "cpl(alpha=0.1, bias=1)", (*CPO, text("sigmoid")),
            lambda d: cpo_trainer(d, loss_type="sigmoid", beta=0.1), of_pairs("cpl(alpha=0.1, bias=1)"),
        ),
        Case(
            "CPO sigmoid, label_smoothing=0.1", smooth, (*CPO, text("sigmoid")),
            lambda d: cpo_trainer(d, loss_type="sigmoid", beta=0.1, label_smoothing=0.1), without_reference(smooth),
            aligned=UNIFORM,
        ),
        Case(
            "CPO sigmoid, cpo_alpha=1", "cpl(alpha=0.1, bias=1) + nll", (*CPO, text("sigmoid")),
            lambda d: cpo_trainer(d, loss_type="sigmoid", beta=0.1, cpo_alpha=1.0),
            lambda d: of_pairs("cpl(alpha=0.1, bias=1)")(d) + our_nll_of_chosen(d),
            aligned="TRL's NLL averages over all chosen tokens; ours (nll_coef) over prompts first",
        ),
        Case(
            "CPO hinge", "hinge(beta=0.5)", (*CPO, text("hinge")),
            lambda d: cpo_trainer(d, loss_type="hinge", beta=0.5), without_reference("hinge(beta=0.5)"),
            aligned=UNIFORM,
        ),
        Case(
            "CPO ipo", "ipo(beta=0.1, mean=True)", (*CPO, text("ipo")),
            lambda d: cpo_trainer(d, loss_type="ipo", beta=0.1), without_reference("ipo(beta=0.1, mean=True)"),
            aligned=UNIFORM,
        ),
        Case(
            "CPO simpo (SimPO)", "simpo(beta=2, gamma=1)", (*CPO, text("simpo")),
            lambda d: cpo_trainer(d, loss_type="simpo", beta=2.0, simpo_gamma=1.0), of_pairs("simpo(beta=2, gamma=1)"),
        ),
        Case(
            "ORPO, odds ratio", "orpo(beta=0.1) - chosen_nll", (*ORPO, "def odds_ratio_loss"),
            lambda d: orpo_trainer(d, beta=0.1), our_orpo, tight=LIMIT, aligned=SINGLE,
        ),
        Case(
            "ORPO", "orpo(beta=0.1)", (*ORPO[:1], "ORPOTrainer.get_batch_loss_metrics", "loss = policy_nll_loss"),
            lambda d: orpo_trainer_whole(d, beta=0.1), of_pairs("orpo(beta=0.1)"), tight=LIMIT,
            aligned="TRL's NLL averages over all tokens, prompts too: one-token prompts, equal lengths; " + SINGLE,
            data={"prompt": 1, "equally_long": True},
        ),
        Case(
            "TPO sigmoid, tpo_alpha=0", "cpl(alpha=0.1, bias=1)", (*TPO, text("sigmoid")),
            lambda d: tpo_trainer(d, "sigmoid", beta=0.1), of_pairs("cpl(alpha=0.1, bias=1)"),
        ),
        Case(
            "TPO tpo-l, tpo_alpha=0", "simpo(beta=2, gamma=1)", (*TPO, text("tpo-l")),
            lambda d: tpo_trainer(d, "tpo-l", beta=2.0, tpo_l_gamma=1.0), of_pairs("simpo(beta=2, gamma=1)"),
        ),
    ]  # fmt: skip


def other_offline_cases() -> list[Case]:
    """KTO, reward models, SFT."""
    weighed = "kto(beta=0.1, desirable_weight=1.5, undesirable_weight=0.5)"
    margin = torch.tensor([1.0, 2 / 3, 1 / 3, 0.0, 1.0])

    def rewards(trl: str, ours: str, text: str, margins: bool, centring: float | None) -> Case:
        def with_margin(data: Data) -> Tensor | None:
            return margin.to(data.scores) if margins else None

        return Case(
            trl, ours, (*REWARD, text),
            lambda d: reward_trainer(d, d.scores, with_margin(d), centring),
            lambda d: our_reward_loss(d, d.scores, ours, with_margin(d)),
            leaf="scores",
        )  # fmt: skip

    centred = "pairwise_ranking(center_rewards_coefficient=0.01)"
    return [
        Case(
            "KTO kto", weighed, (*KTO, 'loss_type == "kto"'),
            lambda d: kto_trainer(d, beta=0.1, desirable_weight=1.5, undesirable_weight=0.5),
            lambda d: our_kto(d, weighed),
        ),
        Case(
            "KTO apo_zero_unpaired", "kto(beta=0.1)", (*KTO, 'loss_type == "apo_zero_unpaired"'),
            lambda d: kto_trainer(d, unpaired=True, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0),
            lambda d: our_kto(d, "kto(beta=0.1)", baseline=False),
            aligned="the formula with a baseline of 0; the optimizer kto always measures one",
        ),
        rewards("Reward", "pairwise_ranking", "rewards_chosen - rewards_rejected).mean", False, None),
        rewards("Reward, margin", "pairwise_ranking", 'inputs["margin"]', True, None),
        rewards("Reward, margin and centring", centred, "center_rewards_coefficient *", True, 0.01),
        Case(
            "SFT nll", "alignkit/nll", (*SFT, "per_token_loss = -outputs.log_probs"), sft_trainer,
            lambda d: reduced(d, "alignkit/nll", token_tensors(d), {"loss": Term(reduction="token")}),
        ),
    ]  # fmt: skip


def policy_gradient_cases() -> list[Case]:
    """GRPO with its loss types, RLOO, online DPO."""
    losses = {
        "grpo": ({}, "grpo(kl_coef=0)", ""),
        "grpo, beta=0.04": (
            {"beta": 0.04},
            "grpo(kl_coef=0.04)",
            "use_bias_correction_kl=False; TRL's default is True",
        ),
        "bnpo": ({}, "grpo(kl_coef=0, reduction='token')", "one micro-batch: TRL's mean is of each, ours of the step"),
        "dapo": ({"high": 0.28}, "dapo", ""),
        "dr_grpo": ({}, "grpo(kl_coef=0, reduction='constant', constant=8)", "constant = max_completion_length"),
    }

    def of_grpo(name: str, settings: Mapping[str, Any], ours: str, note: str) -> Case:
        kind = name.split(",")[0]
        source = (*GRPO, f'"{kind}"')
        return Case(
            f"GRPO {name}", ours, source, lambda d: grpo_trainer(d, kind, **settings), of_tokens(ours), aligned=note
        )  # fmt: skip

    def advantages(name: str, ours: str, groups: int, note: str = "", **settings: Any) -> Case:
        source = GRPO_ADVANTAGES if name.startswith("GRPO") else RLOO_ADVANTAGES
        text = "rewards - mean_grouped_rewards" if name.startswith("GRPO") else "advantages = rewards - baselines"
        return Case(
            name, ours, (*source, text), lambda d: group_advantages_of(source[1].split(".")[0], d, groups, **settings),
            our_advantages(ours, groups), leaf="", aligned=note,
        )  # fmt: skip

    off: dict[str, Any] = {"beta": 0.05, "normalize_advantages": False, "reward_clip_range": None}
    scaling: dict[str, Any] = {"multi_objective_aggregation": "sum_then_normalize", "beta": 0.0}
    return [
        *(of_grpo(trl, *rest) for trl, rest in losses.items()),
        advantages("GRPO advantages, scale_rewards=group", "grpo", 2, scale_rewards="group", **scaling),
        advantages("GRPO advantages, scale_rewards=none", "grpo(scale=False)", 2, scale_rewards="none", **scaling),
        advantages("RLOO advantages, beta=0.05", "rloo(kl_coef=0.05)", 2, **off),
        Case(
            "RLOO", "rloo", (*RLOO, "per_sequence_loss1 ="), rloo_trainer, our_rloo, values=False,
            aligned="TRL clips the ratio of whole responses: the gradient of a round's first step, where it is 1",
        ),
        Case(
            "OnlineDPO sigmoid", "online_dpo(loss=dpo(beta=0.1))", (*ONLINE, 'loss_type == "sigmoid"'),
            lambda d: online_dpo_trainer(d, "sigmoid"), lambda d: our_online_dpo(d, "dpo(beta=0.1)"),
        ),
        Case(
            "OnlineDPO ipo", "online_dpo(loss=ipo(beta=0.1))", (*ONLINE, 'loss_type == "ipo"'),
            lambda d: online_dpo_trainer(d, "ipo"), lambda d: our_online_dpo(d, "ipo(beta=0.1)"),
            aligned="sums here, means in DPOTrainer: ours with mean=False",
        ),
    ]  # fmt: skip


NOT_HERE = {
    "DPO aot, aot_unpaired": "sorts log-ratios over the batch, so it is no function of one pair",
    "DPO f_divergence_type other than reverse_kl": "no counterpart",
    "DPO ld_alpha (LD-DPO), use_weighting (WPO)": "no counterpart",
    "DPO loss_weights (a mix of losses)": "only a loss with nll_coef",
    "CPO alpha (AlphaPO)": "no counterpart",
    "TPO's third response, A2PO": "no counterpart",
    "SFT dft": "no counterpart",
    "GRPO cispo, sapo, luspo, vespo, GMPO": "no counterpart",
    "GRPO importance_sampling_level=sequence (GSPO), delta, top_entropy_quantile, off-policy mask": "no counterpart",
    "GRPO scale_rewards=batch, several rewards normalised each": "no counterpart",
    "Distillation: GKD, GOLD, SDFT, SDPO, IW-OPD": "no counterpart; a larger policy's best samples instead (rest)",
}
NOT_THERE = (
    "PPO (removed in 1.13) with GAE, whitening, value clipping and the pretraining mix; REINFORCE++; rejection "
    "sampling; ReST; HIR; CPL with a bias; SLiC-HF; margins by rating; the safety term; K-wise, Plackett-Luce and "
    "best-of-K ranking; soft labels; GAtt"
)


# -- the comparison ----------------------------------------------------------------------------------------------------


def source_of(module: str, name: str, text: str) -> str:
    """`file:line` of the line of TRL that holds the text."""
    target: Any = sys.modules[module]
    for part in name.split("."):
        target = getattr(target, part)
    lines, first = inspect.getsourcelines(inspect.unwrap(target))
    line = next(i for i, found in enumerate(lines) if text in found)
    return f"{module.replace('.', '/').removeprefix('trl/')}.py:{first + line}"


def difference(theirs: Tensor, mine: Tensor) -> float:
    """Largest difference, relative to numbers larger than 1."""
    return float(((theirs - mine).abs() / theirs.abs().clamp(min=1)).max())


def compare(case: Case, dtype: torch.dtype) -> dict[str, float]:
    """Differences of value and gradient, as far as they are compared."""
    sides = []
    for compute in (case.theirs, case.mine):
        data = Data.draw(dtype, **(case.data or {}))
        if not case.leaf:
            with torch.no_grad():
                sides.append((compute(data), None))
            continue
        leaf = getattr(data, case.leaf).requires_grad_()
        value = compute(data)
        sides.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
    (their_value, their_gradient), (my_value, my_gradient) = sides
    found = {"value": difference(their_value, my_value)} if case.values else {}
    if their_gradient is not None and my_gradient is not None:
        assert bool(their_gradient.any()), f"{case.trl}: no gradient to compare"
        found["gradient"] = difference(their_gradient, my_gradient)
    return found


def row_of(case: Case) -> dict[str, Any]:
    """One line of the table."""
    found = {name: compare(case, dtype) for name, dtype in DTYPES.items()}
    limits = {"float64": case.tight, "float32": LIMIT}
    agree = all(value <= limits[dtype] for dtype, values in found.items() for value in values.values())
    return {
        "trl": case.trl,
        "source": source_of(*case.source),
        "ours": case.ours,
        "differences": found,
        "limits": limits,
        "agree": agree,
        "aligned": case.aligned,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    head = [
        "TRL",
        "its code",
        "here",
        "value, float64",
        "gradient, float64",
        "value, float32",
        "gradient, float32",
        "how",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        numbers = [row["differences"][d].get(what) for d in DTYPES for what in ("value", "gradient")]
        cells = ["-" if number is None else f"{number:.0e}" if number else "0" for number in numbers]
        note = row["aligned"] if row["agree"] else f"**DIFFERS** {row['aligned']}"
        lines.append("| " + " | ".join([row["trl"], f"`{row['source']}`", f"`{row['ours']}`", *cells, note]) + " |")
    lines += ["", "TRL has, alignkit does not:", ""]
    lines += [f"- {name}: {why}." for name, why in NOT_HERE.items()]
    return "\n".join([*lines, "", f"alignkit has, TRL does not: {NOT_THERE}.", ""])


def main() -> int:
    """Print and record; 1 when a loss differs."""
    try:
        found = version("trl")
    except PackageNotFoundError:
        print(f"trl is not installed, nothing to compare with: {INSTALL}")
        return 0
    if found != TRL:
        print(f"trl {found} is installed, written for {TRL}: {INSTALL}")
        return 0
    cases = [*dpo_cases(), *reference_free_cases(), *other_offline_cases(), *policy_gradient_cases()]
    rows = [row_of(case) for case in cases]
    text = table(rows)
    print(text)
    RESULTS.parent.mkdir(exist_ok=True)
    record = {"trl": found, "torch": torch.__version__, "limit": LIMIT, "losses": rows}
    record |= {"only_in_trl": NOT_HERE, "only_here": NOT_THERE}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(text, encoding="utf-8")
    differing = [row["trl"] for row in rows if not row["agree"]]
    print(f"{len(rows) - len(differing)} of {len(rows)} agree" + (f"; differing: {differing}" if differing else ""))
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
