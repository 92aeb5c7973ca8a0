"""metrics.csv is whole after a kill and cut where a run is resumed."""

import csv
from pathlib import Path

import pytest

from qcs.config.errors import UserError
from qcs.training import loggers


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "csv/metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


def logged(folder: Path, steps: range, name: str = "loss") -> None:
    logger = loggers.CSVLogger(str(folder))
    for step in steps:
        logger.log_metrics({name: float(step)}, step)  # and is killed: no save, no finalize


def test_every_row_is_written_at_once_and_a_second_part_goes_on(tmp_path):
    logged(tmp_path, range(3))
    assert [row["step"] for row in rows(tmp_path)] == ["0", "1", "2"]
    logged(tmp_path, range(3, 5), "acc")
    assert rows(tmp_path)[2:4] == [{"loss": "2.0", "step": "2"}, {"acc": "3.0", "step": "3"}]


def test_rows_behind_the_checkpoint_and_a_torn_one_are_dropped(tmp_path):
    logged(tmp_path, range(5))
    file = tmp_path / "csv/metrics.csv"
    file.write_bytes(file.read_bytes() + b"2.34")
    loggers.drop_rows(tmp_path / "csv", 3)
    assert [row["step"] for row in rows(tmp_path)] == ["0", "1", "2"]
    loggers.drop_rows(tmp_path / "csv", 0)
    assert not file.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"loss,step\r\n1.0,0\r\n\xff\xfe,1\r\n",
        b"loss,step\r\n1.0,0\r\n1.0\r\n",
        b"loss,step\r\n1.0,0\r\n" + bytes(64) + b"\r\n",
        b"loss,step\r\n1.0,0,7,8\r\n",
        b"loss,step\r\nhello,0\r\n",
        b"version https://git-lfs\n" * 3,
    ],
)
def test_a_damaged_file_is_set_aside(content, tmp_path, caplog):
    folder = tmp_path / "csv"
    folder.mkdir()
    (folder / "metrics.csv").write_bytes(content)
    loggers.drop_rows(folder, 10)
    assert (folder / "metrics.damaged.csv").read_bytes() == content
    assert "is damaged" in caplog.text
    logged(tmp_path, range(2))
    assert len(rows(tmp_path)) == 2


def test_curves_are_of_whole_rows_alone(tmp_path):
    """A row that a kill has torn says 0.1 where 0.125 was measured."""
    (tmp_path / "metrics.csv").write_bytes(b"val/acc,epoch,step\r\n0.5,0,3\r\n0.1")
    assert loggers.by_epoch(tmp_path / "metrics.csv")["val/acc"] == [(1.0, 0.5)]
    for damage in (b"0.1,\xff,7\r\n", b"0.1,1," + bytes(9) + b"\r\n", b"0,1,2,3\r\n"):
        (tmp_path / "metrics.csv").write_bytes(b"val/acc,epoch,step\r\n" + damage)
        with pytest.raises(UserError, match="is damaged"):
            loggers.by_epoch(tmp_path / "metrics.csv")


def test_an_epoch_that_was_saved_and_not_logged_is_logged_once(tmp_path):
    row = {"train/loss_epoch": 0.5, "epoch": 0, "step": 4}
    loggers.complete([loggers.CSVLogger(str(tmp_path))], row)
    assert not (tmp_path / "csv").exists()  # a run in a new folder, which began elsewhere
    logged(tmp_path, range(5))
    for _ in range(2):
        loggers.complete([loggers.CSVLogger(str(tmp_path))], row)
    assert rows(tmp_path)[5:] == [{"train/loss_epoch": "0.5", "epoch": "0", "step": "4"}]
    loggers.complete([loggers.CSVLogger(str(tmp_path))], {})
    assert len(rows(tmp_path)) == 6
