"""Muon for weight matrices, AdamW for all else, as one optimiser for transformers' Trainer.

Both parts are PyTorch's own. Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon)
gives every direction of a matrix update the same size, so that rare words are learned with the
common ones: the kit's base copies facts after as many steps as leave AdamW still guessing.
"""

import torch


class MuonAdamW(torch.optim.Optimizer):
    """``matrix_rate`` for trained 2-D weights, ``rate`` for embeddings, norms, biases and heads."""

    def __init__(self, model: torch.nn.Module, matrix_rate: float, rate: float):
        heads = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
        heads |= {id(p) for n, p in model.named_parameters() if "score" in n or "lm_head" in n}
        trained = [p for p in model.parameters() if p.requires_grad]
        matrices = [p for p in trained if p.ndim == 2 and id(p) not in heads]
        known = {id(p) for p in matrices}
        muon = torch.optim.Muon(
            matrices, lr=matrix_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        )
        self.parts = {"muon": muon}
        if rest := [p for p in trained if id(p) not in known]:  # an adapter alone has matrices only
            adamw = torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
            self.parts["adamw"] = adamw
        for name, part in self.parts.items():
            for group in part.param_groups:
                group["part"] = name
        super().__init__([g for part in self.parts.values() for g in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else closure()
        for name, part in self.parts.items():
            # a checkpoint puts new groups and a new state in place of the old ones
            part.param_groups = [g for g in self.param_groups if g["part"] == name]
            part.state = self.state
            part.step()
        return loss
