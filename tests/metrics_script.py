"""Run by test_metrics.py under torchrun: each process counts its part of three steps; prints what all of them read."""

from __future__ import annotations

import json
import os

import torch
import torch.distributed as dist

from alignkit.engine.step_metrics import StepMetrics
from alignkit.metrics import Accuracy, CalibrationError, Distinct, Entropy, values_of

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = int(os.environ["RANK"])
metrics = StepMetrics({"entropy": Entropy(), "accuracy": Accuracy(), "calibration_error": CalibrationError(n_bins=2)})
distinct = Distinct(n=1)
READ = []
for step in range(3):
    parts = [{"entropy": [[1.0, 2.0]], "mask": [[1, 1]], "chosen": [2.0], "rejected": [0.0], "rating": [0]}]
    # The last step has nothing for the second process: it goes through the same tensors, and they do not count.
    parts += [{"entropy": [[6.0, 9.0]], "mask": [[1, 0]], "chosen": [0.0], "rejected": [1.0], "rating": [3]}]
    metrics.idle = step == 2 and rank == 1
    mine = {name: torch.tensor(value) for name, value in parts[rank].items()}
    metrics.update(
        {
            "entropy": mine["entropy"],
            "response_mask": mine["mask"].bool(),
            "chosen_rewards": mine["chosen"],
            "rejected_rewards": mine["rejected"],
            "rating": mine["rating"],
        }
    )
    if not metrics.idle:
        distinct.update([["a b"], ["b c"]][rank])
    READ.append(metrics.read() | values_of("distinct", distinct))
    distinct.reset()
everyone = [None, None]
dist.all_gather_object(everyone, READ)
if rank == 0:
    print(json.dumps(everyone))
dist.destroy_process_group()
