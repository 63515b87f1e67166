"""A task with a tensor of every kind: several dtypes, BatchNorm, tied and frozen weights, counters, a scalar."""

AWKWARD = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.front = nn.Linear(3, 40)
            self.norm = nn.BatchNorm1d(40)
            self.wide = nn.Linear(40, 40).double()
            self.tied = nn.Linear(40, 40, bias=False).double()
            self.tied.weight = self.wide.weight
            self.small = nn.Linear(40, 40).bfloat16()
            self.gain = nn.Parameter(torch.ones(()))
            self.fixed = nn.Linear(40, 2)
            self.fixed.requires_grad_(False)
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

        def forward(self, x):
            self.calls = self.calls + 1
            x = self.norm(self.front(x))
            x = self.tied(torch.tanh(self.wide(x.double()))).bfloat16()
            return self.gain * self.fixed(torch.tanh(self.small(x)).float())

    def build_model(config):
        return Net()

    def build_optimizer(model, config):
        return torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=config.get("lr", 0.1))

    def loss(model, batch):
        if config_fails_at == batch["y"].numel():
            raise ValueError("half-way")
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])

    config_fails_at = -1
"""
