"""Tiny runs of the fine-tuning example in the processes of torchrun; see test_processes.py.

`torchrun --nproc-per-node W -m tests.support.tiny_processes PLAN`: the file PLAN has a JSON list of
options. Every process writes what a run came to into `rank_R.json` in the run's folder.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from examples.errors import CheckpointError, InterruptedRunError, OptionError
from examples.finetune import train
from examples.finetune.config import Config
from tests.support.tiny_run import use_tiny_parts


def main() -> None:
    """Run what the plan says, one after the other."""
    torch.set_num_threads(1)
    use_tiny_parts()
    for options in json.loads(Path(sys.argv[1]).read_text()):
        dropout, broken = options.pop("dropout", False), options.pop("broken_rank", None)
        rank = int(os.environ["RANK"])
        train.DualEncoder.train = nn.Module.train if dropout else in_evaluation_mode
        folder = Path(options["output_dir"])
        if options.pop("marked", False):
            train.Trainer.train_step = marking(train.Trainer.train_step, folder / f"marked_{rank}")
        try:
            if rank == broken:
                train.Accelerator.save_state = full_disk
            result = train.run(Config(**options), progress_bar=False)
            outcome = {**result.summary(), "world": dist.get_world_size()}
        except (OptionError, CheckpointError, InterruptedRunError) as error:
            outcome = {"error": str(error), "kind": type(error).__name__}
        (folder / f"rank_{rank}.json").write_text(json.dumps(outcome))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def in_evaluation_mode(model, mode=True):
    """Train without dropout, which draws of its own in every process."""
    return nn.Module.train(model, False)


def marking(step, file):
    """A training step that makes a file once there have been a few."""

    def marked(self, batch):
        if self.progress.step == 3:
            file.touch()
        return step(self, batch)

    return marked


def full_disk(*_):
    """Fail as a disk does."""
    raise OSError("No space left on device")


if __name__ == "__main__":
    main()
