"""Random search with weight sharing (Li & Talwalkar 2019, arXiv:1902.07638): the baseline of differentiable search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from robust_nas.errors import InputError
from robust_nas.searches._bilevel import Bilevel
from robust_nas.supernet.uniform import UniformRelaxation

if TYPE_CHECKING:
    from robust_nas.supernet._relaxation import Relaxation


@dataclass(frozen=True, kw_only=True)
class RandomSharing(Bilevel):
    """Train the supernet's weights on architectures that are drawn uniformly; nothing is learned of which are good.

    What is chosen is the best of `derive.pool` random architectures by accuracy with inherited weights. Settings of
    what alpha learns have no place here.

    Raises:
        InputError: for such a setting.
    """

    alpha_frozen: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        learning = {"alpha_frozen": self.alpha_frozen < 1, "order": self.order == "second"}
        about_alpha = ("kept_operations", "smoothness", "resource", "prior", "watch")
        for name, given in {**learning, **{name: bool(getattr(self, name)) for name in about_alpha}}.items():
            if given:
                raise InputError(
                    f"search.{name} is about what alpha learns, but random_sharing learns nothing of the operations; "
                    "leave it out, or take another search."
                )

    def relaxation(self, num_edges: int, num_operations: int, seed: int) -> Relaxation:
        """Return what architectures are drawn by."""
        return UniformRelaxation(num_edges, num_operations, seed=seed)
