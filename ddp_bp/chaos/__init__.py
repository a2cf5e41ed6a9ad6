"""Disturbing a job, and judging whether it survived: what `ddp-bp chaos` does, apart from starting processes.

schedule.py   which disturbances a seed stands for; pure
points.py     which ranks a seed lets die at a named point of their work; pure
record.py     what is asked of one job, and what was seen of it
traces.py     what of a job there is on this machine: its processes, folders and shared memory
disturb.py    what is done to processes
fill.py       filling a file system, and freeing it
usage.py      memory and file descriptors of ranks, and whether they grow
verdict.py    comparing a run with the undisturbed one

Nothing else knows this room but the command line, which starts the jobs and asks how they are doing.
"""
