"""Who may import whom: one table for every file, no circle, and what works where the toolboxes are not installed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import repvgg_mm

PACKAGE = Path(repvgg_mm.__file__).parent
MOST_FILES = 12  # in a folder, beside its __init__ and __main__
BASIC = {'errors', 'version', 'environment'}
PAPER = ['registry', 'archs', 'fusion', 'branch_sum', 'block', 'layouts', 'pretrained', 'stages', 'backbone']
TORCH_PAPER = set(PAPER) - {'registry', 'backbone'}
ROOMS = [
    'files', 'convert', 'openmmlab', 'training', 'deploy', 'engine', 'precision', 'export', 'inference', 'report',
    'benchmark', 'demo', 'kit', 'commands']

# What may be imported of this package (paper files and rooms) and of the outside world besides the standard library.
ALLOWED = {
    'errors': (set(), set()),
    'version': (set(), set()),
    '__main__': ({'commands', '__init__'}, set()),
    'archs': (set(), set()),
    'registry': (set(), {'mmengine'}),
    'fusion': (set(), {'torch'}),
    'branch_sum': (set(), {'torch'}),
    'environment': (set(), {'torch', 'torchvision', 'mmcv', 'mmengine'}),
    'block': ({'branch_sum', 'fusion'}, {'torch'}),
    'layouts': (set(), {'torch'}),
    'pretrained': ({'archs', 'block', 'fusion', 'layouts'}, {'torch'}),
    'stages': ({'archs', 'block', 'pretrained'}, {'torch'}),
    'backbone': ({'archs', 'block', 'registry', 'stages'}, {'torch', 'mmcv', 'mmengine'}),
    'files': (set(), {'torch', 'numpy', 'safetensors', 'mmengine'}),
    'convert': (TORCH_PAPER | {'files'}, {'torch', 'mmengine'}),
    'openmmlab': ({*PAPER, 'files'}, {'torch', 'numpy', 'mmengine'}),
    'training': ({*PAPER, 'files', 'openmmlab'}, {'torch', 'numpy', 'mmengine', 'filelock'}),
    'deploy': ({*PAPER, 'files', 'convert', 'openmmlab'}, {'torch', 'numpy', 'mmengine'}),
    'engine': ({*PAPER, 'files', 'convert', 'openmmlab', 'training', 'deploy'}, {'torch', 'numpy', 'mmengine'}),
    'precision': ({*PAPER, *ROOMS[:6]}, {'torch', 'numpy', 'mmengine'}),
    'export': ({*PAPER, *ROOMS[:7]}, {'torch', 'numpy', 'mmengine', 'mmcv', 'mmdet'}),
    'inference': ({*PAPER, *ROOMS[:6]}, {'torch', 'numpy', 'mmengine', 'mmcv', 'mmdet', 'cv2', 'matplotlib', 'PIL'}),
    'report': ({*PAPER, *ROOMS[:8]}, {
        'torch', 'numpy', 'mmengine', 'mmdet', 'cv2', 'matplotlib', 'jinja2', 'markupsafe'}),
    'benchmark': ({*PAPER, *ROOMS[:6], 'report'}, {'torch', 'mmengine', 'matplotlib'}),
    'demo': ({*PAPER, 'files', 'convert', 'openmmlab', 'deploy', 'report'}, {
        'torch', 'numpy', 'mmengine', 'matplotlib', 'cv2'}),
    'kit': ({*PAPER, *ROOMS[:8]}, {'numpy', 'mmengine', 'onnxruntime'}),
    'commands': ({*PAPER, *ROOMS[:13]}, {'torch', 'mmengine', 'argcomplete'}),
}
# Files that may import less than their room: they work where torch or MMEngine is not installed.
NARROWER = {
    'engine/__init__': (set(), set()),
    'commands/__init__': (set(), set()),
    'commands/arguments': (set(), {'argcomplete'}),
    'files/atomic': (set(), set()),
    'engine/onnx_file': (set(), set()),
    'engine/description': ({'files'}, set()),
    'engine/packages': (set(), set()),
    'engine/runtimes': (set(), {'numpy'}),
    'engine/engine': (set(), {'numpy'}),
    'engine/detections': (set(), {'numpy'}),
    'kit/check': (set(), {'numpy', 'onnxruntime'}),
}
# Only these files of torch-alone rooms touch MMEngine, inside functions.
MMENGINE_WHERE_CALLED = {'convert/raw_outputs', 'files/checkpoint', 'files/download', 'files/unpickler'}
WITHOUT_TESTS_OF_THEIR_OWN = {
    '__init__': 'tests/test_rooms.py',
    'version': 'one line',
    '__main__': 'tests/commands/test_arguments.py, and every test of a tool',
}


def files() -> list[str]:
    """'convert/whole' and its like, for every file of the package."""
    return sorted(str(path.relative_to(PACKAGE).with_suffix('')) for path in PACKAGE.rglob('*.py'))


def imports_of(file: str, source: str | None = None) -> tuple[set[str], set[str]]:
    """Files of this package ('convert/whole') and top-level names of others, at any depth of the file."""
    if source is None:
        source = (PACKAGE / f'{file}.py').read_text()
    own, others = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            others |= {alias.name.split('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            others.add(node.module.split('.')[0])
        elif isinstance(node, ast.ImportFrom):
            folder = Path(file).parent
            for _ in range(node.level - 1):
                folder = folder.parent
            parts = (node.module or '').split('.') if node.module else []
            target = folder.joinpath(*parts)
            own |= _targets(target, [alias.name for alias in node.names])
    return own, others - set(sys.stdlib_module_names) - {'__future__'}


def _targets(target: Path, names: list[str]) -> set[str]:
    """A module, or the modules that are imported from a folder."""
    if (PACKAGE / target).with_suffix('.py').is_file() and str(target) != '.':
        return {str(target)}
    found = set()
    for name in names:
        module = target / name
        found.add(str(module if (PACKAGE / f'{module}.py').is_file() else target / '__init__'))
    return found


def room_of(file: str) -> str:
    return file.split('/')[0]


def complaints_about(file: str, own: set[str], others: set[str]) -> list[str]:
    """Sentences about imports that the table does not allow."""
    room = room_of(file)
    rooms, world = ALLOWED[room]
    if file in NARROWER:
        rooms, world = NARROWER[file]
    elif room in ('convert', 'files') and file not in MMENGINE_WHERE_CALLED:
        world = world - {'mmengine'}

    found = []
    for imported in sorted(own):
        if room_of(imported) not in {room, *rooms, *BASIC}:
            found.append(f'{file} imports {imported}, which its room may not: allowed are {sorted(rooms)}')
    for name in sorted(others - world):
        found.append(f'{file} imports {name}, which its room may not: allowed are {sorted(world)}')
    return found


@pytest.mark.parametrize('file', [file for file in files() if file != '__init__'])
def test_every_file_imports_what_its_room_may(file):
    assert room_of(file) in ALLOWED, f'{file} is in no room of the table'
    assert complaints_about(file, *imports_of(file)) == []


@pytest.mark.parametrize('file, source', [
    ('fusion', 'from .block import RepVGGBlock'),
    ('block', 'import mmengine'),
    ('convert/compare', 'from ..backbone import RepVGG'),
    ('convert/blocks', 'def f():\n    from mmengine.registry import MODELS'),
    ('files/atomic', 'from ..layouts import form_of'),
    ('engine/engine', 'import torch'),
    ('engine/detections', 'from ..openmmlab.config import read_config'),
    ('inference/predict', 'from ..export.export import export'),
    ('report/page', 'from ..inference.predict import predict'),
    ('deploy/hook', 'import argparse\nfrom ..commands.flags import run_tool')])
def test_a_wrong_import_is_named(file, source):
    complaint, *_ = complaints_about(file, *imports_of(file, source))
    assert complaint.startswith(f'{file} imports ') and 'allowed are [' in complaint


def test_only_commands_parse_arguments():
    for file in files():
        if room_of(file) != 'commands':
            assert 'ArgumentParser' not in (PACKAGE / f'{file}.py').read_text(), file


@pytest.mark.parametrize('of', ['files', 'rooms'])
def test_there_is_no_circle(of):
    needs: dict[str, set[str]] = {}
    for file in files():
        if file == '__init__' or file.endswith('/__init__'):
            continue
        own = imports_of(file)[0]
        name = file if of == 'files' else room_of(file)
        imported = own if of == 'files' else {room_of(target) for target in own} - {name}
        needs.setdefault(name, set()).update(imported)
    while leaves := [name for name, imported in needs.items() if not imported & set(needs)]:
        for name in leaves:
            del needs[name]
    assert needs == {}


def test_no_folder_is_crowded():
    for folder in [PACKAGE, *(PACKAGE / room for room in ROOMS)]:
        names = [path.stem for path in folder.glob('*.py') if not path.stem.startswith('__')]
        assert 0 < len(names) <= MOST_FILES, (folder.name, names)


def test_every_room_says_what_it_is_for():
    for room in ROOMS:
        tree = ast.parse((PACKAGE / room / '__init__.py').read_text())
        docstring = ast.get_docstring(tree)
        assert docstring, room
        for path in (PACKAGE / room).glob('*.py'):
            if path.stem != '__init__':
                assert f'`{path.stem}`' in docstring, f'{room}: {path.stem} is not in the reading order'


@pytest.mark.parametrize('file', files())
def test_every_file_has_tests_of_its_name(file):
    if Path(file).name == '__init__' or file in WITHOUT_TESTS_OF_THEIR_OWN:
        return
    tests = Path(__file__).parent / Path(file).parent / f'test_{Path(file).name}.py'
    assert tests.is_file(), f'{tests.relative_to(tests.parents[2])} is missing'


def run_python(code: str, *blocked: str) -> subprocess.CompletedProcess:
    """In a process in which the modules `blocked` cannot be imported."""
    block = f'import sys\nfor name in {blocked!r}: sys.modules[name] = None\n'
    return subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', block + code], capture_output=True, text=True, timeout=120)


def test_importing_the_package_imports_no_toolbox_and_prints_nothing():
    run = run_python('import repvgg_mm; assert not {"mmseg", "mmdet", "timm", "onnx"} & set(sys.modules)')
    assert (run.returncode, run.stdout, run.stderr) == (0, '', '')


@pytest.mark.parametrize('missing', ['mmcv', 'mmengine'])
@pytest.mark.parametrize('name', ['RepVGG', 'RepVGGConvertHook', 'predict', 'BFloat16OptimWrapper'])
def test_without_the_stack_the_error_says_what_to_install(missing, name):
    run = run_python(f'import repvgg_mm\nprint("imported")\nrepvgg_mm.{name}', missing)
    last = run.stderr.strip().splitlines()[-1]
    assert run.returncode == 1 and run.stdout == 'imported\n'
    assert last.startswith(f'ImportError: repvgg_mm needs mmengine and mmcv, and {missing}')
    assert 'cannot be imported (' in last
    assert "pip install --no-build-isolation -e '.[openmmlab]' or '.[onedl]'" in last


NO_TOOLBOX = ('mmengine', 'mmcv', 'mmseg', 'mmdet', 'safetensors', 'matplotlib', 'jinja2', 'cv2')
TORCH_ALONE = """
import torch
from torch import nn
import repvgg_mm
from timm.models.byobnet import RepVggBlock

