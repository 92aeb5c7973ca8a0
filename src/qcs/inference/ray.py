"""Photos shared out to the processors of a Ray cluster, or of this machine, by Ray Data.

Actors read photos or tars, find the faces and cut them out; others classify what was cut. This
process receives the answers as they arrive, and it alone writes the archive, so that there is one
lock and one list of what is done, with or without Ray. https://docs.ray.io/en/latest/data/data.html
"""

import functools
import itertools
import logging
import os
import pickle
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Interval
from typing_extensions import TypedDict

from qcs.config import threads
from qcs.config.bounds import Count
from qcs.config.errors import UserError, missing_extra, reason
from qcs.config.escape import terminal
from qcs.evaluation.device import pick_device
from qcs.inference.archive import Archive
from qcs.inference.backends import open_network
from qcs.inference.crop import Crop
from qcs.inference.done import Done
from qcs.inference.face_extraction import Look
from qcs.inference.faces import Result
from qcs.inference.inputs import to_read
from qcs.inference.lists import arrow
from qcs.inference.predictor import Predictor
from qcs.inference.sources import Source
from qcs.inference.workers import looks

log = logging.getLogger(__name__)

CPUS = 8  # for each classifier on a CPU, as classifying is a sixth of the work of a small photo
COLUMN, ROWS = "pickled", 16  # of the tables that actors hand on; a table has no more rows
# Tasks for each CPU, and photos in a task at most: with small tasks all CPUs end at about the same
# time, but each task takes some time of its own.
PARTS, MOST_PHOTOS = 64, 128
Work = tuple[Sequence[Source], Done]  # photos or a tar, and what is known of them


class Settings(TypedDict):
    """The keys of `ray` in conf/predict.yaml."""

    address: str | None
    photos: Count | None
    classifiers: Count | None
    gpus: Annotated[float, Interval(gt=0, le=64)]


class Job(NamedTuple):
    """What tasks and actors are told."""

    folder: str  # in which the command was started, so that paths mean the same
    detector: dict[str, Any] | None  # its settings; None takes each image as a cut face
    crop: Crop
    timeout: float  # seconds for a photo
    network: dict[str, Any]  # arguments of `open_network`
    batch_size: int  # faces at once
    embeddings: bool


def predict(
    archive: Archive, job: Job, settings: Settings, workers: int | Literal["auto"]
) -> Iterator[Result]:
    """Find and classify the faces of the photos that an archive lacks, in the order of arrival.

    A photo that cannot be read, takes too long or kills processes is a result with an error. Ray
    repeats the work of a task or actor that dies. The cluster is joined or started when the first
    result is asked for, and left or ended with the iterator.

    Args:
        archive: has the files, and knows which are done.
        job: what to do. Its device is None for a GPU where the cluster has one.
        settings: of the cluster.
        workers: actors that find faces; "auto" for as many as there are processors.

    Raises:
        UserError: Ray is missing or cannot start; there are films or webcams; `workers` is 0; or as
            for `Predictor` and `looks`.
    """
    if any(file.kind in ("film", "webcam") for file in archive.files):
        raise UserError(
            "engine=ray takes photos and tars of them: share films with shard=1/16 to shard=16/16, "
            "or leave engine out"
        )
    if workers == 0:
        raise UserError("workers=0 leaves engine=ray no actor: write a number, or auto")
    try:
        import ray.data
    except ImportError as error:
        raise missing_extra("ray", "engine=ray needs") from error
    return _predict(ray, archive, job, settings, None if workers == "auto" else workers)


