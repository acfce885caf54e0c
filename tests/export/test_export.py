"""tools/export.py and what it calls: engines equal PyTorch at every size, from every checkpoint, or there are none."""

from __future__ import annotations

import json
import resource
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectors import assert_same_detections, detector, detector_config, predict
from engines import RESIZED, Trained, quiet, trained_segmentor
from helpers import TINY, pspnet_config, randomise_norms, segment, two_stage_config
from mmengine.config import Config
from tool_runs import ROOT, assert_refused, iterations, run_tool, small_data, syncbn_config

from repvgg_mm import UserError, load_strictly, read_checkpoint, whole_model_convert
from repvgg_mm.convert import compare
from repvgg_mm.convert.compare import relative_error
from repvgg_mm.demo.shapes import make_shapes
from repvgg_mm.deploy.checkpoint import Checkpoint
from repvgg_mm.engine.detections import detect
from repvgg_mm.engine.engine import Engine
from repvgg_mm.export.engine_files import write_engine
from repvgg_mm.export.export import Prepared, export, prepare, shape_of_tests
from repvgg_mm.export.target import Target
from repvgg_mm.files import atomic
from repvgg_mm.files import checkpoint as checkpoint_files
from repvgg_mm.openmmlab.config import import_toolbox, read_config
from repvgg_mm.openmmlab.model import build_model

pytestmark = pytest.mark.stack
SIZES = [(64, 96), (75, 93), (33, 47), (97, 64), (130, 101)]
TOLERANCE = 1e-4


def written(prepared: Prepared, folder: Path, library: str) -> Path:
    """An engine for one library or the other, from the same graph."""
    path, _ = write_engine(prepared.graph, replace(prepared.description, engine=library), folder)
    return path


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(11))


def assert_equals(engine: Engine, logits_of, *shape: int) -> None:
    batch = images(*shape)
    found = engine(batch)['logits']
    assert found.shape == (shape[0], 3, *shape[2:])
    assert relative_error(logits_of(batch), torch.from_numpy(found)) < TOLERANCE


@pytest.mark.parametrize('size', SIZES)
def test_each_size_by_itself(size, segmentor_cfg, segmentor_checkpoint, logits_of, tmp_path):
    prepared = prepare(segmentor_cfg, segmentor_checkpoint, Target(shape=size), progress=quiet)
    for name in ('onnx', 'openvino'):
        engine = Engine(written(prepared, tmp_path, name))
        assert_equals(engine, logits_of, 1, 3, *size)
        with pytest.raises(UserError, match=rf'takes float32 images of \(1, 3, {size[0]}, {size[1]}\)'):
            engine(images(1, 3, size[0] + 1, size[1]))


def test_one_dynamic_engine_for_every_size(segmentor_cfg, segmentor_checkpoint, logits_of, tmp_path):
    target = Target(shape=(75, 93), dynamic=True)
    prepared = prepare(segmentor_cfg, segmentor_checkpoint, target, progress=quiet)
    for name in ('onnx', 'openvino'):
        engine = Engine(written(prepared, tmp_path, name))
        for batch, size in enumerate(SIZES, 1):
            assert_equals(engine, logits_of, batch, 3, *size)


@pytest.fixture(scope='module')
def exported(segmentor_file, tmp_path_factory) -> Path:
    """Label maps from images of uint8, as the tool writes them."""
    out = tmp_path_factory.mktemp('exported') / 'new' / 'engine'
    config = out.parents[1] / 'config.py'
    config.write_text(f'model = {pspnet_config()}\ndefault_scope = "mmseg"\n')
    result = run_tool('tools/export.py', config, segmentor_file, '--out', out, '--shape', 75, 93, '--argmax',
                      '--preprocess')
    (out.parents[1] / 'stdout').write_text(result.stdout)
    return out


def test_what_the_tool_writes_and_says(exported):
    assert sorted(path.name for path in exported.iterdir()) == ['engine.json', 'engine.onnx']
    assert b'.py' not in (exported / 'engine.onnx').read_bytes()
    meta = json.loads((exported / 'engine.json').read_text())
    assert meta['classes'] == ['sky', 'road', 'tree'] and meta['task'] == 'segmentation'
    assert meta['input'] == dict(name='image', dtype='uint8', layout='NHWC', shape=[1, 75, 93, 3])
    assert meta['source'] == 'pspnet.pth' and len(meta['source_sha256']) == 64
    assert meta['preprocessing']['inside'] and meta['precision'] == 'fp32'
    assert meta['graph']['Conv'] == 15
    said = (exported.parents[1] / 'stdout').read_text()
    steps = ['Fusing', 'Exporting', 'Checking the graph', 'Running the engine', 'Writing',
             'Relative error on 1x75x93x3', 'not run here', f'trtexec --onnx={exported / "engine.onnx"}']
    assert [said.index(step) for step in steps] == sorted(said.index(step) for step in steps)


