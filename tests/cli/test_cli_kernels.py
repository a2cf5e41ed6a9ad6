"""Which kernels a process is to have: from measurements, caches, recipes, checkpoints and the environment."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ddp_bp.checkpoint import CheckpointStore, Manifest
from ddp_bp.cli import kernel_choice, kernels
from ddp_bp.cli.kernel_choice import Choice, fastest_kernels, measure_kernels, remembered
from ddp_bp.cli.kernels import Kernels, settle_kernels
from ddp_bp.cli.processor import Processor
from ddp_bp.errors import RecipeError
from ddp_bp.recipes import load_recipe
from ddp_bp.worker.blas import Blas
from ddp_bp.worker.kernel_speed import KernelSpeed

AVX2 = frozenset({"avx2", "fma"})
AVX512 = AVX2 | {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}
NEW, OLD = Processor("new", AVX512), Processor("old", AVX2)


class Bench:
    """A machine with given speeds of (asked for, executed) kernels; remembers what was measured."""

    def __init__(self, **gflops: tuple[str, float] | list[tuple[str, float]] | None) -> None:
        self.speeds = gflops
        self.asked: list[str | None] = []

    def __call__(self, name: str | None) -> KernelSpeed | None:
        self.asked.append(name)
        speed = self.speeds[name or "own"]
        if isinstance(speed, list):
            speed = speed.pop(0)
        return None if speed is None else KernelSpeed(*speed)


# ---- from measurements


def test_faster_kernels_than_openblas_would_choose_win_if_they_win_twice() -> None:
    bench = Bench(own=("Haswell", 100.0), SkylakeX=("SkylakeX", 172.0), Zen=("Haswell", 101.0))
    assert fastest_kernels("Haswell", NEW, bench) == Choice("SkylakeX", "measured: 1.7 times Haswell's")
    assert bench.asked == [None, "SkylakeX", "Zen", None, "SkylakeX"]
    lucky = Bench(own=("Haswell", 100.0), SkylakeX=[("SkylakeX", 130.0), ("SkylakeX", 104.0)], Zen=("Haswell", 101.0))
    assert fastest_kernels("Haswell", NEW, lucky).kernels == "Haswell"


@pytest.mark.parametrize("speed", [104.9, 100.0, 50.0])
def test_what_openblas_would_choose_stays_unless_others_are_clearly_faster(speed: float) -> None:
    bench = Bench(own=("Haswell", 100.0), SkylakeX=("SkylakeX", speed), Zen=("Haswell", 300.0))
    choice = fastest_kernels("Haswell", NEW, bench)
    assert choice == Choice("Haswell", f"OpenBLAS' own choice; measured: {100 / speed:.1f} times SkylakeX's")
    assert bench.asked == [None, "SkylakeX", "Zen"]


def test_what_the_processor_cannot_execute_is_not_tried() -> None:
    bench = Bench(own=("Sandybridge", 60.0), Haswell=("Haswell", 100.0), Zen=("Zen", 110.0))
    assert fastest_kernels("Sandybridge", OLD, bench) == Choice("Zen", "measured: 1.8 times Sandybridge's")
    assert "SkylakeX" not in bench.asked


@pytest.mark.parametrize("processor", [Processor("arm", frozenset({"asimd"})), Processor("", frozenset())])
def test_where_there_is_no_choice_nothing_is_measured(processor: Processor) -> None:
    bench = Bench()
    assert fastest_kernels("neoversen1", processor, bench) == Choice("neoversen1", "OpenBLAS' own choice")
    assert bench.asked == []


def test_a_measurement_that_fails_is_none_that_wins() -> None:
    """For instance of kernels that die of an illegal instruction."""
    bench = Bench(own=("Haswell", 100.0), SkylakeX=None, Zen=None)
    assert fastest_kernels("Haswell", NEW, bench) == Choice("Haswell", "OpenBLAS' own choice")
    assert fastest_kernels("Haswell", NEW, Bench(own=None)) == Choice("Haswell", "OpenBLAS' own choice")
    fading = Bench(own=[("Haswell", 100.0), None], SkylakeX=("SkylakeX", 200.0), Zen=None)
    assert fastest_kernels("Haswell", NEW, fading).kernels == "Haswell"


def test_a_real_measurement_is_of_the_kernels_that_were_asked_for() -> None:
    nehalem = measure_kernels("Nehalem")
    assert nehalem is not None
    assert nehalem.kernels == "Nehalem"
    assert 1 < nehalem.gflops_per_second < 1000


@pytest.mark.parametrize("program", ["/bin/false", "/bin/true", "/nowhere/python"])
def test_a_measurement_that_does_not_answer_is_none(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(kernel_choice.sys, "executable", program)
    assert measure_kernels(None) is None


# ---- remembered


def deciding(kernels: str, log: list[str]) -> Callable[[], Choice]:
    def decide() -> Choice:
        log.append(kernels)
        return Choice(kernels, "measured")

    return decide


def test_a_machine_is_measured_once(tmp_path: Path) -> None:
    log: list[str] = []
    cache = tmp_path / "cache" / "blas"
    assert remembered(cache, "this", deciding("Haswell", log), alone=False) == Choice("Haswell", "measured")
    assert remembered(cache, "this", deciding("Zen", log), alone=True) == Choice("Haswell", "measured")
    assert remembered(cache, "that", deciding("SkylakeX", log), alone=True) == Choice("SkylakeX", "measured")
    assert log == ["Haswell", "SkylakeX"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"kernels": 3, "why": ""}', '{"kernels": "Zen"}'])
def test_a_damaged_cache_is_written_anew(tmp_path: Path, content: str) -> None:
    remembered(tmp_path, "this", deciding("Haswell", []), alone=False)
    [file] = tmp_path.iterdir()
    file.write_text(content)
    log: list[str] = []
    for _ in range(2):
        choice = remembered(tmp_path, "this", deciding("SkylakeX", log), alone=False)
        assert choice == Choice("SkylakeX", "measured")
    assert log == ["SkylakeX"]


def test_without_a_cache_only_a_process_that_decides_for_all_decides(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    unwritable = tmp_path / "folders"
    remembered(unwritable, "this", deciding("Zen", []), alone=True)
    [file] = unwritable.iterdir()
    file.unlink()
    file.mkdir()
    for cache in (None, tmp_path / "file" / "cache", unwritable):
        log: list[str] = []
        assert remembered(cache, "this", deciding("Zen", log), alone=True) == Choice("Zen", "measured")
        assert remembered(cache, "this", deciding("Zen", log), alone=False) is None
        assert log == ["Zen"]


def test_ranks_that_start_together_measure_once(tmp_path: Path) -> None:
    log: list[str] = []
    everyone = threading.Barrier(4)
    found: list[Choice | None] = []

    def rank(number: int) -> None:
        everyone.wait(10)
        found.append(remembered(tmp_path, "this", deciding(f"kind {number}", log), alone=False))

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(log) == 1
    assert found == [Choice(log[0], "measured")] * 4


# ---- settled


class Restarted(Exception):
    """Instead of replacing the process."""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """`machine(blas=..., environment=..., fastest=...)`: a process with that BLAS, whose restart raises Restarted."""

    def restart(*arguments: str) -> None:
        raise Restarted(*arguments)

    def have(
        blas: Blas | None = None,
        asked: tuple[str, str] | None = None,
        fastest: str = "SkylakeX",
        processor: Processor = NEW,
    ) -> None:
        blas = blas or Blas("OpenBLAS", "0.3.31", "Haswell", 1)
        monkeypatch.setattr(kernels, "blas_in_use", lambda: blas)
        monkeypatch.setattr(kernels, "kernels_asked_for", lambda: asked)
        monkeypatch.setattr(kernels, "restart_with_kernels", restart)
        monkeypatch.setattr(kernels, "this_processor", lambda: processor)
        monkeypatch.setattr(kernels, "_fastest", lambda _: Choice(fastest, "measured"))

    return have


def settled(*overrides: str, run_dir: Path | None = None, resume: str = "auto") -> Kernels:
    return settle_kernels("digits", overrides, run_dir, resume)


def checkpoint(run_dir: Path, step: int, blas: str | None) -> Path:
    versions = {"numpy": "2"} if blas is None else {"numpy": "2", "blas": blas}
    manifest = Manifest(
        step=step, epoch=0, step_in_epoch=step, samples=1, seed=0, shards=1, world_size=1, versions=versions
    )
    run_dir.mkdir(exist_ok=True)
    return CheckpointStore(run_dir / "checkpoints").write(manifest, {"weight": np.zeros(2, np.float32)}, {})


def test_the_fastest_kernels_are_had_by_starting_again(machine) -> None:
    machine()
    with pytest.raises(Restarted) as restarted:
        settled()
    assert restarted.value.args == ("SkylakeX", "measured")


def test_the_process_that_was_started_again_stays(machine) -> None:
    machine(blas=Blas("OpenBLAS", "0.3.31", "SkylakeX", 1), asked=("SkylakeX", "measured: 1.7 times Haswell's"))
    here = settled()
    assert here.line() == "BLAS: OpenBLAS 0.3.31, SkylakeX kernels (measured: 1.7 times Haswell's), 1 thread per rank"
    assert here.warning is None


def test_a_process_with_the_right_kernels_stays(machine) -> None:
    machine(fastest="haswell")
    here = settled()
    assert (here.asked_for, here.why) == ("haswell", "measured")
    here.check()


def test_the_environment_of_the_user_comes_before_everything(machine, tmp_path: Path) -> None:
    """Even where OpenBLAS does not follow: there is no loop."""
    checkpoint(tmp_path / "run", 3, "OpenBLAS 0.3.31 SkylakeX")
    machine(asked=("Zen", "OPENBLAS_CORETYPE in the environment"))
    here = settled("blas.kernels=SkylakeX", run_dir=tmp_path / "run")
    assert here.asked_for == "Zen"
    assert here.warning is not None
    assert "Zen kernels were asked for (OPENBLAS_CORETYPE in the environment)" in here.warning
    assert "computes with Haswell" in here.warning


def test_the_recipe_comes_before_the_checkpoint_and_that_before_what_is_fast(machine, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    checkpoint(run_dir, 3, "OpenBLAS 0.3.30 Zen")
    machine(processor=Processor("new", AVX512 | {"avx"}))
    with pytest.raises(Restarted, match="Sandybridge"):
        settled("blas.kernels=Sandybridge", run_dir=run_dir)
    with pytest.raises(Restarted, match=r"Zen.*those of the checkpoint"):
        settled(run_dir=run_dir)
    with pytest.raises(Restarted, match="SkylakeX"):
        settled(run_dir=run_dir, resume="never")
    with pytest.raises(Restarted, match="Zen"):
        settled(run_dir=tmp_path / "another", resume=str(run_dir / "checkpoints" / "step-00000003"))


@pytest.mark.parametrize("blas", [None, "MKL 2025.1", "OpenBLAS 0.3.31", "unknown", "OpenBLAS 0.3.31 SapphireRapids"])
def test_a_checkpoint_without_kernels_that_can_be_had_here_changes_nothing(
    machine, tmp_path: Path, blas: str | None
) -> None:
    checkpoint(tmp_path / "run", 3, blas)
    machine(fastest="Haswell")
    assert settled(run_dir=tmp_path / "run").why == "measured"


def test_damaged_checkpoints_are_left_to_those_who_use_them(machine, tmp_path: Path) -> None:
    machine(fastest="Haswell")
    run_dir = tmp_path / "run"
    newest = checkpoint(run_dir, 4, "OpenBLAS 0.3.31 SkylakeX")
    (newest / "manifest.json").write_text("{")
    assert settled(run_dir=run_dir).why == "measured"
    assert settled(run_dir=run_dir, resume=str(newest)).why == "measured"
    assert settled(run_dir=run_dir, resume=str(tmp_path / "nowhere")).why == "measured"
    checkpoint(run_dir, 3, "OpenBLAS 0.3.31 SkylakeX")
    with pytest.raises(Restarted, match="SkylakeX"):
        settled(run_dir=run_dir)


def test_a_recipe_that_cannot_be_used_is_left_to_those_who_use_it(machine) -> None:
    machine(fastest="Haswell")
    settled("train.epochs=none").check()
    settle_kernels("nowhere.toml", (), None, "auto").check()


def test_kernels_that_the_processor_cannot_execute_are_refused(machine) -> None:
    machine(processor=OLD)
    with pytest.raises(
        RecipeError, match=r"blas\.kernels: this processor cannot execute 'SkylakeX', which needs avx512bw"
    ):
        settled("blas.kernels=SkylakeX").check()


@pytest.mark.parametrize("blas", [Blas("MKL", "2025.1", "", 1), Blas("OpenBLAS", "0.3.31", "", 1)])
def test_where_nothing_can_be_chosen_nothing_is(machine, blas: Blas) -> None:
    machine(blas=blas)
    here = settled()
    assert (here.asked_for, here.warning) == (None, None)
    assert here.line() == f"BLAS: {blas}, 1 thread per rank"
    with pytest.raises(RecipeError, match=r"blas\.kernels: expected 'auto', since NumPy computes with"):
        settled("blas.kernels=Haswell").check()
    machine(blas=blas, asked=("Zen", "OPENBLAS_CORETYPE in the environment"))
    assert settled().asked_for is None


def test_misspelt_kernels_are_corrected() -> None:
    with pytest.raises(RecipeError, match=r"blas\.kernels: expected one of auto, .* \(did you mean 'SkylakeX'\?\)"):
        load_recipe("digits", ("blas.kernels=skylakex",))


RESTARTING = """
import json, os, sys
from ddp_bp.cli.environment import kernels_asked_for, restart_with_kernels
if (kernels_asked_for() or ("", ""))[1] != "measured":
    print("before")
    restart_with_kernels("Zen", "measured")
print(json.dumps([os.getpid(), sys.argv[1:], sys.flags.utf8_mode, *kernels_asked_for()]))
"""


def test_a_process_that_starts_again_is_the_same_process_with_the_same_command_line(start_command) -> None:
    process = start_command([sys.executable, "-X", "utf8", "-c", RESTARTING, "train", "--set", "a b"])
    stdout, _ = process.communicate(timeout=20)
    before, after = stdout.splitlines()
    assert before == "before"
    assert json.loads(after) == [process.pid, ["train", "--set", "a b"], 1, "Zen", "measured"]


def test_kernels_that_would_kill_the_process_are_not_followed_and_it_says_so(run_ddp_bp) -> None:
    """No processor of this century's second decade has the instructions of an Athlon."""
    result = run_ddp_bp("recipes", OPENBLAS_CORETYPE="Athlon")
    assert result.returncode == 0
    assert "OPENBLAS_CORETYPE = Athlon is not followed on this host, whose processor lacks 3dnow" in result.stderr
