"""Where the time of training steps goes: operation by operation, module by module, phase by phase, rank by rank.

measure.py  some steps of a job, watched, and what every rank saw of them
report.py   that as rows of numbers
trace.py    that as a Chrome trace
graph.py    the recorded graph as a drawing
"""

from __future__ import annotations
