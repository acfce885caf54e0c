"""What reading safely costs: read_checkpoint against torch.load, on a file of RepVGG-B2 in training form.

    python benchmarks/checkpoint_reading.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from repvgg_mm import RepVGG, read_checkpoint
from repvgg_mm.convert.measure import interleaved_latency
from repvgg_mm.files.checkpoint import write_checkpoint


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        pth = Path(folder) / 'weights.pth'
        tensor_file = Path(folder) / 'weights.safetensors'
        content = dict(state_dict=RepVGG('B2').state_dict())
        for path in (pth, tensor_file):
            write_checkpoint(path, content)

        latency = interleaved_latency({
            'torch.load': lambda: torch.load(pth, weights_only=True),
            'read_checkpoint, .pth': lambda: read_checkpoint(pth),
            'read_checkpoint, .safetensors': lambda: read_checkpoint(tensor_file),
        })

        size = pth.stat().st_size / 1e6
        print(f'{size:.0f} MB, medians of interleaved reads, page cache warm:')
        for name, found in latency.items():
            print(f'  {name}: {found.median_ms:.0f} ms ({found.lower_ms:.0f} to {found.upper_ms:.0f})')


if __name__ == '__main__':
    main()
