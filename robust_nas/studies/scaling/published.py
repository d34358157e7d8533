"""Published points of depth and robustness. They are shown beside a study, and enter none of its numbers."""

from robust_nas.records.reading import Published

_TRAINING = (
    "PGD-30 at 16/255 towards random targets, 20 % of the starts clean, norms in inference mode in the attack, label "
    "smoothing 0.1, 110 epochs"
)

PUBLISHED = tuple(
    Published(
        network=network,
        depth=depth,
        robust=robust,
        data="ImageNet",
        attack="PGD with 2,000 steps at linf 16/255",
        training=_TRAINING,
        source="Xie & Yuille, ICLR 2020, arXiv:1906.03787",
    )
    for network, depth, robust in (("ResNet-152", 152, 0.422), ("ResNet-638", 638, 0.467))
)
"""Intriguing properties of adversarial training at scale: the least and the greatest depth there."""
