"""Run where mmyolo and mmpose are: convert blocks and models of theirs, write the worst relative errors as JSON."""

import importlib
import json
import sys
import warnings
from pathlib import Path

import mmcv
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

sys.path += [str(Path(__file__).parents[1])]

from foreign_reference import Together, errors_of, flat
from helpers import image, randomise_norms

from repvgg_mm import FusedBlock, RepVGG, UserError, whole_model_convert
from repvgg_mm.convert.compare import relative_error

AMPLIFYING = 'mmyolo PPYOLOE+'  # see foreign_reference


def import_libraries():
    """mmyolo and mmpose as they are, in an environment newer than they ask for."""
    mmcv.__version__ = '2.0.1'  # mmyolo refuses 2.1.0 and later at import; its layers need nothing that has changed
    for part in ('', '.coco', '.cocoeval', '.mask'):  # a fork of pycocotools that mmpose's datasets read, compiled
        sys.modules[f'xtcocotools{part}'] = importlib.import_module(f'pycocotools{part}')
    return importlib.import_module('mmyolo.models'), importlib.import_module('mmpose.models')


def real_config(library, name):
    return Config.fromfile(Path(sys.modules[library].__file__).parent / '.mim' / 'configs' / name).model


def yolov6(name, width=0.125):
    cfg = real_config('mmyolo', f'yolov6/{name}.py')
    for part in (cfg.backbone, cfg.neck, cfg.bbox_head.head_module):
        part.widen_factor = width
    return MODELS.build(dict(cfg, _scope_='mmyolo'))


def rtmo():
    cfg = real_config('mmpose', 'body_2d_keypoint/rtmo/coco/rtmo-s_8xb32-600e_coco-640x640.py')
    cfg.backbone.init_cfg = cfg.init_cfg = None  # no download
    keypoints = str(Path(sys.modules['mmpose'].__file__).parent / '.mim/configs/_base_/datasets/coco.py')
    cfg.head.assigner.oks_calculator.metainfo = cfg.head.loss_oks.metainfo = keypoints
    return Raw(MODELS.build(dict(cfg, _scope_='mmpose')))


class Raw(nn.Module):
    """The raw outputs of a pose estimator."""

    def __init__(self, estimator):
        super().__init__()
        self.estimator = estimator

    def forward(self, x):
        return self.estimator(x, data_samples=None, mode='tensor')


def blocks(mmyolo, mmpose):
    """Every option that changes the arithmetic, and those that are taken and ignored; 3 channels in, 8 between."""
    yolo = dict(plain={}, grouped=dict(groups=4), alpha=dict(use_alpha=True),
                zero_alpha=dict(use_alpha=True), no_identity=dict(use_bn_first=False), strided=dict(stride=2),
                wider=dict(out_channels=16, groups=2), dilated=dict(dilation=2), reflected=dict(padding_mode='reflect'),
                act=dict(act_cfg=dict(type='SiLU'), norm_cfg=dict(type='BN', eps=0.1)))
    for name, options in yolo.items():
        block = mmyolo.layers.RepVGGBlock(**{**dict(in_channels=8, out_channels=8), **options})
        if block.alpha is not None:
            block.alpha.data.fill_(0 if name == 'zero_alpha' else -0.7)
        yield f'mmyolo {name}', block
    both = dict(without_branch_norm=False)
    pose = dict(plain={}, identity=both, grouped=dict(both, groups=4), wider=dict(out_channels=16, groups=2),
                dilated=dict(both, dilation=2, padding=2), reflected=dict(padding_mode='reflect'),
                act=dict(both, act_cfg=dict(type='SiLU'), norm_cfg=dict(type='BN', eps=0.1)))
    for name, options in pose.items():
        yield f'mmpose {name}', mmpose.utils.RepVGGBlock(**{**dict(in_channels=8, out_channels=8), **options})


