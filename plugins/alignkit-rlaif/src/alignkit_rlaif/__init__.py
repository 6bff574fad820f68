"""RLAIF: annotators and rewards that are language models, gold annotators that err, and what each is worth.

Lee et al. 2023 (RLAIF: Scaling Reinforcement Learning from Human Feedback with AI Feedback, arXiv 2309.00267), Bai et
al. 2022 (Constitutional AI, arXiv 2212.08073), Dubois et al. 2023 (AlpacaFarm, arXiv 2305.14387).
"""

from __future__ import annotations

from alignkit.plugin import Register, hookimpl
from alignkit_rlaif.comparison import Comparison, Vote
from alignkit_rlaif.endpoint import Endpoint
from alignkit_rlaif.judge import Judge


@hookimpl
def register_annotators(register: Register) -> None:
    from alignkit_rlaif.gold import Gold

    register("judge", Judge)
    register("gold", Gold)


@hookimpl
def register_rewards(register: Register) -> None:
    from alignkit_rlaif.direct import Direct

    register("direct", Direct)


@hookimpl
def register_losses(register: Register) -> None:
    from alignkit_rlaif.losses import soft_ranking

    register("soft_ranking", soft_ranking)


@hookimpl
def register_recipes(register: Register) -> None:
    from alignkit_rlaif import recipes

    register("rlaif", recipes.rlaif)
    register("judge_report", recipes.judge_report)


__all__ = ["Comparison", "Endpoint", "Judge", "Vote"]