def randomise(model):
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_mean, -0.5, 0.5)
            nn.init.uniform_(norm.running_var, 0.05, 2)
            nn.init.uniform_(norm.weight, 0.3, 1.3)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
    return model.double().eval()

torch.manual_seed(0)
x = torch.randn(2, 8, 9, 11, dtype=torch.float64)
own, foreign = repvgg_mm.RepVGGBlock(8, 8, identity=True), RepVggBlock(8)
model = randomise(nn.Sequential(own, foreign))
deploy = repvgg_mm.whole_model_convert(model, save_path='deploy.pth')
convs = [module for module in deploy.modules() if isinstance(module, nn.Conv2d)]
assert len(convs) == 2 and not any(isinstance(module, nn.BatchNorm2d) for module in deploy.modules())

inside = (own.branch_3x3(x) + own.branch_1x1(x) + own.branch_norm(x)).relu()  # the branches written out
expected = foreign(inside)
torch.testing.assert_close(deploy(x), expected, rtol=1e-10, atol=1e-10)
assert max(repvgg_mm.compare_models(model, deploy, x).values()) < 1e-10
saved = repvgg_mm.read_checkpoint('deploy.pth')
repvgg_mm.load_strictly(deploy, saved, 'deploy.pth')
assert repvgg_mm.whole_model_convert(own, repvgg_mm.RepVGGBlock(8, 8, identity=True, deploy=True).double()).deploy
print('done')
"""
TIMM_BLOCK = """
from torch import nn

