"""The untrained components of the flow-matching still-life checkpoint: a small Z-Image, part for part."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from diffusers import FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import nn
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

from .models import WORDS


# Z-Image's transformer fills captions up to a multiple of this; longer ones than one such part are not trained on.
CAPTION_TOKENS = 32
# Every token of a template goes through every layer, so this one only marks where the prompt starts and ends. It
# writes in lower case, as CLIP's tokenizer does.
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['content'] | lower }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_end|>{% endif %}"
)


def build_flow_tokenizer() -> Qwen2Tokenizer:
    """A Qwen tokenizer (byte-level BPE): each word of the captions is one token, and any text can be written."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = byte_level
    trainer = BpeTrainer(
        vocab_size=10_000, min_frequency=1, initial_alphabet=sorted(byte_level.alphabet()), show_progress=False
    )
    # a word is another token after a space than at the start of a text
    bpe.train_from_iterator([form for word in sorted(set(WORDS)) for form in (word, f" {word}")], trainer)
    with tempfile.TemporaryDirectory() as folder:
        vocabulary_file, merges_file = bpe.model.save(folder)
        vocabulary = json.loads(Path(vocabulary_file).read_text())
        lines = Path(merges_file).read_text().splitlines()
    merges = [tuple(line.split()) for line in lines if not line.startswith("#")]
    for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"):
        vocabulary[token] = len(vocabulary)
    return Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        padding_side="right",
        model_max_length=512,
        chat_template=_TEMPLATE,
    )


def build_flow_text_encoder(tokenizer: Qwen2Tokenizer) -> Qwen3Model:
    """Z-Image reads the last hidden states but one (96), so that two of the three layers count."""
    return Qwen3Model(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=24,
            max_position_embeddings=512,
            use_cache=False,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_transformer() -> ZImageTransformer2DModel:
    """Z-Image's denoiser on patches of 2 x 2 latents; the text's tokens go through it beside the picture's."""
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=192,
        n_layers=5,
        n_refiner_layers=1,
        n_heads=6,
        n_kv_heads=6,
        cap_feat_dim=96,
        axes_dims=[8, 12, 12],
    )
    nn.init.normal_(transformer.cap_pad_token, std=0.02)
    nn.init.zeros_(transformer.all_final_layer["2-1"].linear.weight)
    return transformer


def build_flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """A static shift, for pictures of one size; at 4 steps, 1 and 3 serve as well as 2."""
    return FlowMatchEulerDiscreteScheduler(shift=2.0)
