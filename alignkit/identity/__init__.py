"""What identifies a stage: everything that can change its result, as one digest."""

from alignkit.identity.distributions import distribution_key, required_plugins
from alignkit.identity.keys import class_code, component_code, function_key, module_code, object_key, plain
from alignkit.identity.source import remember_sources
from alignkit.identity.values import canonical_json, difference, digest

__all__ = [
    "canonical_json",
    "class_code",
    "component_code",
    "difference",
    "digest",
    "distribution_key",
    "function_key",
    "module_code",
    "object_key",
    "plain",
    "remember_sources",
    "required_plugins",
]
