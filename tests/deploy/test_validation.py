"""What a training says of its model is what the checkpoint that it writes does, bit by bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tool_runs import ROOT, iterations, run_tool, small_data, syncbn_config

from repvgg_mm.demo.shapes import make_shapes

pytestmark = pytest.mark.stack
AVERAGED = "dict(type='EMAHook', momentum=0.5)"
CONVERTED = "dict(type='RepVGGConvertHook', shape=(64, 64))"
KEPT = "dict(type='KeepPredictionsHook')"


def run(tool: str, folder: Path, *arguments: object) -> None:
    run_tool(f'tools/{tool}.py', *arguments, '--cfg-options', *small_data(folder / 'shapes'), *iterations(4, 2),
             'train_cfg.val_interval=2', PYTHONPATH=str(ROOT / 'tests' / 'programs'))


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Path:
    """Validated twice, the averaged weights being swapped in and out through `.data`."""
    folder = tmp_path_factory.mktemp('trained')
    make_shapes(folder / 'shapes', num_train=6, num_val=3, size=48)
    config = syncbn_config(folder, f'{AVERAGED}, {CONVERTED}, {KEPT}')
    config.write_text(config.read_text().replace('SyncBN', 'BN')
                      + "custom_imports = dict(imports=['repvgg_mm', 'keep_predictions'])\n")
    run('train', folder, config, '--work-dir', folder / 'work')
    return folder


@pytest.mark.parametrize('step', [2, 4])
def test_a_validation_with_averaged_weights(trained, step):
    run('test', trained, trained / 'config.py', trained / 'work' / f'iter_{step}.pth', '--work-dir', trained / 'tested')
    validated = torch.load(trained / 'work' / f'predicted_{step}.pth', weights_only=False)
    tested = torch.load(trained / 'tested' / 'predicted_0.pth', weights_only=False)
    assert len(tested['logits']) == 3 and tested['metrics']['mIoU'] > 0
    assert validated['metrics'] == tested['metrics']
    torch.testing.assert_close(validated['logits'], tested['logits'], rtol=0, atol=0)

    checkpoint = torch.load(trained / 'work' / f'iter_{step}.pth', weights_only=False)
    averaged = checkpoint['state_dict']['backbone.stem.branch_3x3.conv.weight']
    not_averaged = checkpoint['ema_state_dict']['module.backbone.stem.branch_3x3.conv.weight']
    assert not torch.equal(averaged, not_averaged)
