"""What the core registers for itself, through the same hooks as every plugin.

The imports stand inside the hooks, so that naming this module costs nothing until a host loads.
"""

from __future__ import annotations

from alignkit.registry.hookspecs import Register, hookimpl


@hookimpl
def register_losses(register: Register) -> None:
    """The negative log-likelihood, which supervised fine-tuning needs."""
    from alignkit.engine.losses import nll

    register("nll", nll)


@hookimpl
def register_samplers(register: Register) -> None:
    """Ancestral sampling: the loop that others override."""
    from alignkit.sampling import Sampler

    register("default", Sampler)


@hookimpl
def register_stages(register: Register) -> None:
    """The verbs of `Run`."""
    from alignkit.stages import CORE

    for kind in CORE:
        register(kind.verb, kind)


@hookimpl
def register_metrics(register: Register) -> None:
    """What training and evaluations measure whatever the method."""
    from alignkit import metrics

    register("entropy", metrics.Entropy)
    register("accuracy", metrics.Accuracy)
    register("calibration_error", metrics.CalibrationError)
    register("kl", metrics.KL)
    register("response_length", metrics.Length)
    register("finished", metrics.Finished)
    register("perplexity", metrics.Perplexity)
    register("self_bleu", metrics.SelfBLEU)
    register("distinct", metrics.Distinct)


@hookimpl
def register_formats(register: Register) -> None:
    """The forms that people have their data in."""
    from alignkit.data.formats import CORE

    for one in CORE:
        register(one.name, one)
