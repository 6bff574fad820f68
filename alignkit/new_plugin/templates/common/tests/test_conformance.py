"""What every component of its kind must hold: one case for each check of alignkit's kit."""

from __future__ import annotations

from alignkit.testing import conformance

test_conformance = conformance("example-plugin")
