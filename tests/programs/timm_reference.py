"""timm's RepVGG, run in the environment that has timm: `make NAME FOLDER` writes weights and features for repvgg_mm to
read, `check NAME FOLDER` loads what repvgg_mm wrote and computes the features of that."""

import sys
from pathlib import Path

import timm
import torch
from timm.utils.model import reparameterize_model

IMAGE = (1, 3, 64, 96)


@torch.no_grad()
def randomise(model):
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.05, 2)
            module.weight.uniform_(0.3, 1.3)
            module.bias.uniform_(-0.5, 0.5)
    model.eval()  # mmpretrain's returns None
    return model


@torch.no_grad()
def features(model, image):
    x, maps = model.stem(image), []
    for stage in model.stages:
        x = stage(x)
        maps.append(x)
    return maps


def make(name, folder):
    image = torch.randn(IMAGE, generator=torch.Generator().manual_seed(0))
    model = randomise(timm.create_model(name, pretrained=False))
    pyramid = randomise(timm.create_model(name, pretrained=False, features_only=True))
    deploy = reparameterize_model(model)
    with torch.no_grad():
        of_pyramid = pyramid(image)[1:]
    torch.save(dict(
        image=image,
        plain=model.state_dict(), plain_features=features(model, image),
        features_only=pyramid.state_dict(), features_only_features=of_pyramid,
        deploy=deploy.state_dict(), deploy_features=features(deploy, image)), folder / 'theirs.pth')


def check(name, folder):
    found = {}
    for form in ('training', 'deploy'):
        model = timm.create_model(name, pretrained=False, num_classes=0).eval()
        if form == 'deploy':
            model = reparameterize_model(model)
        model.load_state_dict(torch.load(folder / f'ours-{form}.pth', weights_only=True), strict=True)
        found[f'ours-{form}'] = features(model, torch.load(folder / 'theirs.pth', weights_only=True)['image'])
    torch.save(found, folder / 'checked.pth')


if __name__ == '__main__':
    dict(make=make, check=check)[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
