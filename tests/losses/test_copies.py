"""A module over ranks is copied with its group, and refuses to be pickled; without one it is."""

import copy
import io
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.optim.swa_utils import AveragedModel

import mxm_kernels as mxm
from mxm_kernels import open_clip
from mxm_kernels.sentence_transformers import MultifoldLoss
from tests.support.processes import results
from tests.support.public_losses import IDS, MODULES, Features, quiet

REFUSED = "with a process_group cannot be pickled or saved whole: save state_dict()"


class Model(nn.Module):
    """What a user may hold a loss in."""

    def __init__(self, loss):
        super().__init__()
        self.encoder, self.loss = nn.Linear(2, 2), loss


def _holders(module):
    """The module alone, and in what others make of it."""
    return {
        "alone": module,
        "in a model": Model(module),
        "in a list": nn.ModuleList([module]),
        "for sentence-transformers": MultifoldLoss(nn.Linear(2, 2), _checked(module)),
    }


def _checked(module):
    return module if not isinstance(module, _WITHOUT_FOLDS) else mxm.MFHLoss(**_group(module))


_WITHOUT_FOLDS = mxm.SigLipLoss, mxm.CWCLLoss, mxm.SelfDistillationLoss, mxm.IntraModalLoss


def _group(module):
    return {"process_group": module.hyper_parameters["process_group"]}


def _losses_in(holder):
    return [m for m in holder.modules() if hasattr(m, "hyper_parameters")]


def _copied(rank, world):
    """What goes wrong with each module."""
    wrong, group = [], dist.group.WORLD
    for name, kind in MODULES.items():
        for place, holder in _holders(kind(process_group=group)).items():
            for how, made in {
                "copy": copy.copy(holder),
                "deepcopy": copy.deepcopy(holder),
                "average": AveragedModel(holder).module,
            }.items():
                ours, theirs = _losses_in(made), _losses_in(holder)
                same = [m.hyper_parameters["process_group"] is group for m in ours]
                if type(made) is not type(holder) or not all(same) or len(ours) != len(theirs):
                    wrong.append((name, place, how, same))
                if how != "copy" and (ours[0] is theirs[0] or _shared(ours[0], theirs[0])):
                    wrong.append((name, place, how, "is no copy"))
                if repr(made) != repr(holder):
                    wrong.append((name, place, how, repr(made)))
            for save in (pickle.dumps, lambda holder: torch.save(holder, io.BytesIO())):
                try:
                    save(holder)
                    wrong.append((name, place, "was saved"))
                except TypeError as error:
                    if REFUSED not in str(error):
                        wrong.append((name, place, str(error)))
            torch.save(holder.state_dict(), io.BytesIO())
    return wrong


def _shared(one, other):
    return one.hyper_parameters is other.hyper_parameters


def _computes(rank, world):
    """Losses of a module, of its copy, and of one that was saved without the group."""
    f, made = Features.make(), mxm.MFHLoss(rounds=None, process_group=dist.group.WORLD)
    saved, buffer = copy.copy(made), io.BytesIO()
    saved.hyper_parameters = {**made.hyper_parameters, "process_group": None}
    torch.save(saved, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    loaded.hyper_parameters["process_group"] = dist.group.WORLD
    return [m(f.x, f.y, (IDS, IDS), logit_scale=9.0) for m in (made, copy.deepcopy(made), loaded)]


def test_copies_are_over_the_same_ranks_and_files_are_refused():
    assert results(1, _copied) == [[]]


def test_a_copy_computes_the_same():
    for values in results(2, _computes):
        assert all(torch.equal(value, values[0]) for value in values)


@pytest.mark.parametrize("name", MODULES)
def test_without_a_group_it_is_copied_and_saved(name):
    module = MODULES[name]()
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    pickled = pickle.loads(pickle.dumps(module))
    for made in (copy.copy(module), copy.deepcopy(module), loaded, pickled):
        assert type(made) is type(module) and made is not module
        assert made.hyper_parameters == module.hyper_parameters
        assert made.training == module.training


def test_a_hook_goes_with_a_copy():
    module, seen = mxm.InfoNCELoss(), []
    module.register_forward_hook(lambda *_: seen.append(1))
    for made in (copy.copy(module), copy.deepcopy(module)):
        made(torch.eye(2), torch.eye(2), logit_scale=1.0)
    assert len(seen) == 2


@pytest.mark.parametrize("name", [n for n in open_clip.__all__ if n.endswith("Loss")])
def test_the_losses_in_open_clips_form_hold_no_group(name):
    fixed = {"rank": 1, "world_size": 2}
    if name != "SigLipLoss":
        fixed["gather_with_grad"] = True
    if name == "CoCaLoss":
        fixed |= {"caption_loss_weight": 2.0, "clip_loss_weight": 1.0}
    module = getattr(open_clip, name)(**fixed)
    for made in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert (made.rank, made.world_size) == (1, 2)


def test_quiet_options_are_those_of_a_call():
    """A generator and a selection come with the call: no module holds one."""
    for kind in MODULES.values():
        for options in quiet(kind.function, Features.make()):
            held = kind().hyper_parameters
            assert not held.keys() & (options.keys() & {"generator", "selection"})
