"""Which files are meant, where their pictures go, and that a video is written wholly or not at all."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
from videos import frames_of, moving_square

from repvgg_mm import UserError
from repvgg_mm.errors import UnusableFile
from repvgg_mm.inference.media import find_sources, open_video, write_video


@pytest.fixture
def tree(tmp_path) -> Path:
    for name in ('a/1.jpg', 'a/1.PNG', 'a/deep/1.jpg', 'b/1.jpg', 'b/film.mov', 'b/read.me', 'b/.hidden.jpg',
                 'b/x[1].bmp'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b'')
    return tmp_path


@pytest.mark.parametrize(('patterns', 'expected'), [
    (['a/deep/1.jpg'], {'a/deep/1.jpg': '1.png'}),
    (['b'], {'b/1.jpg': '1.png', 'b/film.mov': 'film.mp4', 'b/x[1].bmp': 'x[1].png'}),
    (['b/x[1].bmp'], {'b/x[1].bmp': 'x[1].png'}),
    (['a'], {'a/1.PNG': '1_PNG.png', 'a/1.jpg': '1_jpg.png', 'a/deep/1.jpg': 'deep/1.png'}),
    (['a/deep', 'b/1.jpg', 'a/deep/1.jpg'], {'a/deep/1.jpg': 'a/deep/1.png', 'b/1.jpg': 'b/1.png'}),
    (['*/1.jpg'], {'a/1.jpg': 'a/1.png', 'b/1.jpg': 'b/1.png'}),
    (['a/**/*.jpg'], {'a/1.jpg': '1.png', 'a/deep/1.jpg': 'deep/1.png'}),
    (['b/read.me'], {'b/read.me': 'read.png'}),  # whoever names a file means it
])
def test_sources_and_targets(patterns, expected, tree, monkeypatch):
    monkeypatch.chdir(tree)
    found = {str(source.path.relative_to(tree)): str(source.target) for source in find_sources(patterns)}
    assert found == expected


def test_pictures_drawn_before_are_no_sources(tree):
    assert len(find_sources([tree], out=tree / 'a')) == 3
    assert len(find_sources([tree / 'a' / '1.jpg'], out=tree / 'a')) == 1
    with pytest.raises(UserError, match=r'all 3 files of .* lie in .*Choose another --out'):
        find_sources([tree / 'a'], out=tree / 'a')


def test_video_keeps_rate_size_and_frames(tmp_path):
    moving_square(tmp_path / 'in.mp4', count=6, fps=29.97)
    video = open_video(tmp_path / 'in.mp4')
    frames = [frame[..., ::-1] for frame in video]  # RGB
    assert write_video(tmp_path / 'new' / 'out.mp4', frames, video.fps, video.resolution) == 6
    assert frames_of(tmp_path / 'new' / 'out.mp4') == pytest.approx((6, 29.97, 64, 48))
    again = list(open_video(tmp_path / 'new' / 'out.mp4'))
    assert abs(again[5].astype(int) - frames[5][..., ::-1]).mean() < 6
    assert again[5][20, 26, 2] > 150 > again[5][20, 26, 0]  # the square is red and has moved
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['out.mp4']


def test_no_half_video(tmp_path):
    def frames():
        yield np.zeros((48, 64, 3), np.uint8)
        raise UnusableFile('stop')

    with pytest.raises(UnusableFile, match='stop'):
        write_video(tmp_path / 'out.mp4', frames(), 10, (64, 48))
    with pytest.raises(UserError, match='0 frames of 64x48'):
        write_video(tmp_path / 'out.mp4', [], 10, (64, 48))
    noise = np.random.default_rng(0).integers(256, size=(40, 240, 320, 3), dtype=np.uint8)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))  # as on a full disk
    try:
        with pytest.raises(UserError, match='could not be written'):
            write_video(tmp_path / 'out.mp4', noise, 10, (320, 240))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(tmp_path.iterdir()) == []


def test_unreadable_video(tmp_path):
    (tmp_path / 'x.mp4').write_bytes(b'no video' * 50)
    with pytest.raises(UnusableFile, match=r'x.mp4 is not \(400 bytes\)'):
        open_video(tmp_path / 'x.mp4')
