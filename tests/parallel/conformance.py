"""What every communicator must do, as checks that all its ranks run together.

Run under a launcher (`mpirun -n 3 python conformance.py`) it checks the MPI communicator; tests call `check_all` on the
others.
"""

from __future__ import annotations

import threading

import numpy as np

from ddp_bp.parallel.communicator import Communicator


def check_allgather(comm: Communicator) -> None:
    for dtype in (np.float32, np.float64, np.uint8, np.int64):
        receive = np.zeros((comm.size, 3), dtype)
        comm.allgather(np.full(3, comm.rank + 1, dtype), receive)
        assert (receive == np.arange(1, comm.size + 1)[:, None]).all()


def check_exchange(comm: Communicator) -> None:
    """Two messages to every other rank, which must arrive in order; the second one is large."""
    others = [rank for rank in range(comm.size) if rank != comm.rank]
    sends = []
    for other in others:
        sends += [
            (other, np.full(4, 10 * comm.rank + other, np.float64)),
            (other, np.full(300_000, 1000 * comm.rank + other, np.float32)),
        ]
    receives = []
    for other in others:
        receives += [(other, np.empty(4, np.float64)), (other, np.empty(300_000, np.float32))]
    comm.exchange(sends, receives)
    for index, other in enumerate(others):
        assert (receives[2 * index][1] == 10 * other + comm.rank).all()
        assert (receives[2 * index + 1][1] == 1000 * other + comm.rank).all()


def check_several_exchanges(comm: Communicator) -> None:
    """Several are under way, which are waited for in another order."""
    others = [rank for rank in range(comm.size) if rank != comm.rank]
    receives, waits = [], []
    for number, size in enumerate((100_000, 3, 50_000)):
        receives.append([(other, np.empty(size, np.int64)) for other in others])
        sends = [(other, np.full(size, 100 * number + comm.rank)) for other in others]
        waits.append(comm.start_exchange(sends, receives[-1]))
    for number in (0, 2, 1):
        waits[number]()
        for other, array in receives[number]:
            assert (array == 100 * number + other).all()


def check_allreduce_sum(comm: Communicator) -> None:
    for dtype in (np.float32, np.float64, np.int64):
        array = np.arange(5000).astype(dtype) * (comm.rank + 1)
        comm.allreduce_sum(array)
        assert array.dtype == dtype
        assert (array == np.arange(5000) * (comm.size * (comm.size + 1) // 2)).all()


def check_part(comm: Communicator) -> None:
    """Each group is one of its own: it can be used while the other ranks do something else."""
    for first in range(comm.size):
        for step in (1, 2):
            members = list(range(first, comm.size, step))
            group = comm.part(comm.rank in members)
            assert (group is None) == (comm.rank not in members)
            if group is not None:
                assert (group.rank, group.size) == (members.index(comm.rank), len(members))
                array = np.array([comm.rank + 1.0])
                group.allreduce_sum(array)
                assert array == sum(members) + len(members)
                group.close()


def check_agree(comm: Communicator) -> None:
    assert comm.agree(7) == 7
    assert comm.agree(6 if comm.rank == comm.size - 1 else 3) == (2 if comm.size > 1 else 6)
    assert comm.agree(0 if comm.rank == 0 else 1) == 0
    assert not comm.is_revoked()
    assert comm.dead() == ()


def check_broadcast(comm: Communicator) -> None:
    for root in range(comm.size):
        buffer = np.full((2, 3), comm.rank, np.float64)
        comm.broadcast(buffer, root)
        assert (buffer == root).all()


def check_allgather_bytes(comm: Communicator) -> None:
    mine = bytes([comm.rank]) * (comm.rank * 7)
    assert comm.allgather_bytes(mine) == [bytes([rank]) * (rank * 7) for rank in range(comm.size)]
    assert comm.allgather_bytes(b"") == [b""] * comm.size


def check_duplicate(comm: Communicator) -> None:
    """It can be used by another thread while this one uses the original, where MPI allows that."""
    duplicate = comm.duplicate()
    assert (duplicate.rank, duplicate.size) == (comm.rank, comm.size)

    def exchange() -> None:
        for _ in range(20):
            check_exchange(duplicate)
            check_several_exchanges(duplicate)

    thread = threading.Thread(target=exchange)
    if comm.allows_threads:
        thread.start()
    for _ in range(20):
        check_exchange(comm)
    if not comm.allows_threads:
        thread.start()
    thread.join()
    duplicate.close()


CHECKS = (
    check_duplicate,
    check_allgather,
    check_exchange,
    check_several_exchanges,
    check_allreduce_sum,
    check_part,
    check_agree,
    check_broadcast,
    check_allgather_bytes,
)


def check_all(comm: Communicator) -> int:
    """Run every check on this rank; the number of them."""
    assert 0 <= comm.rank < comm.size
    assert comm.describe()
    for check in CHECKS:
        check(comm)
        comm.barrier()
    return len(CHECKS)


if __name__ == "__main__":
    from ddp_bp.parallel.mpi import open_communicator

    communicator = open_communicator()
    count = check_all(communicator)
    if communicator.rank == 0:
        print(f"{communicator.size} ranks passed {count} checks")
    communicator.close()
