"""Results show themselves: as text, as markup, as frames, as figures; a trained module has its history."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import robust_nas as rn
from robust_nas.core.shown import Shown, Summary
from robust_nas.intake.making import description
from robust_nas.models.history import Epoch, History, remember

THREAT = rn.ThreatModel(norm="linf", epsilon=0.1)


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """One result of each kind, of the same small model and data."""
    digits = rn.datasets.load("digits")
    data = dataclasses.replace(digits, train=digits.train[:256], validation=digits.validation[:40])
    settings = {"epochs": 3, "padding": 0, "flip": False, "precision": "float32", "batch_size": 32}
    model, few = rn.train(_network(), data, THREAT, recipe="fast-cifar10", **settings), digits.test[:50]
    space = rn.spaces.load("nasbench201", channels=2, cells_per_stage=1, stages=1)
    rows = [[0.1, 0.2, 0.3, 0.15, 0.25]] * 6
    return {
        "history": model.history,
        "dataset": digits,
        "images": few,
        "search": rn.searches.SearchResult(space, rows, None, {}),
        "evaluation": rn.evaluate(model, few, THREAT, attacks=["fgsm", "pgd"]),
        "proofs": rn.certify(model, few, THREAT, epsilons=[0.001, 0.01]),
        "proof": rn.certify(model, few, THREAT)[0],
        "curve": rn.evaluation.robustness_curve(model, few, THREAT, [0, 0.05, 0.1], "pgd"),
        "distances": rn.evaluation.minimal_distortions(model, few, THREAT),
        "smoothed": rn.smooth(model, sigma=0.25, num_samples=100).certify(few[:4]),
        "ensemble": rn.Ensemble([model, _network()], [0.75, 0.25]),
    }


def test_every_result_is_shown_in_a_few_lines_and_never_as_tensors(results: dict[str, Any]) -> None:
    for name, result in results.items():
        text, markup = repr(result), result._repr_html_()
        assert "tensor(" not in text and len(text) < 2000 and len(text.split("\n")) < 20, name
        assert markup.startswith("<div>") and "tensor(" not in markup, name


def test_frames_have_the_numbers_of_the_results(results: dict[str, Any]) -> None:
    evaluation, frame = results["evaluation"], results["evaluation"].to_frame().set_index("attack")
    assert list(frame.index) == ["clean", "fgsm", "pgd", "worst case"]
    assert frame.accuracy["clean"] == evaluation.clean_accuracy
    assert frame.accuracy["worst case"] == evaluation.robust_accuracy
    assert len(evaluation.to_frame(per_image=True)) == 3 * 50
    proofs = results["proofs"]
    assert proofs.to_frame().certified.tolist() == [proof.accuracy for proof in proofs]
    assert len(proofs.to_frame(per_image=True)) == 2 * 50
    assert results["proof"].to_frame().certified.mean() == results["proof"].accuracy
    assert results["dataset"].to_frame()["count"].sum() == 1797  # scikit-learn's digits
    assert results["search"].to_frame().groupby("choice").probability.sum().round(9).tolist() == [1.0] * 6
    assert results["ensemble"].to_frame().weight.tolist() == [0.75, 0.25]
    assert results["curve"].to_frame().epsilon.tolist() == [0, 0.05, 0.1]
    assert results["distances"].to_frame().distance.tolist() == results["distances"].distances.tolist()
    assert len(results["smoothed"].to_frame()) == 4 and len(results["images"].to_frame()) == 50


def test_figures_are_returned_with_what_they_are_about_and_pyplot_knows_none(results: dict[str, Any]) -> None:
    import matplotlib.pyplot as plt

    for name, result in results.items():
        figure = result.plot()
        assert figure.axes and figure._repr_png_()[:4] == b"\x89PNG", name
    assert not plt.get_fignums()
    labels = [tick.get_text() for tick in results["evaluation"].plot().axes[0].get_yticklabels()]
    assert labels == ["clean", "fgsm linf 0.1", "pgd linf 0.1", "worst case linf 0.1"]
    (line,) = results["proofs"].plot().axes[0].lines
    clean = float(results["proof"].clean_correct.double().mean())
    assert list(line.get_ydata()) == [clean, *(proof.accuracy for proof in results["proofs"])]
    assert len(results["dataset"].plot(5).axes) == 5


def test_markup_shows_text_and_runs_none_and_long_tables_are_cut() -> None:
    rows = tuple((f"<script>{place}", "1") for place in range(30))

    class Hostile(Shown):
        def _summary(self) -> Summary:
            return Summary("<b>\x1b", ("a & b", "c"), rows, ("<i>",))

    markup = Hostile()._repr_html_()
    assert "<script>" not in markup and "<b>" not in markup and "<i>" not in markup and "\x1b" not in markup
    assert "&lt;script&gt;0" in markup and "a &amp; b" in markup and "... and 10 more" in markup
    assert len(repr(Hostile()).split("\n")) == 1 + 1 + 20 + 1 + 1


def test_a_trained_module_has_its_history_which_is_no_part_of_its_weights(results: dict[str, Any]) -> None:
    digits = rn.datasets.load("digits")
    data = dataclasses.replace(digits, train=digits.train[:256], validation=digits.validation[:40])
    settings = {"epochs": 4, "padding": 0, "flip": False, "precision": "float32", "batch_size": 32}
    model = rn.train(_network(), data, THREAT, recipe="fast-cifar10", selection_attack="fgsm", **settings)
    history = model.history
    assert [each.epoch for each in history.epochs] == [1, 2, 3, 4] and history.planned == 4
    (kept,) = history.to_frame().query("kept").to_dict("records")
    # The network has the weights of the epoch that is called kept.
    measured = rn.evaluate(model, data.validation, THREAT, attacks=["fgsm"])
    assert kept["clean"] == measured.clean_accuracy and "loss" in kept and kept["epoch"] == history.kept
    assert not any("history" in key for key in model.state_dict())
    assert copy.deepcopy(model).history == history


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)


def test_a_history_makes_no_other_model_and_replaces_no_attribute_of_the_users() -> None:
    epoch = Epoch(epoch=1, loss=1.0, validation={"clean": 0.5, "robust": 0.25}, learning_rate=0.1, seconds=1.0)
    model, history = Own(), History((epoch,), 1, 1)
    before = description(model)
    remember(model, history)
    assert vars(model)["history"] is history and description(model) == before
    theirs = Own()
    theirs.history = [1, 2]  # type: ignore[assignment]
    with pytest.warns(UserWarning, match="'history' of its own"):
        remember(theirs, history)
    assert theirs.history == [1, 2]  # type: ignore[comparison-overlap]


def test_the_packages_names_are_all_listed_and_found() -> None:
    assert set(rn.__all__) <= {*dir(rn)} and {*rn._FROM, *rn._MODULES} | {"__version__"} == {*rn.__all__}
    assert all(hasattr(rn, name) for name in rn.__all__)
    assert [*rn.__all__] == sorted(rn.__all__)


def test_a_run_shows_what_was_measured_so_far(tmp_path: Path) -> None:
    from robust_nas.api import Run

    evaluation = rn.evaluate(_network(), rn.datasets.load("digits").test[:50], THREAT, attacks=["fgsm"])
    evaluation.save(tmp_path, "model-0")
    models = dict.fromkeys(["model-0"], nn.Identity())
    empty, run = (Run(place, rn.datasets.load("digits"), models, THREAT) for place in (tmp_path / "no", tmp_path))
    assert "1 network" in repr(empty) and empty.to_frame().empty
    (tmp_path / "evaluation.json").write_text(
        (tmp_path / "evaluation.json").read_text().replace('"models"', '"num_images": 50, "models"', 1)
    )
    found = run.to_frame().set_index("measure").accuracy
    assert found["clean"] == evaluation.clean_accuracy and found["worst case"] == evaluation.robust_accuracy
    assert f"{100 * evaluation.clean_accuracy:.1f}" in repr(run) and len(run.plot().axes) == 1
    (tmp_path / "evaluation.json").write_text("{")
    assert "beware" in repr(run)  # a damaged file is said; to show an object raises nothing
