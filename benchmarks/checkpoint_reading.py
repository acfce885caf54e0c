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
        paths = {suffix: Path(folder) / f'weights.{suffix}' for suffix in ('pth', 'safetensors')}
        for path in paths.values():
            write_checkpoint(path, dict(state_dict=RepVGG('B2').state_dict()))
        calls = {
            'torch.load': lambda: torch.load(paths['pth'], weights_only=True),
            'read_checkpoint, .pth': lambda: read_checkpoint(paths['pth']),
            'read_checkpoint, .safetensors': lambda: read_checkpoint(paths['safetensors'])}
        latency = interleaved_latency(calls)
        print(f'{paths["pth"].stat().st_size / 1e6:.0f} MB, medians of interleaved reads, page cache warm:')
        for name, found in latency.items():
            print(f'  {name}: {found.median_ms:.0f} ms ({found.lower_ms:.0f} to {found.upper_ms:.0f})')


if __name__ == '__main__':
    main()
