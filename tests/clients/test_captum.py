"""captum attributes the outputs of a converted model to its inputs."""

from __future__ import annotations

import functools

import torch
from captum.attr import IntegratedGradients, LayerActivation, Saliency
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from client_models import TOKENS, both
from references import same_bits

CLIENT = "captum"


class _Score:
    """The logit of one token, of the embeddings of a prompt."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self._model = model

    def __call__(self, embeddings: Tensor) -> Tensor:
        scores: Tensor = self._model(inputs_embeds=embeddings).logits[:, -1, 5]
        return scores


def test_saliency(kind: str) -> None:
    """It is the absolute gradient of the input."""
    for model in both(kind):
        x = model.get_input_embeddings()(TOKENS[:1]).detach().requires_grad_()
        [expected] = torch.autograd.grad(_Score(model)(x).sum(), x)
        assert same_bits(Saliency(_Score(model)).attribute(x), expected.abs())


def test_integrated_gradients(kind: str) -> None:
    """Attributions are finite, and some are not zero."""
    for model in both(kind):
        x = model.get_input_embeddings()(TOKENS[:1]).detach()
        found = IntegratedGradients(_Score(model)).attribute(x, n_steps=4)
        assert found.isfinite().all()
        assert found.abs().sum() > 0


def test_activation_of_a_layer(kind: str) -> None:
    """Layers are found by attribute, and their outputs are those of a hook."""
    for model in both(kind):
        layer = model.model.layers[0].self_attn.q_proj
        found = LayerActivation(functools.partial(_logits, model), layer).attribute(TOKENS)
        seen: list[Tensor] = []
        layer.register_forward_hook(functools.partial(_note, seen))
        model(TOKENS)
        assert same_bits(found, seen[0].detach())


def _logits(model: LlamaForCausalLM, tokens: Tensor) -> Tensor:
    logits: Tensor = model(tokens).logits
    return logits


def _note(seen: list[Tensor], module: nn.Module, args: object, output: Tensor) -> None:
    seen.append(output)
