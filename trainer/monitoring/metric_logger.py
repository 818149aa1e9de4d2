"""What a run says while it trains: metrics.jsonl, TensorBoard, and its progress on the screen."""

import json
import logging
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from trainer.monitoring.validation import Validation
from trainer.run_folder import METRICS, write_atomically

logger = logging.getLogger(__name__)

LINE_SECONDS = 30.0
"""Time between two lines about the progress where there is no terminal to draw a bar on."""


class MetricLogger(ExitStack):
    """The log of one run, from the step on that it starts or goes on at; a context, at whose end the files are closed.

    Args:
        folder: the run folder.
        step: steps that are done; later records in the folder are dropped, as those steps are done again.
        num_steps: steps of the whole run.
        batch_size: images a step.
    """

    def __init__(self, folder: Path, step: int, num_steps: int, batch_size: int) -> None:
        super().__init__()
        _cut(folder / METRICS, step)
        self._first, self._num_steps, self._batch_size = step, num_steps, batch_size
        self._metrics = self.enter_context((folder / METRICS).open("a", buffering=1))
        self._board = self.enter_context(SummaryWriter(str(folder), purge_step=step))
        total, done = num_steps * batch_size, step * batch_size
        bar = tqdm(desc="training", total=total, initial=done, unit="image", unit_scale=True, disable=None)
        self._bar = self.enter_context(bar)
        self._began = self._said = time.monotonic()

    def advance(self, step: int) -> None:
        """One more step is done: moves the bar, or says now and then how far the run is."""
        self._bar.update(self._batch_size)
        now = time.monotonic()
        if self._bar.disable and now - self._said > LINE_SECONDS:
            self._said = now
            seconds_a_step = (now - self._began) / (step - self._first)
            left = tqdm.format_interval((self._num_steps - step) * seconds_a_step)
            logger.info(
                "step %d of %d, %.0f images/s, %s left", step, self._num_steps, self._batch_size / seconds_a_step, left
            )

    def losses(self, step: int, epoch: float, numbers: dict[str, float], values: dict[str, float]) -> None:
        """Records one step: the loss and its terms, and learning rates and length of the gradient, by name."""
        rate = (step - self._first) * self._batch_size / (time.monotonic() - self._began)
        record = {"step": step, "epoch": epoch, **numbers, "loss": values, "images_per_second": round(rate, 1)}
        self._metrics.write(json.dumps(record) + "\n")
        for name, value in values.items():
            self._board.add_scalar(f"loss/{name}", value, step)
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)
        self._bar.set_postfix(pixel=f"{values['pixel']:.4f}", kl=f"{values['kl']:.0f}", refresh=False)

    def validation(self, step: int, epoch: str, found: Validation) -> None:
        """Records an epoch's validation."""
        numbers = {"psnr": found.psnr, "loss": found.loss, "kl": found.kl, "active_units": found.active}
        values = {f"val_{name}": value for name, value in numbers.items()}
        self._metrics.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        self._board.add_image("reconstructions", found.picture, step, dataformats="HWC")
        tqdm.write(
            f"epoch {epoch}: validation PSNR {found.psnr:.2f} dB, loss {found.loss:.4g}, KL {found.kl:.1f} nats, "
            f"{found.active} active latents"
        )


def _cut(path: Path, step: int) -> None:
    """Drops the records of later steps, and a line that was torn."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        with suppress(ValueError):
            if json.loads(line)["step"] <= step:
                kept.append(f"{line}\n")
    write_atomically(path, lambda file: file.write_text("".join(kept)))
