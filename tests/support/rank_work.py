"""What the processes of a group do in tests of conversions by several ranks.

python rank_work.py FOLDER: runs three of them, which leave what they have found in files in FOLDER.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final

import attrs
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.multiprocessing.spawn import start_processes

from expert_models import Mixture
from fused_models import fused_model
from tico.quantization import (
    AWQConfig,
    BlockTuneConfig,
    CLEConfig,
    GPTQConfig,
    HQQConfig,
    PTQConfig,
    SmoothQuantConfig,
    convert,
    prepare,
)
from tico.quantization.config import BaseConfig, HistogramSpec, affine
from tico_config import DType, EMASpec
from tico_modules import model_fingerprint, report
from tico_quantizers import Registry, quantizer_entry
from tico_quantizers.testing import seeded
from tiny_models import net, tiny_llama, values
from toy_quantizer import ToyConfig, ToyQuantizer

Batch = tuple[tuple[Tensor, ...], Mapping[str, Tensor]]
QUIET: Final = GPTQConfig(show_progress=False)
PROCESSES: Final = 3


class Wide(nn.Module):
    """A block whose layers read more columns than one panel of a Gram matrix has."""

    def __init__(self) -> None:
        """Make the parts."""
        super().__init__()
        self.one, self.two = nn.Linear(140, 300), nn.Linear(300, 140)

    def forward(self, x: Tensor) -> Tensor:
        """Return the next hidden state."""
        output: Tensor = x + self.two(self.one(x).relu())
        return output


class Chains(nn.Module):
    """Two chains of blocks with a norm between them, whose output has to be had anew."""

    def __init__(self) -> None:
        """Make the parts."""
        super().__init__()
        self.first, self.second = nn.Sequential(Wide(), Wide()), nn.Sequential(Wide(), Wide())
        self.norm = nn.LayerNorm(140)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the second chain makes of the first one's output."""
        output: Tensor = self.second(self.norm(self.first(x)))
        return output


