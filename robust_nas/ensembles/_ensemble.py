"""The ensemble as a model."""

from __future__ import annotations

import hashlib
import os
import reprlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from robust_nas import bounds as bound_group
from robust_nas import ensembles, records, spaces
from robust_nas.bounds import Bound, check_arithmetic
from robust_nas.core import config
from robust_nas.core.checks import check_kinds, check_path, check_type
from robust_nas.core.errors import InputError
from robust_nas.core.figures import bar_plot
from robust_nas.core.files import damaged, read_json
from robust_nas.core.pixels import unit_images
from robust_nas.core.registry import allowing_code, named
from robust_nas.core.shown import Shown, Summary, frame
from robust_nas.core.writing import atomic_path, make_folder, write_json
from robust_nas.datasets import DataForm, ImageSet
from robust_nas.ensembles import EnsembleRule, EnsembleWeights, logit_factors
from robust_nas.intake import (
    LogProbabilities,
    Normalised,
    check_model,
    check_outputs,
    description,
    load_weights,
    made_by,
    make,
)
from robust_nas.models.complexity import count_multiply_adds, count_parameters, within_memory
from robust_nas.models.scores import logits_of
from robust_nas.runtime.process import unchanged_process
from robust_nas.runtime.progress import of_call
from robust_nas.spaces import BuiltFrom
from robust_nas.threat import ThreatModel

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

LARGEST_SIZE = 2**16
"""The largest number of channels, rows or columns of an image."""

VERSION = 1
"""The form of a saved ensemble's config.json."""


