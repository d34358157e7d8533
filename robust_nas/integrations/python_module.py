"""Networks as Python files of plain torch layers, for people who do not have this package.

    rn.export_python(model, "model_0.py")       # and model_0.pt, its weights

    from model_0 import Network                 # anywhere, with torch alone

    network = Network().eval()
    network.load_state_dict(torch.load("model_0.pt", weights_only=True))

A space writes its own networks (`spaces.WritesSource`) as code for people: classes and loops as in a paper's
repository, without branches that have no effect. A trace of the network would do for all spaces, but not for readers.
The rest of the file is the same for all, and is written here.

Both files are checked before they get their names: the module, run without this package, loads the weights and gives
the network's logits in double precision, where rounding hides no difference; or there are no files.
"""

from __future__ import annotations

import ast
import contextlib
import io
import keyword
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_nas import __version__
from robust_nas.core.checks import check_kinds, check_path
from robust_nas.core.errors import InputError, reason_of
from robust_nas.core.pixels import format_pixels
from robust_nas.core.seeds import generator_at
from robust_nas.core.text import visible
from robust_nas.core.writing import atomic_path
from robust_nas.models.complexity import count_parameters
from robust_nas.models.frozen import copied, evaluating
from robust_nas.pipeline import Job, load_models, trained_models
from robust_nas.records import CertificationRecord, EvaluationRecord
from robust_nas.runtime.process import unchanged_process
from robust_nas.spaces import BuiltFrom, NetworkSource, WritesSource
from robust_nas.spaces.module import ModuleSpace

TOLERANCE = 1e-9
"""The largest error of logits in double precision, as a share of the largest."""

_NUM_POINTS = 8
"""Images that both networks are given: functions that differ do so on any, and double precision takes its time."""

_WIDTH = 120

_HEAD = '''"""A network from robust-nas, in plain torch layers.

{facts}

To load it, with torch alone:

    import torch
    from {name} import Network

    network = Network().eval()
    network.load_state_dict(torch.load("{name}.pt", weights_only=True))
"""

'''

_CODE = '''{imports}

{constants}


{classes}


class Network(nn.Module):
    """{shape}; it normalises them itself."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, -1, 1, 1), persistent=False)
{layers}

    def forward(self, images: Tensor) -> Tensor:
        x = (images - self.mean) / self.std
{forward}
'''

_ALLOWED = {"math", "torch"}
"""The packages that a module may import."""


@dataclass(frozen=True, kw_only=True)
class WrittenModule:
    """A network that was written and compared.

    Args:
        path: the module.
        weights: the file of its weights.
        num_points: images that both networks were given.
        largest_difference: between their logits in double precision, as a share of the largest.
    """

    path: Path
    weights: Path
    num_points: int
    largest_difference: float


@unchanged_process()
def export_python(
    model: nn.Module,
    path: Path | str,
    *,
    points: Tensor | None = None,
    about: Mapping[str, str | Sequence[str]] | None = None,
) -> WrittenModule:
    """Write a network of a search space as a Python module that needs torch alone, with its weights beside it.

    Args:
        model: from a run, `rn.train` or a space; used in evaluation mode and left as it was.
        path: the module, such as model_0.py; the weights are in model_0.pt. Files that are there stay: one that differs
            is a mistake.
        points: images [N, C, H, W] in [0, 1] to compare the networks on; 8 random ones, if not given.
        about: further facts for the module's docstring.

    Raises:
        InputError: if the model is of no space, or of one that cannot write it; for a name that cannot be imported; or
            if the written network computes something else. No file is left then.
    """
    check_kinds("export_python", model=(model, nn.Module))
    check_path("path", path)
    # The module is compared as most readers run it, whatever this process takes for numbers.
    torch.set_default_dtype(torch.float32)
    (written,) = _write([_checked(model, Path(path), points, about or {})])
    return written


def export_run(job: Job, folder: Path) -> str:
    """Write the trained networks of a run, each as a module with its weights, all or none; return a summary.

    Args:
        job: the run, whose networks are trained.
        folder: gets the files.

    Raises:
        InputError: as `export_python` does.
    """
    models, facts, points = load_models(job), _facts(job), job.data.test[:_NUM_POINTS].images

    def write() -> list[WrittenModule]:
        steps = job.progress.steps(list(models.items()), "export: networks")
        return _write(
            [
                _checked(model, folder / f"{name.replace('-', '_')}.py", points, facts.get(name, {}))
                for name, model in steps
            ]
        )

    lines = [
        f"{item.path} and {item.weights.name}: the network's logits on {item.num_points} test images"
        for item in job.world.on_main(write)
    ]
    return "\n".join([*lines, "how to load one stands at its top; it needs torch alone"])


@dataclass(frozen=True)
class _Contents:
    """The contents of a module's file and that of its weights, which compute what the network does."""

    module: bytes
    weights: bytes
    written: WrittenModule