def models(mmyolo, mmpose):
    yield 'mmyolo YOLOv6-n', yolov6('yolov6_n_syncbn_fast_8xb32-400e_coco')
    yield 'mmyolo YOLOv6-m', yolov6('yolov6_m_syncbn_fast_8xb32-300e_coco')
    yield 'mmyolo YOLOv6-m v3', yolov6('yolov6_v3_m_syncbn_fast_8xb32-300e_coco')
    yield 'mmyolo PPYOLOE+', MODELS.build(dict(
        real_config('mmyolo', 'ppyoloe/ppyoloe_plus_s_fast_8xb8-80e_coco.py'), _scope_='mmyolo'))
    yield 'mmpose RTMO', rtmo()
    yield 'three libraries', Together(nn.ModuleDict(dict(
        mmyolo=mmyolo.YOLOv6EfficientRep(widen_factor=0.125), ours=RepVGG('A0', out_indices=(0,)),
        mmpose=mmpose.necks.hybrid_encoder.CSPRepLayer(3, 16))))


class Behind(nn.Sequential):
    """A block behind a convolution, so that an image goes in."""

    def __init__(self, block):
        super().__init__(nn.Conv2d(3, 8, 1), block)


def check_own_deploy_forms(mmyolo, mmpose):
    """A block that its library has switched stays as it is, without a warning, beside one that is fused."""
    parts = nn.ModuleDict(dict(
        mmyolo=Behind(mmyolo.layers.RepVGGBlock(8, 8)), mmpose=Behind(mmpose.utils.RepVGGBlock(8, 8)),
        unswitched=Behind(mmyolo.layers.RepVGGBlock(8, 8))))
    model = randomise_norms(Together(parts)).double().eval()
    x = image(1, 3, 9, 9)
    expected = flat(model(x))
    for name in ('mmyolo', 'mmpose'):
        parts[name][1].switch_to_deploy()
    parts.double()  # mmpose's and mmyolo's switch make an identity kernel of float32
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        deploy = whole_model_convert(model)
    assert [isinstance(part[1], FusedBlock) for part in deploy.parts.values()] == [False, False, True]
    assert max(relative_error(*pair) for pair in zip(expected, flat(deploy(x)), strict=True)) < 1e-6


def check_refusals(mmyolo, mmpose):
    """What has no sum in training form, or no BatchNorm, is refused with the block's name."""
    cases = dict(strided=dict(stride=2), grouped_norm=dict(norm_cfg=dict(type='GN', num_groups=2)),
                 no_norm=dict(norm_cfg=None))
    for name, options in cases.items():
        try:
            whole_model_convert(nn.ModuleDict({name: mmpose.utils.RepVGGBlock(8, 8, **options)}))
        except UserError as error:
            assert str(error).startswith(f'{name}: '), error
        else:
            raise AssertionError(name)

    class OtherForward(mmyolo.layers.RepVGGBlock):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.ModuleDict(dict(good=mmyolo.layers.RepVGGBlock(8, 8), other=OtherForward(8, 8)))
    model = randomise_norms(model).double().eval()
    deploy = whole_model_convert(model)
    assert isinstance(deploy['other'], OtherForward) and isinstance(deploy['good'], FusedBlock)
    assert hasattr(deploy['other'], 'rbr_reparam')  # by the block's own method, which was seen to be right
    x = image(1, 8, 9, 9)
    for name in model:
        assert relative_error(model[name](x), deploy[name](x)) < 1e-10, name


@torch.no_grad()
def main():
    libraries = import_libraries()
    check_own_deploy_forms(*libraries)
    check_refusals(*libraries)
    errors = {}
    for name, block in blocks(*libraries):
        torch.manual_seed(0)
        errors.update(errors_of(name, Behind(block)))
    torch.manual_seed(0)
    for name, model in models(*libraries):
        for module in model.modules():
            if isinstance(getattr(module, 'alpha', None), nn.Parameter):
                module.alpha.data.uniform_(-1, 1)
        errors.update(errors_of(name, model, settle=name == AMPLIFYING,
                                mentioned=['head.dcc ('] if name == 'mmpose RTMO' else ()))
    Path(sys.argv[1]).write_text(json.dumps(errors))


if __name__ == '__main__':
    main()
