"""A checkpoint that was read once, and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from mmengine.config import Config
from torch import Tensor, nn

from ..convert.weights import load_strictly, state_dict_of
from ..errors import UserError
from ..files.atomic import sha256_of
from ..files.checkpoint import read_checkpoint
from ..files.download import local_path
from ..layouts import form_of
from ..openmmlab.model import build_model

PAIR = 'deploy_pair'  # in a deploy.py and in the meta of its checkpoint: equal where one conversion wrote both


@dataclass(frozen=True)
class Checkpoint:
    """What is in a file of weights. It is passed on, so that the file is read, checked and hashed once.

    `source` is the path or address that was given, `content` all that the file holds, `weights` its tensors
    without prefixes of wrappers, `form` 'training', 'deploy' or None where no name is a RepVGG's.
    """

    source: str
    content: Mapping
    weights: dict[str, Tensor]
    form: str | None
    sha256: str

    @classmethod
    def read(cls, source: str | PathLike, *, trust: bool = False) -> Checkpoint:
        """Read a file as `read_checkpoint` does.

        Raises:
            UserError: it is missing, damaged, needs code to be run, or holds no tensors.
        """
        source = str(source)
        content = read_checkpoint(source, trust=trust)
        weights = state_dict_of(content, source)
        return cls(source, content, weights, form_of(weights), sha256_of(local_path(source)))

    def load_into(self, model: nn.Module, cfg: Config) -> None:
        """Give all weights to `model`, which was built from `cfg`; see `load_strictly`.

        Raises:
            UserError: they do not fit it completely, or another conversion wrote `cfg`.
        """
        meta = self.content.get('meta')
        own = meta.get(PAIR) if isinstance(meta, Mapping) else None
        if own and cfg.get(PAIR) and own != cfg[PAIR]:
            raise UserError(
                f'A deploy.py and its checkpoint belong to one conversion, and {self.source} has {PAIR} {own}, the '
                f'config {cfg[PAIR]}. Use the two that were written together, or convert again.')
        load_strictly(model, self.content, self.source)

    @property
    def name(self) -> str:
        """Of the file, without its folder."""
        return Path(self.source).name

    @property
    def dataset_meta(self) -> dict:
        """`classes` and `palette`, as far as the checkpoint names them; the toolboxes' inference looks for these."""
        meta = self.content.get('meta') or {}
        known = meta.get('dataset_meta') or {}
        if 'classes' not in known:
            return {}

        found = {}
        for key in ('classes', 'palette'):
            if key in known:
                found[key] = np.asarray(known[key]).tolist()
        return found


def load_model(cfg: Config, checkpoint: Checkpoint) -> nn.Module:
    """The model of `cfg` in eval mode, with all weights of `checkpoint`.

    Raises:
        UserError: the config names what there is not, or the weights do not fit it completely.
    """
    model = build_model(cfg)
    checkpoint.load_into(model, cfg)
    model.eval()  # of detectors with a teacher it returns nothing
    return model
