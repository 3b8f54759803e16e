"""One run: data, encoders, training with checkpoints, metrics before and after.

MFH and the CLIP baseline share everything but the loss and what it sees: the same encoders and
initial weights, the same instances in every batch, the same number of optimiser steps, optimiser,
schedule and learning rates. Not equal is the number of images and captions per step: MFH takes all
that an instance has, the baseline draws one image and one caption of each at random, anew in every
epoch; equal numbers of rows would mean unequal numbers of instances or of steps.

Several processes, which `torchrun --nproc-per-node 2 -m examples.finetune` starts, share every
batch and have the losses, negatives and weights of one process on the whole batch. Dropout alone
draws of its own in each.
"""

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed, tqdm
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from mxm_kernels import GradientCache, fused_mfh_loss
from mxm_kernels.data import (
    MultifoldBatch,
    MultifoldBatchSampler,
    MultifoldDataset,
    collate_multifold,
)

from ..data.augment import augmented
from ..data.multifold import Aggregate, pad_texts
from ..encoders.dual import DualEncoder, Encoders
from ..errors import InterruptedRunError, OptionError
from ..files import write_kept, write_whole
from ..options import require_writable
from .checkpoint import Checkpoints, Progress
from .config import Config
from .inputs import Material, build_encoders, load_instances, observe, run_images, run_texts
from .retrieval import Metrics, average, evaluate


@dataclass
class Result:
    """Outcome of a run, with the features (M, D) and (N, D) that its figure shows."""

    before: Metrics
    after: Metrics
    losses: list[float]
    seconds: float
    images: Tensor
    texts: Tensor
    material: Material
    aggregate: Aggregate
    processes: int
    is_main_process: bool

    def summary(self) -> dict[str, Any]:
        """Numbers for a JSON file."""
        return {
            "before": self.before,
            "after": self.after,
            "average_recall": average(self.after),
            "aggregate": self.aggregate,
            "losses": self.losses,
            "training_seconds": self.seconds,
            "processes": self.processes,
        }


def run(config: Config, material: Material | None = None, progress_bar: bool = True) -> Result:
    """Train and evaluate as the configuration says.

    Raises:
        OptionError: an option cannot be met, on this machine or by these processes.
        InterruptedRunError: on SIGINT or SIGTERM, after the running step is in a checkpoint.
        CheckpointError: a checkpoint or a result cannot be written or read.

    """
    for folder in (config.output_path, config.output_path / "checkpoints"):
        require_writable("output_dir", folder)
    accelerator = make_accelerator(config)
    set_seed(config.seed)
    encoders = build_encoders(config)
    material = material or make_material(config, encoders, accelerator)
    trainer = Trainer(config, accelerator, encoders.model, material)
    progress = trainer.progress
    trainer.checkpoints.restore()
    if progress.before is None:
        progress.before, *_ = trainer.evaluate()
    trainer.train(progress_bar)
    after, images, texts = trainer.evaluate()
    numbers = progress.before, after, progress.losses, progress.seconds
    shown = images, texts, material, config.aggregate
    result = Result(*numbers, *shown, accelerator.num_processes, accelerator.is_main_process)
    if result.is_main_process:
        weights, metrics = (config.output_path / n for n in ("model.safetensors", "metrics.json"))
        write_kept(weights, lambda path: save_model(trainer.student, str(path)))
        text = json.dumps(result.summary(), indent=2)
        write_whole(metrics, lambda path: path.write_text(text))
    accelerator.free_memory()
    return result


def make_accelerator(config: Config) -> Accelerator:
    """Accelerate, which shares a batch between the processes."""
    try:
        accelerator = Accelerator(
            cpu=config.cpu,
            mixed_precision=config.precision,
            dataloader_config=DataLoaderConfiguration(split_batches=True),
        )
    except ValueError as error:
        raise OptionError(f"--precision {config.precision}: {error}") from error
    if config.batch_size % accelerator.num_processes:
        raise OptionError(
            f"--batch_size must be a multiple of the {accelerator.num_processes} processes, which "
            f"share every batch, not {config.batch_size}"
        )
    return accelerator


