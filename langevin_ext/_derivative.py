"""The derivative of a step in closed form, in torch, so that it can be differentiated again."""

from __future__ import annotations

import torch
from torch import Tensor

from ._types import Coefficient, StepCall


def step_gradients(
    out: Tensor, x: Tensor, noise: Tensor | None, call: StepCall
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of <out, step(x, grad, drift, diffusion, bound)> in its five arguments.

    Of the coefficients they are (B,), whatever their shape. ``noise`` is xi, (B, D).

    With G = out inside the clamp and 0 outside, sums over a chain's coordinates, and
    L = -drift <G, g> + p diffusion gamma^(p-1) <G, xi> the derivative in gamma:

        dx = (1 - drift rho) G
        dg = -drift gamma G - L gamma g / |g|^2,  db = L / |g|     where |g| > b; elsewhere L = 0
        ddrift = -gamma <G, g> - rho <G, x>,  ddiffusion = gamma^p <G, xi>
    """
    chains, shape, p, rho = x.shape[0], x.shape, call.noise_power, call.reference_precision
    columns = shape[1:].numel()
    drift, diffusion, bound = call.coefficients
    out, x, grad = (t.reshape(chains, columns).to(x.dtype) for t in (out, x, call.grad))

    def column(value: Coefficient) -> Tensor:
        return torch.as_tensor(value, dtype=x.dtype, device=x.device).expand(chains)[:, None]

    a, s, b = column(drift), column(diffusion), column(bound)
    size = grad.abs() if call.per_coordinate else torch.linalg.vector_norm(grad, dim=1)[:, None]
    clipped = size > b
    safe = torch.where(clipped, size, 1.0)
    gamma = torch.where(clipped, b / safe, 1.0)
    xi = torch.zeros_like(x) if noise is None else noise.to(x.dtype)
    power = gamma**p
    y = x - a * gamma * grad - a * rho * x + s * power * xi
    inside = torch.where((y >= call.low) & (y <= call.high), out, 0.0)

    def total(t: Tensor) -> Tensor:  # over whatever shares one gamma
        return t if call.per_coordinate else t.sum(1, keepdim=True)

    along, noisy = total(inside * grad), total(inside * xi)
    slope = -a * along
    if p:  # gamma may be too small for its power -1
        slope = slope + p * s * gamma ** (p - 1) * noisy
    slope = torch.where(clipped, slope, 0.0)
    dx = inside * (1 - a * rho)
    dgrad = -a * gamma * inside - slope * gamma * grad / safe**2
    ddrift = (-gamma * along - rho * total(inside * x)).sum(1)
    ddiffusion = (power * noisy).sum(1)
    dbound = (slope / safe).sum(1)
    return dx.view(shape), dgrad.to(call.grad.dtype).view(shape), ddrift, ddiffusion, dbound
