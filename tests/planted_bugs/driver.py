"""The driver: records, policies, and chains that go on."""

from __future__ import annotations

from .bug import Bug

BUGS = (
    # ---- the driver ----
    Bug(
        "the energy stays in training mode",
        "langevin_ext/gradient.py",
        "                    _set_live(part, False)",
        "            pass",
        "tests/test_sample.py::test_sampling_leaves_no_trace",
    ),
    Bug(
        "the energy is left in evaluation mode",
        "langevin_ext/gradient.py",
        "                    _set_live(part, True)",
        "            pass",
        "tests/test_sample.py::test_sampling_leaves_no_trace",
    ),
    Bug(
        "freezing keeps nothing",
        "langevin_ext/_watch.py",
        "                self.held[name].copy_(t)",
        "                pass",
        "tests/test_sample.py::test_freeze_keeps_the_last_finite_state",
    ),
    Bug(
        "a restart moves every chain",
        "langevin_ext/_watch.py",
        "_put_back(state, ~ok, self.start)",
        "_put_back(state, torch.ones_like(ok), self.start)",
        "tests/test_sample.py::test_reinit_goes_back_to_the_start",
    ),
    Bug(
        "a finite energy is taken for granted",
        "langevin_ext/_watch.py",
        "ok = (state.energy.isfinite() & finite) | self.frozen",
        "ok = finite | self.frozen",
        "tests/test_sample.py::test_raise_names_step_chains_and_remedy",
    ),
    Bug(
        "a continued run starts its noise again",
        "langevin_ext/_watch.py",
        "SampleState(state, noise.clone(), guard.frozen",
        "SampleState(state, Noise(noise.seed), guard.frozen",
        "tests/test_sample.py::test_a_continued_run_is_one_long_run",
    ),
    Bug(
        "a continued run moves the state it was given",
        "langevin_ext/sample.py",
        "state = _copy(past.chains)",
        "state = past.chains",
        "tests/test_sample.py::test_a_continued_run_is_one_long_run",
    ),
    Bug(
        "kept states are a step early",
        "langevin_ext/_watch.py",
        "(k + 1) % self.keep_every == 0",
        "k % self.keep_every == 0",
        "tests/test_sample.py::test_every_so_many_states_are_kept",
    ),
    Bug(
        "burn-in is averaged",
        "langevin_ext/sample.py",
        "if k >= burn_in:",
        "if k >= 0:",
        "tests/test_sample.py::test_burn_in_is_not_kept_or_averaged",
    ),
    # ---- what goes on ----
    Bug(
        "chains that go on keep the energy of another",
        "langevin_ext/samplers/mala.py",
        "return state._replace(energy=at.energy, grad=at.grad)",
        "return state",
        "tests/test_rules.py::test_a_run_goes_on_with_another_energy",
    ),
    Bug(
        "every trajectory has the same length",
        "langevin_ext/samplers/hmc.py",
        "h = h * (1 + self.jitter * (2 * u[:, 0].double() - 1))",
        "h = h * 1.0",
        "tests/test_rules.py::test_jitter_breaks_the_circle",
    ),
    Bug(
        "moments are summed in float32",
        "langevin_ext/_watch.py",
        "self.mean = torch.zeros_like(x, dtype=torch.float64)",
        "self.mean = torch.zeros_like(x)",
        "tests/test_rules.py::test_moments_of_long_runs_far_from_zero",
    ),
    Bug(
        "a gradient in negative memory is read as it lies",
        "langevin_ext/_moves.py",
        "grad.to(x.dtype).resolve_neg().contiguous()",
        "grad.to(x.dtype).contiguous()",
        "tests/test_rules.py::test_a_gradient_in_a_negative_view_is_the_gradient",
    ),
    Bug(
        "a continued state keeps its strides",
        "langevin_ext/sample.py",
        "field.clone(memory_format=torch.contiguous_format)",
        "field.clone()",
        "tests/test_rules.py::test_a_state_changed_by_hand_goes_on_or_is_refused",
    ),
    # ---- sums over steps ----
    Bug(
        "a step that hits the bound counts as clipped",
        "langevin_ext/backends/reference.py",
        "sums.clipped.add_(stats.gamma < 1)",
        "sums.clipped.add_(stats.gamma <= 1)",
        "tests/test_tally.py::test_the_native_sums_are_the_references",
    ),
    Bug(
        "an acceptance above one is averaged",
        "csrc/tally.cpp",
        "return log_ratio >= 0 ? 1 : std::exp(log_ratio);",
        "return std::exp(log_ratio);",
        "tests/test_tally.py::test_known_sums",
    ),
    Bug(
        "the last chain's energy is not looked at",
        "csrc/tally.cpp",
        "all &= finite[i] & (std::isfinite(energy[i]) != 0)",
        "all &= finite[i] & (i + 1 == rows || std::isfinite(energy[i]))",
        "tests/test_tally.py::test_one_chain_that_is_not_finite_is_found",
    ),
    Bug(
        "an acceptance ratio of NaN counts as one",
        "langevin_ext/backends/triton/kernels/tally.py",
        "tl.where(ratio >= 0.0, 1.0, tl.exp(ratio))",
        "tl.where(ratio < 0.0, tl.exp(ratio), 1.0)",
        "tests/kernels/test_tally.py::test_the_kernels_sums_are_the_references",
    ),
    # ---- states to go on from ----
    Bug(
        "a field of a state may be missing",
        "langevin_ext/samplers/_rule.py",
        "    if not isinstance(value, Tensor):\n        raise ArgumentError(f",
        "    if not isinstance(value, Tensor):\n        return\n        raise ArgumentError(f",
        "tests/test_resume.py::test_no_field_of_the_chains_may_be_none",
    ),
    Bug(
        "frozen chains are as many as they like",
        "langevin_ext/sample.py",
        '        check_field("frozen", past.frozen, x, x.shape[:1], torch.bool)\n',
        "",
        "tests/test_resume.py::test_frozen_and_restarts_are_for_each_chain",
    ),
    Bug(
        "where chains restart is believed",
        "langevin_ext/sample.py",
        "for name, value in (past.start or {}).items():",
        "for name, value in dict[str, Any]().items():",
        "tests/test_resume.py::test_where_chains_restart_is_like_where_they_are",
    ),
    Bug(
        "trouble of another energy stays",
        "langevin_ext/samplers/mala.py",
        "    state.stats.finite.copy_(norms(at.grad).isfinite())\n",
        "",
        "tests/test_resume.py::test_a_gradient_that_is_back_is_none",
    ),
    Bug(
        "chains restart with the gradient of the energy before",
        "langevin_ext/sample.py",
        "x0.noise.clone(), _renewed(gradient, x0)",
        "x0.noise.clone(), x0",
        "tests/test_resume.py::test_chains_restart_with_this_energys_gradient",
    ),
)
