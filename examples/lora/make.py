"""Make what the example starts from: a small causal language model as a Hugging Face folder, and tokenised rows.

    python examples/lora/make.py FOLDER [--steps 200] [--rows 2000] [--bits 4|8]

writes base/ (config, tokenizer, weights: about 60,000 parameters, pretrained on Python's own reference text) and
data.parquet, rows of 64 tokens of other text (the source of its standard library) for the adapter. Nothing is
downloaded. A model of the hub takes base's place: any folder that `from_pretrained` loads. With --bits the base is a
quantized one (bitsandbytes), for a QLoRA.
"""

import argparse
import pydoc_data.topics
import site
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

LENGTH = 64


def make_tokenizer():
    """Return a tokenizer whose tokens are bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def make_model(width=48, layers=2):
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)


def rows_of(tokenizer, text, most):
    """Return the text as rows of tokens [rows, LENGTH], at most so many."""
    tokens = np.asarray(tokenizer(text)["input_ids"], dtype=np.int64)
    rows = tokens[: len(tokens) // LENGTH * LENGTH].reshape(-1, LENGTH)
    return rows[:most]


def pretrain(model, rows, steps, batch=16):
    """Train the whole model for some steps, in one process."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        picked = torch.randint(len(rows), (batch,))
        tokens = torch.from_numpy(rows)[picked]
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.3f}")


def quantize(folder, bits):
    """Make a base's linear layers 4-bit (NF4) or 8-bit ones, in place."""
    kinds = {4: {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, 8: {"load_in_8bit": True}}
    how = BitsAndBytesConfig(**kinds[bits])
    AutoModelForCausalLM.from_pretrained(folder, quantization_config=how, dtype=torch.float32).save_pretrained(folder)


def own_text():
    """Return the text for the adapter: the standard library's source, which reads otherwise than its reference."""
    folder = Path(site.__file__).parent
    return "".join(path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("[a-d]*.py")))


def write(folder, steps=200, rows=2000, bits=None):
    """Write ``base/`` and ``data.parquet`` under a folder."""
    torch.manual_seed(0)
    tokenizer, model = make_tokenizer(), make_model()
    pretrain(model, rows_of(tokenizer, "".join(pydoc_data.topics.topics.values())[: 3000 * LENGTH], 3000), steps)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    if bits is not None:
        quantize(folder / "base", bits)
    tokens = rows_of(tokenizer, own_text()[: rows * LENGTH], rows)
    parquet.write_table(pa.table({"input_ids": list(tokens)}), folder / "data.parquet")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200, help="steps of pretraining")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--bits", type=int, choices=(4, 8), help="quantize the base")
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    write(asked.folder, asked.steps, asked.rows, asked.bits)
    sys.stdout.write(f"{asked.folder}/base and {asked.folder}/data.parquet\n")
