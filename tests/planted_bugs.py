"""Bugs to plant in a copy of the library, each with the test that must catch it.

`test_planted_bugs` plants them one at a time. They are what goes wrong in samplers that look
right: most leave a plausible picture, and a test of means and variances to ten percent passes.
"""

from __future__ import annotations

from typing import NamedTuple


class Bug(NamedTuple):
    name: str
    file: str
    old: str
    """Occurs once in the file."""
    new: str
    test: str
    """Node id, without parameters."""


BUGS = (
    # ---- the noise, as specified ----
    Bug(
        "the words of radius and angle trade places",
        "langevin_ext/philox.py",
        "z0, z1 = box_muller(w[..., 0::2], w[..., 1::2])",
        "z0, z1 = box_muller(w[..., 1::2], w[..., 0::2])",
        "tests/test_philox.py::test_known_normals",
    ),
    Bug(
        "the second half of the words is the first",
        "langevin_ext/philox.py",
        "z0, z1 = box_muller(w[..., 0::2], w[..., 1::2])",
        "z0, z1 = box_muller(w[..., [0, 0]], w[..., [1, 1]])",
        "tests/test_philox.py::test_known_normals",
    ),
    Bug(
        "sine and cosine trade places",
        "langevin_ext/philox.py",
        "return radius * c, radius * s",
        "return radius * s, radius * c",
        "tests/test_philox.py::test_known_normals",
    ),
    Bug(
        "neighbouring chains share their noise",
        "langevin_ext/philox.py",
        "torch.arange(rows, device=device)[:, None] + position.first_chain",
        "torch.arange(rows, device=device)[:, None] // 2 + position.first_chain",
        "tests/test_noise.py::test_noise_does_not_depend_on_batch_or_shard",
    ),
    Bug(
        "the high word of the step is ignored",
        "langevin_ext/philox.py",
        "(position.stream << 16) | (position.step >> 32)",
        "position.stream << 16",
        "tests/test_noise.py::test_purposes_and_seeds_and_steps_are_different_noise",
    ),
    Bug(
        "the stream is ignored",
        "langevin_ext/philox.py",
        "(position.stream << 16) | (position.step >> 32)",
        "position.step >> 32",
        "tests/test_noise.py::test_purposes_and_seeds_and_steps_are_different_noise",
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
    # ---- positions ----
    Bug(
        "a step does not consume its noise",
        "langevin_ext/step.py",
        "noise.advance()  # first:",
        "noise.advance(0)  # first:",
        "tests/test_noise.py::test_every_step_consumes_one_position",
    ),
    Bug(
        "a fixed copy advances",
        "langevin_ext/noise.py",
        "copy._offset, copy._fixed = 0, True",
        "copy._offset, copy._fixed = 0, False",
        "tests/test_noise.py::test_a_fixed_copy_repeats_itself",
    ),
    Bug(
        "chain ids wrap around",
        "langevin_ext/_check.py",
        "if first_chain + chains > MAX_CHAIN:",
        "if first_chain >= MAX_CHAIN:",
        "tests/test_noise.py::test_the_last_chain_works_and_the_next_is_refused",
    ),
    Bug(
        "a backward pass uses the next step's noise",
        "langevin_ext/ops.py",
        "place = call[1:6]",
        "place = (call[1], call[2] + 1, *call[3:6])",
        "tests/test_step_gradient.py::test_backward_makes_the_noise_of_its_own_forward",
    ),
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
        "langevin_ext/backends/_memory.py",
        "return value.clone() if shared else value",
        "return value",
        "tests/test_step.py::test_a_state_may_overlap_its_gradient",
    ),
    # ---- the rules ----
    Bug(
        "the noise is 1 % small",
        "langevin_ext/samplers/langevin.py",
        "else math.sqrt(variance)",
        "else 0.99 * math.sqrt(variance)",
        "tests/test_samplers.py::test_ula_on_gaussians_has_its_exact_law",
    ),
    Bug(
        "the drift has h for h / 2",
        "langevin_ext/samplers/langevin.py",
        "return h / 2, variance.sqrt()",
        "return h, variance.sqrt()",
        "tests/test_samplers.py::test_ula_on_gaussians_has_its_exact_law",
    ),
    Bug(
        "the noise has sqrt(2 h) for sqrt(h)",
        "langevin_ext/samplers/langevin.py",
        "variance = h * at_step(",
        "variance = 2 * h * at_step(",
        "tests/test_samplers.py::test_ula_on_gaussians_has_its_exact_law",
    ),
    Bug(
        "AniLA clips the drift alone",
        "langevin_ext/samplers/anila.py",
        "noise_power=self.noise_power,",
        "noise_power=0.0,",
        "tests/test_samplers.py::test_anila_has_the_exact_law_of_its_chain",
    ),
    Bug(
        "a schedule starts at one",
        "langevin_ext/samplers/langevin.py",
        "drift, diffusion = self.coefficients(state.step)",
        "drift, diffusion = self.coefficients(state.step + 1)",
        "tests/test_samplers.py::test_a_schedule_is_the_loop_over_its_values",
    ),
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
        "chains = type(x0.chains)(*(_copy(field) for field in x0.chains))",
        "chains = x0.chains",
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
    # ---- the kernels ----
    Bug(
        "contraction is on",
        "setup.py",
        '"-ffp-contract=off"',
        '"-ffp-contract=fast"',
        "tests/test_philox.py::test_a_million_normals_are_the_reference_bits",
    ),
    Bug(
        "the high word of the seed is the low one",
        "csrc/philox.h",
        "words[round][half] = Key::of(seed).word(round, half);",
        "words[round][half] = Key::of(seed).word(round, 0);",
        "tests/test_philox.py::test_known_normals",
    ),
    Bug(
        "the sine's sign is wrong in half of the quadrants",
        "csrc/philox.h",
        "(sine ^ difference) ^ ((quadrant & 2) << 30)",
        "(sine ^ difference) ^ (((quadrant + 1) & 2) << 30)",
        "tests/test_philox.py::test_known_normals",
    ),
    Bug(
        "the kernels ignore the high word of the step",
        "csrc/noise_cpu.h",
        "(p.stream << 16) | static_cast<uint32_t>(p.step >> 32)",
        "p.stream << 16",
        "tests/test_philox.py::test_known_normals",
    ),
    Bug(
        "long rows share their noise in pairs",
        "csrc/noise_cpu.h",
        "PairOfLanes::broadcast(chain), p, z);",
        "PairOfLanes::broadcast(chain & ~1ull), p, z);",
        "tests/test_noise.py::test_four_million_normals",
    ),
    Bug(
        "short rows share a chain id across registers",
        "csrc/noise_cpu.h",
        "c += (carry & uint64_t{1}) + next_chain;",
        "c += next_chain;",
        "tests/test_noise.py::test_a_step_does_not_depend_on_batch_or_shard",
    ),
    Bug(
        "the noise is uniform, with variance 1",
        "csrc/noise_cpu.h",
        "    box_muller<L>(even, odd, z0, z1);",
        "    z0 = (unit_interval<L>(even) - 0.5f) * 3.4641016f;\n"
        "    z1 = (unit_interval<L>(odd) - 0.5f) * 3.4641016f;",
        "tests/test_samplers.py::test_ula_on_gaussians_has_its_exact_law",
    ),
    Bug(
        "the clamp of the kernels makes a number of NaN",
        "csrc/lanes.h",
        "F at_least(F lo, F y) { return lo > y ? lo : y; }",
        "F at_least(F lo, F y) { return y > lo ? y : lo; }",
        "tests/test_step.py::test_non_finite_values_stay_where_they_belong",
    ),
    Bug(
        "a short row is clipped by its neighbour's norm",
        "csrc/tiles_cpu.h",
        "block_sum<T>(cols, [row = g + r * cols]",
        "block_sum<T>(cols, [row = g + (r ? r - 1 : 0) * cols]",
        "tests/test_step.py::test_every_shape_has_the_bits_of_the_reference",
    ),
    Bug(
        "the last column of a tail is dropped",
        "csrc/lanes.h",
        "    store_first(p, n, v);",
        "    store_first(p, n - 1, v);",
        "tests/test_step.py::test_every_shape_has_the_bits_of_the_reference",
    ),
    Bug(
        "the kernels do not scale the noise by gamma",
        "csrc/step_cpu.cpp",
        "diffusion * noise_factor<T>(gamma, s.twice_noise_power),",
        "diffusion,",
        "tests/test_step.py::test_every_shape_has_the_bits_of_the_reference",
    ),
    Bug(
        "the padding of a sum is added",
        "csrc/sums_cpu.h",
        "lanes[k] += R::first(n - j) ? term(j, n - j) : V{};",
        "lanes[k] += term(j, n - j);",
        "tests/test_step.py::test_every_shape_has_the_bits_of_the_reference",
    ),
    Bug(
        "the second thread starts a row late",
        "csrc/threads.h",
        "const int64_t begin = grains * t / of * grain,",
        "const int64_t begin = (grains * t / of + (t > 0)) * grain,",
        "tests/test_step.py::test_every_shape_has_the_bits_of_the_reference",
    ),
    Bug(
        "a bad chain in a long row is not reported",
        "csrc/step_cpu.cpp",
        "__atomic_store_n(s.finite + row, false, __ATOMIC_RELAXED);",
        "__atomic_store_n(s.finite + row, true, __ATOMIC_RELAXED);",
        "tests/test_step.py::test_non_finite_values_stay_where_they_belong",
    ),
    Bug(
        "the Triton kernels swap two words of the generator",
        "langevin_ext/backends/triton/noise.py",
        "c1, c3 = p1.to(tl.uint32), p0.to(tl.uint32)",
        "c1, c3 = p0.to(tl.uint32), p1.to(tl.uint32)",
        "tests/kernels/test_noise.py::test_known_words",
    ),
    Bug(
        "the Triton kernels forget the steps from an origin",
        "langevin_ext/backends/triton/noise.py",
        "step += tl.load(origin + 1)",
        "step = tl.load(origin + 1)",
        "tests/kernels/test_noise.py::test_an_origin_counts_as_its_numbers",
    ),
    Bug(
        "a tile's second row has the first one's chain id in Triton",
        "langevin_ext/backends/triton/noise.py",
        "chain = (first_chain + row).to(tl.uint32) + tl.arange(0, R)[:, None].to(tl.uint32)",
        "chain = (first_chain + row).to(tl.uint32) + tl.arange(0, R)[:, None].to(tl.uint32) * 0",
        "tests/kernels/test_noise.py::test_a_shard_draws_its_own_rows",
    ),
    Bug(
        "every piece of a long row has the first one's noise in Triton",
        "langevin_ext/backends/triton/noise.py",
        "group = (col // 4).to(tl.uint32)",
        "group = (col * 0).to(tl.uint32)",
        "tests/kernels/test_step.py::test_every_shape_has_the_bits_of_the_reference",
    ),
    Bug(
        "the norm of a long row lacks its tail in Triton",
        "langevin_ext/backends/triton/kernels/step.py",
        "g = tl.load(grad + col, mask=col < D, other=0.0)",
        "g = tl.load(grad + col, mask=col < D - 1, other=0.0)",
        "tests/kernels/test_step.py::test_every_shape_has_the_bits_of_the_reference",
    ),
    Bug(
        "the clamp of the Triton kernels makes a number of NaN",
        "langevin_ext/backends/triton/kernels/step.py",
        "y = tl.where(y < low, low, y)",
        "y = tl.where(y >= low, y, low)",
        "tests/kernels/test_step.py::test_the_rules_for_values_that_are_not_finite",
    ),
    Bug(
        "the last piece of a long row decides whether it is finite in Triton",
        "langevin_ext/backends/triton/kernels/step.py",
        "tl.full([R, 1], 0, tl.uint8), mask=here & bad)",
        "(bad == 0).to(tl.uint8), mask=here)",
        "tests/kernels/test_step.py::test_the_rules_for_values_that_are_not_finite",
    ),
    Bug(
        "a step in Triton reads a state that it has written over",
        "langevin_ext/backends/triton/__init__.py",
        "x = gradient_apart(x, out)",
        "x = x",
        "tests/kernels/test_step.py::test_a_step_may_go_over_what_it_reads",
    ),
    Bug(
        "a step size in the state is read after it has changed in Triton",
        "langevin_ext/backends/_memory.py",
        "return value.clone() if shared else value",
        "return value",
        "tests/kernels/test_step.py::test_coefficients_may_be_views_of_what_is_written",
    ),
)
