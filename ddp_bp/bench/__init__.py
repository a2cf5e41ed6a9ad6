"""Side-by-side benchmarks: our exchange, our steps and how they scale, beside MPI and PyTorch on the same cores.

race.py       several ways to do one thing, timed in turns
machine.py    the cache, the memory and the page faults of this machine and process; bandwidth of copying
summing.py    three ways to sum a vector over ranks: ours, MPI's, gloo's
exchange.py   `ddp-bp bench exchange`: these three by size
allreduce.py  which of Open MPI's algorithms is the best at which size
update.py     the sum and an Adam step in one pass, by the bytes that it must move
models.py     networks and made-up data for whole steps
torch_peer.py PyTorch's process group and DistributedDataParallel; the only module that imports PyTorch
torch_ranks.py, torch_process.py, torch_orders.py
              PyTorch in processes of its own: the ranks' side, the other side, and what they say to each other
products.py   the matrix products of a step, alone
training.py   `ddp-bp bench training`: whole steps beside PyTorch's
memory.py     `ddp-bp bench memory`: weights, gradients and state on a node, beside PyTorch's
shards.py     `ddp-bp bench shards`: steps with more shards than ranks
scaling.py    `ddp-bp bench scaling`: throughput on 1 to n ranks, memory and page faults
protection.py `ddp-bp bench protection`: steps with and without what is done in case something goes wrong
recovery.py   `ddp-bp bench recovery`: what kills of ranks and of the coordinator add up to
journal_watch.py, watched_process.py
              how many steps a job has committed, seen from outside; a process that is started to be disturbed
torchrun_job.py, torchrun_worker.py, step_notes.py
              PyTorch under torchrun, whose workers are killed: from outside, one of them, and the times of its steps

Nothing else knows this room but the command line. It measures the objects that training uses, and changes none of
them, but that protection leaves parts out.
"""