class ConvNormAct(nn.Module):
    def __init__(self, channels, size):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, size, padding=size // 2, bias=False)
        self.bn = nn.BatchNorm2d(channels)
    def forward(self, x):
        return self.bn(self.conv(x))

class RepVggBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.reparam_conv = None
        self.identity = nn.BatchNorm2d(channels)
        self.conv_kxk = ConvNormAct(channels, 3)
        self.conv_1x1 = ConvNormAct(channels, 1)
        self.attn = nn.Identity()
        self.act = nn.ReLU()
    def forward(self, x):
        return self.act(self.attn(self.conv_1x1(x) + self.conv_kxk(x) + self.identity(x)))
"""


def test_models_are_converted_with_torch_alone(tmp_path):
    module = tmp_path / 'timm' / 'models' / 'byobnet.py'
    module.parent.mkdir(parents=True)
    module.write_text(TIMM_BLOCK)
    code = f'import os; os.chdir({str(tmp_path)!r}); sys.path.insert(0, {str(tmp_path)!r})\n' + TORCH_ALONE
    run = run_python(code, *NO_TOOLBOX)
    assert (run.returncode, run.stdout) == (0, 'done\n'), run.stderr[-3000:]


def test_an_engine_needs_no_torch():
    run = run_python('from repvgg_mm.engine import Engine, detect\nprint(Engine.__name__)\n'
                     'from repvgg_mm import fusible', 'torch', *NO_TOOLBOX)
    assert run.stdout == 'Engine\n'
    assert 'ImportError: repvgg_mm converts models of torch, and torch cannot be imported' in run.stderr


@pytest.mark.parametrize('name', repvgg_mm.__all__)
def test_public_names(name):
    assert getattr(repvgg_mm, name).__doc__ or name == 'ARCHS'
