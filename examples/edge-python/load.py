"""Load the service in two steps, the second four times the first, and tell how it held.

    python load.py http://127.0.0.1:8000 --rate 20 --target-ms 60

Prints the 95th percentile of every second. Exit code 1 where a request failed, or where the
percentile was not back under the target within ten seconds of the step.
"""

import argparse
import asyncio
import sys
import time
from dataclasses import dataclass, field

import httpx

WITHIN_SECONDS = 10
STEP = 4


@dataclass
class Seen:
    """Requests by the second in which they were sent."""

    ms: dict[int, list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def p95(self, second: int) -> float:
        """Return the 95th percentile of a second's requests, in milliseconds."""
        taken = sorted(self.ms[second])
        return taken[min(len(taken) - 1, int(0.95 * len(taken)))]


async def ask(client: httpx.AsyncClient, number: int, second: int, seen: Seen) -> None:
    begin = time.perf_counter()
    try:
        answer = await client.get("/images", params={"n": 16, "seed": number})
        answer.raise_for_status()
    except httpx.HTTPError as error:
        seen.errors.append(repr(error))
        return
    seen.ms.setdefault(second, []).append(1000 * (time.perf_counter() - begin))


async def load(url: str, rate: float, seconds: tuple[int, int]) -> Seen:
    """Send requests at a rate, then at four times of it, whatever became of earlier ones."""
    seen, tasks, number = Seen(), [], 0
    limits = httpx.Limits(max_connections=1000)
    async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits) as client:
        begin = time.perf_counter()
        due = 0.0
        while due < sum(seconds):
            await asyncio.sleep(max(0.0, begin + due - time.perf_counter()))
            tasks.append(asyncio.create_task(ask(client, number, int(due), seen)))
            number += 1
            due += 1 / (rate if due < seconds[0] else STEP * rate)
        await asyncio.gather(*tasks)
    return seen


def recovered(seen: Seen, seconds: tuple[int, int], target_ms: float) -> int | None:
    """Return the seconds after the step from which on the target is kept; None: never."""
    kept = [at for at in range(seconds[0], sum(seconds)) if seen.p95(at) > target_ms]
    last = kept[-1] + 1 if kept else seconds[0]
    return None if last >= sum(seconds) else last - seconds[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--rate", type=float, default=20, help="requests per second at first")
    parser.add_argument("--target-ms", type=float, default=60.0)
    parser.add_argument("--seconds", type=int, nargs=2, default=(8, 20))
    told = parser.parse_args()
    seconds = tuple(told.seconds)
    seen = asyncio.run(load(told.url, told.rate, seconds))
    for at in sorted(seen.ms):
        rate = told.rate * (STEP if at >= seconds[0] else 1)
        print(f"{at:3d} s  {rate:5.0f} /s  p95 {seen.p95(at):7.1f} ms")
    stats = httpx.get(f"{told.url}/stats").json()["images"]
    for move in stats["moves"]:
        print(f"moved from {move['from']} to {move['to']}: {move['why']}")
    after = recovered(seen, seconds, told.target_ms)
    print(f"errors: {len(seen.errors)}; back under {told.target_ms:g} ms after: {after} s")
    if seen.errors or after is None or after > WITHIN_SECONDS:
        print(*seen.errors[:3], sep="\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
