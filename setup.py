import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


def requirements(name: str) -> list[str]:
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    return [line.split('#')[0].strip() for line in lines if line.split('#')[0].strip()]


def version() -> str:
    """The one in repvgg_mm/version.py, read without importing the package, which needs torch."""
    text = (ROOT / 'repvgg_mm' / 'version.py').read_text(encoding='utf-8')
    return re.search(r"^__version__ = '(.+)'$", text, re.MULTILINE)[1]


class BuildWithConfigs(build_py):
    """Adds to a wheel what OpenMMLab's package manager, mim, and MMEngine look for in `.mim`: configs and tools.

    An editable installation has them in the clone.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return

        mim = Path(self.build_lib) / 'repvgg_mm' / '.mim'
        shutil.rmtree(mim, ignore_errors=True)
        without = shutil.ignore_patterns('__pycache__')
        shutil.copytree(ROOT / 'configs', mim / 'configs' / 'repvgg', ignore=without)
        shutil.copytree(ROOT / 'tools', mim / 'tools', ignore=without)
        shutil.copy(mim / 'tools' / 'convert_whole.py', mim / 'tools' / 'convert.py')  # mim run repvgg_mm convert

        # A base is named PACKAGE::FOLDER/FILE, so there is one folder more than in a clone.
        for name in ('model-index.yml', 'configs/metafile.yml'):
            text = (ROOT / name).read_text(encoding='utf-8').replace('configs/', 'configs/repvgg/')
            (mim / name.replace('configs/', 'configs/repvgg/')).write_text(text, encoding='utf-8')


setup(
    name='repvgg_mm',
    version=version(),
    description='RepVGG for the OpenMMLab toolboxes: finetune in training form, convert the whole model, deploy',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['repvgg_mm', 'repvgg_mm.*']),
    package_data={'repvgg_mm': ['py.typed', 'report/*.html.j2']},
    python_requires='>=3.10',
    # Without bounds: pip would act on them, and replace the torch for which a user's mmcv was compiled.
    # repvgg_mm/environment.py says what does not work. Neither stack stands here: the two share their
    # import names, and the wrong one would overwrite a user's installation.
    install_requires=['torch', 'numpy', 'safetensors', 'jinja2', 'matplotlib'],
    extras_require={
        'openmmlab': [*requirements('openmmlab'), 'torch<2.14'],  # with a newer one mmcv 2.1.0 does not compile
        'onedl': requirements('onedl'),
        'openmmlab-classification': requirements('openmmlab_classification'),
        'onedl-classification': requirements('onedl_classification'),
        'export': requirements('export'),
        'test': requirements('test'),
    },
    entry_points=dict(console_scripts=['repvgg-mm = repvgg_mm.__main__:main']),
    cmdclass=dict(build_py=BuildWithConfigs),
)
