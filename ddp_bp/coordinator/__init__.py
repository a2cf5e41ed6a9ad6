"""The process that keeps a job's ledger and checkpoints, and shows how the job is doing.

`state` decides and `server` acts: the state machine takes events and answers with instructions, with no socket, clock,
thread or disk in it; the server around it owns all four. Losing this process costs no training step.
"""
