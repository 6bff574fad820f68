"""What lies between the products of a layer, block by block: the values and the gradients of the family's own code."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from alignkit.models import Policy, between
from alignkit.models.lower import FAMILIES
from alignkit.models.tiny import tiny_config, tiny_model
from tests.models import tiny_of


def test_one():
    pass
