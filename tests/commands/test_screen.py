"""What the tools show: few lines, the result among them; what they leave to the log; what is never hidden."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from mmengine.logging import MMLogger, print_log
from PIL import Image
from tool_runs import CONFIG, derived_config, iterations, run_tool, small_data

from repvgg_mm import UserError
from repvgg_mm.commands import screen as screen_module
from repvgg_mm.commands.screen import Screen, metrics_text, open_screen, timed_progress
from repvgg_mm.files import download

pytestmark = pytest.mark.stack


def shown(result) -> list[str]:
    """The lines of a tool on both streams, without what Python itself warns of before a tool begins."""
    return [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]


@pytest.fixture(scope='module')
def run(shapes, tmp_path_factory):
    """A training of eight steps: what it showed, and its work dir."""
    work_dir = tmp_path_factory.mktemp('quiet')
    result = run_tool('tools/train.py', CONFIG, '--work-dir', work_dir, '--cfg-options', *small_data(shapes),
                      *iterations(8))
    return result, work_dir


def test_a_training_shows_progress_and_result(run):
    result, work_dir = run
    lines = shown(result)
    assert len(lines) <= 15, result.stdout + result.stderr
    assert lines[0].startswith('Training 8 steps; log: ')
    assert [line.split(',')[0].strip() for line in lines if 'loss' in line] == [f'step {i} of 8' for i in (2, 4, 6, 8)]
    assert any(line.strip().startswith('validation: ') and 'mIoU' in line for line in lines)
    assert f'Wrote {work_dir / "iter_8.pth"}' in lines[-1]


def test_the_log_file_has_what_the_screen_has_not(run):
    result, _ = run
    log = Path(shown(result)[0].partition('log: ')[2]).read_text()
    for part in ('train_dataloader = dict(', 'decode.loss_ce', 'per class results', 'background'):
        assert part in log and part not in result.stdout, part


def test_verbose_brings_it_back(shapes, tmp_path):
    result = run_tool('tools/train.py', CONFIG, '--work-dir', tmp_path, '--verbose', '--cfg-options',
                      *small_data(shapes), *iterations(1))
    assert 'train_dataloader = dict(' in result.stdout and 'per class results' in result.stdout


def test_a_test_shows_its_metrics(run, shapes, tmp_path):
    result = run_tool('tools/test.py', CONFIG, run[1] / 'iter_8.pth', '--work-dir', tmp_path, '--cfg-options',
                      *small_data(shapes))
    lines = shown(result)
    assert len(lines) <= 15 and 'mIoU' in lines[-1] and 'iter_8.pth' in lines[-1]


def test_a_detectors_test_keeps_the_prints_of_other_packages_to_the_log(shapes, tmp_path):
    config = 'configs/retinanet_repvgg_a0_shapes.py'
    annotations = f'{shapes}/annotations/val.json'
    flags = ['--cfg-options', *small_data(shapes), f'val_evaluator.ann_file={annotations}',
             f'test_evaluator.ann_file={annotations}']
    train = run_tool('tools/train.py', config, '--work-dir', tmp_path, *flags, *iterations(2))
    result = run_tool('tools/test.py', config, tmp_path / 'iter_2.pth', '--work-dir', tmp_path / 'test', *flags)
    for one in (train, result):
        assert len(shown(one)) <= 15, one.stdout + one.stderr
        assert 'loading annotations' not in one.stdout and 'paramwise_options' not in one.stdout
    convert = run_tool('tools/convert_whole.py', config, tmp_path / 'iter_2.pth', '--out', tmp_path / 'deploy',
                       '--shape', 96, 96)
    assert len(shown(convert)) <= 25 and 'and 9 more, each smaller' in convert.stdout


def test_predicting_and_exporting_are_short(run, tmp_path):
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / 'a.png')
    checkpoint = run[1] / 'iter_8.pth'
    predict = run_tool('tools/predict.py', CONFIG, checkpoint, tmp_path / 'a.png', '--out', tmp_path / 'drawn')
    assert len(shown(predict)) <= 5 and 'Drew 1 in' in predict.stdout
    export = run_tool('tools/export.py', CONFIG, checkpoint, '--out', tmp_path / 'engine', '--shape', 64, 64)
    assert len(shown(export)) <= 15 and 'Wrote ' in export.stdout


def test_an_unexpected_error_keeps_its_trace_and_names_the_log(shapes, tmp_path):
    (tmp_path / 'failing.py').write_text(
        'from mmengine.hooks import Hook\nfrom mmengine.registry import HOOKS\n\n'
        '@HOOKS.register_module()\nclass FailingHook(Hook):\n'
        '    def after_train_iter(self, *args, **kwargs):\n        raise RuntimeError("in the middle")\n')
    config = derived_config(tmp_path / 'config.py', "custom_imports = dict(imports=['repvgg_mm', 'failing'])\n"
                            "custom_hooks = [dict(type='FailingHook')]")
    result = run_tool('tools/train.py', config, '--work-dir', tmp_path / 'work', '--cfg-options', *small_data(shapes),
                      *iterations(2), check=False, PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert 'Traceback' in result.stderr and 'RuntimeError: in the middle' in result.stderr
    assert 'The run ended early; its log is ' in result.stdout


def test_own_warnings_and_errors_are_shown_and_those_of_others_are_not(capsys):
    with open_screen(verbose=False) as screen:
        logger = MMLogger('quiet', 'quiet')
        MMLogger._instance_dict['quiet'] = logger
        warnings.warn_explicit('of another', UserWarning, '/elsewhere/module.py', 1)
        warnings.warn_explicit('of this package', UserWarning, screen_module.__file__, 1)
        print('a stray print')
        print_log('a remark', logger)
        logger.error('an error')
        screen.say('the result')
    del MMLogger._instance_dict['quiet']
    out, err = capsys.readouterr()
    assert 'the result' in out and 'an error' in out
    assert err == 'Warning: of this package\n'
    for hidden in ('of another', 'a stray print', 'a remark'):
        assert hidden not in out + err


def test_verbose_leaves_everything_where_it_was(capsys):
    with open_screen(verbose=True) as screen:
        print('a stray print')
        screen.say('the result')
    assert capsys.readouterr().out == 'a stray print\nthe result\n'


def test_a_users_mistake_says_nothing_of_a_log(capsys, tmp_path):
    with pytest.raises(UserError, match='told elsewhere'), open_screen(verbose=False) as screen:
        screen.work_dir = str(tmp_path)
        raise UserError('told elsewhere')
    assert capsys.readouterr().out == ''


def test_a_line_of_progress_is_replaced_by_the_next_and_ended_by_what_is_said(capsys):
    with open_screen(verbose=False) as screen:
        screen.update('step 1')
        screen.update('step 2')
        screen.say('the result')
        screen.say('and the next step')
    out = capsys.readouterr().out
    assert out.split('\r')[1].rstrip() == 'step 1'
    assert [line.rstrip() for line in out.split('\r')[2].splitlines()] == ['step 2', 'the result', 'and the next step']


def test_a_download_is_announced(capsys, monkeypatch):
    monkeypatch.setattr(MMLogger, '_instance_dict', {})  # a tool's process has no logger yet; this one may
    with open_screen(verbose=False):
        download._tell('Downloading a file to a folder')
    assert 'Downloading a file to a folder' in capsys.readouterr().out


@pytest.mark.parametrize('windows, ending', [(False, "test 'C:\\a b\\deploy.py'"), (True, 'test "C:\\a b\\deploy.py"')])
def test_the_next_command_has_the_quotes_of_its_shell(windows, ending, monkeypatch):
    monkeypatch.setattr(screen_module, 'WINDOWS', windows)
    assert screen_module.command_line('test', 'C:\\a b\\deploy.py').endswith(ending)


def test_metrics_in_one_line():
    assert metrics_text(dict(mIoU=87.004, name='text', mAcc=90)) == 'mIoU 87, mAcc 90'
    assert metrics_text({}) == 'nothing was measured'


def test_a_step_is_said_with_its_time_and_a_table_on_request(capsys):
    for verbose in (False, True):
        progress = timed_progress(Screen(verbose))
        progress('a step')
        progress('a table\nof two lines')
        out = capsys.readouterr().out
        assert out.startswith('[  0.0 s] a step\n') and ('of two lines' in out) == verbose
