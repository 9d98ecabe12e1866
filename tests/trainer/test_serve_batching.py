"""How photos of many clients become batches."""

import asyncio
import contextlib
import threading

import pytest

from trainer.serving.batching import Batcher, BusyError


def judge_all(judge, items, **options):
    """Judges items that come at the same time; returns results, or what was raised instead."""

    async def run():
        batcher = Batcher(judge, **{"batch_size": 4, "wait": 0.05, "places": 100} | options)

        async def one(item):
            with batcher.place():
                return await batcher.judge(item)

        async with batcher.running():
            return await asyncio.gather(*map(one, items), return_exceptions=True)

    return asyncio.run(run())


def test_items_that_come_together_are_judged_together_and_each_gets_its_own_result():
    batches = []

    def judge(items):
        batches.append(list(items))
        return [10 * item for item in items]

    assert judge_all(judge, range(10)) == [10 * item for item in range(10)]
    assert [len(batch) for batch in batches] == [4, 4, 2]


def test_an_item_that_cannot_be_judged_harms_no_other():
    def judge(items):
        if 3 in items:
            raise ValueError("three")
        return items

    found = judge_all(judge, range(6))
    assert [str(one) for one in found] == ["0", "1", "2", "three", "4", "5"]
    assert isinstance(found[3], ValueError)


def test_there_are_no_more_items_than_places():
    hold = threading.Event()

    def judge(items):
        hold.wait(10)
        return items

    async def run():
        batcher = Batcher(judge, batch_size=1, wait=0, places=2)
        async with batcher.running():
            with batcher.place(), batcher.place():
                assert batcher.taken == 2
                with pytest.raises(BusyError), batcher.place():
                    pass
                first = asyncio.create_task(batcher.judge(1))
                gone = asyncio.create_task(batcher.judge(2))
                await asyncio.sleep(0.01)
                gone.cancel()
                hold.set()
                assert await first == 1
                with contextlib.suppress(asyncio.CancelledError):
                    await gone
            assert batcher.taken == 0
            with batcher.place():
                assert await batcher.judge(3) == 3

    asyncio.run(run())


def test_an_item_alone_is_not_kept_waiting():
    async def run():
        batcher = Batcher(lambda items: items, batch_size=4, wait=60, places=4)
        async with batcher.running():
            with batcher.place():
                return await asyncio.wait_for(batcher.judge(1), timeout=10)

    assert asyncio.run(run()) == 1