def _write(checked: Sequence[_Contents]) -> list[WrittenModule]:
    """Write the files, all or none.

    Raises:
        InputError: if one is there that differs.
    """
    contents = {item.written.path: item.module for item in checked}
    contents |= {item.written.weights: item.weights for item in checked}
    for path, content in contents.items():
        if path.exists() and (not path.is_file() or path.read_bytes() != content):
            raise InputError(
                f"{path} is there and differs from what would be written; move it, or choose another place."
            )
    with contextlib.ExitStack() as files:
        for path, content in contents.items():
            files.enter_context(atomic_path(path)).write_bytes(content)
    return [item.written for item in checked]


def _checked(
    model: nn.Module, path: Path, points: Tensor | None, about: Mapping[str, str | Sequence[str]]
) -> _Contents:
    """Return the contents of both files, once the module computes the network's logits."""
    if path.suffix != ".py" or not path.stem.isidentifier() or keyword.iskeyword(path.stem):
        raise InputError(f"A module is imported by its name, such as model_0.py, but got '{visible(path.name)}'.")
    origin, space = _origin_of(model)
    shape = origin.data.image_shape
    if points is None:
        points = torch.rand(_NUM_POINTS, *shape, generator=generator_at("cpu", 0, "export"))
    elif points.shape[1:] != shape or len(points) == 0:
        raise InputError(f"points must be images [N, {', '.join(map(str, shape))}], but got {list(points.shape)}.")
    network = evaluating(copied(model).cpu().float())
    source = space.source(origin.architecture, origin.data)
    code = _code(network, origin, source)
    written = _made(code, path)
    facts = {
        "architecture": str(origin.architecture),
        "parameters": f"{count_parameters(written):,}",
        "data": f"{origin.data.name}: {_shape(origin)}",
        **about,
        "written by": f"robust-nas {__version__}",
    }
    module, weights = _HEAD.format(facts=_table(facts), name=path.stem) + code, io.BytesIO()
    torch.save(_state(network, written, source), weights)
    written = _loaded(module, weights.getvalue(), path)
    difference = _difference(network, written, points, path)
    result = WrittenModule(
        path=path, weights=path.with_suffix(".pt"), num_points=len(points), largest_difference=difference
    )
    return _Contents(module.encode(), weights.getvalue(), result)


def _origin_of(model: nn.Module) -> tuple[BuiltFrom, WritesSource]:
    """Return what a network was built from, and its space, which can write it."""
    origin = getattr(model, "built_from", None)
    if not isinstance(origin, BuiltFrom):
        raise InputError(
            f"Only a network of a search space can be written as Python, but a {type(model).__name__} says none "
            "that it was built from."
        )
    if isinstance(origin.space, ModuleSpace):
        raise InputError(
            f"{visible(str(origin.architecture))} defines this network already; its weights are in the run's "
            "checkpoints."
        )
    if not isinstance(origin.space, WritesSource):
        raise InputError(
            f"The space {visible(origin.space.name)} cannot write its networks as Python: "
            f"{type(origin.space).__name__} has no method 'source' (docs/extending/kind-of-space.md)."
        )
    return origin, origin.space


# The code ------------------------------------------------------------------------------------------------------------


def _code(network: nn.Module, origin: BuiltFrom, source: NetworkSource) -> str:
    """Return the module without its docstring."""
    layers, forward = (textwrap.indent("\n".join(lines), " " * 8) for lines in (source.layers, source.forward))
    own = "\n".join([source.classes, layers, forward])
    imports = [
        *(["import math", ""] if re.search(r"\bmath\.", own) else []),
        "import torch",
        "from torch import Tensor, nn",
        *(["from torch.nn import functional as F"] if re.search(r"\bF\.", own) else []),
    ]
    constants = [
        _listed("CLASSES", [_literal(name) for name in origin.data.classes]),
        '"""The classes, in the order of the logits."""',
        "",
        *(_listed(name.upper(), _numbers(network.get_buffer(name))) for name in ("mean", "std")),
        '"""Of the pixels of the training images, by channel."""',
    ]
    return _CODE.format(
        imports="\n".join(imports),
        constants="\n".join(constants),
        classes=source.classes.strip("\n"),
        shape=_shape(origin, "Images"),
        layers=layers,
        forward=forward,
    )


def _shape(origin: BuiltFrom, images: str = "images") -> str:
    channels, height, width = origin.data.image_shape
    return f"{images} [B, {channels}, {height}, {width}] in [0, 1] to logits [B, {len(origin.data.classes)}]"


def _numbers(values: Tensor) -> list[str]:
    """Return the shortest decimals that are these numbers in single precision."""
    return [str(number) for number in values.detach().cpu().float().flatten().numpy()]


def _literal(text: str) -> str:
    """Return text as a literal in which nothing acts: what cannot be shown is an escape."""
    written = repr(text)
    return written if written[0] == '"' or '"' in text else f'"{written[1:-1]}"'


def _listed(name: str, items: Sequence[str]) -> str:
    """Return the assignment of a list, of as many lines as it needs."""
    line = f"{name} = [{', '.join(items)}]"
    if len(line) <= _WIDTH:
        return line
    lines = [""]
    for item in items:
        if len(lines[-1]) + len(item) > _WIDTH - 6:
            lines.append("")
        lines[-1] += f" {item},"
    return "\n".join([f"{name} = [", *(f"   {line}" for line in lines if line), "]"])


