"""Steps between hosts on links of 1 Gbit/s and 0.2 ms: `python tests/hosts/measure_links.py [BATCH_PER_RANK ...]`.

Needs root and network namespaces. Prints one line for each number of samples a rank: with few, a step is bound by the
link, with many by the processors. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from hosts import Hosts, why_not

RATE, DELAY = "1gbit", "0.2ms"
STEPS = Path(__file__).parent / "link_steps.py"


def measure(hosts: Hosts, num_hosts: int, batch_per_rank: int, num_repeats: int) -> dict[str, Any]:
    """What `link_steps.py` says, one rank on each of the first hosts."""
    result = hosts.mpirun([1] * num_hosts, [STEPS, batch_per_rank, num_repeats])
    if result.returncode != 0:
        raise RuntimeError(result.stderr)
    told: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return told


def main(batches: list[int]) -> None:
    if reason := why_not():
        sys.exit(reason)
    # A core each, as `ddp-bp train` sees to.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # The hosts go whoever ends this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory() as folder, Hosts(2, Path(folder)) as hosts:
        print(f"links: {hosts.link(RATE, DELAY)}", flush=True)
        for batch in batches:
            print(json.dumps(measure(hosts, 2, batch, 12)), flush=True)


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [32, 256])
