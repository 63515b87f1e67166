"""A LoRA on a causal language model of `transformers`, by `peft`: the base is frozen, the adapter alone travels."""

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


def build_model(config):
    model = AutoModelForCausalLM.from_pretrained(config["base"], dtype=torch.float32)
    return get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=config["rank"],
            lora_alpha=2 * config["rank"],
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        ),
    )


def loss(model, batch):
    tokens = batch["input_ids"]  # [batch, length] int64
    return model(input_ids=tokens, labels=tokens).loss


def build_optimizer(model, config):
    return torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=config["lr"], weight_decay=0.0)
