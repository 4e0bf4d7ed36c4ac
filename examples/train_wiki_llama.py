"""Train the small LLaMA of `wiki_llama/` from scratch, on one CPU core, and write its Hugging Face directory.

The matrices of the decoder blocks are trained with Muon, whose orthogonal updates use every direction of a
matrix: far fewer tokens are needed, and rounding such a matrix coarsely is felt. Embeddings and norms are
trained with AdamW.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from real_models import CALIBRATION_ARTICLES, TEST_ARTICLES, TUNING_ARTICLES, wiki_articles

VOCABULARY: Final = 1024
CONTEXT: Final = 256
BATCH: Final = 16
MUON_RATE: Final = 0.02
MUON_DECAY: Final = 1.0  # so strong because the text is short: it forgets what only a few batches said
ADAMW_RATE: Final = 0.003
WARM_UP: Final = 0.03
FINAL_RATE: Final = 0.02
REPORT_EVERY: Final = 200
END_OF_TEXT: Final = "<|endoftext|>"


def train_tokenizer(articles: Sequence[str]) -> Tokenizer:
    """Return a byte-level BPE, which can write down any text; the end-of-text token has id 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(articles, trainer)
    return tokenizer


def tokenize(tokenizer: Tokenizer, articles: Sequence[str]) -> Tensor:
    """Return the ids of all articles as one vector, each article followed by the end-of-text token."""
    return torch.tensor([i for article in articles for i in (*tokenizer.encode(article).ids, 0)])


def new_model() -> LlamaForCausalLM:
    """Return a LLaMA of 3.7 million parameters with grouped-query attention and tied embeddings."""
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype=torch.float32,  # what it loads as, although the file holds float16
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    # On a CPU the plain attention has the faster backward pass at this context.
    model.set_attn_implementation("eager")
    return model


def new_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the blocks and AdamW for the rest."""
    matrices = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    chosen = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=MUON_DECAY, adjust_lr_fn="original"),
        torch.optim.AdamW(others, lr=ADAMW_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def rate_factor(step: int, steps: int) -> float:
    """Return the learning rate's factor: a linear warm-up, then half a cosine down to `FINAL_RATE`."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / (WARM_UP * steps)) * (FINAL_RATE + (1 - FINAL_RATE) * cosine)


def logits_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the function from ids `[batch, length]` to logits `[batch, length, vocabulary]`."""

    def logits(ids: Tensor) -> Tensor:
        result: Tensor = model(input_ids=ids, use_cache=False).logits
        return result

    return logits


def mean_loss(logits_of_ids: Callable[[Tensor], Tensor], windows: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats of every token of `[batch, length]` given those before it."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = logits_of_ids(windows[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


def perplexity(model: nn.Module, tokens: Tensor, *, batches: int = 4) -> float:
    """Return the perplexity over the first disjoint windows of `CONTEXT` tokens."""
    windows = tokens[: batches * BATCH * CONTEXT].view(batches, BATCH, CONTEXT)
    with torch.inference_mode():
        return math.exp(sum(mean_loss(logits_of(model), batch).item() for batch in windows) / batches)


def random_windows(tokens: Tensor) -> Tensor:
    """Return `[BATCH, CONTEXT + 1]` ids from random places."""
    starts = torch.randint(0, len(tokens) - CONTEXT, (BATCH, 1))
    return tokens[starts + torch.arange(CONTEXT + 1)]


def train(model: LlamaForCausalLM, training: Tensor, tuning: Tensor, *, steps: int, output: Path) -> None:
    """Train for a fixed number of steps, saving the model at every report."""
    optimizers = new_optimizers(model)
    rates: list[float] = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    compiled = torch.compile(logits_of(model))
    started = time.monotonic()
    for step in range(steps):
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * rate_factor(step, steps)
        loss = mean_loss(compiled, random_windows(training))
        model.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == steps:
            minutes = (time.monotonic() - started) / 60
            print(
                f"step {step + 1}/{steps}  {minutes:.1f} min  {(step + 1) * BATCH * CONTEXT:,} tokens  "
                f"training loss {loss.item():.3f}  tuning perplexity {perplexity(model, tuning):.2f}",
                flush=True,
            )
            save(model, output)


def save(model: LlamaForCausalLM, output: Path) -> None:
    """Write the configuration, and the weights rounded to float16, the tied embedding once."""
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    rounded = {name: tensor.to(torch.float16) for name, tensor in weights.items()}
    save_file(rounded, output / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(output)


def write_tokenizer(tokenizer: Tokenizer, output: Path) -> None:
    """Write the two files from which `AutoTokenizer` loads."""
    tokenizer.save(str(output / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
    }
    (output / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def beginnings(articles: Sequence[str], *, characters: int) -> str:
    """Return the first whole paragraphs of every article, at most `characters` of each."""
    return "\n\n".join(article[:characters].rpartition("\n")[0].strip() for article in articles) + "\n"


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="the directory to write")
    parser.add_argument("--steps", type=int, default=1200, help="optimizer steps of 16 x 256 tokens")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)

    articles = wiki_articles()
    calibration = beginnings(articles[CALIBRATION_ARTICLES], characters=3500)
    (output / "calibration.txt").write_text(calibration, encoding="utf-8")
    heldout = beginnings(articles[TEST_ARTICLES], characters=5500)
    (output / "heldout.txt").write_text(heldout, encoding="utf-8")
    tokenizer = train_tokenizer(articles[CALIBRATION_ARTICLES])
    write_tokenizer(tokenizer, output)
    training = tokenize(tokenizer, articles[CALIBRATION_ARTICLES])
    tuning = tokenize(tokenizer, articles[TUNING_ARTICLES])
    train(new_model(), training, tuning, steps=arguments.steps, output=output)


if __name__ == "__main__":
    main()