def _predict(
    ray: Any, archive: Archive, job: Job, settings: Settings, finders: int | None
) -> Iterator[Result]:
    photos, tars = _missing(archive)
    if not (photos or tars):
        return
    _start(ray, settings["address"])
    try:
        resources = ray.cluster_resources()
        number, gpus, job = _classifiers(resources, job, settings)
        finders = min(finders or int(resources["CPU"]), int(resources["CPU"]))
        each = settings["photos"] or min(max(len(photos) // (PARTS * finders), 1), MOST_PHOTOS)
        shares = (photos[i : i + each] for i in range(0, len(photos), each))
        work: list[Work] = [*((share, Done()) for share in shares), *tars]
        tables = {"batch_size": None, "batch_format": "pyarrow"}
        told, pool = tables | {"fn_constructor_args": (job,)}, ray.data.ActorPoolStrategy
        tasks = ray.data.from_items(list(map(pickle.dumps, work)), override_num_blocks=len(work))
        finding = {"compute": pool(size=min(finders, len(work))), "num_cpus": 1}
        classifying = {"compute": pool(size=number), "num_cpus": 0, "num_gpus": gpus}
        found = tasks.map_batches(_Finder, **finding, **told)
        classified = found.map_batches(_Classifier, **classifying, **told)
        for batch in classified.iter_batches(**tables):
            yield from _answers(batch)
    finally:
        ray.shutdown()


def _start(ray: Any, address: str | None) -> None:
    """Join a cluster, or start one of this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to Ray's makers
    own: dict[str, Any] = {"num_cpus": threads.cores(), "include_dashboard": False}
    try:
        ray.init(address or "local", logging_level=logging.ERROR, **({} if address else own))
    except Exception as error:  # Ray's own have no common class
        why = f"({reason(error)})"
        raise UserError(
            f"no Ray cluster at ray.address={address} {why}: start one with `ray start --head`, or "
            "leave ray.address out"
            if address
            else f"Ray does not start here {why}: try again when this machine is less busy, or "
            "leave engine=ray out"
        ) from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def _classifiers(
    resources: dict[str, float], job: Job, settings: Settings
) -> tuple[int, float, Job]:
    """The number of classifiers, the GPUs of each, and the job with their device."""
    device, number = job.network["device"], settings["classifiers"]
    has, each = resources.get("GPU", 0), settings["gpus"]
    if device is None:
        device = "cuda" if has >= each else "cpu"
    if device == "cpu":
        number, each = number or max(int(resources["CPU"]) // CPUS, 1), 0
    elif has < (number or 1) * each:
        raise UserError(
            f"device={device} with ray.classifiers={number} and ray.gpus={each:g} needs more GPUs "
            f"than the {has:g} of the cluster: write fewer, or device=cpu"
        )
    job = job._replace(network=job.network | {"device": device})
    return number or int(has / each), each, job


def _missing(archive: Archive) -> tuple[list[Source], list[Work]]:
    """The photos that the archive lacks, and the tars with the members that it has."""
    files, tars = ([f for f in archive.files if (f.kind == "tar") is tar] for tar in (False, True))
    for file, number in Counter(tar.file for tar in tars).items():
        if number > 1:
            log.warning("left out, as it is listed twice: %s", terminal(file))
    tars = list({tar.file: tar for tar in tars}.values())
    known = archive.done.of(tars)
    archive.done.failed += sum(sum(done.rows.values()) for done in known)
    archive.done.skipped += sum(len(done.rows) for done in known)
    work: list[Work] = [([tar], done) for tar, done in zip(tars, known, strict=True)]
    return [file for file in files if not archive.done(file)], work


def _rows(answers: Iterable[Any]) -> Iterator[Any]:
    """Tables for Ray; a mistake of the user is an answer as well, as Ray would wrap an error."""
    answers = iter(answers)
    try:
        while some := list(itertools.islice(answers, ROWS)):
            yield _table(some)
    except UserError as error:
        yield _table([error])


def _table(answers: Sequence[Any]) -> Any:
    pa = arrow()
    column = pa.array([pickle.dumps(answer) for answer in answers], pa.large_binary())
    return pa.table({COLUMN: column})


def _answers(table: Any) -> Iterator[Any]:
    for answer in map(pickle.loads, table[COLUMN].to_pylist()):
        if isinstance(answer, UserError):
            raise answer
        yield answer


def _enter(folder: str) -> None:
    """Go to the folder in which the command was started.

    Raises:
        UserError: this machine has no such folder.
    """
    try:
        os.chdir(folder)
    except OSError as error:
        raise UserError(
            f"a machine of the cluster cannot enter {folder} ({reason(error)}): start the command "
            "in a folder that all machines share"
        ) from error


class _Finder:
    """An actor, with a worker process that reads the photos, so that none can kill the actor."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.workers: list[Any] = []

    def __call__(self, batch: Any) -> Iterator[Any]:
        """Look at the photos of a task."""
        return _rows(self._found(batch["item"].to_pylist()))

    def _found(self, rows: Iterable[bytes]) -> Iterator[Look]:
        _enter(self.job.folder)
        _, detector, crop, timeout, *_ = self.job
        for sources, done in map(pickle.loads, rows):
            for one in looks(to_read(sources, done), 1, detector, crop, timeout, self.workers):
                yield one._replace(source=None)  # the file of a member of a tar stays here


class _Classifier:
    """An actor, with a network that is opened when the first photos come."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self, batch: Any) -> Iterator[Any]:
        """Classify what a task has found."""
        return _rows(self._classified(_answers(batch)))

    def _classified(self, found: Iterable[Look]) -> Iterator[Result]:
        for result in self.predictor.answer(found, embeddings=self.job.embeddings):
            yield result._replace(crops=[])  # of which the archive has none

    @functools.cached_property
    def predictor(self) -> Predictor:
        """The predictor of the job."""
        _enter(self.job.folder)
        size, network = self.job.batch_size, self.job.network
        device = pick_device(network["device"])
        checkpoint = open_network(**network | {"device": device})
        return Predictor(checkpoint, batch_size=size, device=device, form=network["form"])
