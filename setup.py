import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def requirements(name: str) -> list[str]:
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line.split('#')[0].strip() for line in lines if line.split('#')[0].strip()]


def version() -> str:
    """The one in repvgg_mm/version.py, read without importing the package, which needs torch."""
    text = (ROOT / 'repvgg_mm' / 'version.py').read_text()
    return re.search(r"^__version__ = '(.+)'$", text, re.MULTILINE)[1]


setup(
    name='repvgg_mm',
    version=version(),
    description='RepVGG for the OpenMMLab toolboxes: finetune in training form, convert the whole model, deploy',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['repvgg_mm', 'repvgg_mm.*']),
    package_data={'repvgg_mm': ['py.typed', 'report/*.html.j2']},
    python_requires='>=3.10,<3.13',
    # Neither stack stands here: the two share their import names, and the wrong
    # one would overwrite a user's installation.
    install_requires=['torch>=2.6', 'numpy', 'safetensors', 'jinja2', 'matplotlib'],
    extras_require={
        'openmmlab': requirements('openmmlab'),
        'onedl': requirements('onedl'),
        'openmmlab-classification': requirements('openmmlab_classification'),
        'onedl-classification': requirements('onedl_classification'),
        'export': requirements('export'),
        'test': requirements('test'),
    },
)
