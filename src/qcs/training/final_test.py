"""The test at the end of a run: the selected checkpoint, once, on the test set."""

import logging
from pathlib import Path

import lightning

from qcs.checkpoints import reading
from qcs.data.datamodule import FaceDataModule
from qcs.evaluation import report
from qcs.training import distributed, loggers
from qcs.training.module import QCSModule
from qcs.training.trainer_attributes import best_model_path

log = logging.getLogger(__name__)


def test_selected(
    trainer: lightning.Trainer,
    module: QCSModule,
    data: FaceDataModule,
    folder: Path,
    selected_on: str,
) -> dict[str, float]:
    """Test the selected checkpoint on the test set, write the report and log it.

    Args:
        module: it gets the weights of the checkpoint; without a checkpoint it is tested as it is.
        folder: the run's folder; the report is written to test/ within it.
        selected_on: what the checkpoint was selected on, for the report.

    Returns:
        "test/acc", "test/mean_acc" and "test/f1" in the first process, nothing in the others.
    """
    paths = (best_model_path(callback) for callback in trainer.checkpoint_callbacks)
    # best.ckpt, or else last.ckpt, or none where no checkpoint is kept
    path = next((Path(path) for path in paths if path and Path(path).is_file()), None)
    if path:
        # Lightning would load the file too, but callbacks that average weights would replace them.
        module.load_state_dict(reading.read(path)["state_dict"])
    trainer.test(module, data, verbose=False)
    distributed.release_others(trainer)
    if not trainer.is_global_zero:
        return {}
    _, logits, labels = module.test_outputs[0]
    origin = {
        "dataset": data.manifest.root.resolve().name,
        "split": "test",
        "ckpt": path and str(path),
        "selected_on": selected_on,
    }
    result = report.write(folder / "test", logits, labels, data.manifest.split("test"), origin)
    values = {f"test/{k}": result[k] for k in ("acc", "mean_acc", "f1")}
    step = trainer.fit_loop.total_batch_idx + 1  # after all steps of the training
    loggers.log_report(trainer.loggers, folder / "test", result, step)
    for logger in trainer.loggers:
        logger.log_metrics(values, step=step)
        logger.save()
    log.info("checkpoint %s, report in %s", path, folder / "test")
    return values
