"""The command line as a whole: help, exit codes, and what is not loaded before it is needed."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from support import LOOPBACKS, ddp_bp, wait_until

from ddp_bp import __version__
from ddp_bp.cli import main as main_module
from ddp_bp.cli.main import COMMANDS, main
from ddp_bp.cli.prepare import check_ports
from ddp_bp.coordinator.address import CoordinatorAddress, write_address
from ddp_bp.errors import AddressError, DataError, DdpError, RecipeError
from ddp_bp.recipes import load_recipe, packaged_recipes

Outcome = tuple[int, str, str]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """`call("status", ...)`: exit code, stdout and stderr of the command, in this process."""
    monkeypatch.setattr(main_module, "prepare_blas", lambda: None)

    def run(*arguments: object) -> Outcome:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, captured.out, captured.err

    return run


# ---- help


def test_help_lists_every_command(call) -> None:
    for flag in ("--help", "-h"):
        code, out, err = call(flag)
        assert (code, err) == (0, "")
        for name, (_, _, text) in COMMANDS.items():
            assert name in out
            assert text.split(",")[0].split(";")[0] in out
    assert call("--version") == (0, f"ddp-bp, version {__version__}\n", "")


@pytest.mark.parametrize(
    "command",
    [
        *((name,) for name in COMMANDS),
        *(("checkpoint", name) for name in ("ls", "verify", "now")),
        *(("bench", name) for name in ("exchange", "training", "scaling")),
        *(("ledger", name) for name in ("verify", "show")),
    ],
)
def test_every_command_has_help_that_says_what_it_does_and_takes(call, command: tuple[str, ...]) -> None:
    code, out, err = call(*command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: ddp-bp {' '.join(command)}")
    assert len(out.splitlines()) > 4
    found = main_module.cli
    for name in command:
        found = found.get_command(click.Context(found), name)  # type: ignore[assignment]
    for parameter in found.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, parameter.name
            assert parameter.opts[0] in out


@pytest.mark.parametrize(
    "command",
    [
        *("train", "profile", "status", "recipes", "checkpoint ls", "checkpoint verify", "checkpoint now"),
        *("bench exchange", "bench training", "bench scaling", "ledger verify", "ledger show", "replay"),
    ],
)
def test_whatever_prints_a_table_also_prints_json(call, command: str) -> None:
    assert "--json" in call(*command.split(), "--help")[1]


def test_recipes(call) -> None:
    code, out, _ = call("recipes", "--json")
    rows = json.loads(out)
    assert code == 0
    assert [row["name"] for row in rows] == list(packaged_recipes())
    code, out, _ = call("recipes")
    assert code == 0
    assert all(row["name"] in out and row["title"] in out for row in rows)


# ---- exit codes


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["trian"], "No such command 'trian'"),
        (["train"], "Missing argument 'RECIPE'"),
        (["train", "digits", "-n", "none"], "'none' is not a valid integer"),
        (["train", "digits", "-n", "0"], "0 is not in the range x>=1"),
        (["train", "digits", "--nothing"], "No such option"),
        (["coordinator", "digits"], "Missing option"),
        (["worker", "digits", "--world-size", "0"], "0 is not in the range"),
        (["status"], "Missing argument 'RUN_DIR'"),
        (["checkpoint", "ls", "/nowhere"], "/nowhere: expected a run directory, found no folder 'checkpoints' in it"),
        (["checkpoint", "verify", "/nowhere"], "/nowhere: expected a run directory or the folder of a checkpoint"),
    ],
)
def test_a_command_line_that_cannot_be_used_is_exit_code_2_with_nothing_on_stdout(
    call, arguments: list[str], part: str
) -> None:
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert part in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("raised", "code", "err"),
    [
        (DdpError("it broke"), 1, "ddp-bp: it broke\n"),
        (DataError("no data"), 2, "ddp-bp: no data\n"),
        (
            RecipeError("recipe x", ["a: wrong", "b: too"]),
            2,
            "ddp-bp: recipe x cannot be used:\n  a: wrong\n  b: too\n",
        ),
        (KeyboardInterrupt(), 130, "\n"),
        (click.Abort(), 130, ""),
    ],
)
def test_every_error_is_one_message_and_its_exit_code(call, monkeypatch, raised, code: int, err: str) -> None:
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr("ddp_bp.cli.recipes.packaged_recipes", fail)
    assert call("recipes") == (code, "", err)


def test_what_a_command_returns_is_the_exit_code(call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "step-00000001").mkdir()
    code, out, _ = call("checkpoint", "verify", tmp_path / "step-00000001", "--json")
    assert code == 1
    [row] = json.loads(out)
    assert "no manifest.json" in row["problems"][0]


@pytest.mark.parametrize("command", [["status"], ["checkpoint", "now"]])
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_without_a_job_that_runs_there_is_nothing_to_ask(call, tmp_path: Path, command: list, flags: list) -> None:
    code, out, err = call(*command, tmp_path, *flags)
    assert (code, out) == (2, "")
    assert err.startswith(f"ddp-bp: no job is running in {tmp_path}: expected its coordinator's address in ")


def test_an_address_that_a_killed_job_left_behind_is_not_believed(call, monkeypatch, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = CoordinatorAddress(1, "127.0.0.1", port, port, "run", f"tcp://127.0.0.1:{port}", "http://127.0.0.1/")
    write_address(tmp_path, address)
    monkeypatch.setattr("ddp_bp.coordinator.client.ToolClient.__init__.__defaults__", (0.2,))
    code, out, err = call("status", tmp_path)
    assert (code, out) == (2, "")
    assert f"no coordinator answers at tcp://127.0.0.1:{port}" in err


# ---- before anything is started


def test_ports_are_tried_where_the_coordinator_will_listen() -> None:
    def recipe(*overrides: str):
        return load_recipe("digits", overrides)[0]

    check_ports(recipe())
    check_ports(recipe("coordinator.host=*"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for key, called in (("port", "port"), ("http_port", "HTTP port")):
            refusal = rf"coordinator\.{key} = {port}: {called} {port} .* in use; choose another {called},"
            with pytest.raises(AddressError, match=refusal):
                check_ports(recipe(f"coordinator.{key}={port}"))
    check_ports(recipe(f"coordinator.port={port}"))
    with pytest.raises(AddressError, match=r"host 'nowhere\.invalid' is not known here"):
        check_ports(recipe("coordinator.host=nowhere.invalid"))


@pytest.mark.parametrize("command", [["train", "--run-dir", "run"], ["profile"], ["worker", "--run-dir", "run"]])
def test_all_mistakes_of_a_recipe_are_one_message(run_ddp_bp, tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "own.toml").write_text(
        """
        model = { name = "mlp", options = { activation = "rleu", dropout = 1.5, hidden = [8, 0], depth = 2 } }
        [data]
        name = "digits"
        [train]
        epoch = 3
        [optimizer]
        lr = 0
        """
    )
    result = run_ddp_bp(*command, "own.toml", cwd=tmp_path, PYTHONDONTWRITEBYTECODE="1")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "ddp-bp: recipe own.toml cannot be used:",
        "  train.epoch: unknown key (did you mean 'epochs'?)",
        "  optimizer.lr: expected a number > 0, got 0",
        "  model.options.activation: expected one of relu, sigmoid, tanh, got 'rleu' (did you mean 'relu'?)",
        "  model.options.dropout: expected a number < 1, got 1.5",
        "  model.options.hidden: expected a whole number >= 1 at [1], got [8, 0]",
        "  model.options.depth: unknown option of mlp; known: activation, dropout, hidden",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["own.toml"]


def test_options_that_do_not_go_together_are_found_with_all_other_mistakes(run_ddp_bp, tmp_path: Path) -> None:
    settings = ("--set", "model.options.num_heads=3", "--set", "optimizer.lr=-1", "--run-dir", tmp_path / "run")
    result = run_ddp_bp("train", "shakespeare-gpt", *settings)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines()[1:] == [
        "  optimizer.lr: expected a number > 0, got -1",
        "  model.options.num_heads: expected a divisor of width = 128, got 3",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", LOOPBACKS)
def test_ports_of_either_ip_version(host: str) -> None:
    taken = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    port = taken.getsockname()[1]
    overrides = (f"coordinator.host={host}", f"coordinator.port={port}")
    with taken, pytest.raises(AddressError, match="in use"):
        check_ports(load_recipe("digits", overrides)[0])
    check_ports(load_recipe("digits", overrides)[0])


@pytest.mark.parametrize(
    "statements",
    [
        "import ddp_bp; ddp_bp.__version__",
        "run('--help')",
        "run('status', '/nowhere')",
        "run('recipes')",
    ],
)
def test_numpy_is_not_loaded_where_nothing_is_computed(run_python, statements: str) -> None:
    code = f"""
