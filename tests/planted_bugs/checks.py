"""What looks at samples: the test kit, diagnostics and plots."""

from __future__ import annotations

from .bug import Bug

BUGS = (
    # ---- the test kit ----
    Bug(
        "the bound of a law is one-sided",
        "langevin_ext/testing/bounds.py",
        "math.log(2 / alpha) / (2 * n)",
        "math.log(1 / alpha) / (2 * n)",
        "tests/test_testing.py::test_bounds_have_their_known_values",
    ),
    Bug(
        "every test has its family's whole rate",
        "langevin_ext/testing/checks.py",
        "return self.false_alarm / self.tests",
        "return self.false_alarm",
        "tests/test_testing.py::test_a_family_shares_its_rate_and_refuses_more",
    ),
    Bug(
        "a variance about the draws' own mean has n degrees of freedom",
        "langevin_ext/testing/checks.py",
        "free = len(z) - (mean is None)",
        "free = len(z)",
        "tests/test_testing.py::test_right_draws_fail_at_the_stated_rate",
    ),
    Bug(
        "noise that shares its radius passes for independent",
        "langevin_ext/testing/independence.py",
        '    yield "magnitudes"',
        '    return\n    yield "magnitudes"',
        "tests/test_testing.py::test_noise_that_chains_share_is_seen",
    ),
    Bug(
        "ties have the order of their chains",
        "langevin_ext/testing/independence.py",
        "stats.rankdata(x, axis=-1)",
        'stats.rankdata(x, axis=-1, method="ordinal")',
        "tests/test_testing.py::test_right_draws_fail_at_the_stated_rate",
    ),
    Bug(
        "an accept step forgets its proposals on the grid",
        "langevin_ext/testing/kernel.py",
        "u[:, None] - u[None, :] + log_q.T",
        "u[:, None] - u[None, :] + log_q",
        "tests/test_testing.py::test_anila_on_a_gaussian",
    ),
    Bug(
        "a path never begins with its start",
        "langevin_ext/testing/ranks.py",
        "rng.integers(0, length, n)  #",
        "rng.integers(0, length - 1, n)  #",
        "tests/test_testing.py::test_ranks_in_the_path_of_a_slow_chain_are_uniform",
    ),
    Bug(
        "every stage has the whole rate",
        "langevin_ext/testing/ranks.py",
        'check_rate("false_alarm", false_alarm) / stages',
        'check_rate("false_alarm", false_alarm)',
        "tests/test_testing.py::test_looking_again_rejects_at_the_stated_rate",
    ),
    # ---- diagnostics, plots ----
    Bug(
        "pairs of autocorrelations may grow again",
        "langevin_ext/_diagnostics.py",
        "pairs.cummin(1).values",
        "pairs",
        "tests/test_diagnostics.py::test_the_numbers_are_arvizs",
    ),
    Bug(
        "the last pair of lags is summed",
        "langevin_ext/_diagnostics.py",
        "last = max(0, (lags - 3) // 2)",
        "last = max(0, (lags - 1) // 2)",
        "tests/test_diagnostics.py::test_the_numbers_are_arvizs",
    ),
    Bug(
        "a negative half of the last pair is left out",
        "langevin_ext/_diagnostics.py",
        "counts = (at_end > 0) | (pairs.gather(1, end) >= 0)",
        "counts = at_end > 0",
        "tests/test_diagnostics.py::test_the_numbers_are_arvizs",
    ),
    Bug(
        "chains at different means are as good as one",
        "langevin_ext/_diagnostics.py",
        "chains > 1 else biased",
        "chains > 2**40 else biased",
        "tests/test_diagnostics.py::test_the_numbers_are_arvizs",
    ),
    Bug(
        "an odd chain loses its last draw",
        "langevin_ext/_diagnostics.py",
        "x = torch.cat([x[..., :half], x[..., -half:]], dim=2)",
        "x = x[..., : 2 * half].contiguous()",
        "tests/test_diagnostics.py::test_the_numbers_are_arvizs",
    ),
    Bug(
        "equal draws have ranks in the order of memory",
        "langevin_ext/_diagnostics.py",
        "if bool(tied.any()):",
        "if False:",
        "tests/test_diagnostics.py::test_the_numbers_are_arvizs",
    ),
    Bug(
        "R-hat does not look at scales",
        "langevin_ext/_diagnostics.py",
        "torch.fmax(_rhat(scored), _rhat(folded))",
        "_rhat(scored)",
        "tests/test_diagnostics.py::test_one_chain_has_the_rhat_of_its_halves",
    ),
    Bug(
        "a quantile that falls on a draw falls beside it",
        "langevin_ext/_diagnostics.py",
        "abs(place - round(place)) <= 1e-15 * last",
        "place == int(place)",
        "tests/test_diagnostics.py::test_a_quantile_that_falls_on_draws_is_exact",
    ),
    Bug(
        "the standard error of a standard deviation is a variance's",
        "langevin_ext/_diagnostics.py",
        "ess(split(deviations)) / mean).sqrt() / 2",
        "ess(split(deviations)) / mean).sqrt()",
        "tests/test_diagnostics.py::test_errors_are_as_large_as_they_are_said_to_be",
    ),
    Bug(
        "a summary's quantiles lack an odd chain's middle",
        "langevin_ext/diagnostics.py",
        "chunk.sort(x) if x.shape[2] % 2 else ordered",
        "ordered",
        "tests/test_diagnostics.py::test_the_summary_is_made_of_the_functions",
    ),
    Bug(
        "ArviZ gets draws for chains",
        "langevin_ext/_arviz.py",
        "_array(trajectory.transpose(0, 1))",
        "_array(trajectory).reshape(chains, draws, *trajectory.shape[2:])",
        "tests/test_arviz.py::test_every_draw_is_in_its_place",
    ),
    Bug(
        "narrow modes are drawn as one",
        "langevin_ext/plots.py",
        "return densest / 0.6373 or",
        "return",
        "tests/test_plots.py::test_densities_keep_two_modes_apart",
    ),
)
