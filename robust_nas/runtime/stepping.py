"""The steps of an epoch, between which a stage's state is saved: every so many, and before the process is stopped."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from robust_nas.core.errors import Terminated

if TYPE_CHECKING:
    from robust_nas.runtime.distributed import Pair, World
    from robust_nas.runtime.stages import Stage

T = TypeVar("T")

AGREEMENT = 2.0
"""Seconds between two moments at which the processes of a group ask each other whether one is to stop, about."""

MOST_STEPS = 50
"""Steps between two such moments, at most."""

WITHIN = "within"
"""The part of a state that says how far its epoch has come."""


class Steps:
    """The steps of an epoch: their losses, and the state between two of them.

    Within its block, Ctrl-C and SIGTERM wait for the end of the step that is under way; then the state is saved, and
    the block is left with KeyboardInterrupt. All processes of a group stop after the same step. Without a run folder,
    in which there is nothing to save, a block does nothing.

    Args:
        stage: whose steps they are.
        epoch: epochs that are done.
        total: steps of the epoch.
        state: returns the stage's state, as `Stage.save` takes it; it is called by all processes together.
        own: returns what differs from process to process until the epoch's end, such as running statistics, by name.
        share: gives all processes what each has written of common tables; it is called by all at once.
        pair: this process's, if the second ones of pairs take no steps: their losses and tensors count for nothing.
    """

    def __init__(
        self,
        stage: Stage,
        epoch: int,
        total: int,
        state: Callable[[], Mapping[str, Any]],
        own: Callable[[], Mapping[str, Tensor]],
        share: Callable[[], None],
        pair: Pair | None = None,
    ) -> None:
        self._stage, self._epoch, self._total = stage, epoch, total
        self._state, self._own, self._share = state, own, share
        self._counts, self._world = pair is None or not pair.is_second, stage.world if pair is None else pair.world
        self.losses: list[Tensor] = []
        self._asked: type[KeyboardInterrupt] | None = None
        self._last, self._next, self._since = 0, 1, time.monotonic()
        self._handlers: dict[signal.Signals, Any] = {}

    @property
    def done(self) -> int:
        """The steps that are done."""
        return len(self.losses)

    def go_on(self, state: Mapping[str, Any]) -> None:
        """Go to where a state was saved; its own tensors of this process take the place of those there are."""
        if WITHIN not in state:
            return
        world, within = self._world, state[WITHIN]
        self.losses = [*of_rank(within["losses"], world).to(world.device)]
        for name, value in self._own().items():
            if within["own"]:
                value.copy_(of_rank([each[name] for each in within["own"]], world))
        self._last, self._next = self.done, self.done + 1

    def mean_loss(self) -> float:
        """Return the mean of the losses, over all processes that take steps."""
        loss = float(self._world.mean(torch.stack(self.losses).mean()))
        return loss if self._world is self._stage.world else self._stage.world.broadcast(loss)

    def add(self, loss: Tensor) -> None:
        """Note that a step is done; save the state if it is time to, or if the process is asked to stop.

        Raises:
            KeyboardInterrupt: if it is.
        """
        self.losses.append(loss)
        if self._stage.folder is None:
            return
        stop = self._agreed()
        every = self._stage.save_steps
        if stop is not None or (every and self.done % every == 0 and self.done < self._total):
            self.save()
        if stop is not None:
            raise stop

    def save(self) -> None:
        """Save the state after the steps that are done; all processes do it together."""
        world, losses = self._stage.world, torch.stack(self.losses).cpu()
        parts: list[tuple[Tensor, dict[str, Tensor]]] = [(losses, {})]
        if world.size > 1:
            self._share()
            parts = self._of_all((losses, {name: value.detach().cpu() for name, value in self._own().items()}))
        self._write(self._state(), parts)

    def _write(self, state: Mapping[str, Any], parts: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> None:
        within = {"losses": [losses for losses, _ in parts], "own": [own for _, own in parts if own]}
        self._stage.save(self._epoch, {**state, WITHIN: within})

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Save the state if the block is stopped, which follows the last step and changes nothing of it.

        By then all processes have the same.
        """
        if self._stage.folder is None:
            yield
            return
        # All are asked for it together, while none is stopped.
        state, losses = self._state(), self._of_all(torch.stack(self.losses).cpu())
        try:
            yield
        except KeyboardInterrupt:
            self._write(state, [(each, {}) for each in losses])
            raise

    def _of_all(self, value: T) -> list[T]:
        """Return the values of all processes that take steps, on every process."""
        found = self._stage.world.gather((self._counts, value if self._counts else None))
        return [each for counts, each in found if counts]

    def _agreed(self) -> type[KeyboardInterrupt] | None:
        """Return what this process, or another one of its group, is asked to stop by, if it is."""
        world = self._stage.world
        if world.size == 1:
            return self._asked
        if self.done < min(self._next, self._total):
            return None
        taken = time.monotonic() - self._since
        asked = [self._asked is not None, self._asked is Terminated, taken]
        stopped, terminated, seconds = world.sum(torch.tensor(asked, device=world.device, dtype=torch.float32)).tolist()
        # All processes have the same sum, and so the same next moment.
        a_step = max(seconds, 1e-3) / world.size / (self.done - self._last)
        self._last, self._since = self.done, time.monotonic()
        self._next = self.done + min(MOST_STEPS, max(1, int(AGREEMENT / a_step)))
        if not stopped:
            return None
        return Terminated if terminated else KeyboardInterrupt

    def __enter__(self) -> Steps:
        self._since = time.monotonic()
        if self._stage.folder is not None and threading.current_thread() is threading.main_thread():
            # Not where Ctrl-C has a meaning of somebody's own, or where SIGTERM is ignored.
            interrupt, terminate = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
            if interrupt is signal.default_int_handler:
                self._handlers[signal.SIGINT] = interrupt
            if callable(terminate) or terminate is signal.SIG_DFL:
                self._handlers[signal.SIGTERM] = terminate
            for number in self._handlers:
                signal.signal(number, self._hear)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for number, handler in self._handlers.items():
            # Clusters and launchers send SIGTERM several times.
            ignored = number == signal.SIGTERM and self._asked is Terminated and handler is not signal.SIG_DFL
            signal.signal(number, signal.SIG_IGN if ignored else handler)
        if kind is None and self._asked is not None:  # after the last step
            if self._stage.world.size == 1:
                self.save()
            raise self._asked

    def _hear(self, number: int, _: Any) -> None:
        again, alone = self._asked is KeyboardInterrupt and number == signal.SIGINT, self._stage.world.size == 1
        if again and alone:
            raise KeyboardInterrupt
        self._asked = Terminated if number == signal.SIGTERM else self._asked or KeyboardInterrupt
        if number == signal.SIGINT and not again:
            how = "; Ctrl-C once more does not wait" if alone else ""
            self._stage.progress.say(f"stopping after this step, whose state is saved{how}")


def of_rank(parts: list[Tensor], world: World) -> Tensor:
    """Return this process's part of what each process had; the parts' mean, if there were more or fewer processes."""
    if len(parts) in (1, world.size):
        return parts[world.rank % len(parts)]
    together = torch.stack(parts)
    return together.mean(0) if together.is_floating_point() else together[0]


def named_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's buffers by name: running statistics, which each process has of its own images."""
    return dict(model.named_buffers())
