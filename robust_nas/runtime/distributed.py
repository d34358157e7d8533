"""One process or many, started by `torchrun`: the only file that imports `torch.distributed`.

The contract that every stage keeps:
- replicated: the weights, alpha and the Dirichlet sample; every rank holds the same values at every step;
- sharded: training batches (each rank takes its part of one global batch) and evaluation chunks (round robin);
- reduced: gradients (mean over ranks), batch-norm buffers (mean, before the model is evaluated or saved), and
  counts, never rates;
- shared seeds: initialisation, data order of the global batch, Dirichlet draws, an evaluation chunk's attack starts;
- seeds that differ by rank: attack starts and augmentation of a training batch;
- attacks run on the unwrapped module with `autograd.grad`, so that no attack step communicates;
- rank 0 alone writes.

In one process every function here is a no-op.
"""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import itertools
import math
import multiprocessing
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from robust_nas import __version__
from robust_nas.core import config
from robust_nas.core.errors import InputError, Interrupted, Terminated, of_exit, reason_of
from robust_nas.runtime.compression import Half, Reduction
from robust_nas.runtime.watch import BEAT, SILENCE, Watch

T = TypeVar("T")


PATIENCE = 1800.0
"""Seconds that a process waits for the others of its group before it takes them for lost."""

_OF_THE_GROUP = re.compile(r"gloo|nccl|process ?group|connection (?:closed|reset)", re.IGNORECASE)

_OF_MEMORY = re.compile(r"can't allocate memory|out of memory", re.IGNORECASE)


@contextlib.contextmanager
def losses_said(*, joining: bool = False) -> Iterator[None]:
    """Raise `Interrupted` in place of torch's error when another process of the group, or memory, is lost.

    Args:
        joining: whether the group is still waited for.
    """
    try:
        yield
    except Terminated as stop:
        # A launcher ends all processes when one is lost.
        if (lost := _lost(wait=2.5 * BEAT)) is not None:
            raise Interrupted(lost) from stop
        raise
    except MemoryError as error:
        raise _told(Interrupted(_NO_MEMORY)) from error
    except RuntimeError as error:
        if joining or (in_group() and (isinstance(error, dist.DistError) or _OF_THE_GROUP.search(str(error)))):
            raise Interrupted(_lost(wait=SILENCE + 5 * BEAT) or _NO_ANSWER) from error
        if isinstance(error, torch.OutOfMemoryError) or _OF_MEMORY.search(str(error)):
            raise _told(Interrupted(_NO_MEMORY)) from error
        raise
    except InputError as error:
        _told(error)  # the others may wait for this process
        raise


_WATCHES: list[Watch] = []
"""The watch over the group that this process has joined, if it has."""


def _lost(wait: float = 0.0) -> str | None:
    """Return which other process of the group is lost, in a sentence, if one is."""
    if not _WATCHES:
        return None
    try:
        return _WATCHES[-1].lost(wait)
    except Terminated:  # the launcher, which has noticed the loss as well
        return _WATCHES[-1].lost(2.5 * BEAT)


def _told(error: InputError) -> InputError:
    """Let the others of the group know why this process ends; return the error."""
    if _WATCHES:
        _WATCHES[-1].tell(str(error))
    return error


_NO_ANSWER = "Another process of this group has ended, or has not answered for as long as 'patience' says."

_NO_MEMORY = "Memory has run out; free some, or set batch sizes, data.size or workers lower in a new run."


def end_with_parent(number: signal.Signals) -> None:
    """Have this process sent a signal when the one that started it ends, however that ends; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG


def _work(function: Callable[[T], Tensor], items: Sequence[T], sender: Connection) -> None:
    """Send `function(item)` of all items, or what it raised; the body of a worker."""
    # Ctrl-C is the parent's to answer: it ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent(signal.SIGKILL)
    torch.set_num_threads(1)
    try:
        sender.send([function(item).cpu().numpy() for item in items])
    except Exception as error:
        sender.send(error)
    except BaseException as error:
        sender.send(of_exit(error))
    finally:
        sender.close()


def in_group() -> bool:
    """Whether this process has joined a process group."""
    return dist.is_available() and dist.is_initialized()


def is_launched() -> bool:
    """Whether this process is one of several that `torchrun` or the like has started, or that have joined a group."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 or (in_group() and dist.get_world_size() > 1)


