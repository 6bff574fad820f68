"""The two sides of `benchmarks/trl_losses.py`, and the tensors that both see."""
