"""The reference of a KL, opened for a policy that is at work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alignkit.errors import DataError
from alignkit.stages.handles import PolicyHandle
from alignkit.stages.place import Place

if TYPE_CHECKING:
    from alignkit.engine.reference import Reference


def open_reference(place: Place, handle: PolicyHandle | None, policy: Any) -> Reference | None:
    """A named state of the policy where it has the same base; else a model of its own, frozen.

    Raises:
        DataError: the two have different tokenizers.
    """
    from alignkit.engine.reference import Reference

    if handle is None:
        return None
    with place.meter.phase("load"):
        if policy.add_state("reference", handle.model_folder):
            return Reference(policy, "reference", place.meter)
    reference = place.load(handle)
    if reference.chat.fingerprint != policy.chat.fingerprint:
        raise DataError(
            "policy and reference have different tokenizers",
            where=handle.name,
            effect="Log-probs of the same ids would be of different texts.",
            remedy="use a reference with the policy's tokenizer",
        )
    return Reference(reference, meter=place.meter)
