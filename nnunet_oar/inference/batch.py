"""Many cases: here, with reading, computing and writing at once, or on the workers of a Dask cluster."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from nnunet_oar.inference.cases import Case, Outputs, write_case
from nnunet_oar.inference.predictor import OARPredictor

# to wait for a scheduler
CONNECT_SECONDS = 20


@dataclass(frozen=True)
class Settings:
    """The arguments of OARPredictor; what a worker needs to load the model.

    hashes: (fold, SHA-256) of the checkpoints that are meant: a worker keeps its model, and a training may replace them.
    """

    model_folder: str
    device: str = "auto"
    folds: tuple[str, ...] | None = None
    checkpoint_name: str = "checkpoint_final.pth"
    organs: tuple[str, ...] | None = None
    remove_small_mm3: float = 0.0
    postprocessing: bool = True
    trust_checkpoint: bool = False
    hashes: tuple[tuple[str, str], ...] = ()

    def load(self) -> OARPredictor:
        """Raises ValueError for what is no model, and for another one than is meant."""
        predictor = OARPredictor(
            self.model_folder,
            self.device,
            self.folds,
            self.checkpoint_name,
            organs=self.organs,
            remove_small_mm3=self.remove_small_mm3,
            postprocessing=self.postprocessing,
            trust_checkpoint=self.trust_checkpoint,
        )
        if self.hashes and self.hashes != tuple(predictor.model.hashes.items()):
            raise ValueError(
                f"{self.model_folder}: the checkpoint is another one than where the prediction was started"
            )
        return predictor


@dataclass(frozen=True)
class Outcome:
    """error: one sentence that names the file; None: predicted, with these warnings."""

    case: Case
    error: str | None = None
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0


def predict_cases(predictor: OARPredictor, cases: Sequence[Case], folder: Path, outputs: Outputs) -> Iterator[Outcome]:
    """One outcome per case, in their order. While one is computed the next is read and the one before is written."""
    with ThreadPoolExecutor(1) as reading, ThreadPoolExecutor(1) as writing:
        coming = [reading.submit(_read, case) for case in cases[:1]]
        before: Future | None = None
        for index, case in enumerate(cases):
            image = coming.pop()
            coming += [reading.submit(_read, following) for following in cases[index + 1 : index + 2]]
            after = _attempt(case, lambda image=image: _compute(predictor, *image.result(), outputs))
            if before is not None:
                yield before.result()
            before = writing.submit(_finish, case, after, predictor, folder, outputs)
        if before is not None:
            yield before.result()


def predict_on_cluster(
    address: str, settings: Settings, cases: Sequence[Case], folder: Path, outputs: Outputs
) -> Iterator[Outcome]:
    """The same on the workers of a running Dask scheduler, which must see the same files; outcomes come as cases end.

    A case whose worker dies is given to another one. Raises ValueError where Dask is missing or nobody answers.
    """
    try:
        from distributed import Client, as_completed
    except ImportError:
        raise ValueError("--scheduler needs Dask: pip install 'nnunet_oar[dask]', here and on the workers") from None
    try:
        client = Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError, TimeoutError) as error:
        raise ValueError(f"no Dask scheduler answers at {address} ({str(error).splitlines()[0]})") from None
    with client:
        futures = {
            client.submit(_predict_on_worker, settings, case, folder.resolve(), outputs, pure=False): case
            for case in cases
        }
        for future in as_completed(futures):
            case = futures[future]
            failed = future.status != "finished"
            yield Outcome(case, f"{case.files[0]}: {future.exception()}") if failed else future.result()


_loading = threading.Lock()


@lru_cache(maxsize=1)
def _loaded(settings: Settings) -> OARPredictor:
    return settings.load()


def _predict_on_worker(settings: Settings, case: Case, folder: Path, outputs: Outputs) -> Outcome:
    with _loading:
        predictor = _loaded(settings)
    return next(predict_cases(predictor, [case], folder, outputs))


def _read(case: Case):
    start = time.perf_counter()
    image = case.read()
    return image, time.perf_counter() - start


def _compute(predictor: OARPredictor, image, seconds: float, outputs: Outputs):
    prediction = predictor.run(image, outputs.probabilities)
    prediction.seconds = {"read": seconds} | prediction.seconds
    return prediction


def _attempt(case: Case, action: Callable):
    """What it returns, or the Outcome of what went wrong: one case must not end a batch, whatever happens to it."""
    try:
        return action()
    except Exception as error:
        text = str(error) or type(error).__name__
        if not isinstance(error, ValueError):
            # ITK's begin with lines of source code
            text = f"{type(error).__name__}: {text.strip().splitlines()[-1].strip()}"
        return Outcome(case, text if str(case.files[0]) in text else f"{case.files[0]}: {text}")


def _finish(case: Case, result, predictor: OARPredictor, folder: Path, outputs: Outputs) -> Outcome:
    if isinstance(result, Outcome):
        return result
    failed = _attempt(case, lambda: write_case(case, result, predictor, folder, outputs))
    return failed or Outcome(case, None, tuple(result.warnings), sum(result.seconds.values()))
