"""The pictures and the table at the end of the demo, made from what its tools wrote."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from torch import nn

from .block import branch_by_branch
from .checkpoint import read_checkpoint
from .measure import Latency, count_parameters, interleaved_latency
from .runner import build_model
from .weights import load_strictly

matplotlib.use('Agg')
import matplotlib.pyplot as plt

BRANCHES = 'training form,\nbranch by branch'
FORMS = {'training form': 'test_training_form', 'deploy form': 'test_deploy_form'}


def summarise(config: str, checkpoint: Path, folder: Path) -> str:
    """Draw predictions.png, training.png and latency.png in `folder`; return a table of both forms."""
    training_cfg, deploy_cfg = Config.fromfile(config), Config.fromfile(folder / 'deploy' / 'deploy.py')
    training = _load(training_cfg, checkpoint)
    deploy = _load(deploy_cfg, folder / 'deploy' / 'deploy.pth')
    miou = {form: _metric(folder / name, 'mIoU') for form, name in FORMS.items()}
    latency = _latency(training, deploy, training_cfg.crop_size)

    dataset = DATASETS.build(training_cfg.val_dataloader.dataset)
    draw_predictions({'training form': training, 'deploy form': deploy}, dataset, folder / 'predictions.png')
    draw_training(folder / 'train', folder / 'training.png')
    draw_latency(latency, folder / 'latency.png')

    rows = [
        ('mIoU', *(f'{miou[form]:.2f}' for form in FORMS)),
        ('latency, branch by branch (ms)', f'{latency[BRANCHES].median_ms:.1f}', ''),
        ('latency (ms)', *(f'{latency[form].median_ms:.1f}' for form in FORMS)),
        ('parameters (million)', *(f'{count_parameters(model) / 1e6:.2f}' for model in (training, deploy)))]
    lines = [f'\n| {"":<30} | {"training form":>14} | {"deploy form":>14} |', f'|{"-" * 32}|{"-" * 15}:|{"-" * 15}:|']
    lines += [f'| {name:<30} | {before:>14} | {after:>14} |' for name, before, after in rows]
    pictures = ', '.join(str(folder / f'{name}.png') for name in ('predictions', 'training', 'latency'))
    return '\n'.join([*lines, f'Pictures: {pictures}'])


@torch.no_grad()
def draw_predictions(models: dict[str, nn.Module], dataset: object, path: Path, count: int = 6) -> None:
    """One row an image: the image, the ground truth and each model's prediction."""
    colours = np.array(dataset.metainfo['palette'], dtype=np.uint8)
    columns = ['image', 'ground truth', *models]
    figure, axes = plt.subplots(count, len(columns), figsize=(2.2 * len(columns), 2.2 * count + 0.7))
    for row, index in zip(axes, np.linspace(0, len(dataset) - 1, count).astype(int)):
        sample = dataset[int(index)]
        masks = [sample['data_samples'].gt_sem_seg.data[0].numpy()]
        for model in models.values():
            result = model.test_step(pseudo_collate([sample]))[0]
            masks.append(result.pred_sem_seg.data[0].cpu().numpy())
        image = sample['inputs'].numpy()[::-1].transpose(1, 2, 0)  # BGR, CHW to RGB, HWC
        for axis, picture in zip(row, [image, *(colours[mask] for mask in masks)]):
            axis.imshow(picture)
            axis.axis('off')
    for axis, name in zip(axes[0], columns):
        axis.set_title(name, fontsize=11)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour / 255) for colour in colours]
    figure.legend(handles, dataset.metainfo['classes'], loc='lower center', ncol=len(colours), frameon=False)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    _save(figure, path)


def draw_training(work_dir: Path, path: Path) -> None:
    """Loss of each head and pixel accuracy on the training batches over the steps."""
    rows = [json.loads(line) for line in sorted(work_dir.glob('*/vis_data/scalars.json'))[-1].read_text().splitlines()]
    rows = [row for row in rows if 'loss' in row]
    steps = [row['step'] for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    for key, label in (('decode.loss_ce', 'PSP head'), ('aux.loss_ce', 'auxiliary head (x 0.4)')):
        left.plot(steps, [row[key] for row in rows], label=label)
    left.set(xlabel='step', ylabel='cross-entropy', title='Training loss', ylim=(0, None))
    left.legend(frameon=False)
    right.plot(steps, [row['decode.acc_seg'] for row in rows], color='tab:green')
    right.set(xlabel='step', ylabel='%', title='Pixel accuracy on training batches', ylim=(None, 100))
    figure.tight_layout()
    _save(figure, path)


def draw_latency(latency: dict[str, Latency], path: Path) -> None:
    """A bar for each form with the quartiles of its latency."""
    figure, axis = plt.subplots(figsize=(6.5, 2.6))
    medians = [row.median_ms for row in latency.values()]
    spread = [[row.median_ms - row.lower_ms for row in latency.values()],
              [row.upper_ms - row.median_ms for row in latency.values()]]
    bars = axis.barh(list(latency), medians, xerr=spread, color=['tab:gray', 'tab:blue', 'tab:green'], capsize=3)
    axis.bar_label(bars, [f'{median:.1f} ms' for median in medians], padding=8)
    axis.set(xlabel='ms an image, median and quartiles', title='Latency of the whole segmentor',
             xlim=(0, max(medians) * 1.35))
    axis.invert_yaxis()
    figure.tight_layout()
    _save(figure, path)


def _load(cfg: Config, checkpoint: Path) -> nn.Module:
    model = build_model(cfg)
    load_strictly(model, read_checkpoint(checkpoint), str(checkpoint))
    return model.eval()


def _latency(training: nn.Module, deploy: nn.Module, size: tuple[int, int]) -> dict[str, Latency]:
    inputs = torch.randn(1, 3, *size)

    def branches() -> None:
        with branch_by_branch(training):
            training(inputs)

    return interleaved_latency({
        BRANCHES: branches,
        'training form': partial(training, inputs),
        'deploy form': partial(deploy, inputs)}, rounds=30)


def _metric(work_dir: Path, name: str) -> float:
    return json.loads(sorted(work_dir.glob('*/*.json'))[-1].read_text())[name]


def _save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, dpi=110)
    plt.close(figure)
