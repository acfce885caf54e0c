"""`tools/convert_weights.py` says what it did; the conversion is tested in tests/deploy/test_weight_file.py."""

from __future__ import annotations

import pytest
import torch
from helpers import backbone

from repvgg_mm import RepVGG, UserError, read_checkpoint
from repvgg_mm.__main__ import run


def test_another_layout_and_form(tmp_path, capsys):
    torch.save(backbone('A0').state_dict(), tmp_path / 'a0.pth')
    run(['convert-weights', str(tmp_path / 'a0.pth'), str(tmp_path / 'fused.safetensors'), '-a', 'RepVGG-A0',
         '--to', 'timm', '--deploy'])
    out = capsys.readouterr().out
    assert 'A0, 44 tensors: native layout, training form, to timm layout, deploy form' in out
    assert f'Wrote {tmp_path / "fused.safetensors"}.' in out and out.count('relative error') == 4
    saved = read_checkpoint(tmp_path / 'fused.safetensors')['state_dict']
    assert 'stages.0.0.reparam_conv.weight' in saved
    RepVGG('A0', deploy=True).load_state_dict(saved)


def test_a_file_is_only_replaced_on_request(tmp_path):
    (tmp_path / 'there.pth').write_bytes(b'old')
    with pytest.raises(UserError, match=r'DST is a new file.*add --overwrite'):
        run(['convert-weights', 'absent.pth', str(tmp_path / 'there.pth'), '-a', 'A0'])
    assert (tmp_path / 'there.pth').read_bytes() == b'old'