import sys
def run(*arguments):
    from ddp_bp.cli.main import main
    try:
        main(list(arguments))
    except SystemExit:
        pass
{statements}
print("numpy" in sys.modules, "mpi4py" in sys.modules)
"""
    result = run_python(["-c", code])
    assert result.stdout.splitlines()[-1:] == ["False False"], result.stderr


def test_blas_is_told_its_threads_before_numpy_is_loaded(run_python) -> None:
    code = """
import os, sys
from ddp_bp.cli.main import main
class Watch:
    def find_spec(self, name, *_):
        if name == "numpy":
            print("threads", os.environ["OPENBLAS_NUM_THREADS"])
sys.meta_path.insert(0, Watch())
main(["train", "digits", "--set", "data.path=x"])
"""
    result = run_python(["-c", code], OPENBLAS_NUM_THREADS="7")
    assert (result.returncode, result.stdout) == (2, "threads 1\n")


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_reader_that_left_is_not_told_about(start_command, flags: list[str]) -> None:
    process = start_command(ddp_bp("recipes", *flags))
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(20) == 1


# ---- the commands that start the parts of a job one by one


@pytest.mark.mpi
def test_a_coordinator_started_first_waits_for_workers_of_the_same_recipe(
    start_command, run_ddp_bp, tmp_path: Path
) -> None:
    """With fixed ports, which the worker must not take for occupied ones."""
    run_dir = tmp_path / "run"
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        ports = [server.getsockname()[1] for server in (first, second)]
    recipe = ["digits", "--set", "train.epochs=1"]
    recipe += ["--set", f"coordinator.port={ports[0]}", "--set", f"coordinator.http_port={ports[1]}"]
    coordinator = start_command(ddp_bp("coordinator", *recipe, "-n", 1, "--run-dir", run_dir))
    wait_until((run_dir / "coordinator.json").exists, "the coordinator")
    address = json.loads((run_dir / "coordinator.json").read_bytes())["address"]
    assert address == f"tcp://127.0.0.1:{ports[0]}"
    result = run_ddp_bp("worker", *recipe, "--run-dir", run_dir, "--coordinator", address)
    assert result.returncode == 0, result.stderr
    assert json.loads((run_dir / "summary.json").read_bytes())["epochs"] == 1
    coordinator.send_signal(signal.SIGTERM)
    coordinator.communicate(timeout=20)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--coordinator", "nonsense"], "'nonsense' is no address of a coordinator"),
        (["--resume", "never", "--set", "train.epochs=none"], "train.epochs: expected a whole number, got 'none'"),
    ],
)
def test_a_worker_that_cannot_be_used_is_exit_code_2(run_ddp_bp, tmp_path: Path, arguments: list, part: str) -> None:
    result = run_ddp_bp("worker", "digits", "--run-dir", tmp_path / "run", *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("ddp-bp: ")
    assert result.stderr.count("ddp-bp: ") == 1
    assert part in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["checkpoint", "ls"],
        ["checkpoint", "verify"],
        ["ledger", "verify"],
        ["status"],
        ["train", "digits", "--run-dir"],
    ],
)
def test_a_path_that_cannot_even_be_looked_at_is_one_message(run_ddp_bp, tmp_path: Path, command: list[str]) -> None:
    result = run_ddp_bp(*command, tmp_path / ("x" * 300))
    assert result.returncode in (1, 2) and result.stdout == ""
    assert "File name too long" in result.stderr and result.stderr.startswith("ddp-bp: ")
    assert "Traceback" not in result.stderr
