"""A file or a folder is there whole or not at all, and where a result goes is checked before the work."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

import repvgg_mm
from repvgg_mm import UserError
from repvgg_mm.files.atomic import atomic_folder, atomic_path, check_output_file, check_output_folder, sha256_of


@pytest.mark.parametrize('error', [KeyboardInterrupt, ZeroDivisionError, RuntimeError])
def test_an_interrupted_body_leaves_what_was_there(tmp_path, error):
    path = tmp_path / 'file.pth'
    path.write_text('old')
    with pytest.raises(error, match='in the middle'), atomic_path(path) as temporary:
        temporary.write_text('new')
        assert temporary.parent == path.parent and path.read_text() == 'old'
        raise error('in the middle')
    assert os.listdir(tmp_path) == ['file.pth'] and path.read_text() == 'old'


@pytest.mark.parametrize('existed', [True, False])
def test_files_of_a_folder_appear_together(tmp_path, existed):
    folder = tmp_path / 'engine'
    if existed:
        folder.mkdir()
        (folder / 'kept').write_text('mine')
        (folder / 'a').write_text('old')
    with atomic_folder(folder) as temporary:
        (temporary / 'a').write_text('new')
        (temporary / 'b').write_text('new')
        assert not (folder / 'b').exists()
    assert sorted(os.listdir(folder)) == (['a', 'b', 'kept'] if existed else ['a', 'b'])
    assert (folder / 'a').read_text() == 'new'
    assert os.listdir(tmp_path) == ['engine']


@pytest.mark.parametrize('existed', [True, False])
def test_a_failing_body_leaves_the_folder_as_it_was(tmp_path, existed):
    folder = tmp_path / 'engine'
    if existed:
        folder.mkdir()
        (folder / 'a').write_text('old')
    with pytest.raises(ZeroDivisionError), atomic_folder(folder) as temporary:
        (temporary / 'a').write_text('new')
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == (['engine'] if existed else [])
    assert not existed or (os.listdir(folder) == ['a'] and (folder / 'a').read_text() == 'old')


def test_a_folder_in_a_folder_replaces_the_one_that_was_there(tmp_path):
    folder = tmp_path / 'kit'
    for name in ('old', 'new'):
        with atomic_folder(folder) as temporary:
            (temporary / 'inner').mkdir()
            (temporary / 'inner' / name).write_text(name)
    assert os.listdir(folder) == ['inner']
    assert os.listdir(folder / 'inner') == ['new']


def test_new_files_and_folders_have_the_usual_permissions(tmp_path):
    (tmp_path / 'plain').mkdir()
    (tmp_path / 'plain' / 'file').write_text('')
    with atomic_folder(tmp_path / 'folder') as temporary:
        (temporary / 'file').write_text('')
        (temporary / 'file').chmod(0o600)  # as tempfile makes one
    assert (tmp_path / 'folder').stat().st_mode == (tmp_path / 'plain').stat().st_mode
    assert (tmp_path / 'folder' / 'file').stat().st_mode == (tmp_path / 'plain' / 'file').stat().st_mode


def killed_in(context, path: Path) -> None:
    """A process that is killed in the body of `context(path)`."""
    child = os.fork()
    if child == 0:
        with context(path) as temporary:
            if temporary.is_dir():
                (temporary / 'a').write_text('half')
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


@pytest.mark.parametrize('context, existed', [(atomic_path, False), (atomic_folder, False), (atomic_folder, True)])
def test_what_a_killed_process_left_is_removed_by_the_next_writing(tmp_path, context, existed):
    path, parent = tmp_path / 'out', tmp_path
    if existed:
        path.mkdir()
        parent = path
    for _ in range(2):
        killed_in(context, path)
        assert [name for name in os.listdir(parent) if re.fullmatch(r'\.out\.\w{8}', name)]
    others = ['.out.not-ours', '.out2.abcdefgh', 'out.abcdefgh']
    for name in others:
        (parent / name).write_text('mine')

    with context(path) as first, context(path) as second:  # who still writes keeps what it has
        assert first.exists() and second.exists()
    assert sorted(os.listdir(parent)) == sorted(others + ([] if existed else ['out']))


def test_an_output_folder_that_only_a_killed_process_wrote_to(tmp_path):
    folder = tmp_path / 'out'
    folder.mkdir()
    killed_in(atomic_folder, folder)
    assert len(os.listdir(folder)) == 1
    check_output_folder(folder, overwrite=False)
    assert os.listdir(folder) == []


@pytest.fixture
def windows(monkeypatch):
    """System calls that fail as those of Windows do. Gives the set of files that are in use."""
    in_use = set()
    opened, synced, replaced = os.open, os.fsync, os.replace

    def open_no_folder(path, *arguments, **options):
        if os.path.isdir(path):
            raise PermissionError(13, 'Permission denied', str(path))
        return opened(path, *arguments, **options)

    def sync_what_may_be_written(handle):
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(9, 'Bad file descriptor')
        synced(handle)

    def replace_no_file_in_use(source, target):
        if Path(target) in in_use:
            raise PermissionError(13, 'The process cannot access the file', str(target))
        replaced(source, target)

    monkeypatch.setattr('repvgg_mm.files.atomic.fcntl', None)
    monkeypatch.setattr(os, 'open', open_no_folder)
    monkeypatch.setattr(os, 'fsync', sync_what_may_be_written)
    monkeypatch.setattr(os, 'replace', replace_no_file_in_use)
    monkeypatch.setattr(shutil, '_use_fd_functions', False)  # on Windows a folder is removed by its path
    return in_use


def test_a_file_is_written_with_the_calls_of_windows(tmp_path, windows):
    with atomic_path(tmp_path / 'file') as temporary:
        temporary.write_text('new')
    assert (tmp_path / 'file').read_text() == 'new' and os.listdir(tmp_path) == ['file']


@pytest.mark.parametrize('existed', [True, False])
def test_a_folder_is_written_with_the_calls_of_windows(tmp_path, windows, existed):
    if existed:
        (tmp_path / 'engine').mkdir()
    with atomic_folder(tmp_path / 'engine') as temporary:
        (temporary / 'a').write_text('new')
    assert (tmp_path / 'engine' / 'a').read_text() == 'new' and os.listdir(tmp_path) == ['engine']


def test_a_file_in_use_stays_as_it_is(tmp_path, windows):
    (tmp_path / 'file').write_text('old')
    windows.add(tmp_path / 'file')
    with pytest.raises(UserError, match=r'cannot access.*nothing was left there\. Close what has it open or choose'):
        with atomic_path(tmp_path / 'file') as temporary:
            temporary.write_text('new')
    assert (tmp_path / 'file').read_text() == 'old' and os.listdir(tmp_path) == ['file']


def test_a_folder_below_a_file(tmp_path):
    (tmp_path / 'file').write_text('regular')
    with pytest.raises(UserError, match=r'engine could not be written .*choose a folder that you can write to'):
        with atomic_folder(tmp_path / 'file' / 'engine'):
            pass
    assert os.listdir(tmp_path) == ['file']


@pytest.mark.parametrize('name', ['report', 'report.txt', 'folder.html'])
def test_an_output_file_has_one_of_the_suffixes(tmp_path, name):
    (tmp_path / 'folder.html').mkdir()
    message = rf'--report names a file in \.html, \.htm, and .*{name} is .*such as report\.html'
    with pytest.raises(UserError, match=message):
        check_output_file('--report', tmp_path / name, '.html', '.htm')


def test_an_output_file_can_be_written_before_the_work(tmp_path):
    check_output_file('--report', None, '.html')
    check_output_file('--report', tmp_path / 'new' / 'folders' / 'a.HTML', '.html')
    assert os.listdir(tmp_path) == []  # the check leaves nothing
    with pytest.raises(UserError, match=r'a\.html could not be written .*nothing was left there'):
        check_output_file('--report', Path('/proc/a.html'), '.html')


def test_an_output_folder_is_new_empty_or_to_be_overwritten(tmp_path):
    check_output_folder(tmp_path / 'new', overwrite=False)
    check_output_folder(tmp_path, overwrite=False)
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=r'holds 1 files\. Choose another, or add --overwrite'):
        check_output_folder(tmp_path, overwrite=False)
    check_output_folder(tmp_path, overwrite=True)
    with pytest.raises(UserError, match=r'--out is a folder, and .*file is a file'):
        check_output_folder(tmp_path / 'file', overwrite=True)


def test_an_output_folder_can_be_written_to_before_the_work(tmp_path):
    check_output_folder(tmp_path / 'new' / 'folders', overwrite=False)
    assert os.listdir(tmp_path) == []  # the check leaves nothing

    (tmp_path / 'file').write_text('')
    for folder in (Path('/proc'), Path('/proc/kit'), tmp_path / 'file' / 'new' / 'kit'):
        with pytest.raises(UserError, match=rf'{folder} could not be written .*nothing was left there'):
            check_output_folder(folder, overwrite=True)


def test_sha256(tmp_path):
    (tmp_path / 'file').write_bytes(b'abc')
    assert sha256_of(tmp_path / 'file') == 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'


def test_every_text_file_is_read_and_written_with_its_encoding():
    """Without one Windows takes that of its language."""
    package = Path(repvgg_mm.__file__).parent
    for path in package.rglob('*.py'):
        for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
            assert not re.search(r'\.(?:read|write)_text\((?!.*encoding)', line), f'{path}:{number}'
