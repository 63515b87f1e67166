"""Text that is generated: an invented language, in which each word has four likely successors."""

import random

import torch

VOCABULARY = "abcdefghijklmnopqrstuvwxyz ."
SOUNDS = ("ba", "do", "ki", "lu", "me", "no", "ra", "si", "ta", "vu")


def windows(count, length, seed, words=60):
    """Return [count, length] int64: stretches of the language, as numbers of VOCABULARY. Other seeds, other texts."""
    chance = random.Random(1)  # the language is the same for all seeds
    lexicon = ["".join(chance.choices(SOUNDS, k=chance.randint(1, 3))) for _ in range(words)]
    likely = [chance.sample(range(words), 4) for _ in range(words)]
    chance.seed(seed + 2)
    text, word = [], 0
    while len(text) < count * length:
        text += lexicon[word] + (". " if chance.random() < 0.1 else " ")
        word = chance.choices(likely[word], weights=(8, 4, 2, 1))[0]
    numbers = [VOCABULARY.index(character) for character in text[: count * length]]
    return torch.tensor(numbers).view(count, length)
