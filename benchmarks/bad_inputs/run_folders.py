"""The files of a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from cases import DEEP, Case
from spoiling import as_folder, as_loop, cut, each, edit, outcomes, put, renamed, swap, weights, without

STAGE_FILES = ("search", "derive", "train", "evaluation", "certification", "ensemble", "record", "environment")


def run_folders() -> Iterator[Case]:
    """Files of a run folder that are well-formed and of another shape, damaged, or no files."""
    kind = "files of a run"
    for stage in STAGE_FILES:
        file = f"RUN/{stage}.json"
        shapes = {"null": "null", "a list": "[]", "an empty object": "{}", "a number": "3"}
        for shape, text in shapes.items():
            yield Case(kind, f"{stage}.json is {shape} (report)", ["report", "RUN"], put(file, text))
        for verb in ("info",) if stage in ("train", "evaluation", "certification") else ():
            for shape, text in shapes.items():
                yield Case(kind, f"{stage}.json is {shape} ({verb})", [verb, "RUN"], put(file, text))
        damages = {"empty": put(file, ""), "cut off": cut(file), "no text": put(file, b"\xff\xfe\x00"),
                   "a folder": as_folder(file), "a link to itself": as_loop(file),
                   "nested thousands deep": put(file, DEEP), "a number of 5,000 digits": put(file, "9" * 5000)}  # fmt: skip
        for damage, change in damages.items():
            if stage in ("evaluation", "train") or damage in ("empty", "a folder"):
                yield Case(kind, f"{stage}.json is {damage}", ["report", "RUN"], change)

    def model(change: Callable[[Any], object]) -> Callable[[Any], object]:
        return lambda value: change(value["models"]["model-0"])

    def first(change: Callable[[Any], object]) -> Callable[[Any], object]:
        return lambda value: change(value["models"][0])

    inside: dict[str, dict[str, Callable[[Any], object]]] = {
        "evaluation": {
            "models are a list": lambda v: v.update(models=[1]),
            "a model is null": lambda v: v["models"].update({"model-0": None}),
            "a model without clean": model(lambda m: m.pop("clean")),
            "an accuracy is a word": model(lambda m: m["clean"].update(accuracy="high")),
            "an accuracy is NaN": model(lambda m: m["clean"].update(accuracy=float("nan"))),
            "an accuracy is 7": model(lambda m: m["clean"].update(accuracy=7)),
            "an accuracy is true": model(lambda m: m["clean"].update(accuracy=True)),
            "attacks are an object": model(lambda m: m.update(attacks={})),
            "an attack without a radius": model(lambda m: m["attacks"][0].pop("epsilon")),
            "a radius is a list": model(lambda m: m["attacks"][0].update(epsilon=[1])),
            "a radius is infinite": model(lambda m: m["attacks"][0].update(epsilon=float("inf"))),
            "the worst case is a list": model(lambda m: m.update(worst_case=[])),
            "a check without its name": model(lambda m: m["masking"][0].pop("check")),
            "a curve of numbers": model(lambda m: m.update(curve=[0.1, 0.2])),
            "a confusion of words": model(lambda m: m.update(confusion="many")),
            "a confusion that is ragged": model(lambda m: m.update(confusion=[[1], [1, 2]])),
            "distances are an object": model(lambda m: m.update(distortions={})),
            "classes are a number": lambda v: v.update(classes=3),
            "classes are numbers": lambda v: v.update(classes=[1, 2, 3]),
            "the number of images is a word": lambda v: v.update(num_images="many"),
            "other epochs are a list": lambda v: v.update(other_epochs=[1]),
        },
        "train": {
            "models are an object": lambda v: v.update(models={}),
            "a model is a number": lambda v: v.update(models=[3]),
            "a model without a name": first(lambda m: m.pop("name")),
            "a name is a number": first(lambda m: m.update(name=3)),
            "two models of one name": lambda v: v["models"].append(v["models"][0]),
            "an architecture is a number": first(lambda m: m.update(architecture=323133)),
            "an architecture is no architecture": first(lambda m: m.update(architecture="|a~0|")),
            "the validation is a list": first(lambda m: m.update(validation=[0.5])),
            "an epoch is a word": first(lambda m: m.update(best_epoch="last")),
            "parameters are a word": first(lambda m: m.update(parameters="many")),
        },
        "search": {
            "no edges": lambda v: (v.pop("edges", None), v.pop("edge_names", None)),
            "operations are a number": lambda v: v.update(operations=3),
            "a trajectory of numbers": lambda v: v.update(trajectory=[1, 2]),
            "a row without its epoch": lambda v: v["trajectory"][0].pop("epoch"),
            "the mixture is a word": lambda v: v["trajectory"][0].update(concentration="x", mixture="x"),
            "probabilities are words": lambda v: v.update(probabilities=[["a", "b"]]),
            "a space of another kind": lambda v: v.update(space=3),
            "collapses are words": lambda v: v.update(collapses=["epoch 3"]),
        },
        "derive": {
            "candidates are a number": lambda v: v.update(candidates=3),
            "a candidate without its posterior": lambda v: v["candidates"][0].pop("log_posterior"),
            "chosen are numbers": lambda v: v.update(chosen=[1, 2]),
            "spaces are numbers": lambda v: v.update(spaces=[1, 2]),
            "the time is a word": lambda v: v.update(seconds="long"),
        },
        "certification": {
            "models are a list": lambda v: v.update(models=[1]),
            "a result without its accuracy": lambda v: v["models"]["model-0"][0].pop("certified"),
            "an accuracy is NaN": lambda v: v["models"]["model-0"][0].update(certified=float("nan")),
            "a radius is a word": lambda v: v["models"]["model-0"][0].update(epsilon="big"),
            "results are an object": lambda v: v["models"].update({"model-0": {}}),
            "left out are a list": lambda v: v.update(left_out=[1]),
        },
        "ensemble": {
            "more weights than members": lambda v: v["weights"].append(1.0),
            "weights are NaN": lambda v: v.update(weights=[float("nan")] * 2),
            "weights are words": lambda v: v.update(weights=["a", "b"]),
            "all weights are 0": lambda v: v.update(weights=[0.0] * len(v["weights"])),
            "members are a number": lambda v: v.update(members=3),
            "no members": lambda v: v.pop("members"),
        },
        "record": {"rows are a word": lambda v: v.update(rows="many")},
        "environment": {
            "packages are a list": lambda v: v.update(packages=[1]),
            "arguments are a number": lambda v: v.update(arguments=3),
        },
    }  # fmt: skip
    for stage, changes in inside.items():
        for name, change in changes.items():
            yield Case(kind, f"{stage}.json: {name}", ["report", "RUN"], edit(f"RUN/{stage}.json", change))
    # What stages read, of other files and for other commands.
    for name, line, change, *may_work in (
        ("derive.json: chosen are numbers", ["info", "BEGUN"], put("BEGUN/derive.json", '{"chosen": 3}')),
        ("search.json is an empty object", ["info", "BEGUN"], put("BEGUN/search.json", "{}")),
        ("search.json: rows of other lengths", ["derive", "BEGUN"],
         edit("BEGUN/search.json", lambda v: v.update(probabilities=[[0.5, 0.5]]))),
        ("search.json: probabilities are NaN", ["derive", "BEGUN"],
         edit("BEGUN/search.json", lambda v: v.update(probabilities=[[float("nan")] * 5] * 6))),
        ("search.json: the supernet's form is a number", ["derive", "BEGUN"],
         edit("BEGUN/search.json", lambda v: v.update(supernet=3))),
        ("search.json is null", ["derive", "BEGUN"], put("BEGUN/search.json", "null")),
        ("derive.json is a list", ["train", "BEGUN"], put("BEGUN/derive.json", "[]")),
        ("train.json is an empty object", ["attack", "RUN"], put("RUN/train.json", "{}")),
        ("train.json: no validation", ["attack", "RUN"], edit("RUN/train.json", first(lambda m: m.pop("validation")))),
        ("train.json: another model's name", ["attack", "RUN"], edit("RUN/train.json", first(lambda m: m.update(name="x")))),
        ("evaluation.json is a list", ["attack", "RUN"], put("RUN/evaluation.json", "[]")),
        ("evaluation.json: models are a list", ["record", "RUN"],
         each(without("RUN/record.json"), edit("RUN/evaluation.json", lambda v: v.update(models=[])))),
        ("environment.json is an empty object", ["record", "RUN"],
         each(without("RUN/record.json"), put("RUN/environment.json", "{}"))),
        ("environment.json: the start is no time", ["record", "RUN"],
         each(without("RUN/record.json"), edit("RUN/environment.json", lambda v: v.update(started="yesterday")))),
        ("certification.json is a number", ["certify", "RUN"], put("RUN/certification.json", "3")),
        ("certification.json: models are a list", ["record", "RUN"],
         each(without("RUN/record.json"), edit("RUN/certification.json", lambda v: v.update(models=[])))),
        ("ensemble.json is a list", ["ensemble", "RUN"], put("RUN/ensemble.json", "[]")),
        ("train.json: models are words", ["ensemble", "build", "--from", "RUN"], put("RUN/train.json", '{"models": ["a"]}')),
        ("smoothed certification is a list", ["report", "RUN"],
         lambda folder: next(folder.glob("RUN/certify-*/certification.json")).write_text("[]")),
        ("smoothed certification without sigma", ["report", "RUN"],
         lambda folder: edit(str(next(folder.glob("RUN/certify-*/certification.json")).relative_to(folder)),
                             lambda v: v.pop("sigma"))(folder)),
        ("metrics.jsonl: rows without a stage", ["report", "RUN"], put("RUN/metrics.jsonl", '{"a": 1}\n')),
        ("metrics.jsonl: rows are lists", ["report", "RUN"], put("RUN/metrics.jsonl", "[1]\n")),
        ("metrics.jsonl: a step is a word", ["report", "RUN"], put("RUN/metrics.jsonl", '{"stage":"train-0","step":"x"}\n')),
        ("metrics.jsonl: no text", ["report", "RUN"], put("RUN/metrics.jsonl", b"\xff\xfe\n")),
        ("metrics.jsonl is a folder", ["report", "RUN"], as_folder("RUN/metrics.jsonl")),
        ("metrics.jsonl: an accuracy is a word", ["report", "RUN"],
         put("RUN/metrics.jsonl", '{"stage":"train-0","step":1,"validation_clean":"x","validation_robust":0.1}\n')),
        ("config.toml is empty", ["report", "RUN"], put("RUN/config.toml", "")),
        ("config.toml is empty (info)", ["info", "RUN"], put("RUN/config.toml", ""), True),
        ("config.toml is a folder", ["report", "RUN"], as_folder("RUN/config.toml")),
        ("config.toml is no text", ["report", "RUN"], put("RUN/config.toml", b"\xff\xfe")),
        ("config.toml: no threat", ["report", "RUN"], swap("RUN/config.toml", r"\[threat\][^\[]*", "")),
        ("config.toml: a threat of another shape", ["report", "RUN"], swap("RUN/config.toml", r"\[threat\][^\[]*", "")),
        ("config.toml: a seed is a word", ["report", "RUN"], swap("RUN/config.toml", r"seed = \d+", 'seed = "x"')),
        ("config.toml: nested thousands deep", ["report", "RUN"], swap("RUN/config.toml", r"seed = \d+", f"seed = {DEEP}")),
        ("config.toml: another number of nodes", ["attack", "RUN", "--threat", "linf:0.1"],
         swap("RUN/config.toml", r"num_nodes = \d+", "num_nodes = 5")),
        ("config.toml: no space", ["attack", "RUN", "--threat", "linf:0.1"],
         swap("RUN/config.toml", r"(?ms)^\[space\]\n.*?^(?=\[\w)", "")),
        ("config.toml: no data set", ["record", "RUN"],
         each(without("RUN/record.json"), swap("RUN/config.toml", r"(?ms)^\[data\]\n.*?^(?=\[\w)", ""))),
        ("evaluation.parquet of other columns", ["report", "RUN"], outcomes("RUN/evaluation.parquet"), True),
        ("certificates.parquet of other columns", ["report", "RUN"], outcomes("RUN/certificates.parquet")),
        ("evaluation.parquet is cut off", ["report", "RUN"], cut("RUN/evaluation.parquet")),
        ("evaluation.parquet of other columns, added to", ["attack", "RUN"],
         each(outcomes("RUN/evaluation.parquet"), edit("RUN/evaluation.json", lambda v: v["models"].pop("model-1")))),
        ("certificates.parquet of other columns, added to", ["certify", "RUN"],
         each(outcomes("RUN/certificates.parquet"), edit("RUN/certification.json", lambda v: v["models"].pop("model-1")))),
        ("certify beside, of other columns", ["certify", "RUN", "--method", "smoothing[sigma=0.25,num_samples=20]", "--images", "4"],
         lambda folder: outcomes(str(next(folder.glob("RUN/certify-*/certificates.parquet")).relative_to(folder)))(folder)),
        ("examples of other shape", ["report", "RUN"],
         lambda folder: weights(str(next(folder.glob("RUN/checkpoints/examples*")).relative_to(folder)), a_b=(2,))(folder)),
        ("a state of other steps", ["run", "--resume", "BEGUN"],
         lambda folder: weights("BEGUN/checkpoints/train-0.state.safetensors", a_b=(2,))(folder)),
        ("checkpoints is a file", ["attack", "RUN", "--threat", "linf:0.1", "--images", "4"],
         each(without("RUN/checkpoints"), put("RUN/checkpoints", ""))),
        ("a run whose name is no text", ["report", os.fsdecode(b"R\xffN")], renamed("RUN", b"R\xffN"), True),
        ("a run whose name is no text, bad", ["report", os.fsdecode(b"R\xffN")],
         each(put("RUN/train.json", "[]"), renamed("RUN", b"R\xffN"))),
        ("a run whose name is no text, attacked", ["attack", os.fsdecode(b"R\xffN"), "--threat", "linf:0.1", "--images", "4", "--attack", "fgsm"],
         renamed("RUN", b"R\xffN"), True),
        ("no permission", ["report", "RUN"], lambda folder: (folder / "RUN/train.json").chmod(0)),
        ("no permission for config.toml", ["info", "RUN"], lambda folder: (folder / "RUN/config.toml").chmod(0), True),
        ("no permission for the folder", ["report", "RUN"], lambda folder: (folder / "RUN").chmod(0o500), True),
    ):  # fmt: skip
        yield Case(kind, f"{name} ({line[0]})", line, change, bool(may_work))
