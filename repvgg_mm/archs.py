"""The variants of the paper (arXiv 2101.03697, tables 2 and 3; D2se and L2pse from the official repository)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from .errors import UserError

STEM_CHANNELS = 64  # at most; every width is a multiple of this number


class BlockShape(NamedTuple):
    """What an architecture decides about one block. Stage 0 is the stem."""

    stage: int
    index: int
    in_channels: int
    out_channels: int
    groups: int
    se_channels: int

    @property
    def identity(self) -> bool:
        """Every block but the first of its stage has the identity branch."""
        return self.index > 0


class Arch(NamedTuple):
    """Shape of a RepVGG.

    depths: blocks in each stage.
    width_factors: stage i has int(64 * 2**(i - 1) * width_factors[i - 1]) channels.
    groups: groups of every second layer (2, 4, ..., 26; the stem is layer 0), 1 elsewhere.
    se_ratio: squeeze-and-excitation with channels // se_ratio hidden channels, 0 for none.
    se_after_act: squeeze-and-excitation after the activation ("pse") rather than before it.
    """

    depths: Sequence[int]
    width_factors: Sequence[float]
    groups: int = 1
    se_ratio: int = 0
    se_after_act: bool = False

    @property
    def stem_channels(self) -> int:
        return min(STEM_CHANNELS, int(STEM_CHANNELS * self.width_factors[0]))

    @property
    def stage_channels(self) -> tuple[int, ...]:
        return tuple(int(STEM_CHANNELS * 2**i * factor) for i, factor in enumerate(self.width_factors))

    def groups_of_layer(self, layer: int) -> int:
        """Groups of a layer counted over the whole net, the stem being layer 0."""
        return self.groups if layer in range(2, 27, 2) else 1

    def blocks(self, in_channels: int = 3) -> Iterator[BlockShape]:
        """Every block from the stem to the last stage."""
        def shape(stage: int, index: int, channels: int, out_channels: int, layer: int) -> BlockShape:
            se_channels = out_channels // self.se_ratio if self.se_ratio else 0
            return BlockShape(stage, index, channels, out_channels, self.groups_of_layer(layer), se_channels)

        channels, layer = self.stem_channels, 0
        yield shape(0, 0, in_channels, channels, layer)

        stages = zip(self.depths, self.stage_channels)
        for stage, (depth, out_channels) in enumerate(stages, 1):
            for index in range(depth):
                layer += 1
                yield shape(stage, index, channels, out_channels, layer)
                channels = out_channels


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
    'L2pse': Arch(D, (2.5, 2.5,  2.5,  5.0), se_ratio=4, se_after_act=True),
}


def get_arch(arch: str | Mapping) -> Arch:
    """An `Arch` from a name of the table ('B2'; 'RepVGG-B2', 'RepVGGplus-L2pse' as the papers write it) or from a dict
    of `Arch`'s fields.

    Raises:
        UserError: an unknown name or field, `depths` and `width_factors` that do not describe the same
            stages, or `groups` or `se_ratio` that a width does not allow.
    """
    if isinstance(arch, str):
        arch = arch.removeprefix('RepVGG-').removeprefix('RepVGGplus-')
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
    _check(found)
    return found


def name_of(arch: Arch) -> str:
    """The variant's name, 'a custom arch' for one that is not in the table."""
    for name, known in ARCHS.items():
        if known == arch:
            return name
    return 'a custom arch'


def _check(found: Arch) -> None:
    """UserError unless depths, widths, groups and se_ratio describe a network."""
    if len(found.depths) != len(found.width_factors) or not found.depths or min(found.depths) < 1:
        raise UserError(
            'An arch dict has one depth of at least 1 and one width factor a stage; got '
            f'depths={tuple(found.depths)} and width_factors={tuple(found.width_factors)}. Give both the same length.')

    for shape in found.blocks():
        empty = min(shape.out_channels, found.groups) < 1
        if empty or shape.in_channels % shape.groups or shape.out_channels % shape.groups:
            raise UserError(
                'The channels of every block are 1 or more and a multiple of groups; got groups='
                f'{found.groups} and widths {found.stage_channels}. Change width_factors or groups.')
        if found.se_ratio < 0 or (found.se_ratio and not shape.se_channels):
            raise UserError(
                'Squeeze-and-excitation has channels // se_ratio channels inside, 1 or more; got se_ratio='
                f'{found.se_ratio} and {shape.out_channels} channels. Choose a smaller se_ratio, or 0 for none.')
