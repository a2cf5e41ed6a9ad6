"""Evaluation over the held-out samples: each counted exactly once, for any number of ranks.

The samples are cut into fixed chunks, ranks take contiguous runs of chunks, and the sums are joined along the reduction
tree over chunks; so the result has the same bits on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from ddp_bp.data import Dataset
from ddp_bp.data.batches import Batch, evaluation_chunks
from ddp_bp.engine.buffers import Buffers
from ddp_bp.engine.random import random_stream
from ddp_bp.parallel.agreement import Agreement, Status
from ddp_bp.parallel.communicator import Communicator
from ddp_bp.parallel.membership import shard_run
from ddp_bp.worker.failures import raise_together
from ddp_bp.worker.objective import Objective

# Random numbers are drawn as if by shards that no batch can have.
_FIRST_STREAM = 2**61


@dataclass(frozen=True)
class EvaluationResult:
    """Mean loss, share of right answers (None for regression), samples counted, and the time it took."""

    loss: float
    accuracy: float | None
    num_samples: int
    seconds: float


class Evaluation:
    """Evaluates `objective` on all of `dataset`. Construct and run on all ranks alike."""

    def __init__(
        self,
        objective: Objective,
        dataset: Dataset,
        chunk_size: int,
        communicator: Communicator,
        layout: int,
        on_failure: Callable[[BaseException, int], None],
        weights: Callable[[], AbstractContextManager[None]] = nullcontext,
        buffers: Buffers | None = None,
        seed: int = 0,
    ) -> None:
        """`weights`: a block within which the model has the weights to be evaluated, entered on all ranks alike.

        A model that draws random numbers or changes its `buffers` in evaluation, too, does so in each chunk anew, keyed
        by `seed`, step and chunk.
        """
        self._objective, self._dataset, self._on_failure = objective, dataset, on_failure
        self._weights, self._buffers, self._seed = weights, buffers or Buffers([]), seed
        chunks = evaluation_chunks(dataset.num_samples, chunk_size)
        run = shard_run(len(chunks), communicator.size, communicator.rank)
        self._run = run
        self._chunks = chunks[run.start : run.stop]
        self._agreement = Agreement(communicator, len(chunks), layout)
        self.num_chunks = 0
        """How many chunks this rank has evaluated."""

    def run(self, step: int, *, has_accuracy: bool) -> EvaluationResult:
        """Evaluate after `step` committed steps. Collective.

        Raises:
            RankFailure: on a rank whose computation raised; RemoteError on the others.
        """
        began = perf_counter()
        failure: BaseException | None = None
        self._agreement.reset()
        with self._weights():
            try:
                self._evaluate_chunks(step)
            except BaseException as error:
                failure = error
                self._on_failure(error, step)
            self._buffers.begin()
        verdict = self._agreement.agree(step, status=Status.FAILED if failure else Status.READY)
        raise_together(verdict, failure, f"during the evaluation after step {step}")
        num_samples = self._dataset.num_samples
        num_answers = self._objective.num_answers(num_samples, verdict.weight)
        return EvaluationResult(
            loss=verdict.loss / verdict.weight if verdict.weight else float("nan"),
            accuracy=verdict.correct / num_answers if has_accuracy and num_answers else None,
            num_samples=num_samples,
            seconds=perf_counter() - began,
        )

    def _evaluate_chunks(self, step: int) -> None:
        for index, (lo, hi) in enumerate(self._chunks):
            ids = np.arange(lo, hi, dtype=np.int64)
            batch = Batch(ids, *self._dataset.batch(ids), ids_digest=0)
            self._buffers.begin()
            with random_stream(self._seed, step, _FIRST_STREAM + self._run.start + index):
                total = self._objective.evaluate(batch)
            self._agreement.report_shard(
                index, total.loss.item(), total.weight, total.correct, batch.ids_digest, finite=True
            )
            self.num_chunks += 1