def leave_group() -> None:
    """Leave the process group; nothing may be reduced afterwards."""
    while _WATCHES:
        _WATCHES.pop().close()
    _HALVES.clear()
    if in_group():
        dist.destroy_process_group()


_MET: dict[str, Any] = {}
"""By address, the store at which this process has met others, with its rank and their number: for all its groups."""

_GROUPS = itertools.count()
"""The numbers of the groups that this process joins, one after the other."""

JOINING = 60.0
"""Seconds in which the processes of a group must meet."""


def _join(backend: str, patience: float) -> None:
    """Join the group whose place the environment says, and watch over it.

    Raises:
        InputError: if the environment does not say where the group meets.
        Interrupted: if the others do not come.
    """
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {' and '.join(missing)} "
            f"{'are' if len(missing) > 1 else 'is'} not set: start the processes by torchrun, which sets them, or "
            "unset WORLD_SIZE."
        )
    place, limit = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}", timedelta(seconds=min(patience, JOINING))
    try:
        if place not in _MET:
            _reach(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), limit.total_seconds())
            _MET[place] = next(rendezvous("env://", timeout=limit))
        store, rank, size = _MET[place]
        # torchrun may keep its store when it starts processes again, with all that those before have left in it.
        attempt = f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)} of {size}"
        store = PrefixStore(f"attempt {attempt}, group {next(_GROUPS)}", store)
        # All are here before torch's own start, which waits as long as the work may.
        store.set(f"here/{rank}", "")
        store.wait([f"here/{other}" for other in range(size)], limit)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=patience))
    except (OSError, RuntimeError, ValueError) as error:
        raise Interrupted(
            f"The {os.environ['WORLD_SIZE']} processes of this group did not meet at {place} within "
            f"{min(patience, JOINING):.0f} s ({reason_of(error)}); start all of them, and see that this address can be "
            "reached."
        ) from error
    # A connection of its own, whose waits are short.
    own = store.clone() if hasattr(store, "clone") else store
    _WATCHES.append(Watch(PrefixStore("watch", own), rank, size))
    _WATCHES[-1].begin()


def _reach(host: str, port: int, seconds: float) -> None:
    """Wait until something listens where the group meets; torch's own wait is several times as long as it is told.

    Raises:
        OSError: if nothing does in time.
    """
    if os.environ.get("RANK") == "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True):
        return  # this process is the one that will
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=max(1.0, until - time.monotonic())).close()
        except OSError:
            if time.monotonic() + CALL > until:
                raise
            time.sleep(CALL)
        else:
            return


CALL = 0.5
"""Seconds between two tries to reach the place where the group meets."""


