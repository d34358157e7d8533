"""Networks as ONNX files, for other people's verifiers.

    rn.export_onnx(model, "model.onnx", (3, 32, 32))

A file is checked before it gets its name: onnxruntime computes what torch does, or there is no file. The form is that
of VNN-COMP: one image at a time, [1, C, H, W] in [0, 1] with the normalisation inside, to logits [1, K], in float32, in
as few kinds of operations as possible (`_onnx_graph` says why). Needs the packages of the extra `export`.
"""

from __future__ import annotations

import importlib
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from robust_nas import intake
from robust_nas.bounds import check_arithmetic
from robust_nas.core.checks import check_path, check_type
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import generator_at
from robust_nas.core.writing import atomic_path
from robust_nas.models.frozen import copied, device_of, evaluating
from robust_nas.models.scores import logits_of
from robust_nas.runtime.process import unchanged_process

if TYPE_CHECKING:
    from onnx import ModelProto

PACKAGES = ("onnx", "onnxruntime", "onnxscript")

TOLERANCE = 1e-5
"""The largest error of logits, as a share of the largest: float32 rounds each operation by up to 6e-8."""

_TRACED_OPSET = 18
"""The oldest version of the operations that torch exports to by itself."""

_OPSET, _IR_VERSION = 13, 7
"""The versions that a file declares for common operations, the same in 13 and 18: older tools read these."""

_NUM_POINTS = 64


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A network that was written and compared.

    Args:
        path: the file.
        opset: the version of its operations.
        operations: number of operations of each kind.
        num_classes: K.
        num_points: images that both runtimes were given.
        largest_difference: between their logits; at most `TOLERANCE` times the largest logit.
    """

    path: Path
    opset: int
    operations: dict[str, int]
    num_classes: int
    num_points: int
    largest_difference: float


@unchanged_process()
def export_onnx(
    model: nn.Module, path: Path | str, image_shape: Sequence[int], *, points: Tensor | None = None
) -> Exported:
    """Write a model as an ONNX file, and compare onnxruntime with torch on some images.

    Args:
        model: maps [0, 1] images [B, C, H, W] to logits [B, K]; used in evaluation mode and left as it was.
        path: the file, which is replaced if it is there.
        image_shape: C, H, W.
        points: images [N, C, H, W] in [0, 1] to compare the runtimes on; 64 random ones, if not given.

    Raises:
        InputError: if the packages are missing, the model cannot be written, or onnxruntime computes something else;
            no file is left then.
    """
    require_packages()
    check_path("path", path)
    check_type("image_shape", image_shape, Sequence, "a list C, H, W")
    path, shape = Path(path), tuple(image_shape)
    if points is None:
        points = torch.rand(_NUM_POINTS, *shape, generator=generator_at("cpu", 0, "export"))
    if len(shape) != 3 or points.shape[1:] != shape or len(points) == 0:
        raise InputError(
            f"export_onnx needs image_shape C, H, W and points [N, C, H, W] of it, but got {list(shape)} and "
            f"{list(points.shape)}."
        )
    intake.check_model(model)
    check_arithmetic(model)
    intake.check_outputs(model, points[:2].to(device_of(model, points)))
    network = evaluating(copied(model).cpu().float())
    try:
        num_classes, _ = intake.check_outputs(network, points[:1])
    except InputError as error:
        raise InputError(
            f"The model works as it is, but not in float32, which files are written in: {error}"
        ) from error
    written = _traced(network, shape)
    with atomic_path(path) as temporary:
        temporary.write_bytes(written.SerializeToString())
        difference = compare(temporary, network, points)
    return Exported(
        path=path,
        opset=next(entry.version for entry in written.opset_import if not entry.domain),
        operations=dict(sorted(Counter(node.op_type for node in written.graph.node).items())),
        num_classes=num_classes,
        num_points=len(points),
        largest_difference=difference,
    )


def _traced(network: nn.Module, image_shape: tuple[int, ...]) -> ModelProto:
    import onnx

    from robust_nas.integrations._onnx_graph import COMMON, in_common_operations

    # The exporter's imports make autograd start threads at its first backward pass, after which forked workers
    # cannot differentiate; after a first one it starts none.
    torch.ones(1, requires_grad=True).sum().backward()
    try:
        # The file is compared with the network, so that what may be amiss in it shows.
        with warnings.catch_warnings(action="ignore"):
            program = torch.onnx.export(
                network,
                (torch.zeros(1, *image_shape, dtype=torch.float32),),
                dynamo=True,
                opset_version=_TRACED_OPSET,
                input_names=["image"],
                output_names=["logits"],
                verbose=False,
            )
        assert program is not None
        model = in_common_operations(program.model_proto)
        if {node.op_type for node in model.graph.node} <= COMMON:
            model = onnx.helper.make_model(
                model.graph, opset_imports=[onnx.helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
            )
        onnx.checker.check_model(model, full_check=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the exporter's passes raise errors of several packages
        cause: BaseException = error
        while cause.__cause__ is not None:  # the exporter's own says at which step it was, its first cause says why
            cause = cause.__cause__
        reason = f"{type(cause).__name__}: {str(cause).partition(chr(10))[0]}"
        raise InputError(f"The model cannot be written as ONNX ({reason}); write it with other operations.") from error
    return model


def compare(path: Path | str, model: nn.Module, points: Tensor) -> float:
    """Return the largest difference between the logits of a file, by onnxruntime, and of a model, by torch.

    Args:
        path: an ONNX file that takes one image at a time.
        model: maps [0, 1] images [B, C, H, W] to logits [B, K]; used in evaluation mode and left as it was.
        points: images [N, C, H, W].

    Raises:
        InputError: if the difference is above `TOLERANCE`, as a share of the largest logit, or a class differs.
    """
    found, expected = classify(path, points), _logits(model, points)
    difference = float((found - expected).abs().max())
    allowed = TOLERANCE * float(expected.abs().max())
    changed = int((found.argmax(1) != expected.argmax(1)).sum())
    if not difference <= allowed or changed:  # NaN is not at most anything
        raise InputError(
            f"onnxruntime does not compute what torch does: logits differ by up to {difference:.2g} on {len(points)} "
            f"images, {allowed:.2g} being allowed, and the class of {changed} of them. Check that "
            "the model is in evaluation mode, draws nothing, and does not depend on the other images of a batch."
        )
    return difference


def classify(path: Path | str, images: Tensor) -> Tensor:
    """Return the logits [N, K] that onnxruntime computes from an ONNX file, one image of [N, C, H, W] at a time."""
    require_packages()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(Path(path).read_bytes(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    singles = images.detach().cpu().float().split(1)
    return torch.cat([torch.from_numpy(session.run(None, {name: single.numpy()})[0]) for single in singles])


def _logits(model: nn.Module, points: Tensor) -> Tensor:
    network = evaluating(copied(model).cpu().float())
    with torch.no_grad():
        return torch.cat([logits_of(network, chunk) for chunk in points.detach().cpu().float().split(128)])


def require_packages() -> dict[str, str]:
    """Return the versions of the packages that an export needs.

    Raises:
        InputError: if one is not installed.
    """
    modules: dict[str, Any] = {}
    for name in PACKAGES:
        try:
            modules[name] = importlib.import_module(name)
        except ImportError as error:
            raise InputError(
                f"An export needs {', '.join(PACKAGES[:-1])} and {PACKAGES[-1]}, but {error.name} is not installed; "
                f"install robust-nas with its extra 'export', or 'pip install {' '.join(PACKAGES)}'."
            ) from None
    return {name: module.__version__ for name, module in modules.items()}
