"""Photos shared out to the processors of a Ray cluster, or of this machine, by Ray Data.

A task reads some photos or a tar, finds the faces and cuts them out; actors classify what was cut.
Their answers come back in the order of arrival to this process, which alone writes the archive: so
there is one lock, and one list of what is done, with or without Ray. A row is small beside the work
of its photo. https://docs.ray.io/en/latest/data/data.html
"""

import functools
import itertools
import logging
import os
import pickle
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Interval
from typing_extensions import TypedDict

from qcs.config import threads
from qcs.config.bounds import Count
from qcs.config.errors import UserError, missing_extra
from qcs.evaluation.device import pick_device
from qcs.inference.archive import Archive, Done
from qcs.inference.backends import open_network
from qcs.inference.crops import Crop
from qcs.inference.face_extraction import Look
from qcs.inference.inputs import to_read
from qcs.inference.lists import arrow
from qcs.inference.predictor import Predictor, Result
from qcs.inference.sources import Source, reason
from qcs.inference.workers import looks

log = logging.getLogger(__name__)

CPUS = 8  # that a classifier on a CPU keeps up with, as it takes a sixth of a small photo's time
COLUMN = "pickled"
Work = tuple[Sequence[Source], Done]  # photos or a tar, and what is known of them


class Settings(TypedDict):
    """The keys of `ray` in conf/predict.yaml."""

    address: str | None
    photos: Count
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

    A photo that cannot be read, takes too long, or over which processes die, is a result with an
    error. Ray repeats the work of a task or actor that dies. The cluster is joined, or started,
    when the first result is asked for, and left or ended with the iterator.

    Args:
        archive: has the files, and knows which are done.
        job: what to do. Its device is None for a GPU where the cluster has one.
        settings: of the cluster.
        workers: tasks at a time; "auto" for as many as there are processors.

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
        raise UserError("workers=0 leaves engine=ray no task: write a number, or auto")
    try:
        import ray.data
    except ImportError as error:
        raise missing_extra("ray", "engine=ray needs") from error
    return _predict(ray, archive, job, settings, None if workers == "auto" else workers)


def _predict(
    ray: Any, archive: Archive, job: Job, settings: Settings, tasks: int | None
) -> Iterator[Result]:
    work = [pickle.dumps(one) for one in _shares(archive, settings["photos"])]
    if not work:
        return
    _start(ray, settings["address"])
    try:
        number, gpus, job = _classifiers(ray.cluster_resources(), job, settings)
        options = {"batch_size": None, "batch_format": "pyarrow"}
        found = (
            ray.data.from_items(work, override_num_blocks=len(work))
            .map_batches(
                _looks,
                fn_args=(job,),
                compute=ray.data.TaskPoolStrategy(tasks),
                num_cpus=1,
                **options,
            )
            .map_batches(
                _Classifier,
                fn_constructor_args=(job,),
                compute=ray.data.ActorPoolStrategy(size=number),
                num_cpus=0,
                num_gpus=gpus,
                **options,
            )
        )
        for batch in found.iter_batches(**options):
            for answer in map(pickle.loads, batch[COLUMN].to_pylist()):
                if isinstance(answer, UserError):
                    raise answer
                yield answer
    finally:
        ray.shutdown()


def _start(ray: Any, address: str | None) -> None:
    """Join a cluster, or start one of this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to Ray's makers
    own: dict[str, Any] = {"num_cpus": threads.cores(), "include_dashboard": False}
    try:
        ray.init(address or "local", logging_level=logging.ERROR, **({} if address else own))
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"no Ray cluster at ray.address={address} ({reason(error)}): start one with "
            "`ray start --head`, or leave ray.address out"
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


def _shares(archive: Archive, photos: int) -> Iterator[Work]:
    """The work of each task: some photos, or a tar with the members that are done."""
    missing = (file for file in archive.files if file.kind != "tar" and not archive.done(file))
    while share := list(itertools.islice(missing, photos)):
        yield share, Done()
    tars = [file for file in archive.files if file.kind == "tar"]
    for tar, done in zip(tars, archive.done.of(tars), strict=True):
        archive.done.skipped += len(done.rows)
        archive.done.failed += sum(done.rows.values())
        yield [tar], done


def _rows(answers: Iterable[Any]) -> Iterator[Any]:
    """Tables for Ray; an error of the user goes the same way, as Ray would wrap it."""
    try:
        for answer in answers:
            yield _table([answer])
    except UserError as error:
        yield _table([error])


def _table(answers: Sequence[Any]) -> Any:
    pa = arrow()
    column = pa.array([pickle.dumps(answer) for answer in answers], pa.large_binary())
    return pa.table({COLUMN: column})


def _enter(folder: str) -> None:
    """Go to the folder of the command, on whatever machine this is.

    Raises:
        UserError: it has none.
    """
    try:
        os.chdir(folder)
    except OSError as error:
        raise UserError(
            f"a machine of the cluster cannot enter {folder} ({reason(error)}): start the command "
            "in a folder that all machines share"
        ) from error


def _looks(batch: Any, job: Job) -> Iterator[Any]:
    """What was found in the photos of a task, which runs beside a process of its own for them."""
    return _rows(_found(batch, job))


def _found(batch: Any, job: Job) -> Iterator[Look]:
    _enter(job.folder)
    for row in batch["item"].to_pylist():
        sources, done = pickle.loads(row)
        for one in looks(to_read(sources, done), 1, job.detector, job.crop, job.timeout):
            yield one._replace(source=None)  # the file of a member of a tar stays here


class _Classifier:
    """An actor, with a network that is opened for the first photos."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self, batch: Any) -> Iterator[Any]:
        """Classify what a task has found."""
        return _rows(self._classified(map(pickle.loads, batch[COLUMN].to_pylist())))

    def _classified(self, found: Iterable[Look | UserError]) -> Iterator[Result]:
        yield from self.predictor.answer(map(_raised, found), embeddings=self.job.embeddings)

    @functools.cached_property
    def predictor(self) -> Predictor:
        """The predictor of the job."""
        _enter(self.job.folder)
        device = pick_device(self.job.network["device"])
        checkpoint = open_network(**self.job.network | {"device": device})
        return Predictor(
            checkpoint,
            batch_size=self.job.batch_size,
            device=device,
            form=self.job.network["form"],
        )


def _raised(found: Look | UserError) -> Look:
    if isinstance(found, UserError):
        raise found
    return found
