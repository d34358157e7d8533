"""A robust-accuracy table under the names that users of the NAS-Bench-201 API know.

    api = NASBench201API("nas-robbench-201")
    index = api.query_index_by_arch(api.arch(1000))
    api.get_more_info(index, "cifar10", metric="pgd@8/255")["test-accuracy"]

Names and forms of arguments are NAS-Bench-201's (arXiv:2001.00326, and its API's documentation). The differences, where
the published API would have to guess:

- Every accuracy is of one measured quantity, which `metric` names ("clean", "pgd@8/255"): there is no default.
- Accuracies are in percent, as there. Networks are measured once, after their last epoch: another `iepoch` is refused.
- Values that a table does not have (losses, times, latency) are NaN in tuples and left out of dictionaries.
- `hp` is refused, unless it is None: a table has one training recipe, which `rn.tables.load(name).columns` names.
- Results are those of the class: all of the 15,625 strings have an index, also those that were not trained themselves.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path

from robust_nas import tables
from robust_nas.architectures.cell import Architecture
from robust_nas.core.errors import InputError, suggest
from robust_nas.tables import ArchitectureNotInTable, Table, answers

_DATASETS = {"ImageNet16-120": "imagenet16-120"}
"""NAS-Bench-201's names of data sets, where they are not ours."""


