"""`tools/test.py`: both forms have the same metric, and what it writes beside it."""

from __future__ import annotations

import pytest
from tool_runs import CONFIG, assert_refused, metric, run_tool, small_data

pytestmark = pytest.mark.stack


def test_both_forms_have_the_same_metric(converted, checkpoint, shapes, tmp_path):
    run_tool('tools/test.py', CONFIG, checkpoint, '--work-dir', tmp_path / 'training', '--cfg-options',
             *small_data(shapes))
    run_tool('tools/test.py', converted / 'deploy.py', converted / 'deploy.pth', '--work-dir', tmp_path / 'deploy',
             '--show-dir', tmp_path / 'pictures')
    assert metric(tmp_path / 'training') == pytest.approx(metric(tmp_path / 'deploy'), abs=0.01)
    assert len(list((tmp_path / 'pictures').rglob('*.png'))) == 4


def test_test_time_augmentation_and_predictions(checkpoint, shapes, tmp_path):
    run_tool('tools/test.py', CONFIG, checkpoint, '--tta', '--out', tmp_path / 'masks', '--work-dir', tmp_path / 'work',
             '--cfg-options', *small_data(shapes))
    assert len(list((tmp_path / 'masks').glob('*.png'))) == 4


def test_an_option_that_the_runner_cannot_build(checkpoint, shapes, tmp_path):
    result = run_tool('tools/test.py', CONFIG, checkpoint, '--work-dir', tmp_path / 'work', '--cfg-options',
                      *small_data(shapes), 'model.decode_head.nonsense=1', check=False)
    assert_refused(result, 'nonsense', 'Compare it with a file in configs/')


def test_the_test_tool_fuses_a_training_form_and_refuses_to_take_a_deploy_form_apart(
    converted, checkpoint, shapes, tmp_path
):
    wrong = run_tool('tools/test.py', CONFIG, converted / 'deploy.pth', '--work-dir', tmp_path, '--cfg-options',
                     *small_data(shapes), check=False)
    assert_refused(wrong, 'cannot be told apart again')
    fused = run_tool('tools/test.py', converted / 'deploy.py', checkpoint, '--work-dir', tmp_path / 'fused',
                     '--verbose')
    assert 'native layout, training form, fused while loading' in fused.stdout
    run_tool('tools/test.py', converted / 'deploy.py', converted / 'deploy.pth', '--work-dir', tmp_path / 'deploy')
    assert metric(tmp_path / 'fused') == metric(tmp_path / 'deploy')


def test_a_device_is_that_of_an_engine(checkpoint, tmp_path):
    result = run_tool('tools/test.py', CONFIG, checkpoint, '--device', 'cpu', '--work-dir', tmp_path, check=False)
    assert_refused(result, '--device is where an engine runs', 'Leave it out')
