"""Photos of many clients, judged together: a batch costs little more than a photo.

The queue is bounded by places. A request takes one before its body is read and gives it back after
its answer, so there are never more photos in memory than places; a request that finds none is
refused at once.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class BusyError(Exception):
    """Every place is taken."""


class Batcher(Generic[Item, Result]):
    """Gathers items into batches and judges one batch at a time, in a thread of its own.

    async with batcher.running():
        with batcher.place():
            result = await batcher.judge(item)
    """

    def __init__(
        self,
        judge: Callable[[Sequence[Item]], Sequence[Result]],
        *,
        batch_size: int,
        wait: float,
        places: int,
    ):
        """Makes a batcher that is not running yet.

        Args:
            judge: from items to as many results in their order. It is called in one thread.
            batch_size: items in a batch, at most.
            wait: seconds, at most, for which a batch waits for items that have a place already and
                are still being uploaded.
            places: items that may be uploaded, wait and be judged at the same time.
        """
        self._judge_batch = judge
        self._batch_size, self._wait = batch_size, wait
        self._places, self._taken = places, 0
        self._waiting: asyncio.Queue[tuple[Item, asyncio.Future[Result]]] = asyncio.Queue()

    @property
    def taken(self) -> int:
        """How many places are taken now."""
        return self._taken

    @property
    def places(self) -> int:
        """How many places there are."""
        return self._places

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Judges what comes as long as the context lasts."""
        # One thread: the model takes all cores for a batch anyway.
        with ThreadPoolExecutor(1, thread_name_prefix="judge") as thread:
            worker = asyncio.create_task(self._work(thread))
            try:
                yield
            finally:
                worker.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await worker

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Holds a place.

        Raises:
            BusyError: every place is taken.
        """
        if self._taken >= self._places:
            raise BusyError
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    async def judge(self, item: Item) -> Result:
        """Returns an item's result. The caller holds a place.

        Raises:
            Exception: whatever the item alone makes the judge raise.
        """
        result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((item, result))
        return await result

    async def _work(self, thread: ThreadPoolExecutor) -> None:
        while True:
            batch = await self._gather()
            # Who has gone needs no answer.
            batch = [(item, result) for item, result in batch if not result.done()]
            outcomes = await self._outcomes(thread, [item for item, _ in batch])
            for (_, result), outcome in zip(batch, outcomes, strict=True):
                if result.done():
                    continue
                if isinstance(outcome, Exception):
                    result.set_exception(outcome)
                else:
                    result.set_result(outcome)

    async def _gather(self) -> list[tuple[Item, "asyncio.Future[Result]"]]:
        """Waits for an item, and a moment for those that are on their way."""
        batch = [await self._waiting.get()]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._wait):
                while len(batch) < min(self._batch_size, self._taken):
                    batch.append(await self._waiting.get())
        return batch

    async def _outcomes(
        self, thread: ThreadPoolExecutor, items: list[Item]
    ) -> Sequence[Result | Exception]:
        """Returns results. A batch that fails is judged item by item: one must not harm others."""
        if not items:
            return []
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(thread, self._judge_batch, items)
        except Exception as error:
            if len(items) == 1:
                return [error]
        return [outcome for item in items for outcome in await self._outcomes(thread, [item])]
