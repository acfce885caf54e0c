"""FSDP2, torch's `fully_shard`, on two real processes: the same training as with DDP."""

from __future__ import annotations

import re

import pytest
from tool_runs import run_tool

fsdp = pytest.importorskip('torch.distributed.fsdp')
pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif(not hasattr(fsdp, 'fully_shard'), reason='fully_shard is there from torch 2.6 on')]


def test_a_training_is_that_of_ddp():
    output = run_tool(
        '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2',
        'tests/programs/sharded_training.py').stdout
    refused = r': equal to DDP\. Fusing needs whole parameters, and those of .* are sharded .* Build the model again'
    assert len(re.findall(refused, output)) == 5, output
