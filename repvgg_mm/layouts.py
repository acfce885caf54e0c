"""How projects name the tensors of RepVGG. Mmpretrain's names are the native ones here; the others map to them.

A name is: prefix, block, part, tensor; for example `backbone.` `stage_1.0` `.branch_3x3.conv` `.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from .errors import UserError

# One row a part of a block, one column a layout.
COLUMNS = ('native', 'official', 'RepVGGplus', 'timm')
PARTS = (
    ('branch_3x3.conv',     'rbr_dense.conv', 'rbr_dense.conv', 'conv_kxk.conv'),
    ('branch_3x3.norm',     'rbr_dense.bn',   'rbr_dense.bn',   'conv_kxk.bn'),
    ('branch_1x1.conv',     'rbr_1x1.conv',   'rbr_1x1.conv',   'conv_1x1.conv'),
    ('branch_1x1.norm',     'rbr_1x1.bn',     'rbr_1x1.bn',     'conv_1x1.bn'),
    ('branch_norm',         'rbr_identity',   'rbr_identity',   'identity'),
    ('branch_reparam',      'rbr_reparam',    'rbr_reparam',    'reparam_conv'),
    ('se_layer.conv1.conv', 'se.down',        'post_se.down',   'attn.fc1'),
    ('se_layer.conv2.conv', 'se.up',          'post_se.up',     'attn.fc2'),
)
CLASSIFIERS = {'native': 'head.fc', 'official': 'linear', 'RepVGGplus': 'linear', 'timm': 'head.fc'}

NATIVE_PARTS = {row[column]: row[0] for row in PARTS for column in range(len(COLUMNS))}
LAYOUT_OF_PART = {part: layout for row in reversed(PARTS) for layout, part in reversed([*zip(COLUMNS, row)])}

NAME = re.compile(
    r'(?P<prefix>(?:.*\.)?)'
    r'(?:stem|stage0'
    r'|stage_?(?P<stage>\d+)\.(?:blocks\.)?(?P<index>\d+)'
    r'|stages[._](?P<stage_from_0>\d+)\.(?P<timm_index>\d+)'           # timm, plain and features_only
    r'|stage3_(?P<half>first|second)\.blocks\.(?P<index_in_half>\d+))'  # RepVGGplus
    rf'\.(?P<part>{"|".join(re.escape(part) for part in NATIVE_PARTS)})\.(?P<tensor>\w+)')


class Weights(NamedTuple):
    """Weights found in a state dict.

    tensors: those of the backbone, by native name without a prefix.
    layout: whose names they had.
    prefix: what stood before those names.
    others: names of everything else, such as a classifier's.
    """

    tensors: dict[str, Tensor]
    layout: str
    prefix: str
    others: list[str]


def to_native(state_dict: Mapping[str, Tensor]) -> Weights:
    """Find the backbone in a state dict of any layout, form and prefix, and give it native names.

    Raises:
        UserError: there is more than one backbone, or two names are those of one tensor.
    """
    found = _matches(state_dict)
    prefix = _only_prefix({match['prefix'] for match in found.values()})
    own = {name: match for name, match in found.items() if match['prefix'] == prefix}
    others = [name for name in state_dict if name not in own]

    first_half = len({match['index_in_half'] for match in own.values() if match['half'] == 'first'})
    tensors, source = {}, {}
    for name, match in own.items():
        native = _native_name(match, first_half)
        if native in tensors:
            raise UserError(
                f'Every tensor of RepVGG has one name in a file, and {source[native]} and {name} are both '
                f'{native}. Keep one of the two layouts in the file.')
        tensors[native] = state_dict[name]
        source[native] = name
    return Weights(tensors, _layout(own.values()), prefix, others)


def from_native(state_dict: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """The tensors of a bare RepVGG under the names of `layout`: 'native', 'official', 'RepVGGplus' or 'timm'."""
    column = COLUMNS.index(layout)
    parts = {row[0]: row[column] for row in PARTS}
    matches = _matches(state_dict)
    half = len({match['index'] for match in matches.values() if match['stage'] == '3'}) // 2

    renamed = {}
    for name, match in matches.items():
        block, part = _block_name(match, layout, half), parts[match['part']]
        renamed[f'{block}.{part}.{match["tensor"]}'] = state_dict[name]
    return renamed


def form_of(state_dict: Mapping) -> str | None:
    """'training' or 'deploy', None for weights without any RepVGG block."""
    parts = {NATIVE_PARTS[match['part']] for match in _matches(state_dict).values()}
    if 'branch_3x3.conv' in parts:
        return 'training'
    return 'deploy' if 'branch_reparam' in parts else None


def _matches(names: Iterable[str]) -> dict[str, re.Match]:
    """Of the names that a RepVGG has in any layout."""
    matches = {}
    for name in names:
        match = NAME.fullmatch(name)
        if match:
            matches[name] = match
    return matches


def _native_name(match: re.Match, first_half: int) -> str:
    if match['stage'] is not None:
        block = f'stage_{match["stage"]}.{match["index"]}'
    elif match['stage_from_0'] is not None:
        block = f'stage_{int(match["stage_from_0"]) + 1}.{match["timm_index"]}'
    elif match['half'] is not None:
        before = first_half if match['half'] == 'second' else 0
        block = f'stage_3.{before + int(match["index_in_half"])}'
    else:
        block = 'stem'
    return f'{block}.{NATIVE_PARTS[match["part"]]}.{match["tensor"]}'


def _block_name(match: re.Match, layout: str, half: int) -> str:
    """The name of a native block in `layout`; RepVGGplus has `half` of the blocks of stage 3 in its first half."""
    if match['stage'] is None:
        return 'stem' if layout in ('native', 'timm') else 'stage0'

    stage, index = int(match['stage']), int(match['index'])
    if layout == 'RepVGGplus' and stage == 3:
        if index < half:
            return f'stage3_first.blocks.{index}'
        return f'stage3_second.blocks.{index - half}'

    names = {
        'native': f'stage_{stage}.{index}',
        'official': f'stage{stage}.{index}',
        'RepVGGplus': f'stage{stage}.blocks.{index}',
        'timm': f'stages.{stage - 1}.{index}',
    }
    return names[layout]


def _only_prefix(prefixes: set[str]) -> str:
    if len(prefixes) <= 1:
        return ''.join(prefixes)
    for usual in ('', 'backbone.'):
        if usual in prefixes:
            return usual
    raise UserError(
        f'Weights are read from a file with one RepVGG, and this one has {len(prefixes)}: '
        f"{', '.join(sorted(prefixes))}. Name one with init_cfg=dict(type='Pretrained', prefix=...).")


def _layout(matches: Iterable[re.Match]) -> str:
    matches = list(matches)
    layouts = {LAYOUT_OF_PART[match['part']] for match in matches}
    if layouts == {'official'} and any('blocks.' in match.string for match in matches):
        return 'RepVGGplus'
    for layout in reversed(COLUMNS):
        if layout in layouts:
            return layout
    return 'no'
