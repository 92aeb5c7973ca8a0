"""QCS: quadruplet cross similarity for facial expression recognition."""

import os

__version__ = "0.1.0"

# Large tensors on the CPU in large pages (Linux): the first touch of a fresh batch costs a fifth.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
