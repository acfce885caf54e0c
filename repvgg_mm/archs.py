"""The variants of the paper (arXiv 2101.03697, tables 2 and 3; D2se from the official repository)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .errors import UserError

STEM_CHANNELS = 64  # at most; every width is a multiple of this number


class Arch(NamedTuple):
    """Shape of a RepVGG.

    depths: blocks in each stage.
    width_factors: stage i has int(64 * 2**(i - 1) * width_factors[i - 1]) channels.
    groups: groups of every second layer (2, 4, ..., 26; the stem is layer 0), 1 elsewhere.
    se_ratio: squeeze-and-excitation with channels // se_ratio hidden channels, 0 for none.
    """

    depths: Sequence[int]
    width_factors: Sequence[float]
    groups: int = 1
    se_ratio: int = 0

    @property
    def stem_channels(self) -> int:
        return min(STEM_CHANNELS, int(STEM_CHANNELS * self.width_factors[0]))

    @property
    def stage_channels(self) -> tuple[int, ...]:
        return tuple(int(STEM_CHANNELS * 2**i * factor) for i, factor in enumerate(self.width_factors))

    def groups_of_layer(self, layer: int) -> int:
        """Groups of a layer counted over the whole net, the stem being layer 0."""
        return self.groups if layer in range(2, 27, 2) else 1


A, B, D = (2, 4, 14, 1), (4, 6, 16, 1), (8, 14, 24, 1)

ARCHS: dict[str, Arch] = {
    'A0':   Arch(A, (0.75, 0.75, 0.75, 2.5)),
    'A1':   Arch(A, (1.0,  1.0,  1.0,  2.5)),
    'A2':   Arch(A, (1.5,  1.5,  1.5,  2.75)),
    'B0':   Arch(B, (1.0,  1.0,  1.0,  2.5)),
    'B1':   Arch(B, (2.0,  2.0,  2.0,  4.0)),
    'B1g2': Arch(B, (2.0,  2.0,  2.0,  4.0), groups=2),
    'B1g4': Arch(B, (2.0,  2.0,  2.0,  4.0), groups=4),
    'B2':   Arch(B, (2.5,  2.5,  2.5,  5.0)),
    'B2g2': Arch(B, (2.5,  2.5,  2.5,  5.0), groups=2),
    'B2g4': Arch(B, (2.5,  2.5,  2.5,  5.0), groups=4),
    'B3':   Arch(B, (3.0,  3.0,  3.0,  5.0)),
    'B3g2': Arch(B, (3.0,  3.0,  3.0,  5.0), groups=2),
    'B3g4': Arch(B, (3.0,  3.0,  3.0,  5.0), groups=4),
    'D2se': Arch(D, (2.5,  2.5,  2.5,  5.0), se_ratio=16),
}


def get_arch(arch: str | Mapping) -> Arch:
    """An `Arch` from a name of the table or from a dict of `Arch`'s fields.

    Raises:
        UserError: an unknown name or field, or `depths` and `width_factors` that do not describe
            the same stages.
    """
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise UserError(
                f'arch must be one of {", ".join(ARCHS)}, or a dict; got {arch!r}. '
                "For a net of your own pass arch=dict(depths=(2, 4, 14, 1), width_factors=(1, 1, 1, 2.5)).")
        return ARCHS[arch]
    unknown = set(arch) - set(Arch._fields)
    missing = {'depths', 'width_factors'} - set(arch)
    if unknown or missing:
        raise UserError(
            f'An arch dict has the keys {", ".join(Arch._fields)}, of which depths and width_factors are needed; '
            f'got {sorted(arch)}. Rename or add keys accordingly.')
    found = Arch(**arch)
    if len(found.depths) != len(found.width_factors) or not found.depths or min(found.depths) < 1:
        raise UserError(
            'An arch dict has one depth of at least 1 and one width factor a stage; got '
            f'depths={tuple(found.depths)} and width_factors={tuple(found.width_factors)}. Give both the same length.')
    return found
