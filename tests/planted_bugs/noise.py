"""The noise, and where in it a step is."""

from __future__ import annotations

from .bug import Bug

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
)
