"""Muon for matrices, Adam for the rest.

Muon (Jordan et al., 2024, "Muon: An optimizer for hidden layers in neural
networks") replaces a matrix's momentum by the nearest semi-orthogonal matrix,
found with a quintic Newton-Schulz iteration.  Stacks of matrices (experts) are
treated as one batch.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonal(update: Tensor, steps: int) -> Tensor:
    """Approximate U V^T of the singular value decomposition of each matrix."""
    a, b, c = COEFFICIENTS
    x = update
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum with decoupled weight decay."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        decay: float = 0.02,
        steps: int = 5,
    ) -> None:
        super().__init__(
            list(params), {"lr": lr, "momentum": momentum, "decay": decay, "steps": steps}
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "m" not in state:
                    state["m"] = torch.zeros_like(p)
                m: Tensor = state["m"].lerp_(p.grad, 1 - group["momentum"])
                update = orthogonal(p.grad.lerp(m, group["momentum"]), group["steps"])
                scale = max(1.0, p.shape[-2] / p.shape[-1]) ** 0.5
                p.mul_(1 - group["lr"] * group["decay"]).add_(update, alpha=-group["lr"] * scale)


def optimizers(
    model: nn.Module, muon_lr: float, adam_lr: float, steps: int = 5
) -> list[torch.optim.Optimizer]:
    """Muon for weights of blocks; Adam for embedding, norms and routers."""
    matrices, others = [], []
    for name, p in model.named_parameters():
        is_matrix = p.ndim >= 2 and "embedding" not in name and "router" not in name
        (matrices if is_matrix else others).append(p)
    adam = torch.optim.AdamW(
        others, lr=adam_lr, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0, fused=True
    )
    made: list[torch.optim.Optimizer] = [Muon(matrices, muon_lr, steps=steps), adam]
    for optimizer in made:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return made