class _Mean(torch.autograd.Function):
    """See `World.mean_through`."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, world: World) -> Tensor:
        ctx.world = world
        return world.mean(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # Through the function itself: a loss may have a gradient in it.
        return ctx.world.mean_through(gradient), None


def _reduced(reduction: Reduction, bucket: Any) -> torch.futures.Future[Tensor]:
    """Return the mean of a part of the gradients, as a communication hook of DDP."""
    if isinstance(reduction, Half):
        # Torch's own: it goes on while the backward pass does.
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook

        reduction.count(bucket.buffer().numel())
        hook = fp16_compress_hook if reduction.dtype == torch.float16 else bf16_compress_hook
        return hook(reduction.world.group, bucket)  # type: ignore[arg-type]  # None is the group of all
    gradients = bucket.gradients()
    for gradient, mean in zip(gradients, reduction.mean(bucket.parameters(), gradients), strict=True):
        gradient.copy_(mean)
    done: torch.futures.Future[Tensor] = torch.futures.Future(
        devices=[gradients[0].device] if gradients[0].device.type == "cuda" else None
    )
    done.set_result(bucket.buffer())
    return done


@dataclass(frozen=True)
class World:
    """The processes that work on one run, or a half of them, and this one's place among them.

    Args:
        rank: of this process.
        size: processes.
        device: of this process.
        workers: forked copies of this process, see `start`.
        patience: seconds that a process waits for the others.
        group: torch's, of these processes; None for all that were started.
        first: the rank that this world's rank 0 has among all.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    workers: int = 1
    patience: float = PATIENCE
    group: dist.ProcessGroup | None = field(default=None, repr=False)
    first: int = 0

    @classmethod
    def start(
        cls, device: str = "auto", threads: int | None = None, workers: int = 1, patience: float = PATIENCE
    ) -> World:
        """Join the processes that `torchrun` started, or be alone.

        Args:
            device: "cpu", "cuda", or "auto": an accelerator if there is one. Several processes of one machine take
                one accelerator each.
            threads: threads per process on the CPU; without it, torch's choice, or in a group an equal share of the
                cores: two threads per process on two busy cores made small trainings ten times slower.
            workers: forked copies of this process among which `each` shares out its work, on the CPU.
            patience: seconds that a process waits for the others before it takes them for lost.

        Raises:
            InputError: if `device` is not here, `threads` or `workers` is below 1, or `patience` is not above 0.
        """
        local_rank, size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        size = dist.get_world_size() if in_group() else size
        kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        if kind not in ("cpu", "cuda"):
            raise InputError(f"device must be auto, cpu or cuda, but got '{device}'.")
        if kind == "cuda" and local_rank >= torch.cuda.device_count():
            raise InputError(
                f"device 'cuda' was asked for by process {local_rank} of this machine, but {torch.cuda.device_count()} "
                "are available; start fewer processes or set device=cpu."
            )
        for name, value in {"threads": threads, "workers": workers}.items():
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, but got {value}.")
        if not 0 < patience < math.inf:
            raise InputError(f"patience must be a number of seconds above 0, but got {patience}.")
        if threads is None and size > 1:
            threads = max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", size)))
        if threads is not None:
            torch.set_num_threads(threads)
        place = torch.device("cpu") if kind == "cpu" else torch.device("cuda", local_rank)
        if kind == "cuda":
            torch.cuda.set_device(place)
        # A fork cannot use autograd once its parent has threads for an accelerator.
        workers = workers if kind == "cpu" and not torch.cuda.is_available() else 1
        if size == 1:
            return cls(device=place, workers=workers)
        if not dist.is_initialized():
            _join("gloo" if kind == "cpu" else "nccl", patience)
        world = cls(dist.get_rank(), dist.get_world_size(), place, workers, patience)
        world.check_same("installation", {"robust-nas": __version__, "torch": torch.__version__, "device": kind})
        return world

    def check_same(self, what: str, values: Mapping[str, Any]) -> None:
        """Raise InputError on every rank unless all of them have the same.

        Args:
            what: that is compared, such as "configuration".
            values: a table of this rank's.
        """
        first, *others = self.gather(dict(values))
        for rank, other in enumerate(others, start=1):
            if differing := config.differences(first, other):
                raise InputError(
                    f"Process {rank} of this group has another {what} than process 0: {', '.join(differing[:3])}. "
                    "Start all processes in the same way, with the same installation and files."
                )

    def stop(self) -> None:
        """Leave the group; nothing may be reduced afterwards."""
        if self.size > 1:
            leave_group()

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def shard(self, items: Sequence[T]) -> Sequence[T]:
        """Return this rank's part of `items`: every size-th, from its rank on."""
        return items[self.rank :: self.size]

    def each(self, function: Callable[[T], Tensor], items: Sequence[T]) -> list[Tensor]:
        """Return `function(item)` of this rank's `items`, in their order; several workers compute them side by side.

        A worker is a fork of this process with one thread, so `function` may hold a model and images; what it changes
        is lost. Nothing may be reduced in it.

        Raises:
            Interrupted: if a worker was killed.
            Exception: what `function` raised.
        """
        if self.workers == 1 or len(items) < 2:
            return [function(item) for item in items]
        parts = [items[start :: self.workers] for start in range(min(self.workers, len(items)))]
        context = multiprocessing.get_context("fork")
        helpers = []
        for part in parts:
            receiver, sender = context.Pipe(duplex=False)
            helper = context.Process(target=_work, args=(function, part, sender), daemon=True)
            helper.start()
            sender.close()
            helpers.append((helper, receiver))
        results: list[Tensor] = [torch.empty(0)] * len(items)
        try:
            for start, (helper, receiver) in enumerate(helpers):
                try:
                    outcome = receiver.recv()
                except (EOFError, ConnectionError):
                    helper.join()
                    raise Interrupted(
                        f"A worker process ended without a result (exit code {helper.exitcode}), as one does that is "
                        "killed for want of memory; free some, or set workers or batch sizes lower in a new run."
                    ) from None
                if isinstance(outcome, BaseException):
                    raise outcome
                results[start :: self.workers] = [torch.from_numpy(array) for array in outcome]
        finally:
            for helper, receiver in helpers:
                receiver.close()
                helper.terminate()
                helper.join()
        return results

    def wrap(self, model: nn.Module, reduction: Reduction | None = None) -> nn.Module:
        """Return a module whose backward averages the gradients over all ranks; `model` itself in one process.

        Every pass must use all parameters; `mean_gradients` is for others.

        Args:
            model: the network.
            reduction: compresses the gradients, if given.
        """
        if self.size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        # Buffers are averaged when they are needed (`mean_buffers`): a broadcast at every forward would break crafting.
        wrapper = nn.parallel.DistributedDataParallel
        renamed = "forward_sync_buffers" in inspect.signature(wrapper).parameters
        options: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
        wrapped = wrapper(model, device_ids=ids, process_group=self.group, **options)
        if reduction is not None:
            # Torch reads the annotations of a hook, and takes no strings for them.
            wrapped.register_comm_hook(reduction, lambda state, bucket: _reduced(state, bucket))
        return wrapped

    def alone(self, wrapper: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Within it, passes through what `wrap` has returned add to this rank's own gradients.

        The backward pass of the next one outside of it averages the sums.
        """
        if isinstance(wrapper, nn.parallel.DistributedDataParallel):
            return wrapper.no_sync()
        return contextlib.nullcontext()

    def mean_through(self, value: Tensor) -> Tensor:
        """Return the mean of `value` over all ranks, through which every rank can differentiate the ranks' mean loss.

        The gradient is the mean over ranks as well: each rank's `value` has a part in every rank's loss.
        """
        return value if self.size == 1 else _Mean.apply(value, self)

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of `value` over all ranks."""
        return value if self.size == 1 else self.sum(value) / self.size

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of `value` over all ranks."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total, group=self.group)
        return total

    def stack(self, value: Tensor) -> Tensor:
        """Return every rank's `value` [...], of one shape, as [size, ...], on every rank."""
        return torch.stack(self.gather_rows(value.contiguous(), [len(value)] * self.size))

    def gather_rows(self, value: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """Return every rank's `value` [N, ...], on every rank; `lengths` are the ranks' N."""
        if self.size == 1:
            return [value]
        padded = value.new_zeros(max(lengths), *value.shape[1:])
        padded[: len(value)] = value
        found = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(found, padded, group=self.group)
        return [each[:length] for each, length in zip(found, lengths, strict=True)]

    def exchange(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Give `parts[rank]` [N] to each rank; return what the ranks have given to this one, as long as its own."""
        if self.size == 1:
            return list(parts)
        lengths, own = [len(part) for part in parts], len(parts[self.rank])
        received = parts[0].new_empty(own * self.size)
        dist.all_to_all_single(received, torch.cat(list(parts)), [own] * self.size, lengths, group=self.group)
        return list(received.split(own)) if own else [received] * self.size

    def share_start(self, model: nn.Module) -> None:
        """Give every rank the parameters and buffers of rank 0, as `wrap` does: code of others may draw its own."""
        self.share([*model.parameters(), *model.buffers()])

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Give every rank the values of rank 0's tensors, in one message for each dtype."""
        if self.size == 1:
            return
        for kind in dict.fromkeys(tensor.dtype for tensor in tensors):
            some = [tensor.detach() for tensor in tensors if tensor.dtype == kind]
            joined = torch.cat([tensor.flatten() for tensor in some])
            dist.broadcast(joined, src=self.first, group=self.group)
            for tensor, part in zip(some, joined.split([tensor.numel() for tensor in some]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def mean_gradients(self, model: nn.Module, reduction: Reduction | None = None) -> None:
        """Replace the gradient of every parameter that has one on some rank by its mean over all ranks.

        For what `wrap` is not for: modules of which a pass may leave out parameters, on some ranks or on all.

        Args:
            model: the network.
            reduction: compresses the gradients, if given.
        """
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if self.size == 1 or not learning:
            return
        used = self.sum(torch.tensor([float(each.grad is not None) for each in learning], device=self.device))
        shared = [each for each, count in zip(learning, used.tolist(), strict=True) if count]
        for kind in dict.fromkeys(each.dtype for each in shared):  # in the same order on all ranks
            some = [each for each in shared if each.dtype == kind]
            gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in some]
            if reduction is not None:
                for each, mean in zip(some, reduction.mean(some, gradients), strict=True):
                    each.grad = mean
                continue
            mean = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
            for each, part in zip(some, mean.split([each.numel() for each in some]), strict=True):
                each.grad = part.view_as(each)

    def mean_buffers(self, model: nn.Module) -> None:
        """Replace every floating point buffer of `model` (batch-norm statistics) by its mean over all ranks."""
        if self.size > 1:
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(self.mean(buffer))

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's `value`, a picklable object, in the order of ranks, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def gather_shards(self, shards: Iterable[T], total: int) -> list[T]:
        """Return the `total` results of a sharded list, in the list's order, on every rank."""
        results: list[Any] = [None] * total
        for rank, part in enumerate(self.gather(list(shards))):
            results[rank :: self.size] = part
        return results

    def broadcast(self, value: T) -> T:
        """Return rank 0's `value`, a picklable object, on every rank; the other ranks' argument is ignored."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=self.first, group=self.group, device=self.device)
        return values[0]

    def on_main(self, function: Callable[[], T]) -> T:
        """Call `function` on rank 0 alone, and return its result on every rank; its error is raised on every rank."""
        if self.size == 1:
            return function()
        value: T | None = None
        error: Exception | None = None
        if self.is_main:
            try:
                value = function()
            except (InputError, OSError) as raised:
                error = raised
        value, error = self.broadcast((value, error))
        if error is not None:
            raise error
        return value  # type: ignore[return-value]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier(self.group)

    def pair(self) -> Pair:
        """Return this process's pair: ranks 0 and 1 are one, 2 and 3 the next; all ranks must call this.

        Raises:
            InputError: if the number of processes is odd.
        """
        if self.size % 2:
            raise InputError(f"Pairs are of an even number of processes, but there are {self.size}.")
        if not _HALVES:
            limit = timedelta(seconds=self.patience)
            _HALVES.extend(_group(range(start, self.size, 2), limit) for start in (0, 1))
        second = self.rank % 2
        half = replace(self, rank=self.rank // 2, size=self.size // 2, group=_HALVES[second], first=second)
        return Pair(bool(second), half, self.rank - 1 if second else self.rank + 1)


_HALVES: list[dist.ProcessGroup] = []
"""The groups of the first and of the second processes of all pairs, once they are needed."""


@dataclass(frozen=True)
class Message:
    """A tensor on its way from the other process of a pair, or to it.

    Args:
        value: what is sent, or what is received into.
        work: torch's, that can be waited for.
    """

    value: Tensor
    work: dist.Work

    def wait(self) -> Tensor:
        """Return the value once it has arrived; what is sent may be changed then."""
        self.work.wait()
        return self.value


@dataclass(frozen=True)
class Pair:
    """Two processes that share work; every process is in one pair. Their messages arrive in the order of sending.

    Args:
        is_second: which of the two this process is.
        world: the first processes of all pairs, or the second ones, among which this one is.
        partner: the other process's rank among all.
    """

    is_second: bool
    world: World
    partner: int

    def send(self, value: Tensor) -> Message:
        """Send a contiguous tensor to the other process, without waiting; it must stay as it is until it arrives."""
        return Message(value, _begun(dist.isend(value, self.partner)))

    def receive(self, value: Tensor) -> Message:
        """Receive into a contiguous tensor, without waiting."""
        return Message(value, _begun(dist.irecv(value, self.partner)))


def _group(ranks: Iterable[int], limit: timedelta) -> dist.ProcessGroup:
    """Return torch's group of some ranks, which all ranks must make; a placeholder in those outside of it."""
    return cast(dist.ProcessGroup, dist.new_group(list(ranks), timeout=limit))


def _begun(work: dist.Work | None) -> dist.Work:
    assert work is not None  # None is for processes outside of the group
    return work
