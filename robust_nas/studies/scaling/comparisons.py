"""Comparisons inside a study: settings with each other, and stages of the networks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from robust_nas.records.reading import Compared, StageEffect, Stages
from robust_nas.studies.scaling.measured import Sample, paired

_LARGEST_CONDITION = 30.0  # of the stages' capacities: above, they grow together


def compared(samples: Sequence[Sample]) -> list[Compared]:
    """Return the differences of all settings that differ in one key, paired over networks and seeds.

    The t interval is of the mean over these networks and seeds. Where settings matter more for some networks than for
    others, that widens it.
    """
    found = []
    for one, other in itertools.combinations(samples, 2):
        if not one.networks or not other.networks:
            continue
        varied = one.networks[0].row.varied, other.networks[0].row.varied
        if sum(varied[0].get(key) != varied[1].get(key) for key in varied[0].keys() | varied[1].keys()) != 1:
            continue
        errors = {network.name: network.errors for network in one.networks}
        differences: dict[str, list[float]] = {}
        for network in other.networks:
            own = errors.get(network.name, {})
            if pairs := [network.errors[seed] - own[seed] for seed in sorted(own.keys() & network.errors.keys())]:
                differences[network.name] = pairs
        if differences:
            every = [each for pairs in differences.values() for each in pairs]
            found.append(
                Compared(
                    first=one.setting,
                    second=other.setting,
                    error=one.error,
                    difference=paired(every),
                    num_pairs=len(every),
                    networks={name: float(np.mean(pairs)) for name, pairs in differences.items()},
                )
            )
    return found


def stages(sample: Sample) -> Stages:
    """Return the effect of each stage's capacity on a setting's error, the others held, or why that is not told.

    A stage's capacity is its blocks times the square of its channels: about its parameters. The logarithm of the error
    is regressed on those of the capacities, by least squares over the networks.
    """
    rows = [network.row for network in sample.networks]
    count = max((len(row.blocks) for row in rows), default=0)
    same = [place for place, row in enumerate(rows) if len(row.blocks) == count]
    capacities = np.array(
        [
            [blocks * channels**2 for blocks, channels in zip(rows[i].blocks, rows[i].channels, strict=True)]
            for i in same
        ],
        dtype=np.float64,
    ).reshape(len(same), count)
    logs = np.log2(np.maximum(capacities, 1))
    centred = logs - logs.mean(axis=0) if len(logs) else logs
    values = np.linalg.svd(centred, compute_uv=False) if centred.size else np.zeros(0)
    if len(same) < count + 2 or len(values) < count or values[-1] * _LARGEST_CONDITION < values[0] or not values[-1]:
        reason = (
            "This grid does not tell where capacity helps: its stages grow together. Widths of single stages "
            f"(--widths 1,{'-'.join(['2'] + ['1'] * (max(count, 2) - 1))},...) would, in {count + 2} networks at least."
        )
        return Stages(setting=sample.setting, error=sample.error, refusal=reason)
    design = np.concatenate([np.ones((len(same), 1)), centred], axis=1)
    slopes = np.linalg.lstsq(design, np.log(sample.means[:, same]).T, rcond=None)[0][1:]  # [stages, draws]
    effects = tuple(
        StageEffect(stage=place + 1, effect=sample.estimate(np.expm1(own))) for place, own in enumerate(slopes)
    )
    return Stages(setting=sample.setting, error=sample.error, effects=effects)
