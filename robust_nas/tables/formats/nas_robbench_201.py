"""The full release of NAS-RobBench-201: `meta.json`, and per seed `NAS-RobBench-201_all.json`.

The latter is `[dataset][number][quantity][seed]`, with entries for the numbers that represent their class.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from robust_nas.tables.cards import Card
from robust_nas.tables.formats import Published
from robust_nas.tables.formats._files import classes_of_meta, damage, read_json


@dataclass(frozen=True, kw_only=True)
class NASRobBench201:
    """The release of Wu et al. 2024 (arXiv:2403.13134)."""

    def read(self, folder: Path, card: Card) -> Published:
        """Read the two files from `folder`."""
        meta, path = folder / "meta.json", folder / "NAS-RobBench-201_all.json"
        classes = classes_of_meta(read_json(meta), str(meta))
        columns: dict[tuple[str, str, str], dict[int, float]] = defaultdict(dict)
        with damage(str(path)):
            for dataset, networks in read_json(path).items():
                for number, quantities in networks.items():
                    for quantity, accuracies in quantities.items():
                        for seed, accuracy in accuracies.items():
                            columns[dataset, quantity, seed][int(number)] = accuracy

        known = sorted(
            (name for name in columns if card.knows(*name[:2]) and name[2].isdecimal()),
            key=lambda name: (-len(columns[name]), name),
        )

        def measures() -> Iterator[pa.Table]:
            for dataset, quantity, seed in known:
                constant = {**card.constant(dataset, quantity), "seed": int(seed)}
                yield classes.table(constant, columns[dataset, quantity, seed], str(path))

        left_out = ("#".join(name) for name in sorted(columns.keys() - known))
        return Published(classes.index, measures(), tuple(left_out))
