"""What README and the pages in docs say exists, parses, compiles and runs; their tables are this code's."""

from __future__ import annotations

import argparse
import ast
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import image, randomise_norms
from mmengine.config import Config
from pages import HEADING, LINK, README, TEXTS, anchors_of, commands_in, python_snippets, without_code_blocks
from tool_runs import ROOT
from torch.testing import assert_close

import repvgg_mm
from repvgg_mm import ARCHS, RepVGG, RepVGGConvertHook, read_checkpoint
from repvgg_mm.openmmlab.model import build_model

PACKAGE = Path(repvgg_mm.__file__).parent

# Lines with flags that are not ours.
OF_OTHERS = re.compile(r'^.*(?:pip install|modelopt|trtexec|polygraphy|chromium).*$', re.MULTILINE)
FLAG = re.compile(r'(?<![\w-])--[a-z][a-z-]+')


class Parsed(BaseException):
    """Raised in the place of running a tool, once it has parsed its arguments."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def parse(command: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """Let a tool parse its command line, and no more; a mistake in it is a SystemExit."""
    script, *arguments = shlex.split(command, comments=True)
    parse_args = argparse.ArgumentParser.parse_args

    def only_parse(parser, args=None, namespace=None):
        found = parse_args(parser, args, namespace)
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                parser = action.choices[found.command.replace('_', '-')]
        raise Parsed(parser)

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', only_parse)
    monkeypatch.setattr(sys, 'argv', [script, *arguments])
    monkeypatch.setattr(sys, 'path', [str(ROOT / 'benchmarks'), *sys.path])
    with pytest.raises(Parsed) as parsed:
        runpy.run_path(str(ROOT / script), run_name='__main__')
    return parsed.value.parser


# The least that a tool or a benchmark can be called with.
LEAST = dict(
    train='CONFIG', test='CONFIG CHECKPOINT', convert_whole='CONFIG CHECKPOINT --out DIR',
    convert_weights='SRC DST -a RepVGG-A0', export='CONFIG CHECKPOINT --out DIR',
    predict='CONFIG CHECKPOINT IMAGES --out DIR', benchmark='CONFIG', make_shapes='DIR', demo='',
    engines='CONFIG CHECKPOINT --out DIR --shape 1 1', int8='CONFIG CHECKPOINT --shape 1 1 --work-dir DIR',
    int8_onnxruntime='CONFIG CHECKPOINT --shape 1 1 --work-dir DIR', int8_suffering='CONFIG CHECKPOINT --out FILE',
    training_step='', evaluation='', gpu_step='',
    branch_sum_ways='', engine_detectors='IMAGE', pareto='show')
WITHOUT_ARGUMENTS = ('checkpoint_reading', 'inplace_conversion')
OF_FOLDERS = ('code_density',)
COMMANDS = sorted({command for text in TEXTS.values() for command in commands_in(text)})


# ---- what is named

@pytest.mark.parametrize('page', TEXTS)
def test_every_file_it_names_exists(page):
    folders = 'configs|tools|docs|tests|benchmarks|requirements|repvgg_mm'
    named = set(re.findall(rf'(?<![\w/])(?:{folders})/[\w./]+\.(?:py|sh|md|png|svg|txt|c)\b', TEXTS[page]))
    own = {path for path in named if not path.startswith('configs/repvgg/')}  # that folder is mmpretrain's
    assert [path for path in sorted(own) if not (ROOT / path).exists()] == []


def test_the_pages_name_many_files():
    assert len(set(re.findall(r'(?:configs|tools|docs|tests)/[\w/]+\.\w+', ''.join(TEXTS.values())))) > 40


@pytest.mark.parametrize('page', TEXTS)
def test_every_link_leads_somewhere(page):
    for link in LINK.findall(without_code_blocks(TEXTS[page])):
        if link.startswith('https://'):
            continue
        name, _, anchor = link.partition('#')
        target = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors_of(target.read_text()), link


@pytest.mark.parametrize('page', TEXTS)
def test_every_section_it_names_exists(page):
    text = ' '.join(TEXTS[page].split())
    for target, section in re.findall(r'\[[^\]]*\]\(([\w.]+)\), section "([^"]+)"', text):
        headings = HEADING.findall(((ROOT / page).parent / target).read_text())
        assert section in headings, (target, section)


def test_sections_that_messages_name_exist():
    sources = ''.join(path.read_text() for path in PACKAGE.rglob('*.py'))
    sources = re.sub(r"'\s*\n\s*f?'", '', sources)  # a sentence over two lines
    named = set(re.findall(r'(docs/\w+\.md)', sources))
    assert {'docs/install.md', 'docs/train.md'} <= named
    for page in named:
        assert (ROOT / page).exists()
    sections = set(re.findall(r'(docs/\w+\.md), section "([^"]+)"', sources))
    assert ('docs/train.md', 'Datasets') in sections
    for page, section in sections:
        assert section in HEADING.findall((ROOT / page).read_text())


def test_the_index_of_readme_has_every_page():
    index = README.read_text().split('## Pages')[1]
    assert {f'docs/{page.name}' for page in (ROOT / 'docs').glob('*.md')} <= set(LINK.findall(index))


@pytest.mark.parametrize('page', TEXTS)
def test_every_make_target_it_names_exists(page):
    makefile = (ROOT / 'Makefile').read_text()
    for target in set(re.findall(r'(?:^|`)make (\w+)', TEXTS[page], re.MULTILINE)):
        assert re.search(rf'^{target}:', makefile, re.MULTILINE)


def test_readme_names_the_main_targets():
    assert {'demo', 'test'} <= set(re.findall(r'(?:^|`)make (\w+)', README.read_text(), re.MULTILINE))


@pytest.mark.parametrize('page', TEXTS)
def test_no_placeholder_is_left(page):
    words = set(re.findall(r'\b[A-Z]+_[A-Z]+\b', TEXTS[page]))
    known = {'REPVGG_MM_DATA', 'REPVGG_MM', 'NODE_RANK', 'MASTER_ADDR', 'MASTER_PORT', 'PYTEST_ARGS', 'CONFIG_NAME',
             'OTHER_CONFIG', 'OMP_WAIT_POLICY', 'INFERENCE_PRECISION_HINT', 'MALLOC_TRIM', 'MALLOC_MMAP', 'MALLOC_TOP',
             'MMENGINE_HOME'}
    assert words - known == set()
    assert re.findall(r'\b(?:TODO|FIXME|XXX|OUTPUT|PRIVATE)\b', TEXTS[page]) == []


# ---- commands

def test_readme_has_the_commands_of_a_first_visit():
    text = README.read_text()
    assert "`backbone=dict(type='RepVGG', arch='B2')`" in text
    assert 'tools/train.py configs/pspnet_repvgg_b2.py' in text
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if 'tools/convert_whole.py' in line)
    assert first < 20  # within the first screen, picture included


@pytest.mark.parametrize('command', COMMANDS)
def test_every_command_parses(command, monkeypatch):
    command = command.replace('--shape H W', '--shape 64 96')
    words = shlex.split(command, comments=True)
    name = Path(words[0]).stem
    if name in WITHOUT_ARGUMENTS:
        assert len(words) == 1
    elif name in OF_FOLDERS:
        assert [word for word in words[1:] if not (ROOT / word).is_dir()] == []
    elif len(words) > 1:  # else the page names the tool, no more
        parse(command, monkeypatch)


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


@pytest.fixture(scope='module')
def known_flags() -> set[str]:
    """Of every tool and benchmark that takes any, and of the set-up."""
    told = subprocess.run([sys.executable, ROOT / 'requirements/install.py', '--help'], capture_output=True, text=True)
    known = set(FLAG.findall(told.stdout))
    for name, least in LEAST.items():
        folder = 'tools' if (ROOT / f'tools/{name}.py').exists() else 'benchmarks'
        with pytest.MonkeyPatch.context() as monkeypatch:
            known |= options_of(parse(f'{folder}/{name}.py {least}', monkeypatch))
    return known


def test_every_tool_and_benchmark_is_known_here():
    scripts = {path.stem for folder in ('tools', 'benchmarks') for path in (ROOT / folder).glob('*.py')}
    assert scripts == {*LEAST, *WITHOUT_ARGUMENTS, *OF_FOLDERS, 'pspnet_r50', 'pspnet_r101', 'every_model'}


@pytest.mark.parametrize('page', TEXTS)
def test_every_flag_it_names_is_known(page, known_flags):
    flags = set(FLAG.findall(OF_OTHERS.sub('', TEXTS[page])))
    assert flags - known_flags == set()


@pytest.mark.parametrize('page, tool', [
    ('docs/train.md', 'train'), ('docs/train.md', 'test'), ('docs/convert.md', 'convert_whole'),
    ('docs/export.md', 'export'), ('docs/int8.md', 'export'), ('docs/predict.md', 'predict'),
    ('docs/performance.md', 'benchmark')])
def test_the_table_of_flags_is_the_tools(page, tool, monkeypatch):
    """Flags in the table of a page belong to its tool."""
    known = options_of(parse(f'tools/{tool}.py {LEAST[tool]}', monkeypatch))
    head = f'| flag of `tools/{tool}.py` |' if tool in ('train', 'test') else '| flag |'
    table, = (text for text in without_code_blocks(TEXTS[page]).split('\n\n') if text.startswith(head))
    named = set(FLAG.findall(table))
    assert named
    assert named - known == set()


# ---- configs and variants

def test_every_config_is_in_the_table():
    configs = re.findall(r'^\| \d+ \| `([a-z0-9]+_repvgg_\w+\.py)` \|', TEXTS['docs/variants.md'], re.MULTILINE)
    assert sorted(configs) == sorted(path.name for path in (ROOT / 'configs').glob('*.py'))


@pytest.mark.parametrize('page', TEXTS)
def test_configs_are_named_exactly(page):
    named = set(re.findall(r'(?:\b|configs/)([a-z0-9]+_repvgg_\w+\.py)', TEXTS[page]))
    assert named <= {path.name for path in (ROOT / 'configs').glob('*.py')}


@pytest.mark.parametrize('name', ARCHS)
def test_table_of_variants(name):
    text = TEXTS['docs/variants.md']
    row = next(line for line in text.splitlines() if line.startswith(f'| {name} |'))
    assert f'| {", ".join(map(str, ARCHS[name].stage_channels))} |' in row
    configs = dict(re.findall(r'^\| (\d+) \| `[a-z0-9]+_repvgg_([a-z0-9]+)\w*\.py` \|', text, re.MULTILINE))
    numbers = [number for number, arch in configs.items() if arch == name.lower()]
    assert row.endswith(f'| {", ".join(numbers)} |')


def test_expectations_of_configs_are_those_of_the_table():
    rows = dict(re.findall(r'^\| \d+ \| `(\w+\.py)` \|(.*)$', TEXTS['docs/variants.md'], re.MULTILINE))
    for name, row in rows.items():
        expected = next(line for line in (ROOT / 'configs' / name).read_text().splitlines() if '# Expected' in line)
        figure = re.search(r'\d+\.\d+', expected)
        assert figure[0] in row if figure else 'not measured' in row


# ---- python

@pytest.mark.parametrize('page', TEXTS)
def test_python_compiles(page):
    for snippet in python_snippets(TEXTS[page]):
        compile(snippet, page, 'exec')


@pytest.mark.parametrize('page', ['README.md', 'docs/train.md'])
def test_the_config_lines_put_b2_into_a_resnet_config(page, tmp_path):
    base = ROOT / 'benchmarks' / 'pspnet_r50.py'
    (tmp_path / 'my_pspnet.py').write_text(f'_base_ = {str(base)!r}\n')
    (tmp_path / 'config.py').write_text(python_snippets(TEXTS[page])[0])
    with torch.device('meta'):
        model = build_model(Config.fromfile(tmp_path / 'config.py'))
    assert isinstance(model.backbone, RepVGG)
    assert model.backbone.arch == ARCHS['B2']
    features = model.backbone(torch.empty(1, 3, 64, 64, device='meta'))
    assert features[3].shape == (1, model.decode_head.in_channels, 8, 8)
    assert features[2].shape[1] == model.auxiliary_head.in_channels


def test_the_python_way_of_converting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arch = dict(depths=(1, 1, 1, 1), width_factors=(0.125,) * 4)
    model = randomise_norms(RepVGG(arch)).double().eval()
    names = dict(model=model, deploy_model=RepVGG(arch, deploy=True).double(), images=image(1, 3, 32, 32))
    snippet = next(code for code in python_snippets(TEXTS['docs/convert.md']) if 'compare_models' in code)
    exec(snippet, names)
    assert_close(names['deploy'](names['images']), model(names['images']), rtol=1e-10, atol=1e-10)
    assert_close(names['deploy_model'](names['images']), model(names['images']), rtol=1e-10, atol=1e-10)
    assert read_checkpoint('deploy.pth')['meta']['form'] == 'deploy'


def test_the_lines_of_weights_and_hook_are_config_lines(tmp_path):
    snippet, = python_snippets(TEXTS['docs/weights.md'])
    (tmp_path / 'config.py').write_text(snippet)
    backbone = Config.fromfile(tmp_path / 'config.py').model.backbone
    assert RepVGG('A0', init_cfg=backbone.init_cfg).init_cfg == backbone.init_cfg
    names = {}
    exec(next(code for code in python_snippets(TEXTS['docs/convert.md']) if 'custom_hooks' in code), names)
    assert [hook['type'] for hook in names['custom_hooks']] == [RepVGGConvertHook.__name__]


def test_the_arch_dict_is_one():
    names = {}
    exec(python_snippets(TEXTS['docs/variants.md'])[0], names)
    assert RepVGG(names['arch']).arch == ARCHS['A0']._replace(width_factors=(1, 1, 1, 2.5))


# ---- the code's design

def test_design_names_every_module():
    text = TEXTS['docs/design.md']
    for room in [PACKAGE, *(path for path in PACKAGE.iterdir() if (path / '__init__.py').exists())]:
        name = room.relative_to(PACKAGE.parent).as_posix()
        row = next(line for line in text.splitlines() if line.startswith(f'| `{name}` |'))
        files = [path.stem for path in room.glob('*.py') if not path.stem.startswith('__')]
        assert sorted(re.findall(r'`(\w+)`', row.split('|')[3])) == sorted(files), name


def private_names() -> dict[str, set[str]]:
    """Underscored names of other packages that this one uses, each with its files."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob('*.py'):
        names = set()
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and not _is_own(node.value):
                names.add(node.attr)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names |= {*node.module.split('.'), *(alias.name for alias in node.names)}
        for name in names:
            if re.match(r'_[a-zA-Z]', name) and name not in ('_replace', '_fields'):  # of a NamedTuple: public
                found.setdefault(name, set()).add(path.relative_to(PACKAGE).as_posix())
    return found


def _is_own(value: ast.expr) -> bool:
    return isinstance(value, ast.Name) and value.id in ('self', 'cls')


def test_the_table_of_private_names_is_the_codes():
    text = TEXTS['docs/design.md'].split('## Private names')[1]
    table = {}
    for line in text.splitlines():
        cells = line.split(' | ')
        for name in re.findall(r'`(_\w+)`', cells[0]):
            table[name] = set(re.findall(r'`([\w/]+\.py)`', cells[2]))

    used = private_names()
    for name in set(table) - set(used):  # asked for with getattr
        used[name] = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob('*.py')
                      if f"'{name}'" in path.read_text()}
    assert table == used


# ---- the front page stays short

def test_readme_is_short_and_prose_is_wrapped():
    assert len(README.read_text().splitlines()) <= 130
    for page, text in TEXTS.items():
        lines = without_code_blocks(text).splitlines()
        assert [line for line in lines if len(line) > 120 and not line.startswith('|')] == [], page


def test_the_version_stands_in_one_place():
    assert repvgg_mm.__version__ == '0.1.0'
    assert "'0.1.0'" not in (ROOT / 'setup.py').read_text()
    assert f'## {repvgg_mm.__version__}' in TEXTS['CHANGELOG.md']
