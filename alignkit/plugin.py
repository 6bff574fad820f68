"""What those who write methods import: the author's one door, and what stays as it is from one version to the next.

    from alignkit.plugin import Batch, Groups, PolicyOptimizer, Term, gae, hookimpl, masked_mean

Importing this module imports nothing heavy; each name is resolved when it is first asked for.

- Registering: `hookimpl`, `Register`, `use`, `Component`, `parse`, `parse_list`, `build`, `VOCABULARY`.
- What flows: `Groups`, `Message`, `prompt_id`, `RATINGS`, `Policy`, `RewardModel`, `ChatFormat`.
- What is subclassed: `PolicyOptimizer` with `Batch`, `Term`, `Reduction`, `Stream`; `Sampler` with `Sampled`;
  `Reward` with `Scores`, `FunctionReward`; `Annotator`. What a suite returns: `Suite`. What a transform is told:
  `TransformContext`.
- A verb of one's own: `Stage` with `component`, `NO_EFFECT`, `DERIVED`; `Context`, `Cost`, `Place`, `Made`; what it
  is given and returns: `PolicyHandle`, `GroupsHandle`, `RewardHandle`, `EvaluationHandle`, `rows_of`.
- A number to measure: `Metric`, `Mean`, `Ratio`; what it is: `MetricSpec`, of clipped ratios `RATIOS`.
- Formulas, on tensors: `masked_sum`, `masked_mean`, `masked_var`, `whiten`, `explained_variance`; `k1`, `k2`, `k3`;
  `gae`, `score_at_last`, `score_index`, `ScoreAt`, `last_token_index`; `clipped_surrogate`; `logistic_ranking`,
  `preference_cross_entropy`; `is_constant`, `as_scored`, `check_range`, `check_shapes`; `check_values`, of a
  dataclass's fields.
- Which responses stay and how they rank: `take_responses`, `take_present`, `eligible`, `best_responses`,
  `score_groups`, `rank_by_reward`, `with_ranks`, `labels_from_ranks`, `occurrences`; `RankBy`, `labelled`, which make
  comparisons of samples.
- Random numbers by counter: `stream_key`, `uniforms`, `permutation`, `derived_seed`.
- What identifies a value in a stage's key: `canonical_json`, `digest`, `plain`, `class_code`, `model_digest`.
- Data: `read_groups`; `RowFormat`, `Reading` and `BadRow`, a format of files; `read_rows` and `Located`, rows as a file
  holds them; `check_groups`, `refuse_or_drop`, `bad_text`; `strict_json`, `write_json`; `EVALUATION`, the file in which
  a stage that evaluates leaves its rows.
- `OF_SAMPLING`, the columns that hold only for the tokens that were sampled, after the prompt they were sampled after.
- `answers_folder`, in which a component may keep answers that were paid for.
- Models and numbers: `response_logprobs`, `is_tiny`, `bootstrap_mean`.
- Errors: `AlignkitError`, `ConfigError`, `DataError`, `NothingToLearnError`, `NumericError`, `PluginError`,
  `did_you_mean`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit._lazy import face

_HOMES = {
    "alignkit.errors": "AlignkitError ConfigError DataError NothingToLearnError NumericError PluginError did_you_mean",
    "alignkit.fields": "check_range check_values",
    "alignkit.files": "write_json",
    "alignkit.kept_answers": "answers_folder",
    "alignkit.run_folder": "EVALUATION",
    "alignkit.randomness": "derived_seed permutation stream_key uniforms",
    "alignkit.identity": "canonical_json class_code digest plain",
    "alignkit.columns": "OF_SAMPLING",
    "alignkit.groups": "RATINGS Groups Message prompt_id",
    "alignkit.selection": (
        "best_responses eligible labels_from_ranks occurrences take_present take_responses with_ranks"
    ),
    "alignkit.functional": (
        "ScoreAt as_scored check_shapes clipped_surrogate explained_variance gae is_constant k1 k2 k3 "
        "last_token_index logistic_ranking masked_mean masked_sum masked_var preference_cross_entropy score_at_last "
        "score_index whiten"
    ),
    "alignkit.vocabulary": "VOCABULARY",
    "alignkit.metrics": "Mean Metric MetricSpec RATIOS Ratio",
    "alignkit.registry.grammar": "Component parse parse_list use",
    "alignkit.registry.hookspecs": "Register hookimpl",
    "alignkit.registry.host": "build",
    "alignkit.data": (
        "BadRow ChatFormat Located Reading RowFormat bad_text check_groups read_groups read_rows refuse_or_drop "
        "strict_json"
    ),
    "alignkit.models": "Policy RewardModel is_tiny model_digest response_logprobs",
    "alignkit.sampling": "Sampled Sampler",
    "alignkit.rewards": "FunctionReward Reward Scores rank_by_reward score_groups",
    "alignkit.annotators": "Annotator",
    "alignkit.optimizers": "Batch PolicyOptimizer Reduction Stream Term",
    "alignkit.suites": "Suite",
    "alignkit.stages.comparisons": "RankBy labelled",
    "alignkit.evaluation": "bootstrap_mean",
    "alignkit.stages": (
        "DERIVED NO_EFFECT Context Cost EvaluationHandle GroupsHandle Made Place PolicyHandle RewardHandle Stage "
        "TransformContext component rows_of"
    ),
}

if TYPE_CHECKING:  # written out for editors and type checkers, `as` marks what is handed on
    from alignkit.annotators import Annotator as Annotator
    from alignkit.columns import OF_SAMPLING as OF_SAMPLING
    from alignkit.data import BadRow as BadRow
    from alignkit.data import ChatFormat as ChatFormat
    from alignkit.data import Located as Located
    from alignkit.data import Reading as Reading
    from alignkit.data import RowFormat as RowFormat
    from alignkit.data import bad_text as bad_text
    from alignkit.data import check_groups as check_groups
    from alignkit.data import read_groups as read_groups
    from alignkit.data import read_rows as read_rows
    from alignkit.data import refuse_or_drop as refuse_or_drop
    from alignkit.data import strict_json as strict_json
    from alignkit.errors import AlignkitError as AlignkitError
    from alignkit.errors import ConfigError as ConfigError
    from alignkit.errors import DataError as DataError
    from alignkit.errors import NothingToLearnError as NothingToLearnError
    from alignkit.errors import NumericError as NumericError
    from alignkit.errors import PluginError as PluginError
    from alignkit.errors import did_you_mean as did_you_mean
    from alignkit.evaluation import bootstrap_mean as bootstrap_mean
    from alignkit.fields import check_range as check_range
    from alignkit.fields import check_values as check_values
    from alignkit.files import write_json as write_json
    from alignkit.functional import ScoreAt as ScoreAt
    from alignkit.functional import as_scored as as_scored
    from alignkit.functional import check_shapes as check_shapes
    from alignkit.functional import clipped_surrogate as clipped_surrogate
    from alignkit.functional import explained_variance as explained_variance
    from alignkit.functional import gae as gae
    from alignkit.functional import is_constant as is_constant
    from alignkit.functional import k1 as k1
    from alignkit.functional import k2 as k2
    from alignkit.functional import k3 as k3
    from alignkit.functional import last_token_index as last_token_index
    from alignkit.functional import logistic_ranking as logistic_ranking
    from alignkit.functional import masked_mean as masked_mean
    from alignkit.functional import masked_sum as masked_sum
    from alignkit.functional import masked_var as masked_var
    from alignkit.functional import preference_cross_entropy as preference_cross_entropy
    from alignkit.functional import score_at_last as score_at_last
    from alignkit.functional import score_index as score_index
    from alignkit.functional import whiten as whiten
    from alignkit.groups import RATINGS as RATINGS
    from alignkit.groups import Groups as Groups
    from alignkit.groups import Message as Message
    from alignkit.groups import prompt_id as prompt_id
    from alignkit.identity import canonical_json as canonical_json
    from alignkit.identity import class_code as class_code
    from alignkit.identity import digest as digest
    from alignkit.identity import plain as plain
    from alignkit.kept_answers import answers_folder as answers_folder
    from alignkit.metrics import RATIOS as RATIOS
    from alignkit.metrics import Mean as Mean
    from alignkit.metrics import Metric as Metric
    from alignkit.metrics import MetricSpec as MetricSpec
    from alignkit.metrics import Ratio as Ratio
    from alignkit.models import Policy as Policy
    from alignkit.models import RewardModel as RewardModel
    from alignkit.models import is_tiny as is_tiny
    from alignkit.models import model_digest as model_digest
    from alignkit.models import response_logprobs as response_logprobs
    from alignkit.optimizers import Batch as Batch
    from alignkit.optimizers import PolicyOptimizer as PolicyOptimizer
    from alignkit.optimizers import Reduction as Reduction
    from alignkit.optimizers import Stream as Stream
    from alignkit.optimizers import Term as Term
    from alignkit.randomness import derived_seed as derived_seed
    from alignkit.randomness import permutation as permutation
    from alignkit.randomness import stream_key as stream_key
    from alignkit.randomness import uniforms as uniforms
    from alignkit.registry.grammar import Component as Component
    from alignkit.registry.grammar import parse as parse
    from alignkit.registry.grammar import parse_list as parse_list
    from alignkit.registry.grammar import use as use
    from alignkit.registry.hookspecs import Register as Register
    from alignkit.registry.hookspecs import hookimpl as hookimpl
    from alignkit.registry.host import build as build
    from alignkit.rewards import FunctionReward as FunctionReward
    from alignkit.rewards import Reward as Reward
    from alignkit.rewards import Scores as Scores
    from alignkit.rewards import rank_by_reward as rank_by_reward
    from alignkit.rewards import score_groups as score_groups
    from alignkit.run_folder import EVALUATION as EVALUATION
    from alignkit.sampling import Sampled as Sampled
    from alignkit.sampling import Sampler as Sampler
    from alignkit.selection import best_responses as best_responses
    from alignkit.selection import eligible as eligible
    from alignkit.selection import labels_from_ranks as labels_from_ranks
    from alignkit.selection import occurrences as occurrences
    from alignkit.selection import take_present as take_present
    from alignkit.selection import take_responses as take_responses
    from alignkit.selection import with_ranks as with_ranks
    from alignkit.stages import DERIVED as DERIVED
    from alignkit.stages import NO_EFFECT as NO_EFFECT
    from alignkit.stages import Context as Context
    from alignkit.stages import Cost as Cost
    from alignkit.stages import EvaluationHandle as EvaluationHandle
    from alignkit.stages import GroupsHandle as GroupsHandle
    from alignkit.stages import Made as Made
    from alignkit.stages import Place as Place
    from alignkit.stages import PolicyHandle as PolicyHandle
    from alignkit.stages import RewardHandle as RewardHandle
    from alignkit.stages import Stage as Stage
    from alignkit.stages import TransformContext as TransformContext
    from alignkit.stages import component as component
    from alignkit.stages import rows_of as rows_of
    from alignkit.stages.comparisons import RankBy as RankBy
    from alignkit.stages.comparisons import labelled as labelled
    from alignkit.suites import Suite as Suite
    from alignkit.vocabulary import VOCABULARY as VOCABULARY
else:  # hidden from them, since a `__getattr__` would make any misspelled name a name
    __getattr__, __dir__ = face(__name__, _HOMES)
    __all__ = __dir__()
