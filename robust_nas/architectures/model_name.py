"""Models of one's own as architectures: the name that each is loaded by, net.py:Net or torchvision:resnet18.

This module imports neither torch nor anything slow.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from robust_nas.architectures import AnyArchitecture
from robust_nas.core.checks import check_type
from robust_nas.core.errors import InputError
from robust_nas.core.registry import is_module_name, model_parts


@dataclass(frozen=True, order=True, repr=False)
class ModelArchitecture(AnyArchitecture):
    """The architecture of a model that a name says."""

    name: str

    form = "path/to/file.py:Net"

    @classmethod
    def recognises(cls, text: str) -> bool:
        parts = model_parts(text.strip())
        if parts is None:
            return False
        place = parts.place
        return place.endswith(".py") or is_module_name(place) or re.fullmatch(r"[^\W\d]\w*", place) is not None

    @classmethod
    def parse(cls, text: str) -> ModelArchitecture:
        """Read the name of a model.

        Raises:
            InputError: if it is none.
        """
        check_type("An architecture", text, str, "a text such as net.py:Net")
        if not cls.recognises(text):
            raise InputError(
                "A model is named as package.module:attribute, path/to/file.py:attribute or torchvision:NAME, but got "
                f"'{text}'."
            )
        return cls(text.strip())

    def __str__(self) -> str:
        return self.name

    def describe(self) -> str:
        """Return the name."""
        return f"model      {self.name}"
