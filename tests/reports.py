"""What the tests of report pages share: a reader that checks a page, and models that pages are made of."""

from __future__ import annotations

from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import torch
from helpers import pspnet_config, randomise_norms, retinanet_config
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData
from tool_runs import derived_config

from repvgg_mm.openmmlab.model import build_model

VOID = {'meta', 'img', 'br', 'link', 'hr', 'input'}
HOSTILE = '<script>alert(1)</script>$x^$&"\'.py'


class Reader(HTMLParser):
    """Collects tags, addresses, ids and text of a page, and checks that tags close in order."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open = []
        self.tags = Counter()
        self.addresses = []
        self.ids = Counter()
        self.words = []
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes) -> None:
        self.tags[tag] += 1
        self.addresses += [value for name, value in attributes if name in ('src', 'href', 'xlink:href', 'srcset')]
        self.ids.update(value for name, value in attributes if name == 'id')
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return ' '.join(' '.join(self.words).split())


def read(content: str) -> Reader:
    """A page that was checked to be whole and to load nothing."""
    page = Reader(content)
    assert all(address.startswith(('data:image/', '#')) for address in page.addresses)
    assert not {'script', 'link', 'iframe', 'object', 'embed', 'form'} & set(page.tags)
    assert '@import' not in content and 'url(http' not in content
    assert [name for name, count in page.ids.items() if count > 1] == []
    assert {address[1:] for address in page.addresses if address.startswith('#')} <= set(page.ids)
    assert len(content) < 2_000_000
    return page


def write_config(folder: Path, task: str) -> Path:
    """Of a tiny 'segmentor' or 'detector' for the generated shapes."""
    if task == 'segmentor':
        model = pspnet_config()
        model['decode_head']['num_classes'] = model['auxiliary_head']['num_classes'] = 6
        model['data_preprocessor']['test_cfg'] = dict(size_divisor=32)
        return derived_config(folder / 'segmentor.py', f'model = dict(_delete_=True, **{model})')
    model = retinanet_config()
    model['bbox_head']['num_classes'] = 5
    return derived_config(
        folder / 'detector.py', f'model = dict(_delete_=True, **{model})', 'configs/retinanet_repvgg_a0_shapes.py')


def config_of(path: Path, root: Path) -> Config:
    """Whose validation data lie in `root`."""
    cfg = Config.fromfile(path)
    cfg.val_dataloader.dataset.data_root = str(root)
    if 'ann_file' in cfg.val_evaluator:
        cfg.val_evaluator.ann_file = f'{root}/annotations/val.json'
    return cfg


def write_checkpoint_of(path: Path) -> Path:
    """Random weights in training form, beside the config."""
    cfg = Config.fromfile(path)
    torch.manual_seed(0)
    torch.save(randomise_norms(build_model(cfg)).state_dict(), path.with_suffix('.pth'))
    return path.with_suffix('.pth')


def masks(*labels: np.ndarray) -> list:
    """Predicted label maps."""
    from mmseg.structures import SegDataSample
    return [SegDataSample(pred_sem_seg=PixelData(data=torch.from_numpy(one)[None])) for one in labels]


def boxes(*rows: tuple) -> object:
    """Predicted boxes: x1, y1, x2, y2, label, score."""
    from mmdet.structures import DetDataSample
    table = torch.tensor(rows).reshape(-1, 6)
    return DetDataSample(pred_instances=InstanceData(
        bboxes=table[:, :4], labels=table[:, 4].long(), scores=table[:, 5]))
