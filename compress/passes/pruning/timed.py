"""How far to prune for a latency: not by counting, by timing what is left."""

from __future__ import annotations

from collections.abc import Callable

from aigc_compress.errors import PassError

from .plan import Plan

__all__ = ["choose_by_time"]

PROBES = 7  # halvings of the share of multiplications: to within a hundredth


def choose_by_time(
    at_share: Callable[[float], Plan], ms_of: Callable[[Plan], float], target_ms: float
) -> tuple[Plan, float, float]:
    """Return the plan that keeps the most multiplications and is fast enough, by bisection.

    Fewer multiplications are rarely slower, but may be, where a width does not suit the engine; so
    it is the best of what was timed.

    Args:
        at_share: gives the plan that leaves a share of the multiplications, at 1 all of them.
        ms_of: times what a plan leaves, in milliseconds of a call.
        target_ms: what it may take.

    Returns:
        The plan, its milliseconds and those of the whole model.

    Raises:
        PassError: even the smallest is too slow.
    """
    whole = at_share(1.0)
    whole_ms = ms_of(whole)
    if whole_ms <= target_ms:
        return whole, whole_ms, whole_ms
    best = at_share(0.0)
    best_ms = ms_of(best)
    if best_ms > target_ms:
        raise PassError(
            f"The target is out of reach: pruned as far as it goes, with {best.cost.macs:,} of"
            f" {whole.cost.macs:,} multiplications, a call takes {best_ms:.3f} ms, not"
            f" {target_ms:g} ms."
        )
    low, high = best.cost.macs / whole.cost.macs, 1.0
    for _ in range(PROBES):
        share = (low + high) / 2
        plan = at_share(share)
        ms = ms_of(plan)
        if ms > target_ms:
            high = share
            continue
        low = share
        if plan.cost.macs > best.cost.macs:
            best, best_ms = plan, ms
    return best, best_ms, whole_ms
