"""Components with one planted fault each, and the check of the conformance kit that must find it."""
