"""Which results nothing else beats in both speed and quality."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["pareto_front"]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points that no other point beats, by rising first coordinate.

    Less is better in both coordinates. A point beats another when it is no worse in both and
    better in one; so equal points are on the front together. One sweep over the sorted points.
    """
    order = sorted(range(len(points)), key=lambda index: points[index])
    front: list[int] = []
    least = float("inf")
    for index in order:
        second = points[index][1]
        is_twin = bool(front) and points[front[-1]] == points[index]
        if second < least or is_twin:
            front.append(index)
            least = second
    return front
