"""The kernels, a file for what each does; `tile` is what they share."""

from .draw import draw_tile as draw_tile
from .step import partial_sums as partial_sums, step_tile as step_tile
