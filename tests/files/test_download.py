"""Checkpoints with an address, from a real web server on this machine."""

from __future__ import annotations

import hashlib
import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from helpers import TINY, assert_same_state, backbone, snapshot
from mmengine.runner import CheckpointLoader, load_checkpoint
from tool_runs import run_tool

from repvgg_mm import RepVGG, UserError, read_checkpoint
from repvgg_mm.files.atomic import sha256_of
from repvgg_mm.files.checkpoint import use_safe_reader
from repvgg_mm.files.download import HUBS, local_path

pytestmark = pytest.mark.stack


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder that is served, and its address; what is downloaded goes to another folder."""
    (tmp_path / 'served').mkdir()
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, directory=tmp_path / 'served'))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield tmp_path / 'served', f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


@pytest.fixture
def downloads(tmp_path) -> Path:
    return tmp_path / 'hub' / 'checkpoints'


@pytest.fixture
def safe_reader():
    schemes = dict(CheckpointLoader._schemes)
    use_safe_reader()
    yield
    CheckpointLoader._schemes = schemes


def listing(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.exists() else []


def test_a_file_is_downloaded_once(server, downloads):
    folder, address = server
    torch.save(dict(weight=torch.ones(3)), folder / 'a.pth')
    url = f'{address}/a.pth'
    torch.testing.assert_close(read_checkpoint(url)['weight'], torch.ones(3))
    assert listing(downloads) == [local_path(url).name] and sha256_of(local_path(url)) == sha256_of(folder / 'a.pth')
    (folder / 'a.pth').unlink()
    torch.testing.assert_close(read_checkpoint(url)['weight'], torch.ones(3))


@pytest.mark.parametrize('route', ['load_checkpoint', 'init_cfg', 'pretrained', 'hub'])
def test_every_route_of_mmengine(server, downloads, safe_reader, monkeypatch, route):
    folder, address = server
    source, target = backbone(), RepVGG(TINY, norm_eval=True)
    tensors = {f'backbone.{name}': tensor for name, tensor in source.state_dict().items()}
    torch.save(dict(state_dict=tensors, meta=dict(epoch=1)), folder / 'a.pth')
    monkeypatch.setitem(HUBS, 'mmcls://', lambda: {'tiny': f'{address}/a.pth'})
    if route == 'load_checkpoint':
        load_checkpoint(target, f'{address}/a.pth')
    elif route == 'hub':
        load_checkpoint(target, 'mmcls://tiny')
    else:
        options = dict(pretrained=f'{address}/a.pth') if route == 'pretrained' else dict(
            init_cfg=dict(type='Pretrained', checkpoint=f'{address}/a.pth'))
        target = RepVGG(TINY, **options)
        target.init_weights()
    assert_same_state(target, snapshot(source))
    assert listing(downloads) == [local_path(f'{address}/a.pth').name]


@pytest.mark.parametrize('route', [read_checkpoint, lambda url: load_checkpoint(RepVGG(TINY), url)])
def test_code_in_a_downloaded_file_does_not_run(server, downloads, safe_reader, tmp_path, route):
    class Evil:
        def __reduce__(self) -> tuple:
            return os.system, (f'touch {tmp_path / "ran"}',)

    folder, address = server
    torch.save(dict(evil=Evil()), folder / 'evil.pth')
    with pytest.raises(UserError, match=r'evil\.\w+\.pth asks for posix\.system'):
        route(f'{address}/evil.pth')
    assert not (tmp_path / 'ran').exists() and listing(downloads) == []


@pytest.mark.parametrize('name, message', [
    ('missing.pth', r'missing\.pth could not be \(HTTP Error 404.*nothing was left in .*Check the address'),
    ('', r'ends in the name of a file, and .* has none')])
def test_an_address_without_a_file(server, downloads, name, message):
    with pytest.raises(UserError, match=message):
        read_checkpoint(f'{server[1]}/{name}')
    assert listing(downloads) == []


def test_an_address_without_a_server(downloads, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    with pytest.raises(UserError, match=r'could not be \(.*refused.*Check the address and the network'):
        read_checkpoint('http://127.0.0.1:9/a.pth')
    assert listing(downloads) == []


def test_the_hash_in_a_name_is_that_of_the_content(server, downloads):
    folder, address = server
    torch.save(dict(weight=torch.ones(3)), folder / 'a.pth')
    digest = hashlib.sha256((folder / 'a.pth').read_bytes()).hexdigest()[:8]
    for name in (f'a-{digest}.pth', 'a-00000000.pth'):
        (folder / name).write_bytes((folder / 'a.pth').read_bytes())
    assert list(read_checkpoint(f'{address}/a-{digest}.pth')) == ['weight']
    with pytest.raises(UserError, match=r'a-00000000\.pth could not be \(invalid hash'):
        read_checkpoint(f'{address}/a-00000000.pth')
    assert listing(downloads) == [f'a-{digest}.pth']
    (downloads / f'a-{digest}.pth').write_bytes((folder / 'a.pth').read_bytes() + b'0')
    with pytest.raises(UserError, match=rf'downloaded to .*a-{digest}\.pth before, .*, not with {digest} .*remove it'):
        read_checkpoint(f'{address}/a-{digest}.pth')


def test_the_same_name_at_two_addresses_is_two_files(server, downloads):
    folder, address = server
    for number, place in enumerate(('one', 'two')):
        (folder / place).mkdir()
        torch.save(dict(weight=torch.tensor(number)), folder / place / 'best.pth')
    read = [read_checkpoint(f'{address}/{place}/best.pth')['weight'].item() for place in ('one', 'two', 'one')]
    assert read == [0, 1, 0] and len(listing(downloads)) == 2


@pytest.mark.parametrize('source, message', [
    ('mmcls://repvgg-z9', r"knows \d+ names, and 'repvgg-z9' is none of them"),
    ('s3://bucket/a.pth', r'starts with http://, https://, .*s3://bucket/a\.pth has another')])
def test_names_that_no_hub_has(source, message):
    with pytest.raises(UserError, match=message):
        read_checkpoint(source)


def test_a_tool_takes_an_address(server, tmp_path):
    folder, address = server
    torch.save(backbone('A0').state_dict(), folder / 'a0.pth')
    home = str(tmp_path / 'home')
    result = run_tool('tools/convert_weights.py', f'{address}/a0.pth', tmp_path / 'timm.pth', '-a', 'A0',
                      '--to', 'timm', TORCH_HOME=home)
    assert 'native layout, training form, to timm layout' in result.stdout
    result = run_tool('tools/convert_weights.py', f'{address}/none.pth', tmp_path / 'none.pth', '-a', 'A0',
                      check=False, TORCH_HOME=home)
    assert result.returncode == 1 and 'Traceback' not in result.stderr and not (tmp_path / 'none.pth').exists()


def test_a_file_that_was_there_stays_though_it_cannot_be_read(server, downloads):
    url = f'{server[1]}/a.pth'
    downloads.mkdir(parents=True)
    local_path(url).write_bytes(b'of another program')
    with pytest.raises(UserError, match=r'cannot be read as a checkpoint'):
        read_checkpoint(url)
    assert local_path(url).read_bytes() == b'of another program'
