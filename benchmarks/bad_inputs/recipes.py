"""Recipes and overrides."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from cases import DEEP, DIGITS, Case
from good_files import catalogued
from spoiling import as_folder, as_loop, put, renamed


def recipes() -> Iterator[Case]:
    """Recipes and overrides."""
    for override in (
        *("train.epochs=three", "train.epochs=-1", "train.epochs=0", "train.epochs=1.5", "train.epochs=true"),
        *("train.epochs=nan", f"train.epochs={DIGITS}", "train.epochs=1e400", "train.epochs=[3]", "train.epochs="),
        *("train.learning_rate=inf", "train.learning_rate=nan", "train.learning_rate=-0.1", "train.learning_rate=''"),
        *("train.learning_rate=1e400", "train.learning_rate=true", f"train.learning_rate={DIGITS}"),
        *("train.batch_size=0", "train.batch_size=1_000_000_000", "train.weight_decay=-1", "train.weight_decay=inf"),
        *("train=3", "train.method=3", "train.method={}", "train.method={name=3}", "train.method.name=''"),
        *("train.method.attack.steps=-1", "train.method.attack.step_size=nan", "train.label_smoothing=2"),
        *("threat.epsilon=0", "threat.epsilon=-0.1", "threat.epsilon=nan", "threat.epsilon=inf", "threat.epsilon=8/0"),
        *("threat.epsilon=8//255", "threat.epsilon=true", "threat.epsilon=[0.1]", "threat.norm=l3", "threat=linf:0.1"),
        *(f"threat.epsilon={DIGITS}", f"threat.epsilon={DIGITS}/255", f"threat.epsilon=1/{DIGITS}", "threat.epsilon=٣"),
        *("space.channels=0", "space.channels=-8", "space.channels=1000000", f"space.channels={DIGITS}"),
        *("space.num_nodes=1", "space.num_nodes=40", "space.num_nodes=100000", "space.stages=30", "space.stages=0"),
        *("space.cells_per_stage=100000000", "space.operations=[]", "space.operations=['none', 'none']"),
        *("space.operations=[1, 2]", "space.operations='none'", "space=3", "space=[]", "space.kind=cellular"),
        *("search.name=", "search.name=3", "search.epochs=0", "search.batch_size=-3"),
        *("search.learning_rate=-inf", "search.kept_operations=[0, 0]", "search.kept_operations=[9, 9]"),
        *("search.partial_channels=[3, 1]", "search.partial_channels=[0, 0]"),
        *("derive.count=0", "derive.count=1000000", "derive.pool=-1", "derive.method=guess", "derive.diversity=nan"),
        *("evaluation.attacks=pgd", "evaluation.attacks=[]", "evaluation.attacks=[3]", "evaluation.attacks=['pgd','pgd']"),
        *("evaluation.curve_epsilons=[nan]", "evaluation.curve_epsilons=[-1]", "evaluation.num_images=0"),
        *("evaluation.batch_size=0", "evaluation.batch_size=1.0", "evaluation.num_images=true"),
        *("certification.epsilons=[]", "certification.epsilons=[0]", "certification.epsilons=[nan]"),
        *("certification.bound=guess", "certification.num_images=-1", "certification.bound={name='auto',memory=-1}"),
        *("ensemble.rule=guess", "ensemble.epsilon=nan", "ensemble.epsilon=-1", "ensemble.num_images=0"),
        *("seed=x", f"seed={DIGITS}", "seed=1.5", "seed=true", "workers=0", "workers=-3", "threads=0"),
        *("threads=-1", "workers=1000000000000", "device=gpu", "device=cuda:99", "version=3", "version='2'", "version=true"),
        *("name=''", "name=a/b", "name=..", "name='a\\nb'", f"name={'x' * 300}", "name=3", "name=\"a\\u0000b\""),
        *("data=digitss", "data={}", "data.size=0", "data.validation_size=-1", "data.validation_size=100000", "=3", "train"),
        *("train.epochs.x=3", "a=b", "..=3", "train..epochs=3", f"x{'.x' * 2000}=1", f"train.knots={DEEP}"),
        *("train.knots=[{epoch=0}]", "train.knots=[1]", "train.method={name='pgd_at', name='trades'}"),
    ):  # fmt: skip
        yield Case("recipes and overrides", override[:60], ["run", "digits", "train.epochs=1", override])
    good = catalogued("recipes", "digits").read_text()
    for name, text in {
        "empty": "",
        "not TOML": "{ a: 1 }",
        "no sections": "version = 2\n",
        "a section that is a number": re.sub(r"(?m)^data = .*$", "data = 3", good)
        if "\ndata =" in good
        else "data = 3",
        "a key given twice": good + "\n[train]\n[train]\n",
        "an unknown section": good + "\n[trian]\nepochs = 3\n",
        "nested thousands deep": f"version = 2\nx = {DEEP}\n",
        "dotted thousands deep": f"x{'.x' * 5000} = 1\n",
        "an integer of 400 digits": f"seed = {DIGITS}\n" + good,
        "an integer of 5,000 digits": f"seed = {'9' * 5000}\n" + good,
        "a UTF-16 file": good.encode("utf-16"),
        "a latin-1 file": (good + "\n# caf\xe9\n").encode("latin-1"),
        "binary": bytes(range(256)),
        "null bytes": b"\0" * 100,
        "an unknown version": good.replace("version = 2", "version = 99"),
    }.items():
        yield Case("recipes and overrides", f"a recipe: {name}", ["run", "recipe.toml"], put("recipe.toml", text))
    bom = b"\xef\xbb\xbf" + good.encode()
    yield Case(
        "recipes and overrides", "a recipe: with a BOM", ["run", "recipe.toml", "seed=x"], put("recipe.toml", bom)
    )
    yield Case("recipes and overrides", "a recipe: a folder", ["run", "recipe.toml"], as_folder("recipe.toml"))
    yield Case("recipes and overrides", "a recipe: a link to itself", ["run", "recipe.toml"], as_loop("recipe.toml"))
    yield Case("recipes and overrides", "a recipe: a missing file", ["run", "other.toml"])
    name = b"rec\xffipe.toml"
    yield Case("recipes and overrides", "a recipe: a name that is no text, bad", ["run", os.fsdecode(name), "seed=x"],
               renamed("recipe.toml", name))  # fmt: skip
