"""MFH in thirty lines: two linear towers, six views and five captions of every instance."""

import torch
from torch.nn.functional import normalize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mxm_kernels import Folds, MFHLoss


class Towers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.text = torch.nn.Linear(32, 16), torch.nn.Linear(32, 16)

    def forward(self, images, texts):
        return normalize(self.image(images)), normalize(self.text(texts))


instances, views, captions = 70, 6, 5
ideas = torch.randn(instances, 32)  # what an instance is about; its observations are noisy
images = ideas.repeat_interleave(views, 0) + 0.5 * torch.randn(instances * views, 32)
texts = ideas.repeat_interleave(captions, 0) + 0.5 * torch.randn(instances * captions, 32)
folds = Folds.uniform(views, captions)  # ragged data: Folds.from_ids(image_ids, text_ids)
student, log_scale = Towers(), torch.nn.Parameter(torch.tensor(1 / 0.03).log())
teacher = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(0.99))
optimizer = torch.optim.Adam([*student.parameters(), log_scale], lr=1e-2)
criterion = MFHLoss(hard_weight=0.6, rounds=10)
for step in range(60):
    x, y = student(images, texts)
    with torch.no_grad():
        tx, ty = teacher(images, texts)
    loss = criterion(x, y, folds, logit_scale=log_scale.exp(),
                     teacher_image_features=tx, teacher_text_features=ty)  # fmt: skip
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    teacher.update_parameters(student)
    if step % 20 == 0 or step == 59:
        print(f"step {step:2d}  loss {loss.item():.3f}")
