"""What can be asked, and how fast the answer to --help comes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import pytest

import repvgg_mm
from repvgg_mm.benchmark.benchmark import WORK
from repvgg_mm.commands import arguments
from repvgg_mm.commands.arguments import parse
from repvgg_mm.deploy.weight_file import TARGETS
from repvgg_mm.export.target import ENGINES, PRECISIONS, Target

COMMANDS = ('train', 'test', 'convert', 'convert-weights', 'export', 'predict', 'benchmark', 'demo', 'make-shapes')
LOADS_NOTHING = """
import sys
sys.argv = ['repvgg-mm', *{words!r}]
from repvgg_mm.__main__ import main
try:
    main()
except SystemExit as stop:
    assert stop.code == {code}, stop.code
heavy = {{'torch', 'numpy', 'mmengine', 'mmcv', 'cv2'}} & set(sys.modules)
assert not heavy, heavy
"""


def test_the_choices_are_those_of_the_rooms_that_do_the_work():
    assert arguments.ENGINES == ENGINES and arguments.PRECISIONS == PRECISIONS
    assert arguments.LAYOUTS == TARGETS and arguments.WORK == WORK
    assert Target.calib_images == arguments.CALIB_IMAGES and Target.max_drop == arguments.MAX_DROP


@pytest.mark.parametrize('words, code', [
    (['--help'], 0), (['--version'], 0), (['convert'], 2), (['convert', '--help'], 0), (['make-shapes', '--help'], 0)])
def test_help_and_wrong_flags_load_nothing(words, code):
    program = LOADS_NOTHING.format(words=words, code=code)
    result = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert re.search('repvgg.mm', result.stdout + result.stderr)


@pytest.mark.parametrize('flag', ['-m', '-um'])
def test_as_a_module_too(flag):
    result = subprocess.run([sys.executable, '-X', 'importtime', flag, 'repvgg_mm', 'convert', '--help'],
                            capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.startswith('usage: repvgg-mm convert')
    assert not [line for line in result.stderr.splitlines() if line.rpartition('|')[2].strip() in ('torch', 'numpy')]


@pytest.mark.parametrize('flag', ['-m', '-um'])
def test_a_module_of_the_users_registers_the_backbone(flag, tmp_path):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / '__init__.py').write_text('import repvgg_mm')
    (tmp_path / 'mine' / '__main__.py').write_text(
        "from mmengine.registry import MODELS\nprint(MODELS.get('RepVGG').__name__)")
    result = subprocess.run([sys.executable, flag, 'mine', 'repvgg_mm'], capture_output=True, text=True, cwd=tmp_path)
    assert result.stdout == 'RepVGG\n', result.stderr


def test_each_command_is_a_file():
    for name in COMMANDS:
        words = dict(train=['c'], test=['c', 'w'], convert=['c', 'w', '--out', 'o'], export=['c', 'w', '--out', 'o'],
                     predict=['c', 'w', 'i', '--out', 'o'], benchmark=['c'], demo=[])
        words['convert-weights'], words['make-shapes'] = ['a', 'b', '-a', 'A0'], ['r']
        assert parse([name, *words[name]]).command == name.replace('-', '_')


def test_tab_completion_shows_what_is_public():
    assert dir(repvgg_mm) == sorted(repvgg_mm.__all__)
    for name in repvgg_mm.__all__:
        assert getattr(repvgg_mm, name) is not None


@pytest.mark.parametrize('written', [['64', '96'], ['64x96'], ['64,96']])
def test_the_shape_in_one_word(written):
    args = parse(['convert', 'config.py', 'a.pth', '--out', '32x32', '--shape', *written])
    assert args.shape == [64, 96] and args.out == '32x32'


# A script that is stopped, and a library in it that takes this for a fault of its own.
SWALLOWS = """
import os, signal, time
from repvgg_mm.__main__ import run_script

def script():
    try:
        os.kill(os.getpid(), {number})
        time.sleep(5)
    except BaseException:
        raise SyntaxError('the config is wrong')

signal.signal(signal.SIGINT, signal.default_int_handler)
run_script(script)
"""


@pytest.mark.parametrize('number, code', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_that_a_library_swallows_is_the_end_all_the_same(number, code):
    """MMEngine does, while it formats a config."""
    program = SWALLOWS.format(number=int(number))
    result = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=120)
    assert result.returncode == code and result.stderr == '', result
