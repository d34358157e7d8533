"""Transfer: the networks that adversarial examples of one of them fool as well."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robust_nas.attacks import Attack
from robust_nas.core.registry import name_of
from robust_nas.datasets import ImageSet
from robust_nas.evaluation._chunks import BATCH_SIZE, Chunks
from robust_nas.runtime.stages import Stage
from robust_nas.threat import ThreatModel


def transfers(
    networks: Sequence[nn.Module], images: ImageSet, threat: ThreatModel, attack: Attack, stage: Stage
) -> tuple[Tensor, Tensor]:
    """Count the adversarial examples for each pair of networks, and those of them that transfer.

    An example of networks A and B is an image that both classify correctly, as the attack on A leaves it, if that
    fools A. It transfers if it fools B. The attack does all of its steps on every image that A classifies correctly. No
    more examples are kept than one chunk per process has.

    Args:
        networks: P networks, in evaluation mode.
        images: the attacked images.
        threat: the attack's threat model.
        attack: makes the examples.
        stage: the place in the run; its seed is the root of the attack's.

    Returns:
        Examples [P, P] and those that transfer [P, P], int64; rows are A, columns B. On the diagonal all transfer.
    """
    name, within = name_of(attack), stage.within("transfer")
    runs = [Chunks(network, images, BATCH_SIZE, None, within) for network in networks]
    correct = torch.stack([run.clean() for run in runs])
    examples, transferred = [], []
    for number, source in enumerate(stage.progress.steps(runs, f"{stage.name}: transfer")):
        attacked = correct[number].nonzero().squeeze(1)

        def fooled(chunk: Tensor, place: int, source: Chunks = source) -> Tensor:
            points, _ = source.attacked(chunk, threat, attack, name, place)
            before, labels = source.images(chunk), source.labels(chunk)
            found = [run.logits(points, before, threat, name).argmax(1) != labels for run in runs]
            return torch.stack(found, dim=1)

        outcomes = source.judged(attacked, f"transfer-{name}", fooled)[0].bool().reshape(len(attacked), len(runs))
        source.check_model_is_as_it_was(name)
        shared = outcomes[:, [number]] & correct[:, attacked].T
        examples.append(shared.sum(0))
        transferred.append((shared & outcomes).sum(0))
    return torch.stack(examples), torch.stack(transferred)