def make_material(config: Config, encoders: Encoders, accelerator: Accelerator) -> Material:
    """Load the data and run the frozen trunk over it."""
    train, shown = load_instances(config)
    seen, evaluated = (observe(part, encoders, accelerator.device) for part in (train, shown))
    return Material(shown, seen, evaluated)


class Trainer:
    """Student, teacher, optimiser and schedule over the training instances."""

    def __init__(
        self, config: Config, accelerator: Accelerator, model: DualEncoder, material: Material
    ) -> None:
        self.config, self.accelerator, self.material = config, accelerator, material
        data, drawn = material.train, 1 if config.loss == "clip" else None
        whole = MultifoldDataset(
            data.images, data.texts, data.image_ids, data.text_ids, views=drawn, captions=drawn
        )
        self.dataset = augmented(whole, config.augment)
        most = len(self.dataset) // accelerator.num_processes * accelerator.num_processes
        if not most:
            raise OptionError(
                f"--limit {config.limit}: {accelerator.num_processes} processes need a training "
                f"instance each, and there are {len(self.dataset)}"
            )
        batch_size = min(config.batch_size, most)
        # One sampler for all processes: Accelerate shares its batches out.
        self.sampler = MultifoldBatchSampler(len(self.dataset), batch_size, seed=config.seed)
        steps = config.epochs * self.sampler.batches_per_epoch
        self.steps = min(steps, config.max_steps or steps)

        model.log_scale.requires_grad_(config.learn_temperature)
        self.student = model.to(accelerator.device)
        teacher = make_teacher(model, config.teacher_decay) if config.loss == "mfh" else None
        groups = model.parameter_groups(config.lr, config.head_lr)
        optimizer = torch.optim.Adam(groups, eps=1e-4, weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.steps)
        self.model, self.optimizer, self.schedule = accelerator.prepare(model, optimizer, schedule)
        self.teacher: AveragedModel | None = None
        if teacher is not None:
            self.teacher = accelerator.prepare_model(teacher, evaluation_mode=True)
        self.cache = GradientCache(config.micro_batch) if config.micro_batch else None
        self.progress = Progress()
        self.checkpoints = Checkpoints(accelerator, config, self.progress, self.steps)

    def batches(self) -> Iterator[MultifoldBatch]:
        """Batches of the steps that are left; a resumed run sees those of an uninterrupted one."""
        loader = DataLoader(
            self.dataset,
            batch_sampler=self.sampler,
            collate_fn=partial(collate_multifold, collate_texts=pad_texts),
            num_workers=self.config.num_workers,
            persistent_workers=self.config.num_workers > 0,
        )
        loader = self.accelerator.prepare_data_loader(loader)
        epoch, start_batch = divmod(self.progress.step, self.sampler.batches_per_epoch)
        self.sampler.resume(epoch, start_batch)
        while self.progress.step < self.steps:
            self.sampler.set_epoch(epoch)
            # Accelerate counts epochs too, and passes its count on where it does not wrap.
            loader.set_epoch(epoch)
            for batch in loader:
                if self.progress.step == self.steps:
                    break  # --max_steps ends within the epoch
                yield batch
            epoch += 1

    def train(self, progress_bar: bool = True) -> None:
        """Run the steps that are left, with a checkpoint now and then, and before stopping."""
        self.model.train()
        done, every, accelerator = self.progress, self.config.checkpoint_every, self.accelerator
        bar = tqdm(
            total=self.steps, initial=done.step, desc=self.config.loss, disable=not progress_bar
        )
        with stop_on_signal(accelerator.set_trigger), bar:
            start = time.perf_counter()
            for batch in self.batches():
                loss = self.train_step(batch)
                now = time.perf_counter()
                done.seconds, start = done.seconds + now - start, now
                bar.update()
                bar.set_postfix(loss=f"{loss:.3f}")
                # All processes stop at the same step, whichever of them got the signal first.
                stopping = accelerator.check_trigger()
                if stopping or done.step == self.steps or done.step % every == 0:
                    self.checkpoints.save()
                if stopping and done.step < self.steps:
                    raise InterruptedRunError(f"stopped after step {done.step} of {self.steps}")

    def train_step(self, batch: MultifoldBatch) -> float:
        """One optimiser step and one update of the teacher; returns the loss."""
        # Dropout and pair selection depend on the step alone, not on what was drawn before it,
        # so a resumed run needs no generator's state. The pairs are those of the whole batch, the
        # same on every process; dropout is over a process's own rows.
        torch.manual_seed(self.seed_of(self.accelerator.process_index))
        generator = torch.Generator(self.accelerator.device).manual_seed(self.seed_of(0))
        loss = self.loss(batch, generator)
        self.accelerator.backward(loss)
        if self.cache is not None:
            self.cache.backward()
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        if self.teacher is not None:
            self.teacher.update_parameters(self.student)
        value = float(loss.detach())  # of the whole batch, on every process
        self.progress.losses.append(value)
        self.progress.step += 1
        return value

    def seed_of(self, process: int) -> int:
        """Seed of a process in the step that is next."""
        words = self.config.seed, self.progress.step, process
        return int(np.random.SeedSequence(words).generate_state(1)[0])

    def loss(self, batch: MultifoldBatch, generator: torch.Generator) -> Tensor:
        """MFH over all observations, or CLIP's loss over one pair per instance."""
        images, texts, scale = self.encode(self.model, batch)
        group = dist.group.WORLD  # None in a process of its own
        if self.teacher is None:
            return fused_mfh_loss(
                images, texts, (1, 1), logit_scale=scale, rounds=None, process_group=group
            )
        with torch.no_grad():
            teacher_images, teacher_texts, _ = self.encode(self.teacher, batch)
        return fused_mfh_loss(
            images,
            texts,
            batch.folds,
            logit_scale=scale,
            teacher_image_features=teacher_images,
            teacher_text_features=teacher_texts,
            hard_weight=self.config.hard_weight,
            rounds=self.config.rounds or None,
            generator=generator,
            process_group=group,
        )

    def encode(self, model: nn.Module, batch: MultifoldBatch) -> tuple[Tensor, ...]:
        """Features of all rows and the scale, in micro-batches if the configuration has them."""
        inputs = batch.images, *batch.texts
        return model(*inputs) if self.cache is None else self.cache.encode(model, *inputs)

    def evaluate(self) -> tuple[Metrics, Tensor, Tensor]:
        """Metrics of the student, with its image features (M, D) and caption features (N, D)."""
        data, device, student = self.material.evaluation, self.accelerator.device, self.student
        student.eval()
        with self.accelerator.autocast():
            images = torch.stack(run_images(student.encode_images, data.images, device))
            texts = torch.stack(run_texts(student.encode_texts, data.texts, device))
        return evaluate(images, texts, data, self.config.aggregate), images, texts


def make_teacher(student: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of the student's parameters, in evaluation mode for good.

    Batch norm's statistics are not averaged, as they never change (see DualEncoder.train).
    """
    teacher = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(decay))
    # The first update of an AveragedModel copies; this makes the first optimiser step count as an
    # update of the average instead.
    teacher.update_parameters(student)
    return teacher.eval().requires_grad_(False)


@contextmanager
def stop_on_signal(stop: Callable[[], object]) -> Iterator[None]:
    """Call `stop` at the first SIGINT or SIGTERM within the block; the second interrupts it."""

    def handle(number: int, frame: object) -> None:
        for name in before:
            signal.signal(name, signal.default_int_handler)
        stop()

    before = {name: signal.signal(name, handle) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
