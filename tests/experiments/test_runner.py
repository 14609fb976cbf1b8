from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_qa import __version__
from nnunet_qa.data.journal import fcntl
from nnunet_qa.errors import DatasetError, DependencyError, SelectionError
from nnunet_qa.experiments.runner import Arm, Cell, Runner, machine

SETTINGS = {"source": Path("/raw/Dataset101_OCT"), "q0": 0.9, "folds": (1, 2)}


class Arms:
    """Two arms, the second of which needs the first, and what they did."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, int]] = []

    def first(self, cell: Cell) -> dict[str, Any]:
        self.ran.append((cell.arm, cell.seed))
        return {"train": [f"case{cell.seed}"]}

    def second(self, cell: Cell) -> dict[str, Any]:
        self.ran.append((cell.arm, cell.seed))
        return {}

    def runner(self, folder: Path, settings: dict[str, Any] | None = None) -> Runner:
        arms = (Arm("first", self.first, (), "One"), Arm("other", self.second), Arm("second", self.second, ("first",)))
        return Runner(folder, SETTINGS if settings is None else settings, arms, jobs=2)


def run(runner: Runner, arms: list[str] | None, seeds: list[int]) -> list[tuple[str, int]]:
    runner.begin()
    return [(cell.arm, cell.seed) for cell in runner.run(arms, seeds)]


def test_no_cell_is_run_twice(tmp_path: Path) -> None:
    arms = Arms()
    seen = run(arms.runner(tmp_path / "e"), None, [0, 1])
    expected = [(arm, seed) for seed in (0, 1) for arm in ("first", "other", "second")]
    assert seen == arms.ran == expected
    again = arms.runner(tmp_path / "e")
    assert run(again, None, [0, 1]) == expected
    assert arms.ran == expected
    run(again, None, [1, 2])
    assert arms.ran[6:] == [("first", 2), ("other", 2), ("second", 2)]
    assert [(cell.arm, cell.seed) for cell in again.done(["first"])] == [("first", 0), ("first", 1), ("first", 2)]
    assert len(again.done()) == 9


def test_done_says_what_came_out_on_what_and_how_long_it_took(tmp_path: Path) -> None:
    arms = Arms()

    def slow(cell: Cell) -> dict[str, Any]:
        time.sleep(0.15)
        return arms.first(cell)

    runner = Runner(tmp_path, SETTINGS, (Arm("first", slow),))
    run(runner, None, [3])
    record = runner.cell("first", 3).result()
    assert record == json.loads((tmp_path / "runs" / "first" / "seed_3" / "done.json").read_text())
    assert record["train"] == ["case3"]
    assert 0.1 <= record["seconds"] < 60
    assert record["machine"] == machine()
    found = machine()
    assert found["torch"] == torch.__version__
    assert found["nnunet_qa"] == __version__
    assert 1 <= found["cores"] <= (os.cpu_count() or 1)
    assert found["processor"]
    assert (found["gpu"] is None) is not torch.cuda.is_available()


def test_a_cell_that_was_stopped_goes_on_with_the_step_it_was_at(tmp_path: Path) -> None:
    did: list[str] = []

    def work(cell: Cell) -> dict[str, Any]:
        cell.step("one", lambda: did.append("one"))
        cell.step("two", break_once)
        cell.step("three", lambda: did.append("three"))
        return {}

    def break_once() -> None:
        did.append("two")
        if did.count("two") == 1:
            raise KeyboardInterrupt

    runner = Runner(tmp_path, SETTINGS, (Arm("arm", work),))
    with pytest.raises(KeyboardInterrupt):
        run(runner, None, [0])
    cell = runner.cell("arm", 0)
    assert not cell.done
    assert runner.done() == []
    run(Runner(tmp_path, SETTINGS, (Arm("arm", work),)), None, [0])
    assert did == ["one", "two", "two", "three"]
    assert cell.done


def test_a_command_is_a_step_in_the_cells_own_folders(tmp_path: Path) -> None:
    script = "import os; open(os.environ['nnUNet_results'] + '.txt', 'a').write('x'); print('said')"

    def work(cell: Cell) -> dict[str, Any]:
        cell.call("write", Path(sys.executable).name, "-c", script)
        cell.call("fail", Path(sys.executable).name, "-c", "raise SystemExit(not os.path.exists('x'))")
        return {}

    runner = Runner(tmp_path, SETTINGS, (Arm("arm", work),))
    for _ in range(2):
        with pytest.raises(DependencyError, match=r"seed_0/log\.txt"):
            run(runner, None, [0])
    folder = runner.cell("arm", 0).folder
    assert (folder / "nnUNet_results.txt").read_text() == "x"  # once, though the cell was begun twice
    assert "said" in (folder / "log.txt").read_text()


def test_what_an_arm_needs_runs_first(tmp_path: Path) -> None:
    arms = Arms()
    assert run(arms.runner(tmp_path), ["second"], [0]) == [("first", 0), ("second", 0)]
    assert run(arms.runner(tmp_path), ["other", "second"], [0]) == [("first", 0), ("other", 0), ("second", 0)]
    assert arms.ran == [("first", 0), ("second", 0), ("other", 0)]


def test_needs_are_followed_to_the_end(tmp_path: Path) -> None:
    made = tuple(Arm(name, lambda cell: {}, needs) for name, needs in (("a", ()), ("b", ("a",)), ("c", ("b",))))
    runner = Runner(tmp_path, {}, made)
    assert [arm.name for arm in runner.chosen(["c"])] == ["a", "b", "c"]
    assert runner.chosen([]) == []


def test_an_unknown_arm(tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match=r'unknown arm "fist" \(did you mean "first"\?\); arms are first, other'):
        run(Arms().runner(tmp_path), ["first", "fist"], [0])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"q0": 0.8}, "(q0)"), ({"q0": 0.8, "folds": [2, 1]}, "(folds, q0)"), ({"new": 1}, "(new)")],
)
def test_other_settings_are_refused_by_name(tmp_path: Path, changed: dict[str, Any], named: str) -> None:
    Arms().runner(tmp_path).begin()
    before = (tmp_path / "experiment.json").read_bytes()
    with pytest.raises(DatasetError) as caught:
        Arms().runner(tmp_path, {**SETTINGS, **changed}).begin()
    assert f"{tmp_path}: was begun with other settings {named}" in str(caught.value)
    assert (tmp_path / "experiment.json").read_bytes() == before


def test_a_setting_without_a_value_may_be_new(tmp_path: Path) -> None:
    Arms().runner(tmp_path).begin()
    Arms().runner(tmp_path, {**SETTINGS, "learning_rate": None}).begin()


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("words")
    for overwrite in (False, True):
        with pytest.raises(DatasetError, match="holds something else than an experiment"):
            Arms().runner(tmp_path).begin(overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    Arms().runner(tmp_path / "empty").begin()


def test_overwrite_starts_anew(tmp_path: Path) -> None:
    arms = Arms()
    run(arms.runner(tmp_path), ["first"], [0])
    other = arms.runner(tmp_path, {**SETTINGS, "q0": 0.5})
    other.begin(overwrite=True)
    assert other.done() == []
    run(other, ["first"], [0])
    assert arms.ran == [("first", 0)] * 2


@pytest.mark.skipif(fcntl is None, reason="this system has no such lock")
def test_two_processes_on_one_experiment_wait_for_each_other(tmp_path: Path) -> None:
    """Both begin the experiment and run all cells; each cell is run by one of them, whole, before the next."""
    trace = tmp_path / "trace.txt"

    def note(text: str) -> None:
        with trace.open("a") as file:
            file.write(f"{os.getpid()} {text}\n")

    def work(cell: Cell) -> dict[str, Any]:
        note(f"begins {cell.arm}")
        time.sleep(0.3)
        note(f"ends {cell.arm}")
        return {}

    def everything() -> None:
        runner = Runner(tmp_path / "e", SETTINGS, (Arm("a", work), Arm("b", work, ("a",))))
        runner.begin()
        assert [cell.arm for cell in runner.run(None, [0])] == ["a", "b"]
        assert len(runner.done()) == 2

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=everything) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    lines = [line.split(" ", 1) for line in trace.read_text().splitlines()]
    assert [text for _, text in lines] == ["begins a", "ends a", "begins b", "ends b"]
    assert lines[0][0] == lines[1][0]
    assert lines[2][0] == lines[3][0]
