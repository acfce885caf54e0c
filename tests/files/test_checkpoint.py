"""Reading runs no code, loading is complete or refused, writing leaves the old file or the new one."""

from __future__ import annotations

import os
import pickle
import resource
import shutil
from pathlib import Path

import pytest
import torch
from helpers import backbone
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader, Runner
from tool_runs import run_tool
from torch import nn
from torch.utils.data import DataLoader

from repvgg_mm import UserError, load_strictly, read_checkpoint
from repvgg_mm.files.checkpoint import use_safe_reader, write_checkpoint


class Linear(BaseModel):
    """The smallest model that a Runner trains."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, inputs: torch.Tensor, mode: str = 'tensor') -> dict[str, torch.Tensor]:
        return dict(loss=self.layer(inputs).square().mean())


class RunsCommand:
    """Unpickling runs a shell command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


def collate(samples: list) -> dict[str, torch.Tensor]:
    return dict(inputs=torch.stack(samples))


def runner(folder: Path, **options) -> Runner:
    return Runner(
        model=Linear(),
        work_dir=str(folder),
        train_dataloader=DataLoader(list(torch.ones(4, 2)), 2, collate_fn=collate),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        param_scheduler=dict(type='MultiStepLR', milestones=[1]),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        experiment_name=f'{folder.name}-{len(options)}',
        **options)


@pytest.fixture(scope='module')
def runner_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp('work_dir')
    try:
        runner(folder).train()
    finally:
        DefaultScope._instance_dict.clear()  # the Runner's scope, which would outlive this file
    return folder / 'epoch_2.pth'


# --- reading ---------------------------------------------------------------------------------------------------------

def test_a_runners_checkpoint_is_read(runner_checkpoint):
    checkpoint = read_checkpoint(runner_checkpoint)
    assert set(checkpoint) >= {'meta', 'state_dict', 'message_hub', 'optimizer', 'param_schedulers'}
    assert checkpoint['meta']['epoch'] == 2
    losses = checkpoint['message_hub']['log_scalars']['train/loss'].data[0]
    assert len(losses) == 4 and losses[-1] < losses[0]
    model = Linear()
    load_strictly(model, checkpoint, 'epoch_2.pth')
    torch.testing.assert_close(model.layer.weight, checkpoint['state_dict']['layer.weight'], rtol=0, atol=0)


def test_a_runner_resumes_through_the_safe_reader(runner_checkpoint, tmp_path):
    schemes = dict(CheckpointLoader._schemes)
    try:
        use_safe_reader()
        resumed = runner(tmp_path, load_from=str(runner_checkpoint), resume=True)
        resumed.load_or_resume()
        assert resumed.epoch == 2 and resumed.iter == 4
        expected = read_checkpoint(runner_checkpoint)['state_dict']['layer.weight']
        torch.testing.assert_close(resumed.model.layer.weight, expected, rtol=0, atol=0)
    finally:
        CheckpointLoader._schemes = schemes
        DefaultScope._instance_dict.clear()


@pytest.mark.parametrize('path_type', [str, Path])
def test_plain_weights(tmp_path, path_type):
    torch.save(backbone().state_dict(), tmp_path / 'weights.pth')
    found = read_checkpoint(path_type(tmp_path / 'weights.pth'))
    torch.testing.assert_close(dict(found), dict(backbone().state_dict()), rtol=0, atol=0)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r'missing\.pth is missing\. Check the path'):
        read_checkpoint(tmp_path / 'missing.pth')


def test_folder(tmp_path):
    with pytest.raises(UserError, match=rf'A checkpoint is a file, and {tmp_path} is a folder'):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize('content', [
    b'', b'\n', b'This is no checkpoint.\n', b'<!DOCTYPE html><html>404</html>', b'{"a": 1}', b'PK\x03\x04',
    b'\x80\x02', b'\x80\x02}q\x00.', b'version https://git-lfs.github.com/spec/v1\n',
    b'\x00' * 4096, bytes(range(256)) * 8])
