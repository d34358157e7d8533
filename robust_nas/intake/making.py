"""The making of one's own model again, without its weights, from the module or file that defines it."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robust_nas.core.errors import InputError
from robust_nas.core.registry import check_model_name, model_parts
from robust_nas.core.seeds import seeded
from robust_nas.intake.loading import load_models
from robust_nas.models.history import History
from robust_nas.models.named import MADE_BY, made_by

_OWN = frozenset({*vars(nn.Module()), MADE_BY, "built_from"})
"""The attributes that torch and we keep in a module: not its maker's choice, or compared in another way."""


def description(model: nn.Module) -> dict[str, Any]:
    """Return the keys for `make`: {"made_by": "my_net.py:Net"}, or None there with the reason why they are unknown.

    A model that `load_models` has made by its name is made by that name, any other by its class, if it needs no
    arguments. The result must be the same model but for its weights.
    """
    try:
        name = made_by(model) or _class_name(type(model))
        again = _of_class(type(model)) if made_by(model) is None else _of_name(name)
        if (where := _difference(model, again)) is not None:
            raise InputError(f"what {name} makes differs in {where}")
    except InputError as error:
        return {"made_by": None, "why": str(error).rstrip(".")}
    return {"made_by": name}


def make(table: Mapping[str, Any], where: str) -> nn.Module:
    """Return the model of a table that `description` gave, without its weights.

    Args:
        table: from a file, so that code in it is refused unless `registry.check_code` lets it pass.
        where: the place that names it.

    Raises:
        InputError: if it is refused, cannot be made, or could not be described.
    """
    name = str(table["made_by"])
    parts = model_parts(name)
    if parts is None:
        raise InputError(f"{where} is no name of a model: '{name}'.")
    check_model_name(name, where)
    return _of_name(name)


def _of_name(name: str) -> nn.Module:
    (model,) = load_models(name, device="cpu").values()
    return model


def _class_name(kind: type[nn.Module]) -> str:
    """Return the place where a class is defined, as `load_models` reads it."""
    module, name = inspect.getmodule(kind), kind.__qualname__
    file = getattr(module, "__file__", None)
    if module is None or module.__name__ == "__main__" or file is None:
        raise InputError(f"the class {name} is defined in the program itself; define it in a file that can be imported")
    if module.__name__.partition(".")[0] in ("torch", "torchvision"):
        raise InputError(
            f"it is a {name} of torch's, put together elsewhere; define a function that makes it, in a file"
        )
    if "<locals>" in name:
        raise InputError(f"the class {name} is defined inside a function; define it at the top of its file")
    in_package = "." in module.__name__ or Path(file).name == "__init__.py"
    return f"{module.__name__ if in_package else Path(file).resolve()}:{name}"


def _of_class(kind: type[nn.Module]) -> nn.Module:
    try:
        inspect.signature(kind).bind()
        with seeded(0, "intake"):
            return kind()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a class of the user's raises
        raise InputError(
            f"the class {kind.__qualname__} cannot be made without arguments ({error}); load the model by the name of "
            "a function that makes it, rn.load_models('my_net.py:make')"
        ) from None


def _difference(one: nn.Module, other: nn.Module) -> str | None:
    """Return in what two modules differ beside their weights; None if they compute the same with the same weights."""
    ours, theirs = dict(one.named_modules()), dict(other.named_modules())
    if ours.keys() != theirs.keys():
        return "the modules it consists of"
    for name, module in ours.items():
        twin, place = theirs[name], name or "itself"
        if _kind(module) != _kind(twin):
            return f"the class of {place}"
        (hooks, computed), (their_hooks, _) = _hooks(module), _hooks(twin)
        if not _equal(hooks, their_hooks):
            return f"the hooks of {place}"
        own, their = (
            {
                key: value
                for key, value in vars(each).items()
                if key not in _OWN | computed and not isinstance(value, History)
            }
            for each in (module, twin)
        )
        fixed, their_fixed = (_not_saved(each) for each in (module, twin))
        for found, expected in ((own, their), (fixed, their_fixed)):
            for key in sorted({*found, *expected}):
                if key not in found or key not in expected or not _equal(found[key], expected[key]):
                    return f"'{key}' of {place}"
    shapes = [{key: value.shape for key, value in each.state_dict().items()} for each in (one, other)]
    return None if shapes[0] == shapes[1] else "the shapes of its weights"


def _kind(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _hooks(module: nn.Module) -> tuple[list[Any], set[str]]:
    """Return the hooks around a module's passes, and the names of the weights that torch's own compute there.

    Those are `weight_norm` and `spectral_norm` of `torch.nn.utils`: the weight is anew with every pass.
    """
    hooks: list[Any] = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    return hooks, {str(hook.name) for hook in hooks if type(hook).__module__.startswith("torch.nn.utils.")}


def _not_saved(module: nn.Module) -> dict[str, Any]:
    """Return the buffers that are not among the weights."""
    return {key: module._buffers[key] for key in module._non_persistent_buffers_set}


def _equal(one: Any, other: Any) -> bool:
    """Whether two attributes are known to be the same; files that are run again make their functions anew."""
    if one is other:
        return True
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one.cpu(), other.cpu())
    if type(one).__qualname__ != type(other).__qualname__:
        return False
    if isinstance(one, types.FunctionType):
        same = one.__code__ == other.__code__ and _equal(one.__defaults__, other.__defaults__)
        return same and one.__closure__ is None and other.__closure__ is None
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    if isinstance(one, bool | int | float | complex | str | bytes | set | frozenset | torch.dtype | torch.device):
        return bool(one == other)
    state = getattr(one, "__dict__", None)
    return bool(state) and _equal(state, getattr(other, "__dict__", None))
