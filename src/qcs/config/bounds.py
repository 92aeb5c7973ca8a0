"""Types of numbers with bounds, for the type hints of everything that conf/ configures.

This module imports nothing of ours, so that every other module may import it.
"""

from typing import Annotated

from annotated_types import Ge, Gt, Interval

MOST = 2**31 - 1  # what 32 bits hold; no number of images, steps or channels is larger

Natural = Annotated[int, Interval(ge=0, le=MOST)]
Count = Annotated[int, Interval(ge=1, le=MOST)]
Seed = Annotated[int, Interval(ge=0, le=2**32 - 1)]
Workers = Annotated[int, Interval(ge=0, le=1024)]  # processes
Pixels = Annotated[int, Interval(ge=1, le=8192)]  # of a side
Depth = Annotated[int, Interval(ge=1, le=1000)]  # layers, one after the other
Probability = Annotated[float, Interval(ge=0, le=1)]
Fraction = Annotated[float, Interval(gt=0, lt=1)]  # neither nothing nor all
Dropout = Annotated[float, Interval(ge=0, lt=1)]
Weight = Annotated[float, Ge(0)]
Positive = Annotated[float, Gt(0)]
