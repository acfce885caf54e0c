"""repvgg_mm.predict and tools/predict.py: the toolbox's own predictions, drawn; mistakes are named."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from tool_runs import run_tool
from videos import frames_of, moving_square

import repvgg_mm
from repvgg_mm import UserError
from repvgg_mm.deploy.checkpoint import Checkpoint
from repvgg_mm.export.export import export
from repvgg_mm.export.target import Target
from repvgg_mm.inference.predict import predict_files

pytestmark = pytest.mark.stack


@pytest.mark.parametrize(('config', 'weights'), [(0, 1), (2, 3), (0, 3), (2, 1)])
def test_segmentor_predicts_as_mmseg_does(config, weights, trained, images):
    from mmseg.apis import inference_model, init_model
    files = trained('pspnet')
    path = images / 'val' / '0001.jpg'
    truth = inference_model(init_model(str(files[0]), str(files[1]), device='cpu'), str(path))
    (sample,) = repvgg_mm.predict(files[config], files[weights], path, keep_logits=True, device='cpu')
    assert type(sample) is type(truth) and sample.img_path == str(path)
    torch.testing.assert_close(sample.seg_logits.data, truth.seg_logits.data, rtol=1e-4, atol=1e-4)
    assert sample.pred_sem_seg.data.shape == (1, 64, 64) and sample.pred_sem_seg.data.unique().numel() > 1
    assert (sample.pred_sem_seg.data == truth.pred_sem_seg.data).float().mean() > 0.999


@pytest.mark.parametrize('kind', ['retinanet', 'mask_rcnn'])
def test_detector_predicts_as_mmdet_does(kind, trained, images):
    from mmdet.apis import inference_detector, init_detector
    config, checkpoint, *_ = trained(kind)
    array = cv2.imread(str(images / 'train' / '0000.jpg'))
    truth = inference_detector(init_detector(str(config), str(checkpoint), device='cpu'), str(
        images / 'train' / '0000.jpg')).pred_instances
    (sample,), (picture,) = repvgg_mm.predict(Config.fromfile(config), checkpoint, array, draw=True, score_thr=0,
                                              device='cpu')
    found = sample.pred_instances
    assert len(found) == len(truth) > 5
    torch.testing.assert_close(found.scores, truth.scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.bboxes, truth.bboxes, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(found.labels, truth.labels)
    if kind == 'mask_rcnn':
        assert found.masks.shape == (len(found), 64, 64) and found.masks.any()
        assert (found.masks == truth.masks).float().mean() > 0.999
    assert picture.shape[0] == 384 < picture.shape[1] and picture.dtype == np.uint8  # enlarged six times, and a legend


@pytest.mark.parametrize('kind', ['pspnet', 'retinanet'])
def test_an_engine_predicts_as_its_checkpoint_does(kind, trained, images, tmp_path):
    config, checkpoint, *_ = trained(kind)
    exported = export(Config.fromfile(config), Checkpoint.read(checkpoint), tmp_path / 'engine',
                      Target(shape=(96, 96), preprocess=kind == 'retinanet'), progress=lambda step: None)
    paths = [images / 'val' / '0000.jpg', images / 'train' / '0001.jpg']
    expected = repvgg_mm.predict(config, checkpoint, paths, device='cpu')
    for sample, truth in zip(repvgg_mm.predict(config, exported.path, paths), expected, strict=True):
        if kind == 'pspnet':
            assert (sample.pred_sem_seg.data == truth.pred_sem_seg.data).float().mean() > 0.999
        else:
            assert len(sample.pred_instances) == len(truth.pred_instances) > 5
            torch.testing.assert_close(sample.pred_instances.scores, truth.pred_instances.scores, rtol=1e-4, atol=1e-5)
    result = run_tool('tools/predict.py', config, exported.path, images / 'val', '--out', tmp_path / 'drawn')
    assert len(list((tmp_path / 'drawn').rglob('*.png'))) == 2 and 'Drew 2' in result.stdout
    with pytest.raises(UserError, match=r'onnxruntime runs an engine on cpu or cuda or tensorrt, and --device gpu was'):
        repvgg_mm.predict(config, exported.path, paths, device='gpu')
    wide = np.full((64, 200, 3), 128, np.uint8)
    with pytest.raises(UserError, match=r'image_0: .*engine\.onnx takes .* or export with --shape H W or --dynamic'):
        repvgg_mm.predict(config, exported.path, wide)


def test_logits_are_left_out_unless_asked_for(trained, images):
    config, checkpoint, *_ = trained('pspnet')
    samples = repvgg_mm.predict(config, checkpoint, str(images / 'val'), device='cpu')
    assert [Path(sample.img_path).name for sample in samples] == ['0000.jpg', '0001.jpg']
    assert [sorted(sample.keys()) for sample in samples] == [['pred_sem_seg']] * 2


def test_tool_draws_what_it_can_and_names_the_rest(trained, images, tmp_path):
    config, checkpoint, *_ = trained('pspnet')
    source, out = tmp_path / 'source', tmp_path / 'out'
    for split in ('train', 'val'):
        (source / split).mkdir(parents=True)
        (source / split / '0000.jpg').write_bytes((images / split / '0000.jpg').read_bytes())
    (source / 'broken.jpg').write_bytes((images / 'val' / '0001.jpg').read_bytes()[:900])
    (source / 'broken.mp4').write_bytes(b'no video' * 50)
    (source / 'notes.txt').write_text('not a picture')
    moving_square(source / 'clip.avi', count=7, fps=12.5)
    result = run_tool('tools/predict.py', config, checkpoint, source, '--out', out, '--device', 'cpu', check=False)
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    assert 'Of 5 files 3 are drawn' in result.stderr
    assert f'{source / "broken.jpg"} is not' in result.stderr and f'{source / "broken.mp4"} is not' in result.stderr
    assert '11/11' not in result.stdout and '9/11' in result.stdout  # of 4 files and 7 frames
    written = sorted(str(path.relative_to(out)) for path in out.rglob('*') if path.is_file())
    assert written == ['clip.mp4', 'train/0000.png', 'val/0000.png']
    assert frames_of(out / 'clip.mp4')[:2] == (7, 12.5)
    _, (picture,) = repvgg_mm.predict(config, checkpoint, images / 'val' / '0000.jpg', draw=True, device='cpu')
    np.testing.assert_array_equal(cv2.imread(str(out / 'val' / '0000.png')), picture[..., ::-1])


def test_tool_draws_detections_above_the_threshold(trained, images, tmp_path):
    _, _, config, checkpoint = trained('mask_rcnn')
    result = run_tool('tools/predict.py', config, checkpoint, f'{images}/*/0000.jpg', '--out', tmp_path, '--score-thr',
                      0.01, '--cfg-options', 'model.test_cfg.rcnn.max_per_img=5')
    assert 'Drew 2 in' in result.stdout
    plain = cv2.resize(cv2.imread(str(images / 'val' / '0000.jpg')), (384, 384), interpolation=cv2.INTER_NEAREST)
    drawn = cv2.imread(str(tmp_path / 'val' / '0000.png'))[:, :384]  # without the legend
    assert 0.1 < changed_share(drawn, plain) < 0.9
    predict_files(config, checkpoint, [images / 'val' / '0000.jpg'], tmp_path / 'none', score_thr=1.01, device='cpu')
    assert changed_share(cv2.imread(str(tmp_path / 'none' / '0000.png')), plain) < 0.02  # matplotlib resamples a little


def changed_share(picture: np.ndarray, plain: np.ndarray) -> float:
    return (abs(picture.astype(int) - plain).max(2) > 40).mean()


def test_a_notebook_shows_the_pictures(trained, images):
    files = trained('pspnet')
    _, (picture,) = repvgg_mm.predict(*files[:2], images / 'val' / '0001.jpg', draw=True, device='cpu')
    shown = np.asarray(Image.open(io.BytesIO(picture._repr_png_())))
    np.testing.assert_array_equal(shown, picture)
    assert picture[0]._repr_png_() is None and (picture / 2)._repr_png_() is None


def test_many_images_show_their_progress(trained, images, capsys, monkeypatch):
    from repvgg_mm.inference import predict as module
    files, found = trained('pspnet'), sorted((images / 'val').glob('*.jpg'))
    repvgg_mm.predict(*files[:2], found[:2], device='cpu')
    assert '2/2' not in capsys.readouterr().out
    monkeypatch.setattr(module, 'SECONDS_BEFORE_BAR', 0)
    repvgg_mm.predict(*files[:2], found[:2], device='cpu')
    assert '2/2' in capsys.readouterr().out


def test_pictures_are_only_overwritten_on_request(trained, images, tmp_path):
    config, checkpoint, *_ = trained('pspnet')
    (tmp_path / '0001.png').write_text('mine')
    arguments = (config, checkpoint, images / 'val', tmp_path)
    with pytest.raises(UserError, match=r'has 1 of 2 already, such as 0001.png.*--overwrite'):
        repvgg_mm.predict(*arguments, device='cpu')
    assert [path.name for path in tmp_path.iterdir()] == ['0001.png']
    repvgg_mm.predict(*arguments, device='cpu', overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['0000.png', '0001.png']
    assert cv2.imread(str(tmp_path / '0001.png')).shape[0] == 384


def changed(cfg: Config, **changes) -> Config:
    cfg.merge_from_dict(changes)
    return cfg


@pytest.mark.parametrize(('message', 'mistake'), [
    ('missing.py is missing', dict(config='missing.py')),
    ('no.pth is missing', dict(checkpoint='no.pth')),
    ('does not fit', dict(config=lambda cfg: changed(cfg, **{'model.decode_head.channels': 9}))),
    ('this one has none', dict(config=lambda cfg: changed(cfg, test_pipeline=[], test_dataloader=None))),
    ('this one has Resize, Pack', dict(config=lambda cfg: changed(
        cfg, **{'test_dataloader.dataset.pipeline': [dict(type='Resize'), dict(type='PackSegInputs')]}))),
    ("'gone/*.jpg' names none|gone/.*.jpg names none", dict(images='gone/*.jpg')),
    ('got none', dict(images=[])),
    ('image_0 is float64 of \\(8, 8\\)', dict(images=np.zeros((8, 8)))),
    ('image_0 is float32 of \\(8, 8, 3\\)', dict(images=np.zeros((8, 8, 3), np.float32))),
    ('got Image', dict(images=Image.new('RGB', (8, 8)))),
    ('got NoneType', dict(images=None)),
    ('got Tensor', dict(images=[torch.zeros(3, 8, 8)])),
    ('clip.mp4 was named more than once', dict(images=['clip.mp4', Path('clip.mp4')])),
    (r'has no|does not .*unexpected keyword', dict(config=lambda cfg: changed(cfg, **{'model.backbone.nonsense': 3}))),
    ('1 of 2 are arrays', dict(images=[np.zeros((8, 8, 3), np.uint8), 'gone.jpg'])),
    ('is a video', dict(images='clip.mp4')),
    ('cuda:99 is not', dict(device='cuda:99')),
    ('huhu is not', dict(device='huhu')),
    ('net.pth is a file', dict(out=lambda files: files[1])),
    ('could not be written|can write to', dict(out='/proc/predictions')),
])
def test_mistakes(message, mistake, trained, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    moving_square(tmp_path / 'clip.mp4', count=1)
    files = trained('pspnet')
    arguments = dict(config=files[0], checkpoint=files[1], images=images / 'val', device='cpu') | mistake
    if callable(arguments['config']):
        arguments['config'] = arguments['config'](Config.fromfile(files[0]))
    if callable(arguments.get('out')):
        arguments['out'] = arguments['out'](files)
    with pytest.raises(UserError, match=message):
        repvgg_mm.predict(**arguments)
    assert [path.name for path in tmp_path.iterdir()] == ['clip.mp4']


def test_an_iterator_of_files(trained, images):
    config, checkpoint, *_ = trained('pspnet')
    assert len(repvgg_mm.predict(config, checkpoint, (images / 'val').glob('*.jpg'), device='cpu')) == 2