def test_another_kind_of_file(tmp_path, content):
    path = tmp_path / 'file.pth'
    path.write_bytes(content)
    damaged = rf'cannot be read as a checkpoint \({len(content)} bytes'
    with pytest.raises(UserError, match=rf'file\.pth ({damaged}|asks for|is a web page)'):
        read_checkpoint(path)


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('part', [0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999])
def test_truncated_file(tmp_path, part, legacy):
    path = tmp_path / 'weights.pth'
    torch.save(dict(state_dict=backbone().state_dict()), path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    path.write_bytes(whole[:int(len(whole) * part)])
    with pytest.raises(UserError, match=r'cannot be read as a checkpoint .* damaged, incomplete or another kind'):
        read_checkpoint(path)


def test_pickled_model(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / 'model.pth')
    with pytest.raises(UserError, match=r'model\.pth asks for torch\.nn\.modules\.linear\.Linear\b.*--trust'):
        read_checkpoint(tmp_path / 'model.pth')


@pytest.mark.parametrize('content', [[torch.ones(1)], torch.ones(2), 'text', None])
def test_no_dict(tmp_path, content):
    torch.save(content, tmp_path / 'list.pth')
    with pytest.raises(UserError, match=rf'is a dict of tensors, and .*list\.pth holds a {type(content).__name__}'):
        read_checkpoint(tmp_path / 'list.pth')


@pytest.mark.parametrize('save, load', [
    (torch.save, lambda path: torch.load(path, weights_only=False)),
    (lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
     lambda path: torch.load(path, weights_only=False)),
    (lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
     lambda path: pickle.loads(path.read_bytes()))], ids=['zip', 'legacy', 'pickle'])
def test_code_in_a_checkpoint_does_not_run(tmp_path, save, load):
    path, ran = tmp_path / 'malicious.pth', tmp_path / 'ran'
    save(dict(meta=RunsCommand(f'touch {ran}'), state_dict=dict(weight=torch.ones(1))), path)
    with pytest.raises(UserError, match=r'malicious\.pth asks for (posix|nt|os)\.system\b.*which mmengine'):
        read_checkpoint(path)
    assert not ran.exists()
    load(path)
    assert ran.exists()  # the file would have run it


@pytest.mark.parametrize('owner, name', [
    (HistoryBuffer, '__init__'), (HistoryBuffer, 'register_statistics'), (torch.Tensor, 'backward'), (dict, 'update')])
def test_attributes_in_a_checkpoint_are_those_of_log_histories(tmp_path, owner, name):
    class Attribute:
        def __reduce__(self) -> tuple:
            return getattr, (owner, name)

    path = tmp_path / 'malicious.pth'
    torch.save(dict(meta=Attribute()), path)
    with pytest.raises(UserError, match=r'malicious\.pth (asks for|cannot be read)'):
        read_checkpoint(path)


def test_trust_reads_any_type(tmp_path):
    torch.save(dict(weight=torch.ones(1), path=Path('a')), tmp_path / 'trusted.pth')
    with pytest.raises(UserError, match='asks for pathlib'):
        read_checkpoint(tmp_path / 'trusted.pth')
    assert read_checkpoint(tmp_path / 'trusted.pth', trust=True)['path'] == Path('a')


# --- writing ---------------------------------------------------------------------------------------------------------

def test_writing_and_reading(tmp_path):
    path = tmp_path / 'a' / 'b' / 'file.pth'
    write_checkpoint(path, dict(state_dict=dict(weight=torch.arange(3.))))
    write_checkpoint(path, dict(state_dict=dict(weight=torch.arange(4.))))
    torch.testing.assert_close(read_checkpoint(path)['state_dict']['weight'], torch.arange(4.))
    assert os.listdir(path.parent) == ['file.pth']


def test_written_files_have_the_usual_permissions(tmp_path):
    (tmp_path / 'plain').write_text('')
    write_checkpoint(tmp_path / 'file.pth', dict(weight=torch.ones(1)))
    assert (tmp_path / 'file.pth').stat().st_mode == (tmp_path / 'plain').stat().st_mode


@pytest.mark.parametrize('exists', [True, False])
def test_failing_in_the_middle_leaves_what_was_there(tmp_path, exists):
    path = tmp_path / 'file.pth'
    if exists:
        write_checkpoint(path, dict(weight=torch.ones(1)))
    with pytest.raises((AttributeError, pickle.PicklingError), match='lambda'):
        write_checkpoint(path, dict(weight=torch.zeros(1000), other=lambda: None))
    assert os.listdir(tmp_path) == (['file.pth'] if exists else [])
    assert not exists or read_checkpoint(path)['weight'].item() == 1


def test_no_space_left(tmp_path):
    path = tmp_path / 'file.pth'
    write_checkpoint(path, dict(weight=torch.ones(1)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # writing beyond fails as on a full disk
    try:
        with pytest.raises(UserError, match=r'file\.pth could not be written .* nothing was left there. Free space or'):
            write_checkpoint(path, dict(weight=torch.ones(100_000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ['file.pth']
    assert read_checkpoint(path)['weight'].item() == 1


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / 'file').write_text('regular')
    with pytest.raises(UserError, match=r'deploy\.pth could not be written .*choose a folder that you can write to'):
        write_checkpoint(tmp_path / 'file' / 'deploy.pth', dict(weight=torch.ones(1)))
    assert os.listdir(tmp_path) == ['file'] and (tmp_path / 'file').read_text() == 'regular'


def test_a_folder_in_the_place_of_the_file(tmp_path):
    (tmp_path / 'deploy.pth').mkdir()
    with pytest.raises(UserError, match=r'deploy\.pth could not be written'):
        write_checkpoint(tmp_path / 'deploy.pth', dict(weight=torch.ones(1)))
    assert os.listdir(tmp_path) == ['deploy.pth'] and os.listdir(tmp_path / 'deploy.pth') == []


WITHOUT_THE_STACK = """
import sys, types
for name in ('mmengine', 'mmcv', 'safetensors'):
    sys.modules[name] = None  # importing it raises ImportError
sys.modules['repvgg_mm'] = types.ModuleType('repvgg_mm')  # this room alone, whatever the package's __init__ imports
sys.modules['repvgg_mm'].__path__ = ['repvgg_mm']
import numpy, torch
from repvgg_mm.files import atomic, checkpoint, download, pickles, tensor_file
from repvgg_mm.errors import UserError

folder = sys.argv[1]
content = dict(state_dict=dict(weight=torch.arange(4.)), meta=dict(epoch=3, loss=numpy.float64(0.5)))
checkpoint.write_checkpoint(f'{folder}/written.pth', content)
found = checkpoint.read_checkpoint(f'{folder}/written.pth')
assert torch.equal(found['state_dict']['weight'], torch.arange(4.)) and found['meta'] == content['meta'], found
try:
    checkpoint.read_checkpoint(f'{folder}/runner.pth')
except UserError as error:
    print(error)
loaded = [name for name in sys.modules if name.split('.')[0] in ('mmengine', 'mmcv', 'safetensors')]
assert all(sys.modules[name] is None for name in loaded), loaded
"""


def test_torch_alone_writes_and_reads(runner_checkpoint, tmp_path):
    """What only mmengine can make, a log history, is then refused by its name."""
    shutil.copy(runner_checkpoint, tmp_path / 'runner.pth')
    result = run_tool('-c', WITHOUT_THE_STACK, tmp_path)
    assert 'runner.pth asks for mmengine.logging.history_buffer.HistoryBuffer' in result.stdout
    assert read_checkpoint(tmp_path / 'written.pth')['meta'] == dict(epoch=3, loss=0.5)


def test_records_without_a_checksum(tmp_path):
    """As torch.serialization.set_crc32_options(False) writes them: 0 in place of the CRC32."""
    path = tmp_path / 'a.pth'
    torch.save(dict(weight=torch.arange(5.)), path)
    content = bytearray(path.read_bytes())
    for signature, place in ((b'PK\x01\x02', 16), (b'PK\x03\x04', 14), (b'PK\x07\x08', 4)):
        start = content.find(signature)
        while start >= 0:
            content[start + place:start + place + 4] = bytes(4)
            start = content.find(signature, start + 4)
    path.write_bytes(content)
    torch.testing.assert_close(read_checkpoint(path)['weight'], torch.arange(5.))


@pytest.mark.parametrize('trust', [False, True])
def test_schemes_of_mmengine_that_nobody_here_knows(trust):
    before = dict(CheckpointLoader._schemes)
    try:
        use_safe_reader(trust=trust)
        own = {scheme for scheme, loader in CheckpointLoader._schemes.items() if loader is not before[scheme]}
    finally:
        CheckpointLoader._schemes = before
    assert {'', 'http://', 'openmmlab://'} <= own
    assert any('s3://' in scheme for scheme in own) != trust


@pytest.mark.parametrize('start', [b'<!DOCTYPE html><html>', b'\n <html lang="en">', b'\xef\xbb\xbf<!doctype HTML>'])
def test_a_page_that_a_server_sent_instead(start, tmp_path):
    (tmp_path / 'a.pth').write_bytes(start + b'<body>Not found</body></html>')
    with pytest.raises(UserError, match=r'a\.pth is a web page: .*look for the file itself'):
        read_checkpoint(tmp_path / 'a.pth')