def _table(facts: Mapping[str, str | Sequence[str]]) -> str:
    """Return facts as lines of a docstring."""
    width, lines = max(map(len, facts)) + 2, []
    for name, values in facts.items():
        for place, value in enumerate([values] if isinstance(values, str) else values):
            lines += textwrap.wrap(
                _in_docstring(value),
                _WIDTH,
                initial_indent=(_in_docstring(name) if place == 0 else "").ljust(width),
                subsequent_indent=" " * width,
                break_long_words=False,
                break_on_hyphens=False,
            )
    return "\n".join(lines)


def _in_docstring(text: str) -> str:
    """Return text as it stands in a docstring: a backslash would begin an escape, and three quotes would end it."""
    return visible(text, keep="").replace("\\", r"\\").replace('"""', r"\"\"\"")


# The check -----------------------------------------------------------------------------------------------------------


def _made(code: str, path: Path) -> nn.Module:
    """Return the network of a module, which may import torch and no package else."""
    try:
        tree = ast.parse(code)
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if others := {name.partition(".")[0] for name in names} - _ALLOWED:
                raise _refused(path, f"it would import {min(others)}")
        namespace: dict[str, Any] = {"__name__": path.stem}
        exec(compile(tree, path.name, "exec"), namespace)
        network: nn.Module = namespace["Network"]().eval()
    except InputError:
        raise
    except Exception as error:  # whatever the code of another's space does
        raise _refused(path, f"{type(error).__name__}: {reason_of(error)}") from error
    return network


def _loaded(module: str, weights: bytes, path: Path) -> nn.Module:
    """Return the network of the files' contents, as a reader gets it."""
    network = _made(module, path)
    try:
        network.load_state_dict(torch.load(io.BytesIO(weights), weights_only=True))
    except RuntimeError as error:
        raise _refused(path, f"its weights are others: {reason_of(error)}") from None
    return network


def _state(network: nn.Module, written: nn.Module, source: NetworkSource) -> dict[str, Tensor]:
    """Return the network's weights by their names in the module, without those of branches that it leaves out."""
    own = {source.renamed(key): value for key, value in network.state_dict().items()}
    return {key: own[key].detach().clone().contiguous() for key in written.state_dict() if key in own}


def _difference(network: nn.Module, written: nn.Module, points: Tensor, path: Path) -> float:
    """Return the largest difference of the logits, as a share of the largest one.

    Raises:
        InputError: if it is above `TOLERANCE`.
    """
    images = points.detach().cpu().double()
    try:
        with torch.no_grad():
            expected, found = (model.double()(images.clone()) for model in (network, written))
        difference = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    except Exception as error:  # as above
        raise _refused(path, f"{type(error).__name__}: {reason_of(error)}") from error
    if not difference <= TOLERANCE:  # NaN is not at most anything
        raise _refused(path, f"its logits differ by {difference:.2g} of the largest on {len(points)} images")
    return difference


def _refused(path: Path, reason: str) -> InputError:
    return InputError(f"{path} was not written, as it would not be this network ({reason}).")


# The facts of a run --------------------------------------------------------------------------------------------------


def _facts(job: Job) -> dict[str, dict[str, str | Sequence[str]]]:
    """Return for each trained network its run, its training, and its accuracies as far as they were measured."""
    found: dict[str, dict[str, str | Sequence[str]]] = {}
    for model in trained_models(job):
        origin = "" if model.from_ is None else f", from {model.from_}"
        found[model.name] = {
            "run": f"{job.folder.path.resolve().name}, {model.name}, seed {job.recipe.seed}{origin}",
            "training": f"{model.epochs} epochs of {model.method}",
            "accuracy": _accuracies(job, model.name) or "not measured until this was written",
        }
    return found


def _accuracies(job: Job, name: str) -> list[str]:
    """Return the accuracies of a network in words, each with its number of images."""
    lines: list[str] = []
    if job.has("evaluation.json"):
        record = job.read("evaluation.json", EvaluationRecord)
        if (found := record.models.get(name)) is not None:
            lines.append(f"{_share(found.clean.accuracy, found.clean.count)} {record.split} images")
            for attack in found.attacks:
                threat = f"{attack.norm} {format_pixels(attack.epsilon)}"
                lines.append(f"{_share(attack.accuracy, attack.count)}, under {attack.name} at {threat}")
            worst = found.worst_case
            if len(found.attacks) > 1:
                lines.append(f"{_share(worst.accuracy, worst.count)}, under all of these attacks")
    if job.has("certification.json"):
        proofs = job.read("certification.json", CertificationRecord)
        for item in proofs.models.get(name, ()):
            threat = f"{job.recipe.threat.norm} {format_pixels(item.epsilon)}"
            lines.append(f"{_share(item.certified, item.count)}, certified at {threat} by {proofs.method} bounds")
    return lines


def _share(accuracy: float, count: int) -> str:
    return f"{100 * accuracy:.1f} % of {count}"
