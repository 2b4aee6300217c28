"""Statistical tests of samplers: exact bounds, a stated rate of false alarms, exact laws.

The last states of n independent chains are n independent draws, so no autocorrelation and no
effective sample size enters: `Checks` compares them with what they should be, `Kernel1D` says what
that is on the line. scipy is needed: ``pip install 'langevin-ext[testing]'``.
"""

try:
    import scipy as scipy
except ImportError as error:
    raise ImportError(
        "langevin_ext.testing needs scipy: pip install 'langevin-ext[testing]'"
    ) from error

from .checks import Checks as Checks
from .design import chains_needed as chains_needed
from .kernel import Kernel1D as Kernel1D
from .ranks import (
    Passed as Passed,
    rank_test as rank_test,
    rule_step as rule_step,
    two_sample_test as two_sample_test,
)
