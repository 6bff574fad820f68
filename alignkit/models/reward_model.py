"""`RewardModel`: one raw score per response, from a sequence classifier with one output."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from alignkit.data.chat import ChatFormat
from alignkit.errors import ConfigError
from alignkit.files import write_json
from alignkit.models import adapted, forward
from alignkit.models.adapters import CARD, CONFIG, adapter_base, check_base, note_base, portable, read_record
from alignkit.models.arithmetic import Arithmetic, Flops, Reading, head_of
from alignkit.models.batch import MicroBatch
from alignkit.models.head import one_number
from alignkit.models.loading import (
    Source,
    load_model,
    load_tokenizer,
    refuse_larger,
    resolve_source,
    saved_tensor,
)
from alignkit.models.lora import TRAINED, LoRA, adapt, load_adapter, merged, of_adapter, save_adapter
from alignkit.models.policy import Policy
from alignkit.models.saving import dtype_kept, note_dtype, plain_copy, plain_state, save_plain
from alignkit.models.ways import positions_of

HEAD = "score_head.safetensors"

LIMITS = "reward_limits.json"
"""What a reward model was trained with, beside its weights: how long a dialogue it reads, as which ids, and where."""

Pooling = Literal["last", "mean"]


class RewardModel(nn.Module):
    """A sequence classifier with one output.

    Causal families started from a policy are pooled here, at the last token of each response as the batch lays it
    out: right whatever the pad id is (transformers looks for the last token that is not the pad id, one too early
    when pad is EOS), or over all of its tokens (`pooling`). Any other classifier is used through its own forward, one
    padded row per response.

    A classifier from elsewhere reads the ids of its own template for the whole conversation, as it was trained to, and
    its score is that of transformers' own forward, which does not read its pad id at the end.

    Args:
        model: a transformers sequence classifier with `num_labels` 1.
        tokenizer: its tokenizer.
        base: the folder of the weights under the adapter, if there is one.
        base_digest: its digest.

    Attributes:
        max_length: tokens of a prompt and of a response, each, that it was trained with; None where nobody knows.
        pooling: "last": the score is read at a response's last token; "mean": it is the mean over all of its tokens,
            for which transformers has no class, so that nothing else than this library reads it right.
        centre: is taken off every score.
    """

    def __init__(self, model: Any, tokenizer: Any, *, base: str = "", base_digest: str = "", init: str = "") -> None:
        super().__init__()
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.base, self.base_digest, self.init = base, base_digest, init
        self.chat = ChatFormat(tokenizer)
        self.chat.positions = positions_of(model)
        self.adapted = False
        self.max_length: int | None = None
        self.pooling: Pooling = "last"
        self.centre = 0.0
        self._shares: bool | None = None
        self._counted: Arithmetic | None = None

    def reads_whole(self) -> None:
        """Read conversations as the template writes them, see `ChatFormat.encode_whole`: trained elsewhere."""
        pad = self.model.config.get_text_config().pad_token_id
        self.chat.whole, self.chat.unread_id = True, pad if self.pools_here else None
        if pad is not None:
            self.chat.pad_id = int(pad)

    def pool(self, pooling: Pooling) -> None:
        """Read scores so from now on.

        Raises:
            ConfigError: a mean, of a classifier that pools by itself.
        """
        if pooling != "last" and not self.pools_here:
            raise ConfigError(
                f"pooling={pooling!r}: {type(self.model).__name__} reads its score by itself",
                where="reward model",
                remedy="leave pooling out, or start from a policy",
            )
        self.pooling = pooling

    def train(self, mode: bool = True) -> Self:
        """Stay as it is, for any `mode`: see `Policy.train`."""
        return super().train(False)

    @classmethod
    def from_policy(
        cls, spec: str | Path, *, lora: LoRA | None = None, dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> RewardModel:
        """Start from a policy checkpoint, its language head replaced by a score head.

        The head starts with standard deviation 1 / sqrt(H + 1) (Stiennon et al. 2020; Huang et al. 2024).

        Args:
            spec: as for `Policy.load`; an adapter is merged first.
            lora: train an adapter and the score head; None trains everything.
            dtype: of the weights.
            seed: of the head and the adapter.
        """
        policy = Policy.load(spec, dtype=dtype)
        policy.fold()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _classifier_from(policy.model)
            reward_model = cls(
                model, policy.tokenizer, base=policy.base, base_digest=policy.base_digest, init=str(spec)
            )
            if lora is not None:
                reward_model._adapt(lora)
        reward_model._freeze(True)
        adapted.route_all(reward_model.body)
        return reward_model

    @classmethod
    def load(
        cls, spec: str | Path, *, trainable: bool = False, lora: LoRA | None = None, dtype: torch.dtype = torch.float32
    ) -> RewardModel:
        """Load what `save` wrote, or any sequence classifier of the hub or a folder.

        Raises:
            ConfigError: nothing there, or nothing that can be loaded whole, see `load_model`.
        """
        folder = Path(spec)
        if (folder / HEAD).is_file():
            reward_model = cls._load_adapted(folder, trainable, dtype)
        else:
            from transformers import AutoModelForSequenceClassification

            if (folder / CONFIG).is_file():
                raise ConfigError(
                    "holds an adapter, and not a whole classifier", where=str(spec), remedy="merge it with peft first"
                )
            source = resolve_source(str(spec))
            model = load_model(AutoModelForSequenceClassification, source, dtype)
            tokenizer = load_tokenizer(source)
            refuse_larger(tokenizer, model, source.path)
            reward_model = cls(model, tokenizer, base=source.path, base_digest=source.digest())
            reward_model._restore_head(source)
            if lora is not None and trainable:
                reward_model._adapt(lora)
        reward_model._freeze(trainable)
        adapted.route_all(reward_model.body)
        trained_here = (folder / LIMITS).is_file()
        limits: dict[str, Any] = (
            read_record(folder / LIMITS) if trained_here else {"whole": not (folder / HEAD).is_file()}
        )
        reward_model.max_length, reward_model.centre = limits.get("max_length"), float(limits.get("centre", 0))
        reward_model.pool(limits.get("pooling", "last"))
        if limits.get("whole"):
            reward_model.reads_whole()
        return reward_model

    @classmethod
    def _load_adapted(cls, folder: Path, trainable: bool, dtype: torch.dtype) -> RewardModel:
        init = str((folder / str(read_record(folder / CARD).get("init"))).resolve())
        policy = Policy.load(init, dtype=dtype)
        if adapter_base(init) is None:
            check_base(folder, policy.base_digest)
        policy.fold()
        reward_model = cls(
            _classifier_from(policy.model),
            policy.tokenizer,
            base=policy.base,
            base_digest=policy.base_digest,
            init=init,
        )
        body = load_adapter(reward_model.body, folder, trainable)
        reward_model._replace_body(body)
        reward_model.head.load_state_dict(load_file(str(folder / HEAD)))
        return reward_model

    def _restore_head(self, source: Source) -> None:
        """Keep the score head in float32 at least, with the numbers that the folder has, whatever the trunk is in."""
        if self.pools_here and self.head.weight.dtype in (torch.bfloat16, torch.float16):
            self.head.float()
            saved = saved_tensor(source, "score.weight")
            if saved is not None:
                self.head.weight.data.copy_(saved)

    def _adapt(self, lora: LoRA) -> None:
        self._replace_body(adapt(self.body, lora))

    def _replace_body(self, body: Any) -> None:
        setattr(self.model, self.model.base_model_prefix, body)
        self.adapted = True
        self.model.eval()

    def _freeze(self, trainable: bool) -> None:
        for name, parameter in self.model.named_parameters():
            head = name.startswith("score.")
            parameter.requires_grad_(trainable and (head or not self.adapted or of_adapter(name)))

    def save(self, folder: str | Path) -> None:
        """Write the adapter and the score head, or, without an adapter, the plain Hugging Face folder."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        self._note_limits(path)
        if not self.adapted:
            with self._padded():
                save_plain(self.model, self.tokenizer, path)
            if self.kept_in != next(self.body.parameters()).dtype:
                note_dtype(path, self.kept_in)
            return
        save_adapter(self.body, path)
        save_file({k: v.contiguous() for k, v in self.head.state_dict().items()}, str(path / HEAD))
        init = self.init or self.base
        note_base(path, init, self.base_digest)
        write_json(path / CARD, {**read_record(path / CARD), "init": portable(init, path)})

    @cached_property
    def kept_in(self) -> torch.dtype:
        """The dtype that its base is kept in, whatever it was loaded in."""
        return dtype_kept(resolve_source(self.base)) if self.base else next(self.body.parameters()).dtype

    def export(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write one plain sequence classifier, the adapter merged, which others score with; this object keeps its own.

        Args:
            folder: where to.
            dtype: of the trunk; None: that of its base. A score head of its own stays as it is, in float32.

        What is taken off every score stands in the configuration as `mean` (and `std` 1), where OpenRLHF reads it; a
        classifier of transformers has no place for it, and gives the score itself.

        Raises:
            ConfigError: the score is a mean over the tokens (`pooling`), which no plain classifier gives.
        """
        if self.pooling != "last":
            raise ConfigError(
                f"pooling={self.pooling!r}: transformers' classifiers read their score at the last token",
                where="export",
                effect="Whoever scores with the folder would get other scores.",
                remedy="train the reward model with pooling='last', or score with run.score",
            )
        path = Path(folder)
        with self.scoring():
            plain = plain_copy(self.model, plain_state(self.model), dtype or self.kept_in, ["score"])
        if self.centre:
            plain.config.mean, plain.config.std = self.centre, 1.0
        with self._padded(plain):
            save_plain(plain, self.tokenizer, path)
        self._note_limits(path)

    def _note_limits(self, folder: Path) -> None:
        noted: dict[str, Any] = {"max_length": self.max_length, "whole": self.chat.whole, "centre": self.centre}
        noted["pooling"] = self.pooling
        write_json(folder / LIMITS, noted)

    @contextlib.contextmanager
    def _padded(self, model: Any = None) -> Iterator[None]:
        """With a pad id in configuration and tokenizer that stands at no response's end: transformers reads the score
        at the last id that is not the pad id, and scores no two texts at once without one."""
        config, tokenizer = (model or self.model).config, self.tokenizer
        before = config.pad_token_id, tokenizer.pad_token
        pad = before[0] if self.chat.whole and before[0] is not None else self.chat.id_beside_ends()
        config.pad_token_id = pad
        if not self.chat.whole or before[1] is None:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
        try:
            yield
        finally:
            config.pad_token_id, tokenizer.pad_token = before

    @property
    def body(self) -> Any:
        return getattr(self.model, self.model.base_model_prefix)

    @property
    def head(self) -> Any:
        return self.model.score

    @property
    def pools_here(self) -> bool:
        """Whether scores are pooled by us; other classifiers go through their own forward."""
        return isinstance(getattr(self.model, "score", None), nn.Linear)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def shares_prompts(self) -> bool:
        if self._shares is None:
            self._shares = self.pools_here and forward.can_share_prompts(self.model)
        return self._shares

    @property
    def packs_rows(self) -> bool:
        """Whether its batches are single rows without padding (see `can_pack_rows`)."""
        return self.shares_prompts and forward.can_pack_rows(self.model)

    def flops(self, reading: Reading, *, folded: bool = False, gradient: bool = False) -> Flops:
        """Floating-point operations of a pass; see `alignkit.models.arithmetic`.

        Args:
            reading: what goes through.
            folded: the adapter is folded into the weights, as in `scoring`.
            gradient: whether a backward pass follows.
        """
        if self._counted is None:
            self._counted = Arithmetic.of(self.model, causal=self.pools_here)
        heads = [head_of(self.head, reading.responses)] if self.pools_here else []
        return self._counted.flops(reading, None if folded else TRAINED, heads, gradient)

    @contextlib.contextmanager
    def scoring(self) -> Iterator[None]:
        """Without gradients, the adapter folded in."""
        with torch.no_grad(), merged(self.body) if self.adapted else contextlib.nullcontext():
            yield

    def scores(self, batch: MicroBatch) -> Tensor:
        """Raw scores [R] (float32) of a batch on the model's device."""
        if not self.pools_here:
            mask = (batch.segments >= 0).long()
            return self.model(input_ids=batch.input_ids, attention_mask=mask).logits[:, 0].float() - self.centre
        pooled = forward.last_hidden if self.pooling == "last" else forward.mean_hidden
        return one_number(self.head, pooled(forward.hidden_states(self.model, batch), batch)) - self.centre


def _classifier_from(causal: Any) -> Any:
    """The sequence classifier of the same family around the causal model's own trunk.

    Raises:
        ConfigError: the family has none.
    """
    from transformers import AutoModelForSequenceClassification

    config = type(causal.config).from_dict(causal.config.to_dict())
    config.num_labels = 1
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    except ValueError as error:
        raise _no_classifier(config) from error
    body = getattr(model, model.base_model_prefix, None)
    if not isinstance(getattr(model, "score", None), nn.Linear) or type(body) is not type(forward.body_of(causal)):
        raise _no_classifier(config)
    setattr(model, model.base_model_prefix, getattr(causal, causal.base_model_prefix))
    weight = next(causal.parameters())
    hidden = model.score.weight.shape[1]
    model.score = nn.Linear(hidden, 1, bias=False, device=weight.device, dtype=torch.float32)
    nn.init.normal_(model.score.weight, std=1 / (hidden + 1) ** 0.5)
    return model


def _no_classifier(config: Any) -> ConfigError:
    return ConfigError(
        f"transformers has no sequence classifier of the family {config.model_type} with a score on its trunk",
        where="train_reward",
        effect="Nobody else could read the reward model.",
        remedy="start from a policy of another family (Llama, Qwen, Mistral, Gemma, OLMo 2 have one)",
    )


__all__ = ["HEAD", "Pooling", "RewardModel"]