def _call(model: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
    model(*args, **kwargs)


def _generate(model: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
    """Call the model for three more tokens, each time with the cache of the call before."""
    generate: object = model.generate
    assert callable(generate)
    generate(*args, **kwargs, max_new_tokens=3, do_sample=False)


@attrs.frozen
class Case:
    """A model, a config, the batches of all ranks, and how the model is run on one of them."""

    model: Callable[[], nn.Module]
    config: BaseConfig
    batches: Callable[[], list[Batch]]
    run: Callable[[nn.Module, tuple[Tensor, ...], Mapping[str, Tensor]], None] = _call


def _tokens() -> list[Batch]:
    """Return texts of different lengths, the last two with padding; together more than a chunk of rows."""
    made = torch.Generator().manual_seed(1)
    ids = [torch.randint(1, 40, (8, 40 + 3 * index), generator=made) for index in range(4)]
    masks = [torch.ones_like(each) for each in ids]
    masks[2][:3, 20:] = masks[3][1:, :9] = 0
    return [((each,), {"attention_mask": mask}) for each, mask in zip(ids, masks, strict=True)]


def _rows(*shape: int) -> Callable[[], list[Batch]]:
    return lambda: [((values(index, *shape),), {}) for index in range(4)]


def _images() -> list[Batch]:
    return [((values(index, 3, 2, 4, 4),), {}) for index in range(4)]


def _wide() -> nn.Module:
    return seeded(lambda: nn.Sequential(Wide(), Wide(), nn.Linear(140, 4)).eval())


def _chains() -> nn.Module:
    return seeded(Chains)


def _mixtures() -> nn.Module:
    return seeded(lambda: nn.Sequential(Mixture(), Mixture()).eval())


CASES: Final[Mapping[str, Case]] = {
    "gptq": Case(tiny_llama, QUIET, _tokens),
    "gptq uniform": Case(tiny_llama, attrs.evolve(QUIET, token_weights="uniform"), _tokens),
    "gptq given weights": Case(tiny_llama, attrs.evolve(QUIET, token_weights=(9.0, 4.0)), _tokens),
    "gptq of both models": Case(tiny_llama, attrs.evolve(QUIET, asymmetric=0.5), _tokens),
    "gptq in stages": Case(tiny_llama, attrs.evolve(QUIET, true_sequential=True), _tokens),
    "gptq with early ends": Case(tiny_llama, attrs.evolve(QUIET, stop_after_capture=True), _tokens),
    "gptq on disk": Case(
        tiny_llama, attrs.evolve(QUIET, offload="disk", activation_dtype="bfloat16"), _tokens
    ),
    "gptq of panels": Case(_wide, QUIET, _rows(5, 60, 140)),
    "gptq of two chains": Case(_chains, QUIET, _rows(5, 60, 140)),
    "gptq of generated texts": Case(tiny_llama, QUIET, _tokens, _generate),
    "gptq of experts": Case(_mixtures, QUIET, _rows(12, 6)),
    "gptq of fused experts": Case(lambda: fused_model("mixtral"), QUIET, _tokens),
    "gptq of images": Case(net, QUIET, _images),
    "ptq": Case(tiny_llama, PTQConfig(), _tokens),
    "ptq of histograms": Case(
        tiny_llama, PTQConfig(activation=affine(DType.uint(8), observer=HistogramSpec())), _tokens
    ),
    "ptq of images": Case(net, PTQConfig(), _images),
    "smoothquant": Case(tiny_llama, SmoothQuantConfig(), _tokens),
    "smoothquant by search": Case(tiny_llama, SmoothQuantConfig(alpha="auto"), _tokens),
    "cle": Case(net, CLEConfig(), _images),
    "hqq": Case(net, HQQConfig(show_progress=False), _images),
    "block tuning": Case(tiny_llama, BlockTuneConfig(group_size=8, steps=4, show_progress=False), _tokens),
    "awq": Case(tiny_llama, AWQConfig(group_size=8, show_progress=False), _tokens),
}

IN_PAIRS: Final = ("gptq", "gptq of panels", "gptq of generated texts", "ptq", "smoothquant by search", "awq")
"""Cases that two ranks convert, too; one or several of each way in which ranks share work."""


def prepared(case: Case, batches: Sequence[Batch]) -> nn.Module:
    """Return the model of a case, which has run `batches`."""
    model = prepare(case.model(), case.config)
    with torch.no_grad():
        for args, kwargs in batches:
            case.run(model, args, kwargs)
    return model


def digest(model: nn.Module) -> str:
    """Return a text that tells apart converted models, and what their reports say."""
    return f"{model_fingerprint(model)} {report(model).without_times().layers}"


def parts_of(ranks: int) -> list[range]:
    """Return which of four batches each rank runs: unevenly, and of three ranks one none."""
    return {2: [range(3), range(3, 4)], 3: [range(1), range(1, 1), range(1, 4)]}[ranks]


class Failing(Wide):
    """A block that raises once it `fails`, or ends its process if it `ends`."""

    fails = ends = False

    def forward(self, x: Tensor) -> Tensor:
        """Return the next hidden state, if all goes well."""
        if self.ends:
            os._exit(0)
        if self.fails:
            raise ValueError("no more")
        return super().forward(x)


def _failing() -> nn.Module:
    return seeded(lambda: nn.Sequential(Failing(), Failing()).eval())


_FAILING: Final = Case(_failing, QUIET, _rows(5, 60, 140))


def _other_weights(rank: int) -> nn.Module:
    def make() -> nn.Module:
        model = tiny_llama()
        with torch.no_grad():
            model.lm_head.weight[0, 0] += float(rank)
        return model

    return prepared(Case(make, QUIET, _tokens), _tokens()[rank : rank + 1])


def _other_config(rank: int) -> nn.Module:
    config = attrs.evolve(QUIET, bits=4 if rank == 0 else 8)
    return prepared(Case(tiny_llama, config, _tokens), _tokens()[rank : rank + 1])


def _same_batches(rank: int) -> nn.Module:
    return prepared(CASES["gptq"], [*_tokens()[:1], *_tokens()[rank + 1 : rank + 2]])


def _ordered(rank: int) -> nn.Module:
    config = PTQConfig(activation=affine(DType.uint(8), observer=EMASpec()))
    return prepared(Case(tiny_llama, config, _tokens), _tokens()[rank : rank + 1])


def _own_algorithm(rank: int) -> nn.Module:
    registry = Registry([quantizer_entry(ToyConfig, ToyQuantizer)])
    model = prepare(_wide(), ToyConfig(), registry=registry)
    model(values(rank, 3, 5, 140))
    return model


def _dispatched(rank: int) -> nn.Module:
    model = prepared(CASES["gptq of panels"], CASES["gptq of panels"].batches()[rank : rank + 1])
    vars(model[0])["_hf_hook"] = object()  # type: ignore[index]  # what accelerate leaves on a module
    return model


def _one_fails(rank: int) -> nn.Module:
    model = prepared(_FAILING, _FAILING.batches()[rank : rank + 1])
    vars(model[1])["fails"] = rank == 1  # type: ignore[index]  # it is a Sequential
    return model


REFUSALS: Final[Mapping[str, Callable[[int], nn.Module]]] = {
    "other weights": _other_weights,
    "other config": _other_config,
    "same batches": _same_batches,
    "ordered statistics": _ordered,
    "own algorithm": _own_algorithm,
    "dispatched": _dispatched,
    "one fails": _one_fails,
}


def refusal(model: nn.Module, group: ProcessGroup | None) -> str:
    """Return the error that `convert` raises, and whether the model was left as it was."""
    before = model_fingerprint(model)
    try:
        convert(model, group=group)
    except Exception as error:  # noqa: BLE001  # it is what the test asks about
        same = "unchanged" if model_fingerprint(model) == before else "changed"
        return f"{same} {type(error).__name__}: {error}"
    return "converted"


def _late(rank: int, pair: ProcessGroup | None, hasty: ProcessGroup | None) -> str:
    """Return what a rank is told of another one that comes later than the time limit of a `hasty` group."""
    model = prepared(_FAILING, _FAILING.batches()[rank : rank + 1])
    dist.barrier(pair)
    time.sleep(5 * rank)
    return refusal(model, hasty)


def _ended(rank: int, group: ProcessGroup | None) -> str:
    """Return what a rank is told of another one that ends during `convert`."""
    model = prepared(_FAILING, _FAILING.batches()[rank : rank + 1])
    vars(model[1])["ends"] = rank == 1  # type: ignore[index]  # it is a Sequential
    return refusal(model, group)


def kept_in(folder: str | Path) -> Case:
    """Return a case that keeps finished blocks below `folder`."""
    return attrs.evolve(_FAILING, config=attrs.evolve(QUIET, checkpoint_dir=str(Path(folder) / "kept")))


def _interrupted(rank: int, folder: str, group: ProcessGroup | None) -> str:
    """Return what a rank is told where one fails in the second block."""
    case = kept_in(folder)
    model = prepared(case, [case.batches()[index] for index in parts_of(2)[rank]])
    vars(model[1])["fails"] = rank == 1  # type: ignore[index]  # it is a Sequential
    return refusal(model, group)


def _converted(rank: int, ranks: int, group: ProcessGroup | None) -> dict[str, str]:
    """Return the digests of the cases."""
    found = {}
    for name in CASES if ranks == PROCESSES else IN_PAIRS:
        case = CASES[name]
        batches = case.batches()
        model = prepared(case, [batches[index] for index in parts_of(ranks)[rank]])
        found[f"{name} on {ranks}"] = digest(convert(model, group=group))
    return found


def run_process(process: int, folder: str) -> None:
    """Do all that the tests ask about, and leave what came out in a file for each process.

    All are the ranks of the first group; the second one has the last two of them.
    """
    torch.set_num_threads(1)
    rendezvous, limit = f"file://{folder}/rendezvous", timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=rendezvous, rank=process, world_size=PROCESSES, timeout=limit)
    two = list(range(PROCESSES))[-2:]
    pair, hasty = dist.new_group(two), dist.new_group(two, timeout=timedelta(seconds=1))
    found = _converted(process, PROCESSES, dist.group.WORLD)
    if process in two:
        rank = two.index(process)
        found |= _converted(rank, 2, pair)
        found |= {name: refusal(make(rank), pair) for name, make in REFUSALS.items()}
        found["interrupted"] = _interrupted(rank, folder, pair)
        found["late"] = _late(rank, pair, hasty)
        (Path(folder) / f"{process}.json").write_text(json.dumps(found))
        found["ended"] = _ended(rank, pair)
    (Path(folder) / f"{process}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    gc.freeze()  # what is imported, once for all of them
    start_processes(  # type: ignore[no-untyped-call]  # torch's
        run_process,
        (sys.argv[1],),
        nprocs=PROCESSES,
        start_method="spawn" if sys.platform == "win32" else "fork",
    )
