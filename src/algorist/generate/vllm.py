"""vLLM in this process: the engine for rollouts at speed. The policy's weights reach it from memory to memory.

It opens on a config alone and is filled by `hand_over`, so no checkpoint is written and what it computes follows the
policy's own config, LongRoPE settled (model/longrope.py) and adapters merged. vLLM runs its scheduler in a process of
its own unless told otherwise; here it is told, because only so the trainer's tensors need no copy through a file or a
socket. It is imported when an engine is opened, and never before: it is large, and not everybody has it.

What it promises is in docs/engines.md: the same requests in the same order give the same responses, a neighbour changes
one only through rounding, and the draws are those of vLLM's generators and not of generate/native.py.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from algorist.errors import RunError
from algorist.generate.sampling import Request, Response, Sampling, never
from algorist.model import longrope, lora
from algorist.model.policy import Policy
from algorist.numerics.address import key

_EVERY = 16  # tokens of a response that vLLM reports together: one report for each token costs more than the token
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",  # it tells its makers what runs, unless asked not to
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the trainer's threads are these threads
}


@dataclass(frozen=True)
class Vllm:
    """An engine in this process, made by `open_engine`. One stream runs at a time."""

    engine: Any  # vllm's LLMEngine
    add: Callable[[str, list[int], dict[str, Any]], object]  # tell it to begin: name, prompt and `parameters`
    end_ids: tuple[int, ...]  # tokens that end a response
    context: int  # tokens of the longest prompt together with its response
    can_sleep: bool  # vLLM gives memory back on a GPU alone

    def stream(
        self, requests: Sequence[Request], sampling: Sampling, *, enough: Callable[[], bool] = never
    ) -> Iterator[tuple[int, Response]]:
        """Each response with the index of its request, as it finishes.

        Log-probabilities are those of the distribution drawn from: where top_p < 1 they are too high by the log of the
        share that was kept, at most -log top_p. RL samples with top_p 1.

        Args:
            enough  asked after each response; once it says yes the rest is given up and comes as it stands,
                    "unfinished", without what vLLM had not reported yet (up to 15 tokens of each)

        Raises:
            RunError where a prompt leaves no room in the context, or vLLM gives a response up by itself.
        """
        assert not self.engine.has_unfinished_requests(), "another stream is not over"
        self._wake()
        fits(requests, sampling, self.context)
        begun = [_Begun(list(r.said), list(r.logprobs), r.over(sampling, self.end_ids)) for r in requests]
        finished = [index for index, one in enumerate(begun) if one.finish]
        running = [index for index, one in enumerate(begun) if not one.finish]
        told = False
        try:
            for index in running:
                request = requests[index]
                self.add(str(index), [*request.prompt, *request.said], parameters(request, sampling, self.end_ids))
            while finished or (running and not told):
                for index in finished:
                    yield index, begun[index].response()
                    told = told or enough()
                finished = self._step(begun) if running and not told else []
                running = [index for index in running if not begun[index].finish]
        finally:  # the consumer may stop listening, too
            self.engine.abort_request([str(index) for index in running])
        for index in running:
            yield index, begun[index].response()

    def hand_over(self, policy: Policy) -> None:
        """Give the engine the policy's weights as they are now, and forget what was cached under the old ones.

        Raises:
            RunError where the engine then holds another tensor than the policy under one of its names.
        """
        assert not self.engine.has_unfinished_requests(), "a response would be continued under other weights"
        self._wake()
        given = dict(weights(policy))
        self.engine.collective_rpc("reload_weights", kwargs={"weights_iterator": given.items()})
        assert self.engine.reset_prefix_cache(), "keys and values of the old weights are still held"
        ((compared, stale),) = self.engine.collective_rpc(held, args=(given,))
        if stale or not compared:
            raise RunError(
                f"vLLM holds old weights after a hand-over: of {compared} tensors that can be compared {len(stale)} "
                f"differ ({', '.join(stale[:3]) or 'none was found'}). Take the native engine for this model."
            )

    def rest(self) -> None:
        """Give the GPU's memory back until the next stream or hand-over; the weights wait in the machine's memory.

        On a CPU there is nothing to give back, and this does nothing.
        """
        if self.can_sleep:
            self.engine.sleep(level=1)

    def _wake(self) -> None:
        if self.can_sleep and self.engine.is_sleeping():
            self.engine.wake_up()

    def _step(self, begun: Sequence[_Begun]) -> list[int]:
        """One step of the engine; the indices of what it finished."""
        assert self.engine.has_unfinished_requests(), "vLLM lost a request"
        finished = []
        for output in self.engine.step():
            index = int(output.request_id)
            begun[index].take(output.outputs[0])
            if begun[index].finish:
                finished.append(index)
        return finished


def require() -> None:
    """Raise RunError where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise RunError(
            "[rlvr] engine.kind = \"vllm\": vllm is not installed. Install the extra with pip install '.[vllm]', or "
            'take kind = "native".'
        )


