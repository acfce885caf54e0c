"""Addresses and servers that are broken or hostile: one sentence, nothing written elsewhere, nothing left behind."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from repvgg_mm import UserError, read_checkpoint
from repvgg_mm.files import download
from repvgg_mm.files.download import HUBS

pytestmark = pytest.mark.stack
SERVER = 'http://SERVER'  # stands for the address of the test's own


@functools.cache
def checkpoint() -> bytes:
    file = io.BytesIO()
    torch.save(dict(weight=torch.ones(3)), file)
    return file.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Answers by the first part of the path."""

    protocol_version = 'HTTP/1.1'
    over = threading.Event()  # the test, for which those wait that say nothing

    def do_GET(self) -> None:
        self.close_connection = True
        name = self.path.split('/')[1].split('?')[0]
        getattr(self, name, self.whole)()

    def answer(self, code: int, content: bytes = b'', **headers: object) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace('_', '-'), str(value))
        self.end_headers()
        self.wfile.write(content)

    def whole(self) -> None:
        self.answer(200, checkpoint(), Content_Length=len(checkpoint()))

    def missing(self) -> None:
        self.answer(404, b'none', Content_Length=4)

    def broken(self) -> None:
        self.answer(500, b'none', Content_Length=4)

    def forbidden(self) -> None:
        self.answer(403, b'none', Content_Length=4)

    def round(self) -> None:
        self.answer(302, Location=self.path, Content_Length=0)

    def to_a_file(self) -> None:
        self.answer(302, Location='file:///etc/passwd', Content_Length=0)

    def to_another_scheme(self) -> None:
        self.answer(302, Location='gopher://127.0.0.1/', Content_Length=0)

    def to_nowhere(self) -> None:
        self.answer(302, Location='http://127.0.0.1:9/a.pth', Content_Length=0)

    def cut(self) -> None:
        self.answer(200, checkpoint()[:500], Content_Length=len(checkpoint()))

    def longer(self) -> None:
        self.answer(200, checkpoint() + b'more', Content_Length=len(checkpoint()) - 3)

    def negative(self) -> None:
        self.answer(200, checkpoint(), Content_Length=-5)

    def wordy(self) -> None:
        self.answer(200, checkpoint(), Content_Length='many')

    def enormous(self) -> None:
        self.answer(200, checkpoint(), Content_Length=10**18)

    def empty(self) -> None:
        self.answer(200, Content_Length=0)

    def page(self) -> None:
        content = b'<!doctype html><html>Sign in</html>'
        self.answer(200, content, Content_Length=len(content))

    def packed(self) -> None:
        self.answer(200, b'\x1f\x8b' + bytes(50), Content_Length=52, Content_Encoding='gzip')

    def chunks(self) -> None:
        self.answer(200, b'zz\r\nno number\r\n', Transfer_Encoding='chunked')

    def headers_without_end(self) -> None:
        self.wfile.write(b'HTTP/1.1 200 OK\r\n' + b'X: ' + b'a' * 100_000 + b'\r\n\r\n')

    def many_headers(self) -> None:
        self.answer(200, **{f'X_{number}': 1 for number in range(500)})

    def no_protocol(self) -> None:
        self.wfile.write(b'\x00\xff\x1b[2J garbage\r\n\r\n')

    def nothing(self) -> None:
        pass

    def silence(self) -> None:
        self.over.wait(30)

    def sleepy(self) -> None:
        self.send_response(200)
        self.send_header('Content-Length', str(len(checkpoint())))
        self.end_headers()
        self.wfile.write(checkpoint()[:500])
        self.wfile.flush()
        self.over.wait(30)

    def code(self) -> None:
        content = b"cposix\nsystem\n(S'touch ran'\ntR."
        self.answer(200, content, Content_Length=len(content))

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[str]:
    """The address of one; this process stands in an empty folder, and waits a second for what does not come."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    monkeypatch.setattr(download, 'MOST_SECONDS', 1)
    Handler.over.clear()
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    Handler.over.set()
    server.shutdown()
    server.server_close()


BROKEN = [
    f'{SERVER}/{answer}/a.pth' for answer in (
        'missing', 'broken', 'forbidden', 'round', 'to_a_file', 'to_another_scheme', 'to_nowhere', 'cut', 'longer',
        'wordy', 'empty', 'page', 'packed', 'chunks', 'headers_without_end', 'many_headers', 'no_protocol',
        'nothing', 'silence', 'sleepy', 'code', 'cut/../../..')
] + [
    f'{SERVER}/whole/a-00000000.pth', f'{SERVER}', f'{SERVER}/', f'{SERVER}/a/..', f'{SERVER}/whole/%2e%2e',
    f'{SERVER}/whole/a\nb.pth', 'http://', 'http:///a.pth',
    'http://[::1/a.pth', 'http://127.0.0.1:99999/a.pth', 'http://127.0.0.1:x/a.pth',
    'http://no-such-host.invalid/a.pth',
    'http://user:secret@127.0.0.1:9/a.pth', 'HTTP://127.0.0.1:9/a.pth', 'http://a\x1b[2Jb/a.pth', 'http://\udcff/a.pth',
    'file:///etc/passwd', 'ftp://127.0.0.1/a.pth', 's3://bucket/a.pth', 'C://a.pth', '://a.pth', 'mmcls://',
    'mmcls://../../etc/passwd', 'open-mmlab://\x1b[2J', 'torchvision://resnet50/../..', 'data://text/plain,a']
ACCEPTED = [  # read, and kept under a name that is a file's in the folder of downloads
    f'{SERVER}/whole/..%2f..%2f..%2fescaped.pth', f'{SERVER}/whole/..%5c..%5cescaped.pth',
    f'{SERVER}/whole/%1b%5b2J.pth', f'{SERVER}/whole/{"a" * 300}.pth', f'{SERVER}/whole/a%00b.pth',
    f'{SERVER}/whole/a.pth?name=../../escaped.pth', f'{SERVER}/whole/a.pth#../../escaped', f'{SERVER}/whole/.pth',
    f'{SERVER}/negative/a.pth', f'{SERVER}/enormous/a.pth']


def written(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()]


@pytest.mark.parametrize('address', BROKEN, ids=range(len(BROKEN)))
def test_a_sentence_and_nothing_left(server, tmp_path, address, monkeypatch):
    monkeypatch.setitem(HUBS, 'torchvision://', lambda: dict(resnet50=f'{server}/missing/a.pth'))
    monkeypatch.setitem(HUBS, 'mmcls://', lambda: dict(vgg=f'{server}/missing/a.pth'))
    address, begin = address.replace(SERVER, server), time.monotonic()
    with pytest.raises(UserError) as caught:
        read_checkpoint(address)
    message = str(caught.value)
    assert len(message) > 60 and '\x1b' not in message and '\0' not in message and 'secret' not in message
    assert written(tmp_path) == [] and time.monotonic() - begin < 20


@pytest.mark.parametrize('address', ACCEPTED, ids=range(len(ACCEPTED)))
def test_what_is_downloaded_lies_in_its_folder(server, tmp_path, address):
    address = address.replace(SERVER, server)
    for _ in range(2):
        assert read_checkpoint(address)['weight'].tolist() == [1, 1, 1]
    name, = written(tmp_path)
    path = tmp_path / name
    assert path.parent == tmp_path / 'hub/checkpoints' and path.name.isprintable() and '\\' not in path.name


@pytest.mark.parametrize('prepare', [
    lambda path: path.mkdir(), lambda path: os.mkfifo(path), lambda path: path.symlink_to(path),
    lambda path: path.write_bytes(b'of another program')])
def test_something_else_lies_where_the_file_would(server, tmp_path, prepare: Callable[[Path], None]):
    digest = hashlib.sha256(checkpoint()).hexdigest()[:8]
    path = tmp_path / f'hub/checkpoints/a-{digest}.pth'
    path.parent.mkdir(parents=True)
    prepare(path)
    with pytest.raises(UserError, match=rf'a-{digest}\.pth'):
        read_checkpoint(f'{server}/whole/a-{digest}.pth')


def test_how_many():
    assert len(BROKEN) + len(ACCEPTED) + 4 >= 60
