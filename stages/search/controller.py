"""The recurrent network that writes candidates slot by slot, for rnn.py, which imports this when it needs torch. Imports space and torch."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import numpy as np
import torch
from torch import Tensor, nn

from stages.search.space import Choices, Space

HEAD = 0.01  # deviation of the heads' initial weights: the first draws follow the weights of the space


class Controller(nn.Module):
    """Embedding of the choice before -> LSTM cell -> one linear head per slot; the same ``seed`` gives the same network."""

    def __init__(self, space: Space, hidden: int, lr: float, seed: int):
        super().__init__()
        self.space = space
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embeddings = nn.ModuleList(nn.Embedding(size, hidden) for size in (1, *(len(slot) for slot in space.slots[:-1])))
            self.cell = nn.LSTMCell(hidden, hidden)
            heads = [nn.Linear(hidden, len(slot)) for slot in space.slots]
            for i, head in enumerate(heads):
                nn.init.normal_(head.weight, std=HEAD)
                head.bias.data = torch.tensor(np.log(space.weights(i)), dtype=torch.float32)
            self.heads = nn.ModuleList(heads)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=lr)

    def write(self, pick: Callable[[int, Tensor], int]) -> tuple[list[Tensor], list[int]]:
        """Per slot the log probabilities (choices,) given the picks before it, and the picks: ``pick(slot, log probabilities)``."""
        state: tuple[Tensor, Tensor] | None = None
        rows: list[Tensor] = []
        picks: list[int] = []
        for i, (embedding, head) in enumerate(zip(self.embeddings, self.heads, strict=False)):
            state = self.cell(embedding(torch.tensor([picks[-1] if picks else 0])), state)
            rows.append(head(state[0])[0].log_softmax(0))
            picks.append(pick(i, rows[-1]))
        return rows, picks

    @torch.no_grad()
    def draw(self, rng: np.random.Generator) -> Choices:
        """A candidate, each slot by its probabilities."""

        def pick(_: int, row: Tensor) -> int:
            p = row.double().exp().numpy()
            return int(rng.choice(len(p), p=p / p.sum()))

        return self.space.decode(self.write(pick)[1])

    def reinforce(self, choices: Choices, advantage: float, entropy: float) -> None:
        """One step of Adam along ``advantage * grad log p(choices) + entropy * grad`` of the slots' summed entropies."""
        at = self.space.encode(choices)
        if not at:
            return
        rows, _ = self.write(lambda i, _: at[i])
        written = torch.stack([row[p] for row, p in zip(rows, at, strict=True)]).sum()
        undecided = torch.stack([-(row.exp() * row).sum() for row in rows]).sum()
        self.optimizer.zero_grad()
        (-(advantage * written + entropy * undecided)).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    @torch.no_grad()
    def likeliest(self) -> list[dict[Hashable, float]]:
        """Per slot the probability of each choice, after the likeliest choices of the slots before."""
        rows, _ = self.write(lambda _, row: int(row.argmax()))
        return [dict(zip(slot, row.exp().tolist(), strict=True)) for slot, row in zip(self.space.slots, rows, strict=True)]
