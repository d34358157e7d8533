"""The grid of a scaling study: networks by depth and width, training settings and seeds."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from robust_nas import recipes
from robust_nas.architectures.resnet import ResNetArchitecture, check_net, parse_widths, width_text
from robust_nas.core import config
from robust_nas.core.catalogue import expanded
from robust_nas.core.errors import InputError, suggest
from robust_nas.core.registry import name_of
from robust_nas.recipes import Recipe

MANY_CELLS = 10_000
"""The number of cells above which a grid is taken for a slip of the pen."""

MOST_SEEDS = 100_000
"""The largest number of seeds that is counted and not listed."""

SMALL = 64
"""The largest side in pixels of images for which the line of networks is that for CIFAR, where none is given."""

NORMS = {"plain": "batch"}
"""Values of train.norm by other names that people have for them."""

OWN = {
    "seed": "seeds are --seeds",
    "name": "names are made from the grid",
    "search": "networks are --depths, --widths and --options",
    "space": "networks are --depths, --widths and --options",
    "derive": "networks are --depths, --widths and --options",
}
"""The keys of a recipe that the grid itself makes, and from what."""

SHORT = {"norms": "train.norm", "clean_images": "train.method.clean_images", "epochs": "train.epochs"}
"""The settings that vary by options of their own."""

GRID_WORDS = ("depths", "widths", "seeds", "net", "options", "train", "threat", "vary", "certify")
"""The other words of a grid."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A setting that varies over a grid.

    Args:
        key: of the recipe, such as "train.norm".
        values: as they are written, such as "batch" and "mixture".
    """

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """All cells of a study: every depth with every width, in every setting that varies, from every seed.

    Args:
        data: a data set that has a recipe, which says how to train and attack, or a folder of class folders.
        net: the line of networks: resnet, preact-resnet, cifar-resnet or wrn.
        depths: layers with weights.
        widths: multipliers of the channels, "2", or one for each stage, "1-1-1.5-2".
        options: the rest of the architectures' strings, "norm=group:8 se=relu".
        seeds: of all draws.
        train: the training method; the recipe's with its settings, if it is the same.
        threat: such as "linf:8/255"; the recipe's, if not given.
        vary: settings that vary, such as train.norm over batch and mixture.
        settings: key=value assignments to the recipe of every cell.
        certify: whether cells are certified, too.

    Raises:
        InputError: for an axis that is empty or has the same value twice, or a depth or width that there is not.
    """

    data: str
    net: str = "cifar-resnet"
    depths: tuple[int, ...]
    widths: tuple[str, ...] = ("1",)
    options: str = ""
    seeds: tuple[int, ...] = (0,)
    train: str | None = None
    threat: str | None = None
    vary: tuple[Axis, ...] = ()
    settings: tuple[str, ...] = ()
    certify: bool = False

    def __post_init__(self) -> None:
        check_net(self.net)
        object.__setattr__(self, "widths", tuple(map(_width, self.widths)))
        if len({axis.key for axis in self.vary}) < len(self.vary):
            raise InputError("A setting varies twice in the grid; give all of its values at once.")
        for axis, values in self._axes.items():
            if not values:
                raise InputError(f"The axis '{axis}' of the grid has no value; give it one or more, such as 20,38.")
            counts = Counter(values)
            if twice := next((value for value, count in counts.items() if count > 1), None):
                raise InputError(f"The axis '{axis}' of the grid has {twice} twice; give each value once.")
        self._check_keys()
        for depth, width in itertools.product(self.depths, self.widths):
            self.architecture(depth, width)
        if not self.varied:
            raise InputError(
                "Every cell of this grid has a norm for clean images, of which there are none; add shares above 0 to "
                "--clean-images, or plain to --norms."
            )
        depth, width, seed = self.depths[0], self.widths[0], self.seeds[0]
        first, names = self.architecture(depth, width), set[str]()
        for each in self.varied:
            name = Cell(grid=self, depth=depth, width=width, network=first, seed=seed, varied=each).name
            if name in names:
                raise InputError(f"Two settings of the grid would have the folder {name}; give one of them otherwise.")
            names.add(name)

    def _check_keys(self) -> None:
        """Raise InputError for settings that the grid itself makes, or that change what its rows say of the data."""
        given = [setting.partition("=")[0] for setting in self.settings]
        for key in (*given, *(axis.key for axis in self.vary)):
            part = key.partition(".")[0]
            if part in OWN:
                raise InputError(f"'{key}' is not a setting of a study's cells, whose {OWN[part]}.")
        for axis in self.vary:
            if axis.key.partition(".")[0] == "data":
                raise InputError(f"A study has one data set, but '{axis.key}' varies; make a study of each.")

    @property
    def _axes(self) -> dict[str, Sequence[Any]]:
        found: dict[str, Sequence[Any]] = {"depths": self.depths, "widths": self.widths, "seeds": self.seeds}
        return found | {axis.key: axis.values for axis in self.vary}

    def __len__(self) -> int:
        return len(self.depths) * len(self.widths) * len(self.seeds) * len(self.varied)

    @property
    def varied(self) -> list[dict[str, str]]:
        """The combinations of the settings that vary.

        Left out are those with several norms and no clean images: all images would go through one, which is the plain
        norm.
        """
        keys = [axis.key for axis in self.vary]
        every = (dict(zip(keys, values, strict=True)) for values in itertools.product(*(a.values for a in self.vary)))
        return [each for each in every if not _has_idle_norms(each)]

    def architecture(self, depth: int, width: str) -> ResNetArchitecture:
        """Return the network of a depth and a width.

        Raises:
            InputError: for a depth that no split reaches, with the nearest, or a width that groups do not divide.
        """
        return ResNetArchitecture.parse(f"{self.net}-{depth} width={width} {self.options}".rstrip())

    def cells(self) -> list[Cell]:
        """Return all cells: the small networks first, and seed by seed, so that an early end leaves whole grids."""
        networks = {(depth, width): self.architecture(depth, width) for depth in self.depths for width in self.widths}
        return [
            Cell(grid=self, depth=depth, width=width, network=network, seed=seed, varied=each)
            for seed in self.seeds
            for (depth, width), network in networks.items()
            for each in self.varied
        ]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A network, to be trained and attacked in one way from one seed."""

    grid: Grid
    depth: int
    width: str
    network: ResNetArchitecture
    seed: int
    varied: Mapping[str, str]

    @property
    def name(self) -> str:
        """The name of its run folder."""
        found = [f"{self.grid.net}-{self.depth}", f"width={self.width}"]
        last = [key.rpartition(".")[2] for key in self.varied]
        for key, short in zip(self.varied, last, strict=True):
            shown = short if last.count(short) == 1 else key
            found.append(f"{shown}={_in_name(self.varied[key])}")
        return "_".join([*found, f"seed={self.seed}"])

    @cached_property
    def recipe(self) -> Recipe:
        """The run of this cell.

        Raises:
            InputError: for a mistake in the settings.
        """
        grid = self.grid
        assignments = [f"{key}={value}" for key, value in self.varied.items()]
        method: list[str] = []
        if grid.train is not None:
            own = recipes.load(grid.data).train.method
            method = [] if name_of(own) == grid.train else [f"train.method={grid.train}"]
        overrides = [*method, *grid.settings, *assignments, f"seed={self.seed}", f"name={self.name}"]
        return recipes.for_model(str(self.network), overrides, data=grid.data, threat=grid.threat)


