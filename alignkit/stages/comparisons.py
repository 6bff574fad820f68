"""Comparisons from samples: what a method learns from that samples nothing itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from alignkit.errors import ConfigError
from alignkit.groups import Groups
from alignkit.rewards import Reward, rank_by_reward, score_groups
from alignkit.selection import labels_from_ranks


@dataclass(frozen=True)
class RankBy:
    """A transform: the responses of each prompt ranked by a reward, labelled as `labelled` does.

    Args:
        reward: what scores them.
    """

    reward: Reward

    def __call__(self, groups: Groups, ctx: Any = None) -> Groups:
        scored = score_groups(groups, self.reward, getattr(ctx, "meter", None))
        return labelled(rank_by_reward(scored, self.reward.name), ctx)


def labelled(groups: Groups, _ctx: Any = None) -> Groups:
    """A transform: prompts whose responses differ in rank, for methods that learn from pairs and for those that want
    labels: the best of a prompt are good, the worst are bad, nothing is said of those between.

    Raises:
        ConfigError: no prompt has two responses of different rank.
    """
    rows = [{**row, "labels": labels_from_ranks(row["ranks"])} for row in groups if len(set(row["ranks"] or [])) > 1]
    if not rows:
        raise ConfigError(
            "every prompt's responses are ranked alike",
            where="comparisons",
            effect="There is no comparison to learn from.",
            remedy="sample more responses (--samples) or hotter (--temperature)",
        )
    return Groups.from_rows(rows)
