"""How many independent chains see a discrepancy of a given size."""

from __future__ import annotations

import math
from typing import Literal

from .._check import check_count
from ..errors import ArgumentError
from ._draws import check_positive, check_rate
from .bounds import normal_quantile

Kind = Literal["variance", "mean", "law", "probability"]


def chains_needed(
    discrepancy: float,
    false_alarm: float = 1e-6,
    miss: float = 1e-6,
    kind: Kind = "variance",
    *,
    tests: int = 1,
    kurtosis: float = 3.0,
    p: float = 0.5,
) -> int:
    """Chains with which a check overlooks a discrepancy with probability ``miss`` at most.

    With A the two-sided quantile of ``false_alarm`` over ``tests`` and B that of ``miss``,

        variance     (kurtosis - 1) ((A + B) / d)^2         d relative; normal draws have kurtosis 3
        mean         ((A + B) / d)^2                        d in standard deviations
        probability  p (1 - p) ((A + B) / d)^2              d absolute
        law          (sqrt(log(2 tests / false_alarm)) + sqrt(log(1 / miss)))^2 / (2 d^2)
                                                            d = sup |F - G|

    The last is a bound. The others are to first order in d: 5 % short of what a variance 5 % too
    large takes.

    Raises:
        ArgumentError: an argument is outside its range, or ``kind`` is unknown.
    """
    check_positive("discrepancy", discrepancy)
    alpha = check_rate("false_alarm", false_alarm) / check_count("tests", tests, 1)
    both = normal_quantile(alpha / 2) + normal_quantile(check_rate("miss", miss))
    if kind == "variance":
        n = check_positive("kurtosis - 1", kurtosis - 1) * (both / discrepancy) ** 2
    elif kind == "mean":
        n = (both / discrepancy) ** 2
    elif kind == "probability":
        check_rate("p", p)
        n = p * (1 - p) * (both / discrepancy) ** 2
    elif kind == "law":
        roots = math.sqrt(math.log(2 / alpha)) + math.sqrt(math.log(1 / miss))
        n = (roots / discrepancy) ** 2 / 2
    else:
        raise ArgumentError(f"kind={kind!r}: give 'variance', 'mean', 'law' or 'probability'")
    return math.ceil(n)