class Ensemble(Shown, nn.Module):
    """F(x) = sum_t a_t f_t(x), a model like its members: images [B, C, H, W] in [0, 1] to logits [B, K].

        ensemble = Ensemble([first, second]).fit(data.validation, rn.ThreatModel(epsilon=0.03)).eval()
        ensemble.predict(data.test.images)
        ensemble.save("my-ensemble")

    The factors a_t come from the weights and scales (`logit_factors`); without any, all members count alike.

    Members of weight 0 are kept, and not run. Interval bounds on this module are those of `joint_margins` on its
    members, because the members' last layers stay visible through the sum.

    Args:
        members: the networks f, T of them, with the same classes.
        weights: w, [T], at least 0 and not all 0.
        scales: Z, [T], above 0.

    Raises:
        InputError: for other weights or scales, or numbers of members that differ.
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        weights: Sequence[float] | Tensor | None = None,
        scales: Sequence[float] | Tensor | None = None,
    ) -> None:
        super().__init__()
        one = isinstance(members, nn.Module) and not isinstance(members, nn.ModuleList)
        if one or not isinstance(members, Iterable) or not all(isinstance(member, nn.Module) for member in members):
            raise InputError(f"An ensemble takes a list of modules as members, but got {reprlib.repr(members)}.")
        self.members = nn.ModuleList(members)
        self.fitted: EnsembleWeights | None = None
        ones = [1.0] * len(members)
        self._weigh(ones if weights is None else weights, ones if scales is None else scales)

    def _weigh(self, weights: Sequence[float] | Tensor, scales: Sequence[float] | Tensor) -> None:
        self.factors = logit_factors(weights, scales, len(self.members))
        self.weights, self.scales = [float(w) for w in weights], [float(z) for z in scales]

    def forward(self, images: Tensor) -> Tensor:
        weighted = zip(self.factors, self.members, strict=True)
        terms = [factor * logits_of(member, images) for factor, member in weighted if factor > 0]
        return sum(terms[1:], terms[0])

    def to_frame(self) -> pd.DataFrame:
        """Return a row per member: member (its place), network, weight, scale, factor (of the logits), parameters."""
        return frame(
            {"member": place, "network": name, "weight": weight, "scale": scale, "factor": factor, "parameters": size}
            for place, (name, weight, scale, factor, size) in enumerate(
                zip(
                    self._networks(),
                    self.weights,
                    self.scales,
                    self.factors,
                    map(count_parameters, self.members),
                    strict=True,
                )
            )
        )

    def plot(self) -> Figure:
        """Return a figure with the members' weights, as shares of their sum."""
        named = (f"{place}: {name}" for place, name in enumerate(self._networks()))
        total = sum(self.weights)
        return bar_plot(dict(zip(named, (w / total for w in self.weights), strict=True)), "Weights of the members")

    def _networks(self) -> list[str]:
        """Return a name for every member: its architecture, the name that it was made by, or its class."""
        return [str(made_by(each) or _architecture_of(each) or type(each).__name__) for each in self.members]

    def _summary(self) -> Summary:
        rows = tuple(
            (str(place), name, f"{weight:.3f}")
            for place, (name, weight) in enumerate(zip(self._networks(), self.weights, strict=True))
        )
        parameters = sum(map(count_parameters, self.members))
        return Summary(
            f"{type(self).__name__} of {len(self.members)} networks, {parameters:,} parameters",
            ("member", "network", "weight"),
            rows,
        )

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Return the classes [N] of images [N, C, H, W], in evaluation mode, as the weights were fitted in.

        Raises:
            InputError: for what are no images.
        """
        images = unit_images(images)
        modes = [(module, module.training) for module in self.modules()]
        try:
            classes: Tensor = self.eval()(images).argmax(1)
        finally:
            for module, training in modes:
                module.training = training
        return classes

    @unchanged_process()
    def fit(
        self,
        validation: ImageSet,
        threat: ThreatModel | str,
        *,
        rule: EnsembleRule | str = "robboost",
        bound: Bound | str = "crown",
        progress: bool = True,
        **options: Any,
    ) -> Self:
        """Give the members the weights that a rule fits to bounds of their margins on validation images.

        Args:
            validation: images that no member was trained on and that nothing is measured on afterwards.
            threat: its epsilon is the radius of the bounds: choose one at which they say something.
            rule: gives the weights, or the name of one, whose fields `options` are.
            bound: the kind of bound, or the name of one; of large networks, "crown_ibp" is quicker.
            progress: whether to show which member is bounded, where that takes longer than a second.

        Raises:
            InputError: for an unknown rule, bound or option, members that the bound cannot handle, or limits that no
                member is within.
        """
        check_kinds("fit", validation=(validation, ImageSet))
        threat = ThreatModel.of(threat)
        if options and not isinstance(rule, str):
            raise InputError(
                f"Options such as {next(iter(options))} are for a rule that is given by its name; set them in {rule}."
            )
        check_type("bound", bound, (str, Bound), "a kind of bound, or the name of one")
        check_type("rule", rule, (str, EnsembleRule), "an ensemble rule, or the name of one")
        for place, member in enumerate(self.members if len(validation) else ()):
            try:
                check_arithmetic(member)
                check_outputs(member, validation[:8].images)
            except InputError as error:
                raise InputError(f"Member {place}: {error}") from error
        chosen = config.made(bound_group.get, bound, "bound")
        fits = config.build(ensembles.get(rule), named(options), "ensemble") if isinstance(rule, str) else rule
        shape = validation.image_shape
        self.fitted = fits.fit(
            [
                chosen.margins(member, validation.images, validation.labels, threat)
                for member in of_call(progress).steps(self.members, "ensemble: bounds of members")
            ],
            threat,
            parameters=[count_parameters(member) for member in self.members],
            multiply_adds=[count_multiply_adds(member, shape) for member in self.members],
        )
        self._weigh(self.fitted.weights, self.fitted.scales)
        return self

    def save(self, folder: Path | str) -> Path:
        """Write config.json and model.safetensors to a folder, without the members of weight 0, and return the folder.

        config.json says how the members are made: by a search space, or by a module or file of one's own. Where that is
        unknown, it has the reason.

        Raises:
            InputError: if it is a file, or cannot be made.
        """
        check_path("The folder of an ensemble", folder)
        folder = Path(folder)
        if os.path.isfile(folder):
            raise InputError(f"An ensemble is saved in a folder, but {folder} is a file; give another place.")
        check_model(self)
        used = [t for t, factor in enumerate(self.factors) if factor > 0]
        kept = Ensemble(
            [self.members[t] for t in used], [self.weights[t] for t in used], [self.scales[t] for t in used]
        )
        from safetensors.torch import save_file

        make_folder(folder, "give another place")
        state = {key: value.detach().cpu().contiguous().clone() for key, value in kept.state_dict().items()}
        with atomic_path(folder / "model.safetensors") as path:
            save_file(state, path)
        described = [_describe(member) for member in kept.members]
        write_json(
            folder / "config.json",
            {
                "version": VERSION,
                "members": described,
                "weights": kept.weights,
                "scales": kept.scales,
                "sha256": _digest(folder / "model.safetensors"),
            },
        )
        return folder

    @classmethod
    @unchanged_process()
    def load(cls, folder: Path | str, members: Sequence[nn.Module] | None = None, *, allow_code: bool = False) -> Self:
        """Return the ensemble that `save` wrote, on the CPU and in evaluation mode.

        Args:
            folder: its folder.
            members: modules to load the weights into, in the saved order; needed for those that cannot be made again.
            allow_code: whether modules and files of one's own are run that the folder names.

        Raises:
            InputError: if there is none, it is damaged or of another version, or its weights do not fit.
        """
        check_path("A saved ensemble", folder)
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder} holds no saved ensemble: it has no config.json.")
        again = "save the ensemble again"
        table = read_json(folder / "config.json", again)
        if not isinstance(table, dict) or table.get("version") != VERSION:
            raise InputError(f"{folder / 'config.json'} is no ensemble of version {VERSION}; save the ensemble again.")
        saved = records.read(folder / "config.json", records.SavedEnsemble, again, lambda *_: table)
        weights = folder / "model.safetensors"
        # Of two files, one may be of an earlier ensemble.
        if not weights.is_file() or _digest(weights) != saved.sha256:
            raise InputError(f"{weights} is not what {folder / 'config.json'} was saved with; save the ensemble again.")
        try:
            if members is None:
                with allowing_code(allow_code):
                    members = [
                        _build(table, f"Member {index} of {folder}") for index, table in enumerate(saved.members)
                    ]
            ensemble = cls(members, saved.weights, saved.scales)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(damaged(folder / "config.json", _reason(error), again)) from None
        load_weights(ensemble, weights, "give the members that were saved")
        return ensemble.eval()


def _architecture_of(member: nn.Module) -> str | None:
    source: BuiltFrom | None = getattr(member, "built_from", None)
    return None if source is None else str(source.architecture)


def _reason(error: Exception) -> str:
    """What is wrong with the tables of members, whose making raised an error."""
    if isinstance(error, KeyError):
        return f"a member has no entry {error}"
    return str(error) if isinstance(error, ValueError) else "a member has an entry of another kind than is saved"


def _describe(member: nn.Module) -> dict[str, Any]:
    """Return the recipe of a member, but for its weights."""
    if made_by(member) is not None:
        return description(member)
    if type(member) is Normalised:
        numbers = {"mean": member.mean.flatten().tolist(), "std": member.std.flatten().tolist()}
        return {"normalised": numbers, "of": _describe(member.model)}
    if type(member) is LogProbabilities:
        return {"logarithm": True, "of": _describe(member.model)}
    source: BuiltFrom | None = getattr(member, "built_from", None)
    if source is None:
        return description(member)
    data = source.data
    return {
        "space": spaces.describe(source.space),
        "architecture": str(source.architecture),
        "data": {"name": data.name, "classes": list(data.classes), "image_shape": list(data.image_shape)},
    }


def _build(table: dict[str, Any], where: str) -> nn.Module:
    """Return the member of a table that `_describe` gave."""
    if "made_by" in table and table["made_by"] is None:
        raise InputError(
            f"{where} cannot be made again: {table['why']}. Give all members, Ensemble.load(folder, members=[...]), or "
            "save an ensemble of models that a file makes, rn.load_models('my_net.py:Net')."
        )
    if "normalised" in table:
        return Normalised(_build(table["of"], where), table["normalised"]["mean"], table["normalised"]["std"])
    if "logarithm" in table:
        return LogProbabilities(_build(table["of"], where))
    if "made_by" in table:
        return make(table, where)
    form, space = table["data"], spaces.described(table["space"])
    channels, height, width = form["image_shape"]
    if not all(type(size) is int and 0 < size <= LARGEST_SIZE for size in (channels, height, width)):
        raise ValueError(f"an image_shape of {form['image_shape']}")
    if not isinstance(form["classes"], list) or not form["classes"]:
        raise ValueError("no list of classes")
    data = DataForm(str(form["name"]), tuple(map(str, form["classes"])), (channels, height, width))
    with within_memory(where, copies=1):
        return space.network(space.parse(str(table["architecture"])), data)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
