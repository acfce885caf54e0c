"""Files that run code, that are damaged or half written: no tool executes, accepts or leaves one."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from helpers import backbone, leaves
from hostile_checkpoints import BOMBS, CODE, load_trustingly, save_legacy, save_zip, shapes_model
from mmengine.config import Config
from tool_runs import derived_config, iterations, measured_runs, small_data

from repvgg_mm import UserError, read_checkpoint
from repvgg_mm.demo.shapes import make_shapes
from repvgg_mm.files.checkpoint import write_checkpoint
from repvgg_mm.openmmlab.model import build_model, replace_sync_bn

pytestmark = pytest.mark.stack


@pytest.fixture(scope='module')
def hostile(tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """For every code the file that holds it and the file that it would create; all are armed."""
    folder = tmp_path_factory.mktemp('hostile')
    found = {}
    for number, (name, (save, content, _)) in enumerate(CODE.items()):
        path, ran = folder / f'{number}.pth', folder / f'ran-{number}'
        save(content(ran), path)
        load_trustingly(path, save)
        deadline = time.monotonic() + 5
        while not ran.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        ran.unlink()  # FileNotFoundError if the code is not armed
        found[name] = path, ran
    return found


@pytest.mark.parametrize('name', CODE)
def test_reading_refuses_by_name(hostile, name):
    path, ran = hostile[name]
    with pytest.raises(UserError, match=rf'runs no code from it, and .*{CODE[name][2]}.*--trust-checkpoint'):
        read_checkpoint(path)
    assert not ran.exists()


@pytest.fixture(scope='module')
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('config')
    shapes = make_shapes(folder / 'shapes', num_train=2, num_val=1, size=32)
    path = derived_config(folder / 'small.py', f'model = dict(_delete_=True, **{shapes_model()})')
    (folder / 'flags.json').write_text(json.dumps(['--cfg-options', *small_data(shapes), *iterations(1)]))
    return path


def commands(tool: str, config: Path, checkpoint: Path, work_dir: Path) -> list[str]:
    flags = json.loads((config.parent / 'flags.json').read_text())
    train = ['tools/train.py', config, '--work-dir', work_dir]
    if tool == 'train.py, --resume':
        work_dir.mkdir()
        (work_dir / 'last_checkpoint').write_text(str(checkpoint))
    return [str(part) for part in {
        'train.py, load_from': [*train, *flags, f'load_from={checkpoint}'],
        'train.py, --resume': [*train, '--resume', *flags],
        'train.py, init_cfg': [*train, *flags, 'model.backbone.init_cfg.type=Pretrained',
                               f'model.backbone.init_cfg.checkpoint={checkpoint}'],
        'train.py, pretrained': [*train, *flags, f'model.backbone.pretrained={checkpoint}'],
        'test.py': ['tools/test.py', config, checkpoint, '--work-dir', work_dir, *flags],
        'convert_whole.py': ['tools/convert_whole.py', config, checkpoint, '--out', work_dir, *flags],
        'convert_weights.py': ['tools/convert_weights.py', checkpoint, work_dir / 'out.pth', '-a', 'A0'],
    }[tool]]


TOOLS = ['train.py, load_from', 'train.py, --resume', 'train.py, init_cfg', 'train.py, pretrained', 'test.py',
         'convert_whole.py', 'convert_weights.py']


QUICK_TOOLS = ['train.py, --resume', *TOOLS[-3:]]  # the others take minutes for them, and read in the same way
MOST_MEMORY = 200  # MB, beside twice the file's own size


@pytest.mark.parametrize('tool', TOOLS)
def test_no_tool_executes_what_is_in_a_file(hostile, config, tmp_path, tool):
    runs = [commands(tool, config, path, tmp_path / str(number))
            for number, (path, _) in enumerate(hostile.values())]
    results = measured_runs(runs, tmp_path)
    for (name, (path, ran)), result in zip(hostile.items(), results, strict=True):
        for part in (f'{path.name} asks for ', CODE[name][2], '--trust-checkpoint'):
            assert part in result.message, (name, result)
        assert result.code == 1 and 'Traceback' not in result.message and not ran.exists(), (name, result)
    assert not list(tmp_path.rglob('*.pth')) and not list(tmp_path.rglob('deploy.py'))


@pytest.fixture(scope='module')
def bombs(tmp_path_factory) -> dict[str, Path]:
    """Files that take memory, time or the process down in a careless reader, by what is in them."""
    folder = tmp_path_factory.mktemp('bombs')
    found = {}
    for number, (name, write) in enumerate(BOMBS.items()):
        suffix = 'safetensors' if name.startswith('safetensors') else 'pth'
        found[name] = folder / f'{number}.{suffix}'
        write(found[name])
    return found


@pytest.mark.parametrize('tool', ['read', *QUICK_TOOLS])
def test_no_file_takes_a_reader_down(bombs, config, tmp_path, tool):
    """Each is read, or refused in a sentence; no process is killed, and none takes much more memory than its file."""
    runs = [['read', path] if tool == 'read' else commands(tool, config, path, tmp_path / str(number))
            for number, path in enumerate(bombs.values())]
    results = measured_runs(runs, tmp_path)
    for (name, path), result in zip(bombs.items(), results, strict=True):
        size = path.stat().st_size >> 20 if path.exists() else 0
        assert result.code in (0, 1) and 'Traceback' not in result.message, (name, result)
        assert result.memory <= 2 * size + MOST_MEMORY and result.seconds < 30, (name, result)
    refused = [name for name, result in zip(bombs, results) if result.code == 1]
    assert len(refused) >= 40 and not Path('/tmp/escaped').exists() and not (tmp_path.parent / 'escaped').exists()


# --- damage ----------------------------------------------------------------------------------------------------------

def checkpoint() -> dict:
    model = backbone(dict(depths=(1,), width_factors=(0.125,)), out_indices=(0,), strides=(2,), dilations=(1,))
    return dict(meta=dict(epoch=3, classes=['disk', 'ring']), state_dict=dict(model.state_dict()))


def save_tensor_file(content: object, path: Path) -> None:
    write_checkpoint(path, content)


FORMATS = {'zip.pth': save_zip, 'legacy.pth': save_legacy, 'tensors.safetensors': save_tensor_file}


def same(first: object, second: object) -> bool:
    (places, values), (other_places, other_values) = leaves(first), leaves(second)
    return places == other_places and all(
        torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(values, other_values))


@pytest.mark.parametrize('name', FORMATS)
def test_truncated_files_are_refused(name, tmp_path):
    path, rng = tmp_path / name, random.Random(1)
    FORMATS[name](checkpoint(), path)
    whole = path.read_bytes()
    for _ in range(200):
        path.write_bytes(whole[:rng.randrange(len(whole))])
        with pytest.raises(UserError, match='cannot be read as a checkpoint'):
            read_checkpoint(path)


@pytest.mark.parametrize('name', FORMATS)
def test_flipped_bytes_are_refused_or_change_nothing(name, tmp_path, record_property):
    """The older format has no checksum: in it a flip among the weights is not detected, by any reader."""
    path, rng = tmp_path / name, random.Random(2)
    FORMATS[name](checkpoint(), path)
    whole, expected = path.read_bytes(), read_checkpoint(path)
    refused, unharmed, changed = 0, 0, 0
    for _ in range(1000):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= rng.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            found = read_checkpoint(path)
        except UserError:
            refused += 1
        else:
            unharmed, changed = unharmed + same(expected, found), changed + (not same(expected, found))
    print(f'{name}: of 1000 flips {refused} refused, {unharmed} without effect, {changed} undetected')
    assert refused + unharmed + changed == 1000 and refused > 0
    assert changed == 0 or name == 'legacy.pth'


def test_a_tool_given_a_damaged_file_writes_all_or_nothing(config, tmp_path):
    """Fifteen truncations and fifteen flips: an error and no file, or the very same deploy form."""
    cfg = Config.fromfile(config)
    replace_sync_bn(cfg)
    torch.manual_seed(0)
    save_zip(dict(meta=dict(epoch=1), state_dict=build_model(cfg).state_dict()), tmp_path / 'whole.pth')
    whole, rng = (tmp_path / 'whole.pth').read_bytes(), random.Random(4)
    for number in range(15):
        (tmp_path / f'cut{number}.pth').write_bytes(whole[:rng.randrange(len(whole))])
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= rng.randrange(1, 256)
        (tmp_path / f'flip{number}.pth').write_bytes(damaged)
    files = sorted(tmp_path.glob('*.pth'))
    runs = [[*commands('convert_whole.py', config, path, tmp_path / path.stem), '--shape', '32', '32']
            for path in files]
    results = measured_runs(runs, tmp_path)
    expected = read_checkpoint(tmp_path / 'whole' / 'deploy.pth')['state_dict']
    for path, result in zip(files, results, strict=True):
        written = sorted(os.listdir(tmp_path / path.stem)) if (tmp_path / path.stem).exists() else []
        if result.code == 0:
            assert not path.stem.startswith('cut') and written == ['deploy.pth', 'deploy.py']
            assert same(dict(read_checkpoint(tmp_path / path.stem / 'deploy.pth')['state_dict']), dict(expected))
        else:
            assert 'cannot be read as a checkpoint' in result.message and written == [], result
            assert 'Traceback' not in result.message
    assert sum(result.code == 1 for result in results) >= 20


# --- killed while writing --------------------------------------------------------------------------------------------

@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_killed_while_writing_leaves_the_old_file_or_the_new_one(suffix, tmp_path):
    path, rng = tmp_path / f'weights.{suffix}', random.Random(3)
    contents = [dict(state_dict=dict(weight=torch.full((300_000,), float(value)))) for value in (1, 2)]
    write_checkpoint(path, contents[0])
    seen, left_over = set(), 0
    for _ in range(50):
        child = os.fork()
        if child == 0:
            while True:
                for content in contents:
                    write_checkpoint(path, content)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        weight = read_checkpoint(path)['state_dict']['weight']
        assert len(weight) == 300_000 and weight[0] in (1, 2) and (weight == weight[0]).all()
        seen.add(weight[0].item())
        left_over += len([name for name in os.listdir(tmp_path) if name != path.name])
    assert seen == {1.0, 2.0} and left_over > 0  # some kills came in the middle
    assert len(os.listdir(tmp_path)) <= 2
    write_checkpoint(path, contents[0])
    assert os.listdir(tmp_path) == [path.name]
