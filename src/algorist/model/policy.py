"""The policy: a causal language model of transformers behind three questions.

`hidden` runs the trunk over a batch of documents, `logprobs` asks for the log-probabilities of the batch's own
tokens, `values` for the critic's opinion. All four stages train through `logprobs`, so there is one path to keep
fast and exact; it computes logits only where a token has weight, and never holds [tokens, vocabulary] at once
(model/head.py).
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from algorist.model import attention, head
from algorist.model.attention import Documents
from algorist.model.batches import Batch
from algorist.model.head import Scores
from algorist.model.tiles import Output


class Policy(nn.Module):
    """A causal language model and, for PPO, a linear critic on the same trunk.

    Attributes:
        model  a transformers causal LM whose attention is model/attention.py
        critic  one value per token from the trunk's last state, or None
        path    of attention within documents, one of model/kernels.py
    """

    def __init__(
        self, model: Any, *, precision: str = "float32", with_critic: bool = False, path: str = "grouped"
    ) -> None:
        """`precision` is that of the matrix products, "float32" or "bfloat16"; weights stay in the type they have."""
        super().__init__()
        self.path = path
        self.precision = getattr(torch, precision)
        model.set_attn_implementation(attention.NAME)
        self.model = model.eval()
        self.critic = nn.Linear(model.config.hidden_size, 1) if with_critic else None
        if self.critic is not None:
            nn.init.zeros_(self.critic.weight)  # the first advantages are plain returns
            nn.init.zeros_(self.critic.bias)

    def train(self, mode: bool = True) -> Self:
        """The policy in training mode, its model without dropout all the same.

        The sampler, the DPO reference and a resumed run must compute the numbers of the loop, which dropout makes
        random; and some configs turn it on (Phi-3: resid_pdrop = 0.1). What is saved keeps its config as it was.
        """
        super().train(mode)
        self.model.eval()
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.get_input_embeddings().weight.device  # type: ignore[no-any-return]

    def hidden(self, batch: Batch) -> Tensor:
        """(T, H) last states of the trunk; a document's states depend on that document alone."""
        layout = Documents.of(batch.bounds, self.device, self.path)
        return self.trunk(batch.tokens, batch.positions, documents=layout)

    def trunk(self, tokens: Tensor, positions: Tensor, **layout: Any) -> Tensor:
        """(T, H) last states for flat (T,) tokens; `layout` goes to the attention (see model/attention.py)."""
        with self._autocast():
            out = self.model.base_model(input_ids=tokens[None], position_ids=positions[None], use_cache=False, **layout)
        return out.last_hidden_state[0]  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, V) float32 for (N, H) states."""
        with self._autocast():
            return self.model.get_output_embeddings()(hidden).float()  # type: ignore[no-any-return]

    def logprobs(self, batch: Batch, *, temperature: float = 1.0, hidden: Tensor | None = None) -> Tensor:
        """Log-probabilities of the batch's own tokens, each given what stands before it in its document.

            logprobs_t = log softmax(logits_{t-1} / temperature)[token_t]

        Args:
            batch        T tokens; only those with weight are scored
            temperature  at which the tokens were sampled; 1 for text that was not
            hidden       (T, H) from `hidden(batch)`, where the caller has it already

        Returns:
            (T,) float32, 0 where the weight is 0; carries the gradient.
        """
        return self.scores(batch, temperature=temperature, hidden=hidden).logprobs

    def scores(
        self, batch: Batch, *, temperature: float = 1.0, hidden: Tensor | None = None, with_entropy: bool = False
    ) -> Scores:
        """`logprobs`, and where asked the entropy of the distribution that each token was drawn from.

        Returns:
            (T,) float32 each, 0 where the weight is 0; both carry the gradient.
        """
        states = self.hidden(batch) if hidden is None else hidden
        scored = batch.weights.nonzero()[:, 0]
        found = head.scores(
            states[scored - 1],
            self._output(),
            batch.tokens[scored],
            temperature=temperature,
            precision=self.precision,
            with_entropy=with_entropy,
        )
        blank = states.new_zeros(len(batch.tokens), dtype=torch.float32)
        entropy = None if found.entropy is None else blank.index_put((scored,), found.entropy)
        return Scores(blank.index_put((scored,), found.logprobs), entropy)

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

    def values(self, hidden: Tensor) -> Tensor:
        """(T,) float32: the critic's estimate of the reward to come, before each token; 0 means nothing at a
        document's first token, which has no weight."""
        assert self.critic is not None, "only PPO has a critic"
        estimates = self.critic(hidden.float())[:, 0]
        return torch.cat([estimates.new_zeros(1), estimates[:-1]])

    def _output(self) -> Output:
        return head.output_weight(self.model.get_output_embeddings())

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)


def document_sums(per_token: Tensor, batch: Batch) -> Tensor:
    """(D,) sums of a (T,) quantity over each document."""
    sums = per_token.new_zeros(len(batch.bounds) - 1)
    return sums.index_add(0, batch.document(), per_token)
