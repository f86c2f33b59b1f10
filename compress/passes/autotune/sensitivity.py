"""What each module costs when it alone is quantized, and which schemes that makes worth trying."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

from torch.fx import GraphModule

from aigc_compress.closeness import lowest_agreement_db
from aigc_compress.task import Feeds, OnStep

from .config import AutotuneConfig
from .program import Program
from .quantizer import Calibrate, quantized
from .tuning import Scheme

__all__ = ["measure_sensitivity", "schemes_to_try"]


def measure_sensitivity(
    program: Program,
    modules: Sequence[str],
    feeds: Sequence[Feeds],
    *,
    calibrate: Calibrate,
    on_module: OnStep,
) -> dict[str, float]:
    """Return the SQNR against the float outputs by the one module that is quantized, in dB.

    Args:
        program: of floats.
        modules: names of those that can be quantized.
        feeds: what both run on.
        calibrate: runs an observed graph on these feeds.
        on_module: called with (done, total).
    """
    references = [program.run(each) for each in feeds]
    found = {}
    for index, name in enumerate(modules):
        others = set(modules) - {name}
        graph: GraphModule = copy.deepcopy(program.captured)
        made = quantized(graph, "minmax", others, calibrate=calibrate)
        alone = Program(made, program.input_names, program.output_names)
        found[name] = lowest_agreement_db(references, [alone.run(each) for each in feeds])
        on_module(index + 1, len(modules))
    return found


def schemes_to_try(sensitivity_db: Mapping[str, float], config: AutotuneConfig) -> list[Scheme]:
    """Return the schemes to try, those with most integers first.

    No module stays float, then the worst, the two worst, the four worst and so on, each with every
    way of finding ranges. At least one module stays on integers.
    """
    can_fall_back = _allowed(config.may_stay_float)
    worst_first = sorted(filter(can_fall_back, sensitivity_db), key=lambda n: sensitivity_db[n])
    most = min(len(worst_first), len(sensitivity_db) - 1)
    counts = [0]
    while counts[-1] < most:
        counts.append(min(most, max(1, 2 * counts[-1])))
    schemes = [
        Scheme(ranges, tuple(sorted(worst_first[:count])))
        for count in counts
        for ranges in dict.fromkeys(config.ranges)
    ]
    return schemes[: config.most_trials]


def _allowed(names: Sequence[str] | None) -> Callable[[str], bool]:
    return (lambda _name: True) if names is None else set(names).__contains__
