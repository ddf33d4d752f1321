"""The policy: a causal language model of transformers behind three questions.

`hidden` runs the trunk over a batch of documents, `logprobs` asks for the log-probabilities of the batch's own
tokens, `values` for a critic's opinion. All four stages train through `logprobs`, so there is one path to keep fast
and exact; it computes logits only where a token has weight, and never holds [tokens, vocabulary] at once
(model/head.py).
"""

from __future__ import annotations

import copy
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from algorist.model import attention, head
from algorist.model.attention import Documents
from algorist.model.batches import Batch
from algorist.model.head import Scores
from algorist.model.tiles import Output

CriticKind = Literal["none", "own", "shared"]


class Critic(nn.Module):
    """A linear head that begins at zero, so that the first advantages are plain returns; and its own trunk, or none.

    Both are float32, whatever the model's weights are.
    """

    def __init__(self, model: Any, *, own: bool) -> None:
        super().__init__()
        self.head = nn.Linear(model.config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.trunk = copy.deepcopy(model.base_model).float() if own else None


class Policy(nn.Module):
    """A causal language model and, for PPO, a critic.

    Attributes:
        model   a transformers causal LM whose attention is model/attention.py
        critic  one value per token, or None
        path    of attention within documents, one of model/kernels.py
        fused   backend of torch.compile that `fuse` was called with, empty before it
    """

    def __init__(
        self, model: Any, *, precision: str = "float32", critic: CriticKind = "none", path: str = "grouped"
    ) -> None:
        """`precision` is that of the matrix products, "float32" or "bfloat16"; weights stay in the type they have.

        `critic` "own" is a copy of the trunk with a linear head, begun from the model as it is; "shared" is a linear
        head on the policy's trunk, which then learns to predict the reward beside.
        """
        super().__init__()
        self.path = path
        self.fused = ""
        self.precision = getattr(torch, precision)
        model.set_attn_implementation(attention.NAME)
        self.model = model.eval()
        self.critic = None if critic == "none" else Critic(self.model, own=critic == "own")

    def train(self, mode: bool = True) -> Self:
        """The policy in training mode, its model without dropout all the same.

        The sampler, the DPO reference and a resumed run must compute the numbers of the loop, which dropout makes
        random; and some configs turn it on (Phi-3: resid_pdrop = 0.1). What is saved keeps its config as it was.
        """
        super().train(mode)
        self.model.eval()
        if self.critic is not None:
            self.critic.eval()
        return self

    def fuse(self, *, backend: str = "inductor") -> None:
        """Compile the layers by torch.compile (see model/attention.py), and the steps of sampling on a CPU."""
        attention.fuse(self.model, backend=backend)
        self.fused = backend

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.get_input_embeddings().weight.device  # type: ignore[no-any-return]

    def hidden(self, batch: Batch) -> Tensor:
        """(T, H) last states of the trunk; a document's states depend on that document alone."""
        layout = Documents.of(batch.bounds, self.device, self.path)
        return self.trunk(batch.tokens, batch.positions, documents=layout)

    def trunk(self, tokens: Tensor, positions: Tensor, *, trunk: Any = None, **layout: Any) -> Tensor:
        """(T, H) last states for flat (T,) tokens; `layout` goes to the attention (see model/attention.py)."""
        with self._autocast():
            run = trunk or self.model.base_model
            out = run(input_ids=tokens[None], position_ids=positions[None], use_cache=False, **layout)
        return out.last_hidden_state[0]  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, V) float32 for (N, H) states."""
        with self._autocast():
            return self.model.get_output_embeddings()(hidden).float()  # type: ignore[no-any-return]

    def logprobs(self, batch: Batch, *, temperature: float | Tensor = 1.0, hidden: Tensor | None = None) -> Tensor:
        """Log-probabilities of the batch's own tokens, each given what stands before it in its document.

            logprobs_t = log softmax(logits_{t-1} / temperature)[token_t]

        Args:
            batch        T tokens; only those with weight are scored
            temperature  at which the tokens were sampled, (T,) where they differ; 1 for text that was not
            hidden       (T, H) from `hidden(batch)`, where the caller has it already

        Returns:
            (T,) float32, 0 where the weight is 0; carries the gradient.
        """
        return self.scores(batch, temperature=temperature, hidden=hidden).logprobs

    def scores(
        self,
        batch: Batch,
        *,
        temperature: float | Tensor = 1.0,
        hidden: Tensor | None = None,
        with_entropy: bool = False,
    ) -> Scores:
        """`logprobs`, and where asked the entropy of the distribution that each token was drawn from.

        Returns:
            (T,) float32 each, 0 where the weight is 0; both carry the gradient.
        """
        states = self.hidden(batch) if hidden is None else hidden
        logprobs = states.new_zeros(len(batch.tokens), dtype=torch.float32)
        entropy = logprobs if with_entropy else None
        for scored, one in _by_temperature(batch.weights.nonzero()[:, 0], temperature):
            found = head.scores(
                states[scored - 1],
                self._output(),
                batch.tokens[scored],
                temperature=one,
                precision=self.precision,
                with_entropy=with_entropy,
            )
            logprobs = logprobs.index_put((scored,), found.logprobs)
            if entropy is not None and found.entropy is not None:
                entropy = entropy.index_put((scored,), found.entropy)
        return Scores(logprobs, entropy)

    def weighted_logprob(self, batch: Batch) -> Tensor:
        """The sum of weight * log-probability over the batch's tokens, for losses that ask for nothing else.

        Its slopes are known before the backward, so the head computes its gradient at once, with a quarter less work
        than `logprobs` and to the same numbers.

        Returns:
            () float32; carries the gradient, for one backward.
        """
        scored = batch.weights.nonzero()[:, 0]
        states, tokens = self.hidden(batch)[scored - 1], batch.tokens[scored]
        total, _ = head.weighted_sum(states, self._output(), tokens, batch.weights[scored], precision=self.precision)
        return total

    def values(self, batch: Batch, hidden: Tensor | None = None) -> Tensor:
        """(T,) float32: the critic's estimate of the reward to come, before each token; 0 at the first of the row.

        `hidden` (T, H) from `hidden(batch)` spares a critic that shares the trunk a pass. What stands at a document's
        first token, which has no weight, means nothing.
        """
        assert self.critic is not None, "only PPO has a critic"
        if self.critic.trunk is not None:
            layout = Documents.of(batch.bounds, self.device, self.path)
            hidden = self.trunk(batch.tokens, batch.positions, trunk=self.critic.trunk, documents=layout)
        elif hidden is None:
            hidden = self.hidden(batch)
        estimates = self.critic.head(hidden.float())[:, 0]
        return torch.cat([estimates.new_zeros(1), estimates[:-1]])

    def _output(self) -> Output:
        return head.output_weight(self.model.get_output_embeddings())

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)


def _by_temperature(scored: Tensor, temperature: float | Tensor) -> list[tuple[Tensor, float]]:
    """The scored tokens in parts of one temperature each."""
    if not isinstance(temperature, Tensor):
        return [(scored, temperature)]
    own = temperature[scored]
    found = sorted(set(own.tolist()))
    if len(found) < 2:
        return [(scored, found[0] if found else 1.0)]
    return [(scored[own == one], one) for one in found]


def document_sums(per_token: Tensor, batch: Batch) -> Tensor:
    """(D,) sums of a (T,) quantity over each document."""
    sums = per_token.new_zeros(len(batch.bounds) - 1)
    return sums.index_add(0, batch.document(), per_token)