def from_words(
    overrides: Sequence[str] = (),
    *,
    data: str,
    depths: str,
    widths: str = "1",
    net: str | None = None,
    options: str = "",
    seeds: str = "1",
    train: str | None = None,
    threat: str | None = None,
    vary: Sequence[str] = (),
    data_root: Path | None = None,
    size: int | None = None,
    certify: bool = False,
    yes: bool = False,
    **short: str,
) -> Grid:
    """Return the grid that the words of a command describe.

    Args:
        overrides: KEY=VALUE for all cells.
        data: a data set that has a recipe, or a folder of class folders.
        depths: such as 20,38,74,146.
        widths: such as 1,2 or 1,1-1-1.5-2.
        net: a line of networks; "cifar-resnet" for images of up to `SMALL` pixels, else "resnet".
        options: the rest of the architectures' strings.
        seeds: how many, from 0 on; or a list, 0,1,2.
        train: the training method.
        threat: such as linf:8/255.
        vary: KEY=VALUE,VALUE,... of each further setting that varies.
        data_root: the folder of the data set's files.
        size: pixels a side of the images, if the data set is not to be asked.
        certify: whether cells are certified, too.
        yes: whether a grid of more than `MANY_CELLS` is meant.
        short: values of the settings in `SHORT`, by their names there.

    Raises:
        InputError: for words that are no grid, a grid that is too large to be meant, or what `Grid` raises.
    """
    for name in short:
        if name not in SHORT:
            raise InputError(f"A grid has no '{name}'. {suggest(name, [*SHORT, *GRID_WORDS])}")
    axes = [(SHORT[name], values) for name, values in short.items()]
    for word in vary:
        key, equals, values = word.partition("=")
        if not equals:
            raise InputError(f"A setting that varies is written KEY=VALUE,VALUE, but got '{word}'.")
        axes.append((key, values))
    if Path(data).is_dir() and data not in recipes.names():
        data = str(Path(data).resolve())  # cells are processes, maybe in other folders
    found = Grid(
        data=data,
        net=net or _net_for(data, size, overrides, data_root),
        depths=tuple(_whole(depth, "depths", "20,38") for depth in _listed(depths)),
        widths=tuple(_listed(widths)),
        options=options,
        seeds=_seeds(seeds),
        train=train,
        threat=threat,
        vary=tuple(Axis(key=key, values=tuple(NORMS.get(each, each) for each in _listed(text))) for key, text in axes),
        settings=(*([] if data_root is None else [f"data.root={expanded(data_root).resolve()}"]), *overrides),
        certify=certify,
    )
    if len(found) > MANY_CELLS and not yes:
        raise InputError(
            f"The grid has {len(found):,} cells, each of them a training; if that is meant, give --yes as well."
        )
    return found


