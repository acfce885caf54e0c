"""What was measured: one JSON file, written after each step, so that a table is made in several sittings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from repvgg_mm.files.atomic import atomic_path

FORMS = ('PyTorch', 'OpenVINO fp32', 'OpenVINO int8')


class Key(NamedTuple):
    """Of one training."""

    head: str
    backbone: str
    seed: int

    def folder(self, steps: int) -> str:
        return f'{self.head}/{self.backbone}_seed{self.seed}_{steps}_steps'


class Records:
    """`runs` by key and `latency` by head, as in the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.latency: dict[str, dict] = {}
        self.runs: dict[Key, dict] = {}
        self.read()

    def read(self) -> None:
        """What the file has by now: another process may have written to it."""
        content = json.loads(self.path.read_text(encoding='utf-8')) if self.path.exists() else {}
        self.latency |= content.get('latency', {})
        for run in content.get('runs', []):
            self.runs[Key(run['head'], run['backbone'], run['seed'])] = run

    def times(self, head: str, backbone: str) -> dict[str, list[float]]:
        """Median and quartiles (ms) of each form that was timed."""
        return self.latency.get(head, {}).get('ms', {}).get(backbone, {})

    def add(self, key: Key, **found: object) -> None:
        """Add to what is known of a training, and write the file."""
        self.read()
        self.runs.setdefault(key, key._asdict()).update(found)
        self._write()

    def add_latency(self, head: str, machine: str, times: dict[str, dict]) -> None:
        """Replace the times of a head (ms of each form of each backbone: median, quartiles), and write the file."""
        self.read()
        self.latency[head] = dict(machine=machine, ms=times)
        self._write()

    def _write(self) -> None:
        content = dict(runs=[self.runs[key] for key in sorted(self.runs)], latency=self.latency)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.path) as path:
            path.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