def test_label_maps_of_images_equal_mmsegs_own(exported, segmentor_cfg, segmentor_checkpoint):
    model = build_model(segmentor_cfg).eval()
    load_strictly(model, segmentor_checkpoint.content, 'checkpoint')
    image = torch.randint(256, (1, 75, 93, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    labels = Engine(exported / 'engine.onnx')(image)['labels']
    expected = segment(model, image.permute(0, 3, 1, 2))[0].pred_sem_seg.data
    assert labels.dtype == np.uint8
    assert (torch.from_numpy(labels) != expected).float().mean() < 1e-3  # equal but where two classes are


@pytest.mark.parametrize('options', [
    dict(engine='onnx', dynamic=True, preprocess=True), dict(engine='openvino', preprocess=True), dict(engine='onnx')])
def test_detectors_equal_mmdet_after_nms(options, tmp_path):
    model, cfg = detector('RetinaNet')
    torch.save(model.state_dict(), tmp_path / 'retinanet.pth')
    checkpoint = Checkpoint.read(tmp_path / 'retinanet.pth')
    image = torch.randint(256, (3, 135, 203), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    batch = image.permute(1, 2, 0)[None]
    if 'preprocess' not in options:
        batch = model.data_preprocessor(dict(inputs=[image]), False)['inputs']
    shape = dict(NHWC=batch.shape[1:3], NCHW=batch.shape[2:])
    target = Target(shape=shape['NHWC' if 'preprocess' in options else 'NCHW'], **options)
    exported = export(cfg, checkpoint, tmp_path / 'out', target, progress=quiet)
    assert exported.description.task == 'detection' and exported.description.nms == 'outside'
    outputs = Engine(exported.path)(batch)
    found, = detect(outputs, exported.description, target.shape, (135, 203))
    assert_same_detections(found, predict(model, image), pixels=1e-5 * 203)  # a tenth of what an export may differ by


def test_detections_are_compared_where_none_is_above_the_threshold(tmp_path):
    model, cfg = detector('FCOS')
    cfg.model.test_cfg.score_thr = 1.
    torch.save(model.state_dict(), tmp_path / 'fcos.pth')
    checkpoint = Checkpoint.read(tmp_path / 'fcos.pth')
    done = export(cfg, checkpoint, tmp_path / 'out', Target(shape=(96, 128), nms=True), progress=quiet)
    assert (done.description.nms, done.description.test_cfg['score_thr']) == ('inside', 1.)
    outputs = Engine(done.path)(done.inputs[0])
    assert outputs['boxes'].shape == (1, 100, 4) and (outputs['labels'] == -1).all()
    errors = done.description.compared[0].errors
    assert 0 < max(errors.values()) < 1e-5  # of detections, which there are with a threshold of 0


@pytest.mark.parametrize('head', ['RTMDet', 'RetinaSepBN'])
def test_convolutions_that_levels_share_with_a_norm_of_their_own_each(head, tmp_path):
    """Their norms cannot be folded into the one convolution; the exported graph keeps them where they belong."""
    if head == 'RTMDet':
        cfg = read_config(ROOT / 'configs/rtmdet_repvgg_a2_coco.py')
        cfg.model.backbone.arch = TINY
        cfg.model.neck.in_channels = [16, 32, 64]
    else:
        cfg = detector_config('RetinaNet')
        cfg.model.bbox_head.update(type='RetinaSepBNHead', num_ins=5, norm_cfg=dict(type='BN'))
    import_toolbox(cfg)
    torch.manual_seed(0)
    torch.save(randomise_norms(build_model(cfg)).state_dict(), tmp_path / 'trained.pth')
    done = export(cfg, Checkpoint.read(tmp_path / 'trained.pth'), tmp_path / 'engine', Target(shape=(96, 128)))
    assert max(done.description.compared[0].errors.values()) < 1e-5
    assert done.description.graph.get('BatchNormalization', 0) > 0


def test_bfloat16(segmentor_cfg, segmentor_checkpoint, logits_of, tmp_path):
    target = Target('openvino', 'bf16', (75, 93))
    exported = export(segmentor_cfg, segmentor_checkpoint, tmp_path / 'out', target, progress=quiet)
    assert sorted(path.name for path in exported.path.parent.iterdir()) == ['engine.bin', 'engine.json', 'engine.xml']
    assert exported.description.openvino_properties == {'INFERENCE_PRECISION_HINT': 'bf16'}
    engine = Engine(exported.path)
    error, = (comparison.errors['logits'] for comparison in exported.description.compared)
    if engine.computed_in == 'f32':
        assert error < TOLERANCE
    else:
        assert TOLERANCE < error < 0.1
    batch = images(1, 3, 75, 93)
    assert relative_error(logits_of(batch), torch.from_numpy(engine(batch)['logits'])) < 0.1


def test_both_forms_of_a_checkpoint_give_the_same_engine(segmentor_cfg, segmentor_checkpoint, tmp_path):
    model = build_model(segmentor_cfg)
    load_strictly(model, segmentor_checkpoint.content, 'checkpoint')
    whole_model_convert(model, save_path=tmp_path / 'deploy.pth')
    target = Target(shape=(64, 64))
    trained = prepare(segmentor_cfg, segmentor_checkpoint, target, progress=quiet)
    deployed = prepare(segmentor_cfg, Checkpoint.read(tmp_path / 'deploy.pth'), target, progress=quiet)
    assert trained.graph.SerializeToString() == deployed.graph.SerializeToString()
    assert max(trained.conversion.errors.values()) < 1e-5 and deployed.conversion is None


def test_a_syncbn_and_ema_run_goes_straight_to_an_engine(tmp_path):
    data = make_shapes(tmp_path / 'shapes', num_train=4, num_val=2, size=48)
    config = syncbn_config(tmp_path, "dict(type='EMAHook')")
    run_tool('tools/train.py', config, '--work-dir', tmp_path / 'work', '--cfg-options', *small_data(data),
             *iterations(2))
    saved = read_checkpoint(tmp_path / 'work' / 'iter_2.pth')
    name = 'backbone.stem.branch_3x3.conv.weight'
    assert not torch.equal(saved['state_dict'][name], saved['ema_state_dict'][f'module.{name}'])
    run_tool('tools/export.py', config, tmp_path / 'work' / 'iter_2.pth', '--out', tmp_path / 'engine', '--engine',
             'openvino', '--shape', 48, 64)
    engine = Engine(tmp_path / 'engine' / 'engine.xml')
    assert engine.description.classes[:2] == ['background', 'disk']
    cfg = Config.fromfile(config)
    cfg.model.backbone.norm_cfg.type = 'BN'
    for head in ('decode_head', 'auxiliary_head'):
        cfg.model[head].norm_cfg.type = 'BN'
    model = build_model(cfg).eval()
    load_strictly(model, saved, 'averaged')
    batch = images(1, 3, 48, 64)
    with torch.no_grad():
        expected = model.encode_decode(batch, [dict(img_shape=(48, 64))])
    assert relative_error(expected, torch.from_numpy(engine(batch)['logits'])) < TOLERANCE


def test_a_folder_is_only_overwritten_on_request_and_keeps_other_files(segmentor_cfg, segmentor_checkpoint, tmp_path):
    (tmp_path / 'mine.txt').write_text('mine')
    arguments = segmentor_cfg, segmentor_checkpoint, tmp_path, Target(shape=(64, 64))
    with pytest.raises(UserError, match=r'new or empty folder.*--overwrite'):
        export(*arguments, progress=quiet)
    for _ in range(2):
        export(*arguments, overwrite=True, progress=quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['engine.json', 'engine.onnx', 'mine.txt']
    Engine(tmp_path / 'engine.onnx')


@pytest.mark.parametrize('engine', ['onnx', 'openvino'])
def test_full_disk_leaves_nothing(engine, segmentor_cfg, segmentor_checkpoint, tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))  # files of 20 kB at most, as on a full disk
    try:
        with pytest.raises(UserError, match=r'out could not be written .*nothing was left there\. Free space'):
            target = Target(engine, shape=(64, 64))
            export(segmentor_cfg, segmentor_checkpoint, tmp_path / 'out', target, progress=quiet)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_said_before_the_work(segmentor_cfg, segmentor_checkpoint):
    steps = []
    with pytest.raises(UserError, match=r'/proc/engine could not be written .*Choose a folder'):
        export(segmentor_cfg, segmentor_checkpoint, '/proc/engine', Target(shape=(64, 64)), progress=steps.append)
    assert steps == []


@pytest.mark.parametrize('library, engine', [('onnxscript', 'onnx'), ('onnxruntime', 'onnx'), ('openvino', 'openvino')])
def test_a_missing_extra_names_the_pip_command(
    library, engine, segmentor_cfg, segmentor_checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=rf"needs {library}, .*pip install -e '\.\[export\]'"):
        export(segmentor_cfg, segmentor_checkpoint, tmp_path / 'out', Target(engine), progress=quiet)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def counts(monkeypatch) -> Counter:
    """How often a checkpoint's file was read and hashed, and a model's two forms compared, in any module."""
    found = Counter()
    real = dict(
        reads=checkpoint_files.read_checkpoint,
        hashes=atomic.sha256_of,
        proofs=compare.compare_models)

    def counted(what: str):
        def call(*arguments, **options):
            of_an_engine = what == 'hashes' and Path(arguments[0]).suffix != '.pth'
            found[what] += not of_an_engine
            return real[what](*arguments, **options)
        return call

    counters = {what: counted(what) for what in real}
    for name, module in list(sys.modules.items()):
        if name.startswith('repvgg_mm'):
            for attribute, value in list(vars(module).items()):
                for what, function in real.items():
                    if value is function:
                        monkeypatch.setattr(module, attribute, counters[what])
    return found


def test_the_tool_reads_hashes_and_proves_a_checkpoint_once(segmentor_file, tmp_path, capsys, request):
    from repvgg_mm.__main__ import run
    counts = request.getfixturevalue('counts')  # after all modules are there
    config = tmp_path / 'config.py'
    config.write_text(f'model = {pspnet_config()}\ndefault_scope = "mmseg"\n')
    run(['export', str(config), str(segmentor_file), '--out', str(tmp_path / 'engine'), '--shape', '64', '64',
         '--report', str(tmp_path / 'report.html')])
    assert counts == dict(reads=1, hashes=1, proofs=1)
    assert 'Report' in capsys.readouterr().out
    meta = json.loads((tmp_path / 'engine' / 'engine.json').read_text())
    assert meta['source_sha256'] in (tmp_path / 'report.html').read_text()


def test_a_test_cfg_that_no_graph_has_is_refused(segmentor_checkpoint, tmp_path):
    cfg = Config(dict(model=two_stage_config('fasterrcnn'), default_scope='mmdet'))
    cfg.model.test_cfg.rpn.max_per_img = -1
    with pytest.raises(UserError, match=r'this test_cfg has rpn\.max_per_img=-1\. Set model\.test_cfg\.rpn'):
        export(cfg, segmentor_checkpoint, tmp_path / 'out', progress=quiet)
    assert list(tmp_path.iterdir()) == []


def test_mistakes_end_a_tool_with_one_message(tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(f'model = {pspnet_config()}\ndefault_scope = "mmseg"\n')
    result = run_tool('tools/export.py', config, tmp_path / 'absent.pth', '--out', tmp_path / 'out', check=False)
    assert_refused(result, 'absent.pth is missing')
    assert [path.name for path in tmp_path.iterdir()] == ['config.py']


def test_a_size_that_the_model_cannot_take(segmentor_cfg, tmp_path):
    torch.manual_seed(0)
    cfg = segmentor_cfg
    cfg.model.decode_head.norm_cfg = dict(type='IN')  # needs more than one element a channel, also in evaluation
    model = build_model(cfg)
    whole_model_convert(model, save_path=tmp_path / 'deploy.pth')
    with pytest.raises(UserError, match=r'an input of 1x3x8x8 before .* cannot take it: .*--shape H W'):
        export(cfg, Checkpoint.read(tmp_path / 'deploy.pth'), tmp_path / 'out', Target(shape=(8, 8)), progress=quiet)
    assert [path.name for path in tmp_path.iterdir()] == ['deploy.pth']


@pytest.fixture(scope='module')
def segmentor(tmp_path_factory) -> Trained:
    """Whose images are resized and padded."""
    shapes = make_shapes(tmp_path_factory.mktemp('shapes'), num_train=1, num_val=1, size=64)
    return trained_segmentor(tmp_path_factory.mktemp('segmentor'), shapes)


def test_the_size_of_an_engine_is_that_of_a_test(segmentor, tmp_path):
    cfg = segmentor.cfg
    assert shape_of_tests(cfg, segmentor.model, preprocess=True) == (RESIZED, RESIZED)
    assert shape_of_tests(cfg, segmentor.model, preprocess=False) == (96, 96)
    cfg.model.test_cfg = dict(mode='slide', crop_size=(64, 32), stride=(16, 16))
    assert shape_of_tests(cfg, segmentor.model, preprocess=False) == (64, 32)
    cfg = segmentor.cfg
    cfg.val_dataloader.dataset.data_root = str(tmp_path / 'absent')
    cfg.model.data_preprocessor.size = (40, 56)
    assert shape_of_tests(cfg, segmentor.model, preprocess=True) == (40, 56)
