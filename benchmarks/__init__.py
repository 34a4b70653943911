"""What gkd costs beside what else one could run: ``python -m benchmarks --help``.

Threads sleep between parallel regions instead of spinning: on a machine that is not idle, spinning
would multiply the time of whoever has many regions, as eager PyTorch does, and flatter gkd.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported
