"""Expressions in photos and videos: `python -m qcs.predict photo.jpg [ckpt=...]`.

Exit status: 0 if every file was read, with or without faces in it; 1 if some files could not be
read; 2 if the run could not start or its results could not be written; 130 after Ctrl-C, 143 after
SIGTERM.
"""

import hashlib
import itertools
import logging
import math
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Interval, MinLen
from omegaconf import DictConfig
from typing_extensions import TypedDict

from qcs.checkpoints import zoo
from qcs.config.bounds import Count, Probability, Workers
from qcs.config.command import command
from qcs.config.errors import UserError, exit_status
from qcs.config.escape import terminal
from qcs.config.options import resolve
from qcs.evaluation.device import pick_device
from qcs.inference import ray as cluster
from qcs.inference import shards
from qcs.inference.archive import SUFFIX, Archive
from qcs.inference.backends import Form, open_network
from qcs.inference.crop import crop_of
from qcs.inference.detector import Detector
from qcs.inference.faces import Result
from qcs.inference.inputs import open_items
from qcs.inference.outputs import STDOUT, Records, Tally, output_path
from qcs.inference.pictures import Pictures, Written
from qcs.inference.predictor import Predictor
from qcs.inference.processors import workers_for
from qcs.inference.shards import Shard
from qcs.inference.sources import Source, files_of

if TYPE_CHECKING:
    from qcs.inference.persons import Persons

log = logging.getLogger(__name__)

# The settings on which the rows of an archive depend, beside the network.
KEPT = ("detect", "crop", "threshold", "longest", "smallest", "form", "every", "max_frames",
        "embeddings", "track", "smooth", "causal", "gap")  # fmt: skip


class Settings(TypedDict):
    """The keys of conf/predict.yaml."""

    ckpt: str | None
    trust: str | list[str] | None
    input: str | int | Annotated[list[str | int], MinLen(1)] | None
    path_column: str
    shard: str | None
    out: str | None
    restart: bool
    embeddings: bool
    detect: Literal["auto", "none"]
    crop: str | None
    threshold: Probability
    longest: Count
    smallest: Count
    batch_size: Count
    workers: Workers | Literal["auto"]
    timeout: Annotated[float, Interval(gt=0, le=86_400)]
    engine: Literal["local", "ray"]
    ray: cluster.Settings
    form: Form
    device: str | None
    every: Count
    max_frames: Count | None
    track: bool
    smooth: Annotated[float, Interval(ge=0, le=10)]  # frames are held back for half as long
    causal: bool
    gap: Annotated[float, Interval(ge=0, le=600)]
    annotate: bool
    save_crops: bool
    run_dir: str


def predict(config: dict[str, Any]) -> Counter:
    """Write the predictions for all images and frames; an unreadable file is reported and skipped.

    Returns:
        The numbers of "images", "faces", "empty" (images without a face), "errors" (with those of
        the files that an archive had already), each label under ("label", name), and "stopped",
        which is the exit status after Ctrl-C or SIGTERM.

    Raises:
        UserError: the run cannot start, or its results cannot be written.
    """
    if config["input"] is None:
        raise UserError("input is not set: write qcs predict photo.jpg")
    files = files_of(config["input"], config["path_column"])
    shard = shards.parse(config["shard"])
    given = config["input"] if isinstance(config["input"], list) else [config["input"]]
    read = itertools.chain([config["ckpt"] or ""], map(str, given), (f.file for f in files))
    out = output_path(config["out"], Path(config["run_dir"]), read, shard)
    kinds = {file.kind for file in files}
    files = shard.share(files) if shard else files
    if any(file.kind == "webcam" for file in files):
        config = config | {"batch_size": 1, "workers": 0}  # a webcam is answered at once
    predictor = _predictor(config)
    records = _records(config, out, files, predictor, shard)
    pictures = Pictures(Path(config["run_dir"]), config["annotate"], config["save_crops"])
    pictures.require_apart(file.file for file in files)
    results, persons = _results(config, files, predictor, records), None
    if config["track"]:
        results, persons = _followed(config, kinds, results, predictor.class_names)
    tally = Tally(predictor.class_names, _photos(files), pictures.folder)
    try:
        _write(results, records, pictures, persons, tally)
    except KeyboardInterrupt as stop:  # the usual way to end a webcam
        tally.counts["stopped"] = exit_status(stop) if files[-1].kind != "webcam" else 0
        log.info("stopped")
    tally.counts["errors"] += pictures.failed
    if persons:
        log.info("persons: %s", ", ".join(map(terminal, persons.write(Path(config["run_dir"])))))
    tally.finish(out, records.skipped, records.failed, pictures.folders())
    return tally.counts


def _results(
    config: dict[str, Any], files: list[Source], predictor: Predictor, records: Records | Archive
) -> Iterator[Result]:
    """The results of this machine in the order of the files, or those of a Ray cluster.

    Raises:
        UserError: the output of a cluster is no archive, or as `cluster.predict`.
    """
    detect, pictures = config["detect"] == "auto", config["annotate"] or config["save_crops"]
    timeout, embeddings = config["timeout"], config["embeddings"]
    if config["engine"] == "local":
        items = open_items(files, config["every"], config["max_frames"], records.done, later=True)
        workers, keep = workers_for(config["workers"], _photos(files)), pictures or config["track"]
        return predictor.stream(items, detect, workers, keep, timeout, embeddings)
    if not isinstance(records, Archive) or pictures:
        raise UserError(
            "engine=ray writes Parquet and no pictures: write out=faces.parquet, without annotate "
            "and save_crops"
        )
    network = {k: config.get(k) for k in ("device", "form", "trust")} | {"path": config["ckpt"]}
    detector = predictor.detector.settings if detect else None
    size, crop = config["batch_size"], predictor.crop
    job = cluster.Job(os.getcwd(), detector, crop, timeout, network, size, embeddings)
    return cluster.predict(records, job, config["ray"], config["workers"])


def _write(
    results: Iterator[Result],
    records: Records | Archive,
    pictures: Pictures,
    persons: "Persons | None",
    tally: Tally,
) -> None:
    """Write the results; where a picture cannot be written, that is the error of its result."""
    with records, pictures:
        if persons and isinstance(records, Archive):
            for result in records.frames():
                persons.add(result)
        for result in results:
            try:
                written = pictures.write(result)
            except UserError as error:
                result, written = result._replace(error=str(error)), Written()
            records.write(result, written)
            tally.add(result, written)
            if persons:
                persons.add(result)


def _photos(files: Sequence[Source]) -> float:
    """The number of photos; infinite where there are films or tars."""
    return len(files) if all(file.kind == "image" for file in files) else math.inf


def _records(
    config: dict[str, Any],
    out: Path,
    files: Sequence[Source],
    predictor: Predictor,
    shard: Shard | None,
) -> Records | Archive:
    """What writes the predictions, by the name of the output."""
    if out.suffix.lower() == ".csv" and config["embeddings"]:
        raise UserError("embeddings=true has no place in a CSV: write out=faces.parquet or .jsonl")
    if out.suffix.lower() != SUFFIX:
        return Records(out, predictor.class_names)
    network = Path(os.path.expanduser(config["ckpt"] or zoo.default_file()))
    with (zoo.find(network) or network).open("rb") as file:
        made = {"network_sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    made |= {key: config[key] for key in KEPT}
    features = predictor.features if config["embeddings"] else None
    restart, run_dir = config["restart"], Path(config["run_dir"])
    return Archive(out, files, predictor.class_names, features, made, shard, restart, run_dir)


def _predictor(config: dict[str, Any]) -> Predictor:
    # A cluster computes with networks of its own; this one only says what their answers are like.
    device = pick_device("cpu" if config["engine"] == "ray" else config["device"])
    if device == "cuda" and config["shard"] == "auto" and "LOCAL_RANK" in os.environ:
        device = pick_device(f"cuda:{os.environ['LOCAL_RANK']}")  # a GPU for each rank of torchrun
    checkpoint = open_network(config["ckpt"], device, config["form"], config.get("trust"))
    detector = None
    if config["detect"] == "auto" or config["crop"]:
        detector = Detector(config["threshold"], config["longest"], config["smallest"])
    crop, why = crop_of(checkpoint.recipe, config["crop"], detector)
    if config["detect"] == "auto":
        log.info("faces are cropped %s", terminal(why))
    predictor = Predictor(checkpoint, detector, crop, config["batch_size"], device, config["form"])
    name = config["ckpt"] or f"{zoo.default()} (see `qcs zoo`; choose another with ckpt=FILE)"
    log.info("network %s, on %s", terminal(name), predictor.backend)
    if predictor.warning:
        log.warning("%s", predictor.warning)
    return predictor


def _followed(
    config: dict[str, Any], kinds: Set[str], results: Iterator[Result], class_names: Sequence[str]
) -> tuple[Iterator[Result], "Persons"]:
    """The results with the persons of films, and what is to sum up these persons.

    Args:
        kinds: of all files, those of other shards as well.

    Raises:
        UserError: there is no film to follow faces through, or the package is missing.
    """
    from qcs.inference.persons import Persons
    from qcs.inference.tracking import Following, follow

    if not kinds & {"film", "webcam"}:
        raise UserError("track=true follows faces through films, and input names none")
    if config["detect"] == "none":
        raise UserError("track=true follows the faces that are found: leave detect=none out")
    how = Following(config["smooth"], config["causal"] or "webcam" in kinds, config["gap"])
    followed = follow(results, how, config["annotate"] or config["save_crops"])
    return followed, Persons(class_names, config["gap"])


@command("predict", words="input")
def main(cfg: DictConfig) -> None:
    """Predict what the command line names, and set the exit status."""
    if cfg.out in ("-", str(STDOUT)):  # which then holds nothing but the predictions
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
                handler.setStream(sys.stderr)
        sys.stdout = sys.stderr
    if status := _status(predict(resolve(cfg, Settings))):
        sys.exit(status)


def _status(counts: Counter) -> int:
    """The exit status of a run that has written all that it could.

    torchrun ends all ranks once one of them fails, so that a broken file would stop the others.
    """
    ranks = "TORCHELASTIC_RUN_ID" in os.environ
    return counts["stopped"] or int(counts["errors"] > 0 and not ranks)


if __name__ == "__main__":
    main()
