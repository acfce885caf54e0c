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

    @property
    def folder(self) -> str:
        return f'{self.head}/{self.backbone}_seed{self.seed}'


class Records:
    """`runs` by key and `latency` by head, as in the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        content = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
        self.latency: dict[str, dict] = content.get('latency', {})
        self.runs: dict[Key, dict] = {}
        for run in content.get('runs', []):
            self.runs[Key(run['head'], run['backbone'], run['seed'])] = run

    def add(self, key: Key, **found: object) -> None:
        """Add to what is known of a training, and write the file."""
        self.runs.setdefault(key, key._asdict()).update(found)
        self.write()

    def write(self) -> None:
        content = dict(runs=[self.runs[key] for key in sorted(self.runs)], latency=self.latency)
        with atomic_path(self.path) as path:
            path.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
