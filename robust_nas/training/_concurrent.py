"""Concurrent steps: half of the processes take them, the others craft for those to come, with stale weights.

The two processes of a pair have the same batches. In step t the first one sends its weights, and takes the step with
the examples that it has got; meanwhile the second one crafts those of step t + tau with these weights, and sends them.
At an epoch's start it crafts tau batches ahead, so that nothing is on its way when an epoch ends, and what is when a
state is saved within one is crafted again.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from robust_nas.training import Batch, Memory

if TYPE_CHECKING:
    from robust_nas.runtime.distributed import Message, Pair
    from robust_nas.training._loop import Trainer

State = dict[str, Tensor]
"""Parameters and buffers, by name."""

_PAST = "past_states"


def past_states(memory: Memory) -> list[State]:
    """Return the states before the last steps, oldest first."""
    return memory.shared.get(_PAST, [])


def remember(memory: Memory, state: State, staleness: int) -> None:
    """Note a state before a step; of those before it, as many are kept as `staleness` says."""
    memory.shared[_PAST] = [*past_states(memory), state][-staleness - 1 :]


@torch.no_grad()
def state_of(model: nn.Module, mean: Callable[[Tensor], Tensor]) -> State:
    """Return a copy of the parameters and buffers of `model`, the same on every rank.

    Args:
        mean: the mean over ranks.
    """
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    # Parameters are equal on all ranks; running statistics are not within an epoch. One message carries them all.
    statistics = [state[name] for name, buffer in model.named_buffers() if name in state and buffer.is_floating_point()]
    if statistics:
        averaged = mean(torch.cat([values.flatten() for values in statistics]))
        for values, each in zip(statistics, averaged.split([values.numel() for values in statistics]), strict=True):
            values.copy_(each.view_as(values))
    return state


def losses_of(
    trainer: Trainer, batches: Iterator[tuple[float, Batch]], pair: Pair | None, staleness: int, steps: int
) -> Generator[Tensor, None, None]:
    """Take the rest of an epoch's steps, or craft for them; give each step's loss, and 0 where it is not taken.

    Args:
        batches: each with the share of the training that is done after it; the same in both processes of a pair.
        pair: this process's; None to craft and take every step here.
        staleness: steps between the weights that craft a batch and its own step; at least 1 in pairs.
        steps: how many are left.
    """
    if pair is None:
        return (trainer.step(batch, progress) for progress, batch in batches)
    return (_crafting if pair.is_second else _stepping)(trainer, batches, pair, staleness, steps)


def _stepping(
    trainer: Trainer, batches: Iterator[tuple[float, Batch]], pair: Pair, staleness: int, steps: int
) -> Generator[Tensor, None, None]:
    with _arriving() as sent, _arriving() as awaited:
        for number, (progress, batch) in enumerate(batches):
            place = torch.empty_like(batch.images, memory_format=torch.contiguous_format)
            if number == 0:
                awaited.extend(pair.receive(torch.empty_like(place)) for _ in range(min(staleness, steps)))
            state = state_of(trainer.model, batch.mean)
            remember(trainer.memory, state, staleness)
            vectors = _joined(state)
            sent.extend(pair.send(vector) for vector in vectors)
            # The messages of both directions have one order on both sides.
            if number + staleness < steps:
                awaited.append(pair.receive(place))
            crafted = awaited.popleft().wait()
            while len(sent) > (staleness + 1) * len(vectors):
                sent.popleft().wait()
            yield trainer.step(batch, progress, crafted)


def _crafting(
    trainer: Trainer, batches: Iterator[tuple[float, Batch]], pair: Pair, staleness: int, steps: int
) -> Generator[Tensor, None, None]:
    past = past_states(trainer.memory)
    with _arriving() as sent:

        def craft(batch: Batch, state: State | None) -> None:
            if state is not None:
                trainer.model.load_state_dict(state)
            sent.append(pair.send(trainer.craft(batch).contiguous()))
            while len(sent) > staleness + 1:
                sent.popleft().wait()

        for number, (_, batch) in enumerate(islice(batches, staleness)):
            # Before the first step, the model is in its own state; until there are enough, the first state is taken.
            craft(batch, past[max(0, len(past) - staleness + number)] if past else None)
        for _ in range(steps):
            state = _received(trainer.model, pair)
            remember(trainer.memory, state, staleness)
            for _, batch in islice(batches, 1):
                craft(batch, state)
            yield torch.zeros((), device=pair.world.device)


@contextlib.contextmanager
def _arriving() -> Iterator[deque[Message]]:
    """Give a list of messages; those that are in it in the end are waited for, unless there was an error."""
    messages: deque[Message] = deque()
    with contextlib.suppress(GeneratorExit):  # all processes stop after the same step
        yield messages
    for message in messages:
        message.wait()


def _received(model: nn.Module, pair: Pair) -> State:
    """Return the state that the other process of a pair sends of the same model."""
    like = model.state_dict()
    messages = [pair.receive(values) for values in _joined(like)]
    arrived = (message.wait() for message in messages)
    return _separated(arrived, like)


def _joined(state: State) -> list[Tensor]:
    """Return all values of each dtype in one vector."""
    kinds = dict.fromkeys(value.dtype for value in state.values())
    return [torch.cat([value.flatten() for value in state.values() if value.dtype == kind]) for kind in kinds]


def _separated(vectors: Iterable[Tensor], like: State) -> State:
    """Return the state whose `_joined` the vectors are."""
    state: State = {}
    for vector in vectors:
        of_kind = {name: value for name, value in like.items() if value.dtype == vector.dtype}
        parts = vector.split([value.numel() for value in of_kind.values()])
        state |= {name: part.view(value.shape) for (name, value), part in zip(of_kind.items(), parts, strict=True)}
    return {name: state[name] for name in like}
