"""`Policy`: a causal language model with named states, and the value head that may sit on its trunk."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from alignkit.data.chat import ChatFormat
from alignkit.errors import ConfigError
from alignkit.models import adapted, forward
from alignkit.models.adapters import adapter_base, base_digest, check_base, note_base
from alignkit.models.arithmetic import Arithmetic, Flops, Reading, head_of
from alignkit.models.batch import MicroBatch
from alignkit.models.four_bit import is_quantized, quantize
from alignkit.models.head import Head, one_number, scaled_head, token_logprobs
from alignkit.models.loading import (
    Source,
    file_digest,
    load_causal,
    load_tokenizer,
    refuse_larger,
    resolve_source,
    vocabulary_of,
)
from alignkit.models.lora import (
    TRAINED,
    LoRA,
    active_adapter,
    adapt,
    load_adapter,
    merged,
    of_adapter,
    refuse_other,
    save_adapter,
)
from alignkit.models.remote_code import permit
from alignkit.models.saving import dtype_kept, note_dtype, plain_copy, plain_state, save_ends, save_plain
from alignkit.models.stepwise import Cached, Reader
from alignkit.models.ways import Ways, slots_of, ways_of
from alignkit.vocabulary import select

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
"""Files of which an adapter's folder has one, if it brings a tokenizer of its own."""


def further_ends(model: Any, tokenizer: Any) -> list[int]:
    """The end tokens that a model's generation configuration names, of which a family may have several.

    Only added tokens of the tokenizer count: a configuration's default may name the id of an ordinary word.
    """
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    every: list[int] = named if isinstance(named, list) else [] if named is None else [named]
    return [each for each in every if each in tokenizer.added_tokens_decoder]