def _listed(text: str) -> list[str]:
    """Return the parts between commas, but for those in brackets."""
    return [part.strip() for part in re.split(r",(?![^\[{(]*[\]})])", text) if part.strip()]


def _whole(text: str, axis: str, example: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text):
        raise InputError(f"--{axis} are whole numbers, such as {example}, but got '{text}'.")
    return int(text)


def _seeds(text: str) -> tuple[int, ...]:
    listed = [
        _whole(
            part,
            "seeds",
            "3 (how many) or 0,1,2",
        )
        for part in _listed(text)
    ]
    if "," in text:
        return tuple(listed)
    (count,) = listed or [0]
    if not 1 <= count <= MOST_SEEDS:
        raise InputError(f"--seeds says how many, from 1 to {MOST_SEEDS:,}, or lists them, 0,1,2, but got '{text}'.")
    return tuple(range(count))


def _net_for(data: str, size: int | None, overrides: Sequence[str], data_root: Path | None) -> str:
    """Return the line of networks for a data set, whose files are read if nothing else says the images' size."""
    if size is None:
        of_data = [each for each in overrides if each.startswith("data.")]
        source = recipes.load(data, of_data, data_root=data_root).data
        size = getattr(source, "size", None) or max(source.load_splits().image_shape[1:])
    return "cifar-resnet" if size <= SMALL else "resnet"


def _width(text: str) -> str:
    """Return a width as it is written, once where it is the same in all stages."""
    widths = [width_text(width) for width in parse_widths(text)]
    return widths[0] if len({*widths}) == 1 else "-".join(widths)


def _has_idle_norms(varied: Mapping[str, str]) -> bool:
    """Whether settings have a norm for clean images, of which there are none."""
    clean = varied.get(SHORT["clean_images"], "")
    return bool(re.fullmatch(r"0*\.?0*", clean)) and clean != "" and varied.get(SHORT["norms"], "batch") != "batch"


def _in_name(value: str) -> str:
    """Return a value as a part of a folder's name."""
    return "".join(letter if letter.isalnum() or letter in ".-+[],=" else "-" for letter in value)


def read(path: Path) -> Grid:
    """Return the grid of a study's folder.

    Raises:
        InputError: if it is none.
    """
    file = path / "study.toml"
    if not file.is_file():
        raise InputError(
            f"{path} is not the folder of a scaling study: it has no study.toml. 'robust-nas scale run' makes one."
        )
    return config.build(Grid, config.read_toml(file))
