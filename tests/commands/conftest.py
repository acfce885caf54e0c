"""One short training and its conversion, made once by the tools and read by the tests of several commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from tool_runs import derived_config, iterations, run_tool, small_data

from repvgg_mm.demo.shapes import make_shapes


@pytest.fixture(scope='session')
def shapes(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp('shapes'), num_train=12, num_val=4, size=64)


@pytest.fixture(scope='session')
def ema_config(tmp_path_factory) -> Path:
    return derived_config(tmp_path_factory.mktemp('config') / 'ema_syncbn.py', "custom_hooks = [dict(type='EMAHook')]\n"
                          "model = dict(backbone=dict(norm_cfg=dict(type='SyncBN')))")


@pytest.fixture(scope='session')
def trained(ema_config, shapes, tmp_path_factory) -> Path:
    """A work dir in which EMAHook was on: `state_dict` holds averaged weights, other than the raw ones."""
    work_dir = tmp_path_factory.mktemp('train')
    run_tool('tools/train.py', ema_config, '--work-dir', work_dir, '--cfg-options', *small_data(shapes), *iterations(4))
    return work_dir


@pytest.fixture(scope='session')
def checkpoint(trained) -> Path:
    return trained / 'iter_4.pth'


@pytest.fixture(scope='session')
def converted(ema_config, checkpoint, shapes, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp('convert') / 'deploy'
    result = run_tool('tools/convert_whole.py', ema_config, checkpoint, '--out', out, '--cfg-options',
                      *small_data(shapes))
    (out.parent / 'stdout').write_text(result.stdout)
    return out