class ValueHead(nn.Module):
    """One number per position on hidden states; starts at zero, so that the first values are 0 rather than noise.

    Args:
        hidden_size: H of the trunk.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """[…, H] -> […], float32."""
        return one_number(self.linear, hidden)


class Policy(nn.Module):
    """A causal language model to sample from and to train.

    States are named and known by digest: `base` (the weights under the adapter), the trained adapter, and any frozen
    adapter added by `add_state`. Nothing refers to a state as "adapter off".

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer.
        base: the folder the weights came from.
        base_digest: digest of that folder.

    Attributes:
        own_tokenizer: whether the tokenizer is the adapter's own, and not that of its base.
        upper: how many of its last layers are adapted by it or by others on the same base, where that is known before
            it has an adapter: what is sampled from it is then read once below them.
    """

    def __init__(self, model: Any, tokenizer: Any, *, base: str = "", base_digest: str = "") -> None:
        super().__init__()
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.base, self.base_digest = base, base_digest
        self.chat = ChatFormat(tokenizer, extra_end_ids=further_ends(model, tokenizer))
        self.own_tokenizer = False
        self.value_head: ValueHead | None = None
        self.lora: LoRA | None = None
        self.upper: int | None = None
        self.ways = Ways()
        self.adapted = False
        self._states: dict[str, str | None] = {}
        self._shares: bool | None = None
        self._beside = (True, True)
        self._counted: tuple[tuple[bool, int], Arithmetic] | None = None

    def train(self, mode: bool = True) -> Self:
        """Stay as it is, for any `mode`: rollout, reference and update must see one function, so that nothing is ever
        dropped out, wherever a family (or an adapter) keeps its rates; and its configuration is saved as it came."""
        return super().train(False)

    # -- where it comes from and goes to -------------------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        spec: str | Path,
        *,
        base: str | Path | None = None,
        code_revision: str | None = None,
        lora: LoRA | None = None,
        trainable: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> Policy:
        """Load from a folder (plain, or with an adapter of alignkit's or peft's), a hub name, a GGUF file,
        "package:NAME" or "tiny".

        Args:
            spec: see `resolve_source`; or a folder that `save` or peft wrote.
            base: of an adapter from elsewhere, in place of the one that it names.
            code_revision: of the model's own code, which runs then; see `alignkit.models.remote_code.permit`.
            lora: train a low-rank adapter (the folder's own goes on, if it has one); None trains every weight.
            trainable: False freezes everything.
            dtype: of the weights.

        Raises:
            ConfigError: nothing there, a model that cannot be read rightly (see `alignkit.models.ways`), an adapter
                whose base is gone or has changed, or one unlike the `lora` asked for.
        """
        below = adapter_base(spec, base)
        if code_revision is not None:
            permit(str(below or spec), code_revision)
        source = resolve_source(str(below or spec))
        model, tokenizer = load_causal(source, dtype)
        digest = source.digest()
        own = below is not None and any((Path(spec) / name).is_file() for name in TOKENIZER)
        if below is not None:
            check_base(Path(spec), digest)
        if own:
            tokenizer = load_tokenizer(Source("folder", str(spec)))
            refuse_larger(tokenizer, model, str(spec))
        policy = cls(model, tokenizer, base=source.path, base_digest=digest)
        policy.own_tokenizer = own
        policy.ways = ways_of(model, str(spec))
        policy.chat.positions = policy.ways.positions
        if below is not None:
            policy._adapt(Path(spec), lora, trainable)
        elif lora is not None and trainable:
            policy._adapt(None, lora, trainable)
        policy._freeze(trainable)
        if below is not None and trainable and lora is None:
            policy.fold()
            policy._freeze(True)
        adapted.route_all(policy.model)
        return policy

    def _adapt(self, folder: Path | None, lora: LoRA | None, trainable: bool) -> None:
        if folder is not None:
            if trainable and lora is not None and lora.quantize is not None:
                quantize(self.model, lora.quantize)
            self.model = load_adapter(self.model, folder, trainable)
            if trainable and lora is not None:
                refuse_other(self.model, lora, folder)
        else:
            assert lora is not None
            self.model = adapt(self.model, lora)
        self.lora, self.adapted = lora, True
        self.model.eval()

    def _freeze(self, trainable: bool) -> None:
        for name, parameter in self.model.named_parameters():
            wanted = trainable and (not self.adapted or of_adapter(name))
            parameter.requires_grad_(wanted)

    def fold(self) -> None:
        """Merge the adapter into the weights for good."""
        if self.adapted:
            self.model = self.model.merge_and_unload()
            self.adapted, self.lora = False, None

    def save(self, folder: str | Path) -> None:
        """Write the adapter with the digest of its base, or, without one, the plain Hugging Face folder."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        if not self.adapted:
            save_plain(self.model, self.tokenizer, path, self.chat.end_ids)
            if self.kept_in != next(self.model.parameters()).dtype:
                note_dtype(path, self.kept_in)
            return
        save_adapter(self.model, path)
        note_base(path, self.base, self.base_digest)
        if self.own_tokenizer:
            self.tokenizer.save_pretrained(path)

    def save_value_head(self, folder: str | Path) -> None:
        """Write the value head beside the weights."""
        if self.value_head is not None:
            tensors = {k: v.contiguous() for k, v in self.value_head.state_dict().items()}
            save_file(tensors, str(Path(folder) / "value_head.safetensors"))

    def add_value_head(self, folder: str | Path | None = None) -> None:
        """Put a value head on the trunk: a fresh one, or the one saved in `folder` if there is one."""
        hidden = int(forward.bare(self.model).get_output_embeddings().weight.shape[-1])  # which reads the same states
        self.value_head = ValueHead(hidden).to(self.device)
        saved = Path(folder) / "value_head.safetensors" if folder else None
        if saved and saved.is_file():
            self.value_head.load_state_dict(load_file(str(saved)))

    @cached_property
    def kept_in(self) -> torch.dtype:
        """The dtype that its base is kept in, whatever it was loaded in."""
        return dtype_kept(resolve_source(self.base)) if self.base else next(self.model.parameters()).dtype

    def export(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write one plain Hugging Face folder, the adapter merged; this object keeps its adapter.

        Args:
            folder: where to.
            dtype: of the weights; None: that of its base.

        Raises:
            ConfigError: an adapter on a base in four bits.
        """
        if self.adapted and is_quantized(self.model):
            what = "the base is in four bits, into which no adapter can be folded"
            raise ConfigError(what, where="Policy.export", remedy="save it, and export Policy.load(FOLDER)")
        inner = forward.bare(self.model)
        with merged(self.model) if self.adapted else contextlib.nullcontext():
            plain = plain_copy(inner, plain_state(inner), dtype or self.kept_in)
        save_plain(plain, self.tokenizer, Path(folder), self.chat.end_ids)

    def export_adapter(self, folder: str | Path) -> None:
        """Write the adapter alone, as peft reads it, with the tokenizer and the ends; it names its base by a path from
        the folder where both lie in one run.

        Raises:
            ConfigError: there is no adapter, or its base is no folder.
        """
        if not self.adapted:
            raise ConfigError("there is no adapter", where=str(folder), remedy="export the whole model")
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        save_adapter(self.model, path)
        note_base(path, self.base, self.base_digest, task_type="CAUSAL_LM")
        save_ends(forward.bare(self.model), path, self.chat.end_ids)
        self.tokenizer.save_pretrained(path)

    # -- states --------------------------------------------------------------------------------------------------------

    def add_state(self, name: str, folder: str | Path) -> bool:
        """Name a frozen state of these weights: the base folder itself, or an adapter trained on the same base.

        Returns:
            False where `folder` has another base (or this policy trains its full weights): a second model is needed.
        """
        base = adapter_base(folder)
        digest = base_digest(folder, base) if base else resolve_source(str(folder)).digest()
        if not self.adapted or digest != self.base_digest:
            return False
        if base is None:
            self._states[name] = None
            return True
        adapter = "state_" + file_digest(Path(folder) / "adapter_model.safetensors")[:12]
        if adapter not in self.model.peft_config:
            here = str(self.device)  # peft reads to a GPU that it finds, wherever the base is
            self.model.load_adapter(str(folder), adapter_name=adapter, is_trainable=False, torch_device=here)
            adapted.route_all(self.model.eval())
            self._freeze_all_but_trained()
        self._states[name] = adapter
        return True

    def _freeze_all_but_trained(self) -> None:
        for name, parameter in self.model.named_parameters():
            if "lora_" in name and not of_adapter(name):
                parameter.requires_grad_(False)

    @contextlib.contextmanager
    def state(self, name: str) -> Iterator[None]:
        """Run as a named state, without gradients."""
        if name not in self._states:
            raise ConfigError(f"no state {name!r}", where="Policy", remedy=f"known: {sorted(self._states)}")
        with torch.no_grad(), active_adapter(self.model, self._states[name]):
            yield

    @contextlib.contextmanager
    def generating(self) -> Iterator[Any]:
        """The bare transformers model with the adapter folded in, without gradients."""
        with torch.no_grad(), merged(self.model) if self.adapted else contextlib.nullcontext():
            yield forward.bare(self.model)

    @contextlib.contextmanager
    def reading(self, hand_on: bool = True) -> Iterator[Reader]:
        """What reads sequences while they are written by the weights as they are now, without gradients: in slots of a
        copy whose products are packed, where that gives the model's own logits; else as it was found at load.

        Args:
            hand_on: whether what is read below the adapter is kept, for versions that read the same prompts and for who
                reads the responses.
        """
        with torch.no_grad():
            with self.generating() as model:
                fast = self.ways.reader is Cached and not is_quantized(self.model)
                slots = slots_of(model, self.chat.pad_id, self.upper, hand_on) if fast else None
                if slots is None:
                    yield self.ways.reader(model, self.chat.pad_id)
                    return
            yield slots
            slots.hand_on()

    # -- the forward ---------------------------------------------------------------------------------------------------

    @property
    def config(self) -> Any:
        return forward.bare(self.model).config

    @cached_property
    def vocabulary(self) -> int:
        """Ids of the tokenizer; the model may have more, to which no text belongs."""
        return vocabulary_of(self.tokenizer)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def shares_prompts(self) -> bool:
        """Whether a prompt is computed once for its responses (see `can_share_prompts`)."""
        if self._shares is None:
            self._shares = forward.can_share_prompts(self.model)
        return self._shares and self._beside[0]

    @property
    def packs_rows(self) -> bool:
        """Whether its batches are single rows without padding (see `can_pack_rows`)."""
        return self.shares_prompts and self._beside[1] and forward.can_pack_rows(self.model)

    def read_beside(self, other: Policy) -> None:
        """Have batches laid out so that another model, of a family of its own perhaps, reads them rightly too."""
        if other is not self:
            shares, packs = self._beside
            self._beside = shares and other.shares_prompts, packs and other.packs_rows

    def flops(
        self,
        reading: Reading,
        wanted: Collection[str] = ("logprobs",),
        *,
        state: str | None = None,
        folded: bool = False,
        gradient: bool = False,
    ) -> Flops:
        """Floating-point operations of a pass; see `alignkit.models.arithmetic`.

        Args:
            reading: what goes through.
            wanted: as for `tensors`.
            state: the named state at work; None: the weights as they are trained.
            folded: the adapter is folded into the weights, as while generating.
            gradient: whether a backward pass follows.
        """
        adapter = (self._states[state] if state is not None else TRAINED) if not folded else None
        heads = []
        if select(wanted, level="token", source="policy"):
            heads.append(head_of(forward.bare(self.model).get_output_embeddings(), reading.learned))
        if select(wanted, level="token", source="value") and self.value_head is not None:
            heads.append(head_of(self.value_head.linear, reading.learned))
        return self._arithmetic().flops(reading, adapter, heads, gradient)

    def _arithmetic(self) -> Arithmetic:
        """Of the weights as they are now; worked out anew where an adapter came or went."""
        known = (self.adapted, len(self._states))
        if self._counted is None or self._counted[0] != known:
            self._counted = known, Arithmetic.of(self.model)
        return self._counted[1]

    def tensors(
        self,
        batch: MicroBatch,
        wanted: Collection[str] = ("logprobs",),
        *,
        temperature: float = 1.0,
        entropy_gradient: bool = False,
    ) -> dict[str, Tensor]:
        """The tensors of the vocabulary that come from the policy's own forward pass.

        Args:
            batch: on the policy's device.
            wanted: of the vocabulary's tensors per token whose source is "policy" or "value".
            temperature: T of the log-probs.
            entropy_gradient: differentiate the entropy.

        Returns:
            [R, T] float32 each; padding is 0.
        """
        logprobs = bool(select(wanted, level="token", source="policy"))
        head: Head
        if self.ways.by_head or not logprobs:
            states = hidden = forward.gather_hidden(forward.hidden_states(self.model, batch), batch)
            head = scaled_head(forward.bare(self.model))
        else:
            found = forward.states_and_logits(self.model, batch)
            hidden, states = (forward.gather_hidden(each, batch) for each in found)
            head = nn.Identity()
        mask = batch.response_mask
        out: dict[str, Tensor] = {}
        if logprobs:
            flat = token_logprobs(
                head,
                states[mask],
                batch.targets[mask],
                temperature=temperature,
                entropy="entropy" in wanted or torch.is_grad_enabled(),  # every step logs it
                entropy_gradient=entropy_gradient,
                mean="mean_logprobs" in wanted,
            )
            zeros = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
            known = {name: values for name, values in flat._asdict().items() if values is not None}
            out |= {name: zeros.masked_scatter(mask, values) for name, values in known.items()}
        if select(wanted, level="token", source="value"):
            if self.value_head is None:
                raise ConfigError("values are asked for, but the policy has no value head", where="Policy")
            out["values"] = self.value_head(hidden) * mask
        return out


__all__ = ["Policy", "ValueHead"]