def open_engine(
    policy: Policy, *, end_ids: Collection[int], context: int, memory: float = 0.5, num_sequences: int = 128
) -> Vllm:
    """An engine that holds the weights of a policy and computes in its precision.

    Args:
        end_ids        tokens that end a response
        context        tokens of the longest prompt together with its response
        memory         share of the device's memory for weights, keys and values; at rest it holds none of it
        num_sequences  responses decoded together

    Raises:
        RunError where vllm is not installed, or cannot open this model in the memory that it is given.
    """
    require()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    vllm = importlib.import_module("vllm")
    on_gpu = policy.device.type == "cuda"
    set_num_threads = torch.set_num_threads
    with tempfile.TemporaryDirectory() as folder:
        write_config(Path(folder), policy)
        settings = vllm.EngineArgs(
            model=folder,
            skip_tokenizer_init=True,
            load_format="dummy",  # hand_over brings the weights
            dtype=str(policy.precision).removeprefix("torch."),
            max_model_len=context,
            max_num_seqs=num_sequences,
            gpu_memory_utilization=memory,
            enable_prefix_caching=True,  # the samples of a group share their prompt
            enable_sleep_mode=on_gpu,
            enforce_eager=not on_gpu,
            generation_config="vllm",
            logprobs_mode="processed_logprobs",  # at the sampling temperature
            disable_log_stats=True,
        )
        try:
            with _without_llvmlite():
                engine = vllm.LLMEngine.from_engine_args(settings)
        except ValueError as error:
            first = str(error).strip().splitlines()[0].rstrip(".")
            raise RunError(f"vLLM cannot be opened ({first}). Mend that, or take the native engine.") from error
        finally:
            torch.set_num_threads = set_num_threads  # on a CPU vLLM puts a function there that does nothing
    opened = Vllm(engine, _adding(vllm, engine), tuple(sorted(end_ids)), context, can_sleep=on_gpu)
    opened.hand_over(policy)
    return opened


@contextlib.contextmanager
def _without_llvmlite() -> Iterator[None]:
    """Hide numba's library while vLLM opens: vllm-cpu 0.32 looks for kernels in each object of each module, and dies of
    that one, which has no dictionary to look into."""
    name = "llvmlite.binding.ffi"
    hidden = sys.modules.pop(name, None)
    try:
        yield
    finally:
        if hidden is not None:
            sys.modules[name] = hidden


def _adding(vllm: Any, engine: Any) -> Callable[[str, list[int], dict[str, Any]], object]:
    """How a request is put to `engine`, in the classes of `vllm`."""
    tokens_input = importlib.import_module("vllm.inputs").tokens_input
    delta = importlib.import_module("vllm.sampling_params").RequestOutputKind.DELTA  # report what is new, and no more

    def add(name: str, prompt: list[int], asked: dict[str, Any]) -> object:
        return engine.add_request(name, tokens_input(prompt), vllm.SamplingParams(output_kind=delta, **asked))

    return add


def write_config(folder: Path, policy: Policy) -> None:
    """Write the config that vLLM builds its model from: the policy's, with the class of the model in it."""
    config = copy.deepcopy(policy.model.config)
    config.architectures = [type(policy.model).__name__]
    config.save_pretrained(folder)
    longrope.write_old_names(folder)


def weights(policy: Policy) -> Iterable[tuple[str, Tensor]]:
    """Name and tensor of each weight of the model, adapters merged; no copy where there are none.

    Tied weights come under both names: on a CPU vLLM packs the matrix of the head, and packs it anew only where the
    head itself is given one.
    """
    return (lora.merged(policy.model) if lora.attached(policy.model) else policy.model.state_dict()).items()


def held(worker: Any, given: Mapping[str, Tensor]) -> tuple[int, list[str]]:
    """How many tensors a worker of vLLM keeps under the names and in the shapes of `given`, and which of them differ.

    Others it fuses or packs; what a stale hand-over leaves behind shows in those that can be compared.
    """
    own = {name: tensor for name, tensor in worker.get_model().named_parameters() if name in given}
    same = {name: tensor for name, tensor in own.items() if tensor.shape == given[name].shape}
    differ = [name for name, tensor in same.items() if not torch.equal(tensor, given[name].to(tensor))]
    return len(same), differ


def parameters(request: Request, sampling: Sampling, end_ids: Collection[int]) -> dict[str, Any]:
    """What vLLM's SamplingParams are told for one request.

    What was said before is part of the prompt for vLLM, whose generator begins anew: its seed is made of the key and of
    the place where it begins, so that no random number is used twice.
    """
    asked = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": request.limit(sampling) - len(request.said),
        "stop_token_ids": sorted(end_ids),
        "ignore_eos": True,  # the config's; ours are the line above
        "logprobs": 0,  # of the token that was drawn, and no others
        "detokenize": False,
        "stream_interval": _EVERY,
    }
    return asked if sampling.temperature == 0 else {**asked, "seed": key(request.key, "vllm", len(request.said))}


def fits(requests: Sequence[Request], sampling: Sampling, context: int) -> None:
    """Raise RunError where a prompt with the longest response is longer than the context."""
    longest = max(requests, key=lambda one: len(one.prompt) + one.limit(sampling), default=Request((), 0))
    if len(longest.prompt) + longest.limit(sampling) > context:
        raise RunError(
            f"A prompt of {len(longest.prompt)} tokens with a response of up to {longest.limit(sampling)} does not fit "
            f"into the {context} tokens that vLLM was opened for. Drop such prompts or raise the limit."
        )


@dataclass
class _Begun:
    """A response in the making."""

    tokens: list[int]
    logprobs: list[float]
    finish: str = field(default="")

    def take(self, output: Any) -> None:
        """Add what a CompletionOutput of vLLM has brought since the last one."""
        self.tokens += output.token_ids
        found = output.logprobs or ()
        self.logprobs += [one[token].logprob for token, one in zip(output.token_ids, found, strict=True)]
        if output.finish_reason not in (None, "stop", "length"):
            raise RunError(
                f"vLLM gave a response up after {len(self.tokens)} tokens ({output.finish_reason}). Its log says why; "
                "mend that and run the same command again."
            )
        self.finish = output.finish_reason or ""

    def response(self) -> Response:
        """The response as it stands."""
        return Response(tuple(self.tokens), tuple(self.logprobs), self.finish or "unfinished")
