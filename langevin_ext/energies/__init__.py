r"""Energies of which everything is known: to learn on, and to test samplers with.

Each is a module U with density exp(-U) / Z on states x (B, d). It gives U (``energy(x)``), U with
its gradient in closed form (``value_and_gradient``, which `sample` and `EnergyGradient` use by
themselves), log Z (``log_partition``), the density (``log_prob``), exact independent draws
(``draw``), and the law's ``mean``, ``variance`` and ``covariance``: see `AnalyticEnergy`.

    energy = lx.energies.EightGaussians()
    x0 = energy.draw(1000, seed=0)
    samples = lx.sample(energy, x0, lx.Langevin(0.001), steps=500, seed=0)

    Gaussian         (x - m)^T P (x - m) / 2, P full or diagonal                        any d
    GaussianMixture  -log sum_k w_k N(x; m_k, C_k)                                      any d
    EightGaussians   the same, eight on a circle of radius R; E |x|^2 = R^2 + 2 s^2     d = 2
    Rings            -log sum_k w_k exp(-(|x| - R_k)^2 / (2 s_k^2))                     d = 2
    TwoMoons         (|x| - R)^2 / (2 s^2) - log sum_+- exp(-(x_1 +- R)^2 / (2 w^2))    d = 2
    Banana           x_1^2 / (2 s^2) + (x_2 - b (x_1^2 - s^2))^2 / (2 t^2)              d = 2
    Funnel           x_1^2 / (2 s^2) + sum_i>1 (x_1 + exp(-x_1) x_i^2) / 2              d >= 2
    QuadraticWell    k |x|^2 / 2, which is Gaussian(precision=k)                        any d
    DoubleWell       h sum_i ((x_i / a)^2 - 1)^2                                        any d
    QuarticWell      k sum_i x_i^4 / 4                                                  any d
    Logistic         sum_i 2 log(2 cosh(x_i / (2 s)))                                   any d

`Scaled` is any energy times a number.
"""

from ._analytic import AnalyticEnergy as AnalyticEnergy
from .curved import Banana as Banana, Funnel as Funnel
from .gaussian import Gaussian as Gaussian, QuadraticWell as QuadraticWell
from .mixture import EightGaussians as EightGaussians, GaussianMixture as GaussianMixture
from .rings import Rings as Rings, TwoMoons as TwoMoons
from .scaled import Scaled as Scaled
from .separable import DoubleWell as DoubleWell, Logistic as Logistic, QuarticWell as QuarticWell
