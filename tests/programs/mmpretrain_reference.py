"""mmpretrain's RepVGG, run in the environment that has mmpretrain: `make ARCH FOLDER` writes weights and features for
repvgg_mm to read, `check ARCH FOLDER` loads what repvgg_mm wrote and computes the features of that."""

import sys
from pathlib import Path

import torch
from mmpretrain.models.backbones import RepVGG
from timm_reference import IMAGE, randomise


@torch.no_grad()
def make(arch, folder):
    image = torch.randn(IMAGE, generator=torch.Generator().manual_seed(0))
    model = randomise(RepVGG(arch, out_indices=(0, 1, 2, 3)))
    found = dict(image=image, training=model.state_dict(), features=model(image))
    if arch != 'D2se':  # mmpretrain's deploy form leaves squeeze-and-excitation out
        model.switch_to_deploy()
        found |= dict(deploy=model.state_dict(), deploy_features=model(image))
    torch.save(found, folder / 'theirs.pth')


@torch.no_grad()
def check(arch, folder):
    found = {}
    for path in folder.glob('ours-*.pth'):
        model = RepVGG(arch, out_indices=(0, 1, 2, 3), deploy=path.stem == 'ours-deploy')
        model.eval()
        model.load_state_dict(torch.load(path, weights_only=True), strict=True)
        found[path.stem] = model(torch.load(folder / 'theirs.pth', weights_only=True)['image'])
    torch.save(found, folder / 'checked.pth')


if __name__ == '__main__':
    dict(make=make, check=check)[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
