"""The training loop: student, teacher, optimiser, schedule and checkpoints."""

import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from mxm_kernels import GradientCache, fused_mfh_loss
from mxm_kernels.data import (
    MultifoldBatch,
    MultifoldBatchSampler,
    MultifoldDataset,
    collate_multifold,
)

from .checkpoint import Checkpoints, Progress
from .config import Config
from .data.multifold import pad_texts
from .dual_encoder import DualEncoder
from .interrupt import InterruptedRunError, stop_on_signal
from .observations import Material
from .retrieval import Metrics, encode, evaluate
from .teacher import make_teacher


class Trainer:
    """Student, teacher, optimiser and schedule over the training instances."""

    def __init__(
        self, config: Config, accelerator: Accelerator, model: DualEncoder, material: Material
    ) -> None:
        self.config, self.accelerator, self.material = config, accelerator, material
        self.progress = Progress()
        data, drawn = material.train, 1 if config.loss == "clip" else None
        self.dataset = MultifoldDataset(
            data.images, data.texts, data.image_ids, data.text_ids, views=drawn, captions=drawn
        )
        instances = len(self.dataset)
        # One sampler for all processes: Accelerate shares its batches out.
        self.sampler = MultifoldBatchSampler(
            instances, min(config.batch_size, instances), seed=config.seed
        )
        self.steps = config.epochs * self.sampler.batches_per_epoch
        if config.max_steps:
            self.steps = min(self.steps, config.max_steps)

        model.to(accelerator.device)
        groups = model.parameter_groups(config.lr, config.head_lr)
        optimizer = torch.optim.Adam(
            groups, betas=(0.9, 0.999), eps=1e-4, weight_decay=config.weight_decay
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.steps)
        self.teacher: AveragedModel | None = None
        if config.loss == "mfh":
            self.teacher = make_teacher(model, config.teacher_decay)
        self.student = model
        self.model, self.optimizer, self.schedule = accelerator.prepare(model, optimizer, schedule)
        self.cache = GradientCache(config.micro_batch) if config.micro_batch else None
        self.checkpoints = Checkpoints(accelerator, config, self.progress, self.teacher)

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

    def train(self, progress_bar: bool) -> None:
        """Run the steps that are left."""
        self.model.train()
        shown = progress_bar and self.accelerator.is_local_main_process
        bar = tqdm(
            total=self.steps, initial=self.progress.step, desc=self.config.loss, disable=not shown
        )
        with stop_on_signal() as stop, bar:
            start = time.perf_counter()
            for batch in self.batches():
                loss = self.train_step(batch)
                now = time.perf_counter()
                self.progress.seconds, start = self.progress.seconds + now - start, now
                bar.update()
                bar.set_postfix(loss=f"{loss:.3f}")
                if stop.requested:
                    self.accelerator.set_trigger()
                # All processes stop at the same step, whichever of them got the signal first.
                self.save_if_due(stopping=self.accelerator.check_trigger())

    def save_if_due(self, stopping: bool) -> None:
        """Save a checkpoint at its time, at the last step and before stopping."""
        step = self.progress.step
        if stopping or step == self.steps or step % self.config.checkpoint_every == 0:
            self.checkpoints.save(step)
        if stopping and step < self.steps:
            raise InterruptedRunError(f"stopped after step {step} of {self.steps}")

    def train_step(self, batch: MultifoldBatch) -> float:
        """One optimiser step and one update of the teacher; returns the loss."""
        # Dropout and pair selection depend on the step alone, not on what was drawn before it,
        # so a resumed run needs no generator's state.
        seed = step_seed(self.config.seed, self.progress.step, self.accelerator.process_index)
        torch.manual_seed(seed)
        loss = self.loss(batch, torch.Generator(self.accelerator.device).manual_seed(seed))
        self.accelerator.backward(loss)
        if self.cache is not None:
            self.cache.backward()
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        if self.teacher is not None:
            self.teacher.update_parameters(self.student)
        value = float(self.accelerator.reduce(loss.detach(), reduction="mean"))
        self.progress.losses.append(value)
        self.progress.step += 1
        return value

    def loss(self, batch: MultifoldBatch, generator: torch.Generator) -> Tensor:
        """MFH over all observations, or CLIP's loss over one pair per instance."""
        images, texts, scale = self.encode(self.model, batch)
        if self.teacher is None:
            return fused_mfh_loss(images, texts, (1, 1), logit_scale=scale, rounds=None)
        with torch.no_grad(), self.accelerator.autocast():
            momentum = self.encode(self.teacher, batch)
        return fused_mfh_loss(
            images,
            texts,
            batch.folds,
            logit_scale=scale,
            teacher_image_features=momentum[0],
            teacher_text_features=momentum[1],
            hard_weight=self.config.hard_weight,
            rounds=self.config.rounds or None,
            generator=generator,
        )

    def encode(self, model: nn.Module, batch: MultifoldBatch) -> tuple[Tensor, ...]:
        """Features of all rows and the scale, in micro-batches if the configuration has them."""
        inputs = batch.images, *batch.texts
        return model(*inputs) if self.cache is None else self.cache.encode(model, *inputs)

    def evaluate(self) -> tuple[Metrics, Tensor, Tensor]:
        """Metrics of the student, with its image and caption features."""
        data = self.material.evaluation
        with self.accelerator.autocast():
            images, texts = encode(self.student, data, self.accelerator.device)
        return evaluate(images, texts, data), images, texts


def step_seed(*words: int) -> int:
    """Seed of one step on one process."""
    return int(np.random.SeedSequence(words).generate_state(1)[0])
