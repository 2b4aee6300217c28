"""The kernels, a file for what each does; `tile` is what they share."""

from .accept import (
    accept_tile as accept_tile,
    decide_rows as decide_rows,
    product_parts as product_parts,
    select_tile as select_tile,
)
from .draw import draw_tile as draw_tile
from .kinetic import finish_rows as finish_rows, kinetic_tile as kinetic_tile
from .step import partial_sums as partial_sums, step_tile as step_tile
from .tally import tally_tile as tally_tile
