"""The policy: a causal language model of transformers behind three questions.

`hidden` runs the trunk over a batch of documents, `logprobs` asks for the log-probabilities of the batch's own
tokens, `values` for the critic's opinion. All four stages train through `logprobs`, so there is one path to keep
fast and exact; it computes logits only where a token has weight, a chunk at a time, and never holds
[tokens, vocabulary] at once.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from algorist.model import attention
from algorist.model.attention import Documents
from algorist.model.batches import Batch

_CHUNK_LOGITS = 2**24  # logits held at once: 64 MiB in float32


class Policy(nn.Module):
    """A causal language model and, for PPO, a linear critic on the same trunk.

    Attributes:
        model  a transformers causal LM whose attention is model/attention.py
        critic  one value per token from the trunk's last state, or None
    """

    def __init__(self, model: Any, *, precision: str = "float32", with_critic: bool = False) -> None:
        """`precision` is that of the matrix products, "float32" or "bfloat16"; weights stay float32."""
        super().__init__()
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
        layout = Documents.of(batch.bounds, self.device)
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
        states = self.hidden(batch) if hidden is None else hidden
        scored = batch.weights.nonzero()[:, 0]
        chunk = max(1, _CHUNK_LOGITS // self.model.config.vocab_size)
        parts = []
        for places in torch.split(scored, chunk):
            args = (states[places - 1], batch.tokens[places], temperature)
            if len(scored) > chunk and torch.is_grad_enabled():
                parts.append(checkpoint(self._score, *args, use_reentrant=False))
            else:
                parts.append(self._score(*args))
        out = states.new_zeros(len(batch.tokens), dtype=torch.float32)
        return out.index_put((scored,), torch.cat(parts)) if parts else out

    def values(self, hidden: Tensor) -> Tensor:
        """(T,) float32: the critic's estimate of the reward to come, before each token; 0 means nothing at a
        document's first token, which has no weight."""
        assert self.critic is not None, "only PPO has a critic"
        estimates = self.critic(hidden.float())[:, 0]
        return torch.cat([estimates.new_zeros(1), estimates[:-1]])

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def _score(self, hidden: Tensor, tokens: Tensor, temperature: float) -> Tensor:
        logits = self.logits(hidden) / temperature
        return logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(1)


def document_sums(per_token: Tensor, batch: Batch) -> Tensor:
    """(D,) sums of a (T,) quantity over each document."""
    sums = per_token.new_zeros(len(batch.bounds) - 1)
    return sums.index_add(0, batch.document(), per_token)
