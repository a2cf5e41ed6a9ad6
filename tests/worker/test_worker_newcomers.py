"""What a rank that has just joined holds before its first step: the same as all others, so that they agree on it."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

from test_worker_recovery import WIDE
from worker_cases import build_trained

from ddp_bp.parallel.communicator import Communicator
from ddp_bp.parallel.threads import run_ranks
from ddp_bp.recipes.optimization import ScheduleSection
from ddp_bp.worker.loop import Equipment, TrainingLoop
from ddp_bp.worker.progress import Progress
from ddp_bp.worker.schedule import Schedule
from ddp_bp.worker.team import brief, build_team


def nothing(*_: Any) -> None:
    """Stands for who is told of what happens."""


def test_a_checkpoint_may_be_due_right_after_the_step_in_which_a_rank_has_joined() -> None:
    """Ranks compare what they hold before it, rates among it, which the others have set before that step."""

    def run(communicator: Communicator) -> int:
        trained, nodes, _ = build_trained(communicator, WIDE)
        is_new = communicator.rank == 1
        schedule = Schedule(ScheduleSection(name="cosine", epochs=3), trained.optimizer, 5)
        if not is_new:
            schedule.apply(4)
            trained.optimizer.num_steps = 5
        team = build_team(trained, communicator, nodes, num_steps=5)
        begun: list[str] = []
        told: list[tuple[int, int, int]] = []
        checkpointing: Any = SimpleNamespace(in_flight=False, begin=lambda name, _: begun.append(name))
        equipment = Equipment(team.step, None, checkpointing, communicator, partial(brief, trained, communicator))
        fault, of_train = SimpleNamespace(nonfinite_limit=1), SimpleNamespace(eval_every_epochs=0, epochs=3)
        job: Any = SimpleNamespace(
            schedule=schedule,
            plan=WIDE.plan,
            optimizer=trained.optimizer,
            is_classification=False,
            recipe=SimpleNamespace(fault=fault, train=of_train),
        )
        reporter: Any = SimpleNamespace(
            unconfirmed=lambda: ([], []),
            counts=(5, 50, 0),
            take_over=lambda *said: told.append(said[-1]),
            send=nothing,
            send_if_due=nothing,
        )
        loop = TrainingLoop(
            job=job,
            equipment=None if is_new else equipment,
            progress=Progress() if is_new else Progress(step=5),
            ledger=SimpleNamespace(chain_sha256="", go_on_from=nothing, membership=1),  # type: ignore[arg-type]
            reporter=reporter,
            link=SimpleNamespace(on_return=nothing),  # type: ignore[arg-type]
            checkpoint_every_steps=5,
            announce=nothing,
        )
        loop._followed_up = False
        loop.go_on(equipment, None)
        loop._follow_up()
        assert told == ([(5, 50, 0)] if is_new else []), "what it will report of the job"
        return len(begun)

    assert run_ranks(2, run) == [1, 1]
