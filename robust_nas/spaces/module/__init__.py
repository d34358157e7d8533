"""Models of one's own as a search space: an architecture is one of them, by its name.

What is done with networks that were found, is done with these too: they are trained, attacked, certified, joined in
ensembles and reported. `search=sampled` finds the best of several.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from robust_nas.architectures import AnyArchitecture
from robust_nas.architectures.model_name import ModelArchitecture
from robust_nas.core.errors import InputError, suggest
from robust_nas.core.registry import ModelName, model_parts
from robust_nas.spaces import BuiltFrom
from robust_nas.spaces._decided import Decisions, check_options

if TYPE_CHECKING:
    from torch import nn

    from robust_nas.datasets import NetworkData


@dataclass(frozen=True, kw_only=True)
class ModuleSpace(Decisions):
    """Models that are defined elsewhere, of which an architecture is one.

    Args:
        name: the space's name.
        models: their names, as `robust_nas.intake` reads them; those from a file run only if that is allowed.
        normalise: the pixels that the models expect, if they do not normalise them themselves.
        sha256: of the files that define the models, when the space was made; a file that differs is warned of.

    Raises:
        InputError: for what names no model, and for a model that is there twice.
    """

    name: str
    models: tuple[ModelName, ...]
    normalise: str | None = None
    sha256: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_options("models", self.models)
        if len(self.sha256) not in (0, len(self.models)):
            raise InputError(f"sha256 must be one for each of the {len(self.models)} models, but got {self.sha256}.")
        for name in self.models:
            ModelArchitecture.parse(name)

    @property
    def decisions(self) -> dict[str, tuple[str, ...]]:
        """The model."""
        return {"model": self.models}

    def parse(self, text: str) -> ModelArchitecture:
        """Read the name of one of the models.

        Raises:
            InputError: if it is none of them.
        """
        named = ModelArchitecture.parse(text)
        if named.name not in self.models:
            raise InputError(f"{self.name} has no model '{named.name}'. {suggest(named.name, self.models)}")
        return named

    def decided(self, values: Sequence[str]) -> ModelArchitecture:
        """Return the architecture of the values of `decisions`."""
        return self.parse(values[0])

    def decisions_of(self, architecture: AnyArchitecture) -> tuple[str, ...]:
        """Return the values of `decisions` that make an architecture."""
        return (str(architecture),)

    def network(self, architecture: AnyArchitecture, data: NetworkData, *, affine: bool = True) -> nn.Module:
        """Return the model, prepared for [0, 1] images; `affine` changes nothing, as the model is as it was defined.

        Raises:
            InputError: if it cannot be made, or has not a logit for each class of the data.
        """
        import torch

        from robust_nas.models.frozen import copied, evaluating
        from robust_nas.models.named import file_digest, named_model
        from robust_nas.models.preparation import prepared
        from robust_nas.models.scores import probed

        parts = model_parts(str(self.parse(str(architecture))))
        assert parts is not None
        known = dict(zip(self.models, self.sha256, strict=False)).get(str(architecture))
        if known and known != file_digest(parts):
            warnings.warn(
                f"{parts.place} has changed since it was named for this run: the model that it makes now may compute "
                "something else than the one that was trained.",
                stacklevel=2,
            )
        # A module that its file made already would be one and the same for all who ask.
        network = copied(prepared(named_model(parts), normalise=self.normalise))
        logits = probed(evaluating(copied(network)), torch.full((2, *data.image_shape), 0.5))
        if logits.shape[1] != len(data.classes):
            raise InputError(
                f"{architecture} must give a logit for each of the {len(data.classes)} classes of {data.name}, but "
                f"gives {list(logits.shape[1:])} for an image; name a model that is made for them."
            )
        vars(network)["built_from"] = BuiltFrom.of(self, self.parse(str(architecture)), data)
        return network
