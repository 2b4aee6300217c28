"""The step: as specified, its operator and its face."""

from __future__ import annotations

from .bug import Bug

BUGS = (
    # ---- the step, as specified ----
    Bug(
        "the norm is that of the whole batch",
        "langevin_ext/backends/reference.py",
        "norm = philox.sqrt(tree_sum(grad * grad))[:, None]",
        "norm = philox.sqrt(tree_sum((grad * grad).view(1, -1))).expand(rows)[:, None]",
        "tests/test_step.py::test_a_step_is_the_equation",
    ),
    Bug(
        "the noise is not scaled by gamma",
        "langevin_ext/backends/reference.py",
        "d = diffusions * noise_factor(gamma, step.noise_power)",
        "d = diffusions",
        "tests/test_step.py::test_a_step_is_the_equation",
    ),
    Bug(
        "the clamp comes before the noise",
        "langevin_ext/backends/reference.py",
        "    if step.position is not None:\n        y = y + d * ",
        "    if step.position is not None:\n        y = y.clamp(step.low, step.high) + d * ",
        "tests/test_step.py::test_a_step_is_the_equation",
    ),
    Bug(
        "the reference measure forgets the drift",
        "langevin_ext/backends/reference.py",
        "y = y - (drifts * rho) * x",
        "y = y - rho * x",
        "tests/test_step.py::test_a_step_is_the_equation",
    ),
    Bug(
        "the clamp makes a number of NaN",
        "langevin_ext/backends/reference.py",
        "y = torch.where(y < low, low, y)",
        "y = torch.where(y >= low, y, low)",
        "tests/test_step.py::test_non_finite_values_stay_where_they_belong",
    ),
    Bug(
        "an infinite norm clips to nothing",
        "langevin_ext/backends/reference.py",
        "gamma = torch.where(norm.isfinite(), gamma, torch.nan)",
        "gamma = torch.where(norm.isnan(), torch.nan, gamma)",
        "tests/test_step.py::test_non_finite_values_stay_where_they_belong",
    ),
    # ---- the operator ----
    Bug(
        "compiled code does not advance the noise",
        "langevin_ext/noise.py",
        "is_compiling():\n            self._origin[1].add_(steps)\n",
        "is_compiling():\n            pass\n",
        "tests/test_ops.py::test_a_hundred_compiled_steps_are_one_compilation",
    ),
    Bug(
        "a backward pass draws where the position has moved to",
        "langevin_ext/ops.py",
        "arguments[1].clone()  # it may move on",
        "arguments[1].detach()  # it may move on",
        "tests/test_ops.py::test_a_backward_pass_does_not_follow_a_position_that_moves_on",
    ),
    Bug(
        "every slice of a mapped step is given the first one's gradient",
        "langevin_ext/ops.py",
        "a if d is None else a.select(d, i)",
        "a if d is None else a.select(d, i if d == 0 else 0)",
        "tests/test_ops.py::test_every_slice_of_a_mapped_step_has_the_same_noise",
    ),
    Bug(
        "an operator ignores the offset",
        "langevin_ext/ops.py",
        "position = Position(0, offset, stream",
        "position = Position(0, 0, stream",
        "tests/test_ops.py::test_an_offset_counts_from_the_position",
    ),
    Bug(
        "the short way does not advance the noise",
        "csrc/plain_step.cpp",
        "  if (is_false(noise, fixed_)) ++place[1];\n",
        "",
        "tests/test_plain_step.py::test_the_short_way_is_the_long_way",
    ),
    Bug(
        "the short way takes a bfloat16 gradient for float16",
        "csrc/plain_step.cpp",
        "types = kFloatBFloat16;",
        "types = kFloatFloat16;",
        "tests/test_plain_step.py::test_the_short_way_is_the_long_way",
    ),
    Bug(
        "the short way takes a gradient inside the state",
        "csrc/plain_step.cpp",
        "if (!count || overlap(state, slope, count)) return false;",
        "if (!count) return false;",
        "tests/test_plain_step.py::test_it_leaves_a_gradient_inside_the_state_alone",
    ),
    # ---- its face ----
    Bug(
        "autograd is not told of a raw write",
        "csrc/plain_step.cpp",
        "  tell(stats.is_none() ? py::object(written) : py::object(written + stats));\n",
        "",
        "tests/test_step.py::test_an_in_place_step_tells_autograd",
    ),
    Bug(
        "autograd is not told of statistics written raw",
        "langevin_ext/_run.py",
        "for t in (x, *(stats or ())) if not",
        "for t in (x,) if not",
        "tests/test_plain_step.py::test_the_short_way_is_the_long_way",
    ),
    Bug(
        "noise on a device is advanced before it is read",
        "langevin_ext/step.py",
        "if noise is not None and not read_by_the_kernel:",
        "if noise is not None:",
        "tests/test_noise.py::test_noise_whose_step_is_on_a_device_is_the_same_noise",
    ),
    Bug(
        "noise copied inside compiled code stays where it was",
        "langevin_ext/noise.py",
        "if self._cells is None or torch.compiler.is_compiling():\n            copy._origin",
        "if self._cells is None:\n            copy._origin",
        "tests/test_ops.py::test_noise_from_outside_is_copied_inside_a_compiled_function",
    ),
    Bug(
        "a learned bound is stepped in place",
        "langevin_ext/step.py",
        "refuse_grad(x, grad, drift, diffusion, bound)",
        "refuse_grad(x, grad, drift, diffusion, 1.0)",
        "tests/test_step_gradient.py::test_an_in_place_step_refuses_what_needs_a_gradient",
    ),
    Bug(
        "a strided state is stepped in memory order",
        "langevin_ext/_run.py",
        "chosen.step_(y, grad.resolve_neg().contiguous(), step, stats)\n        x.copy_(y)",
        "chosen.step_(y, grad.contiguous(), step, stats)\n"
        "        x.untyped_storage().copy_(y.untyped_storage())",
        "tests/test_step.py::test_layout_changes_nothing",
    ),
    Bug(
        "the derivative in the gradient forgets the clip",
        "langevin_ext/_derivative.py",
        "dgrad = -a * gamma * inside - slope * gamma * grad / safe**2",
        "dgrad = -a * gamma * inside",
        "tests/test_step_gradient.py::test_first_and_second_derivatives_are_right",
    ),
    Bug(
        "a gradient inside the state's memory is read too late",
        "csrc/bindings.cpp",
        "{{grad == out && !halves ? nullptr : s.grad,",
        "{{nullptr,",
        "tests/test_step.py::test_a_state_may_overlap_its_gradient",
    ),
)