class NASBench201API:
    """A table of NAS-Bench-201 networks, by the names of that benchmark's API.

    Args:
        table: a table, or the name or path of one; it must number its architectures.

    Raises:
        InputError: if the table is not there, or does not number architectures.
    """

    def __init__(self, table: Table | str | Path) -> None:
        self.table = table if isinstance(table, Table) else tables.load(table)
        if not self.table.index:
            raise InputError(
                f"The table {self.table.name} does not number architectures, as NAS-Bench-201 does; use its `query`."
            )
        self._number = {digits: number for number, digits in enumerate(self.table.index)}
        self.used_time = 0.0
        self.num_queries = 0

    def __len__(self) -> int:
        return len(self.table.index)

    def __getitem__(self, index: int) -> str:
        return self.arch(index)

    def __iter__(self) -> Iterator[str]:
        return (self.arch(index) for index in range(len(self)))

    def arch(self, index: int) -> str:
        """Return the string form of the architecture with this index."""
        if not 0 <= index < len(self):
            raise ArchitectureNotInTable(f"There are architectures 0 to {len(self) - 1}, but got {index}.")
        return str(Architecture.parse(self.table.index[index]))

    def random(self, seed: int | None = None) -> int:
        """Return the index of a random architecture."""
        return random.Random(seed).randrange(len(self))

    def query_index_by_arch(self, arch: str | Architecture) -> int:
        """Return an architecture's own index, or -1 if it has none (as NAS-Bench-201 does)."""
        parsed = arch if isinstance(arch, Architecture) else Architecture.parse(arch)
        return self._number.get(parsed.digits(), -1)

    def query_by_index(
        self, index: int, dataname: str | None = None, hp: str | None = None
    ) -> dict[str, dict[str, float]]:
        """Return all accuracies of an architecture in percent, by data set and metric; of one data set, if given."""
        self._check(hp)
        found: dict[str, dict[str, float]] = {}
        for result in self.table.results(index, **({} if dataname is None else {"dataset": self._dataset(dataname)})):
            found.setdefault(result.column.dataset, {})[result.column.label] = 100 * result.mean
        return found

    def query_by_arch(self, arch: str | Architecture, hp: str | None = None) -> str:
        """Return all that the table says of an architecture as text."""
        return self.query_info_str_by_arch(arch, hp)

    def query_info_str_by_arch(self, arch: str | Architecture, hp: str | None = None) -> str:
        """Return all that the table says of an architecture as text."""
        self._check(hp)
        return answers.query(self.table, str(arch), []).text()

    def show(self, index: int = -1) -> None:
        """Print all that the table says of an architecture, or of the table if no index is given."""
        print(self.query_by_arch(self.arch(index)) if index >= 0 else answers.overview(self.table).text())

    def get_more_info(
        self,
        index: int | str,
        dataset: str,
        iepoch: int | None = None,
        hp: str | None = None,
        is_random: bool | int = False,
        *,
        metric: str,
    ) -> dict[str, float]:
        """Return an architecture's accuracy as a dictionary.

        Args:
            index: its index, or its string form.
            dataset: the data set's name, here or in NAS-Bench-201.
            iepoch: None: the table has the last epoch only.
            hp: None: the table has one training recipe.
            is_random: False, for the mean over trainings. NAS-Bench-201's default draws one at random.
            metric: the measured quantity, such as "clean" or "pgd@8/255".

        Returns:
            "test-accuracy" in percent; "test-accuracy-std" if the table knows it; "num-trainings" if it does.
        """
        self._check(hp, iepoch)
        if is_random is not False:
            raise InputError(
                f"get_more_info gives the mean over trainings; leave is_random out, but got {is_random}. "
                "`rn.tables.load(name).rows()` has single trainings, where a table has them."
            )
        result = self.table.query(index, metric, dataset=self._dataset(dataset))
        return {
            "test-accuracy": 100 * result.mean,
            **({} if result.std is None else {"test-accuracy-std": 100 * result.std}),
            **({} if result.num_seeds is None else {"num-trainings": result.num_seeds}),
        }

    def simulate_train_eval(
        self,
        arch: int | str | Architecture,
        dataset: str,
        iepoch: int | None = None,
        hp: str | None = None,
        account_time: bool = True,
        *,
        metric: str,
    ) -> tuple[float, float, float, float]:
        """Return (accuracy in percent, latency, time cost, total time cost) of training an architecture.

        The tables do not say how long a network trained, so that the last three are NaN, and `used_time` stays NaN
        once anything was simulated: count queries instead (`num_queries`).
        """
        self._check(hp, iepoch)
        accuracy = 100 * self.table.query(arch, metric, dataset=self._dataset(dataset)).mean
        if account_time:
            self.num_queries += 1
            self.used_time = math.nan
        return accuracy, math.nan, math.nan, self.used_time

    def reset_time(self) -> None:
        """Set `used_time` and `num_queries` to 0."""
        self.used_time = 0.0
        self.num_queries = 0

    def find_best(
        self,
        dataset: str,
        metric_on_set: str,
        FLOP_max: float | None = None,
        Param_max: float | None = None,
        hp: str | None = None,
    ) -> tuple[int, float]:
        """Return the index of the most accurate architecture and its accuracy in percent.

        Args:
            dataset: the data set's name.
            metric_on_set: the measured quantity, such as "pgd@8/255".
            FLOP_max: most multiply-adds, in millions.
            Param_max: most parameters, in millions.
            hp: None.
        """
        self._check(hp)
        limits = {"flops": FLOP_max, "params": Param_max}
        where = [f"{name}<={limit:f}" for name, limit in limits.items() if limit is not None]
        (best,) = self.table.top(1, metric_on_set, where=where, dataset=self._dataset(dataset))
        assert best.published_index is not None
        return best.published_index, 100 * best.mean

    @staticmethod
    def str2lists(arch_str: str) -> list[tuple[tuple[str, int], ...]]:
        """Return, for each node after the first, its (operation, source) pairs."""
        parsed = Architecture.parse(arch_str)
        return [
            tuple((name, source) for source, target, name in parsed.edges if target == node)
            for node in range(1, parsed.num_nodes)
        ]

    @staticmethod
    def str2matrix(arch_str: str) -> list[list[int]]:
        """Return the matrix whose entry [target][source] is the operation's digit on that edge, and 0 off the edges."""
        parsed = Architecture.parse(arch_str)
        matrix = [[0] * parsed.num_nodes for _ in range(parsed.num_nodes)]
        for (source, target, _), digit in zip(parsed.edges, parsed.digits(), strict=True):
            matrix[target][source] = int(digit)
        return matrix

    def _dataset(self, name: str) -> str:
        known = self.table.datasets()
        ours = _DATASETS.get(name, name)
        if name == "cifar10-valid":
            raise InputError(
                "'cifar10-valid' is NAS-Bench-201's training on half of CIFAR-10's training images, which the table "
                "does not have; give 'cifar10'."
            )
        if ours not in known:
            raise InputError(f"The table {self.table.name} has no data set '{name}'. {suggest(name, known)}")
        return ours

    @staticmethod
    def _check(hp: str | None, iepoch: int | None = None) -> None:
        if hp is not None:
            raise InputError(
                f"A robust-accuracy table has one training recipe and no 'hp', but got {hp!r}; leave it out."
            )
        if iepoch is not None:
            raise InputError(f"A robust-accuracy table has the last epoch only, but got iepoch={iepoch}; leave it out.")
