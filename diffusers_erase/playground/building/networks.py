"""The parts of the playground's Stable Diffusion before training: networks, tokenizer, schedule."""

import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffusers_erase.playground.drawing import PICTURE_SIZE
from diffusers_erase.playground.world import words


LATENT_SIZE, TEXT_WIDTH, TEXT_LENGTH = PICTURE_SIZE // 4, 128, 24


def vae() -> AutoencoderKL:
    """3 x 64 x 64 in -1 .. 1  <->  4 x 16 x 16."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 32, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=PICTURE_SIZE,
        mid_block_add_attention=False,
    )


def unet() -> UNet2DConditionModel:
    """The denoiser, 4 x 16 x 16.

    Text enters at the 8 x 8 and 4 x 4 levels through seven cross-attentions.
    """
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        block_out_channels=(64, 128, 160),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two layers of CLIP's text transformer, 24 tokens -> 24 x 128."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def scheduler() -> DDIMScheduler:
    """Stable Diffusion 1.x: scaled-linear betas, epsilon prediction, steps offset by one."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIPTokenizer in which every word of the world is one token.

    Any other word falls back to letters.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = _byte_pairs(words())
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: i for i, token in enumerate(vocabulary)}
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False))
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines))
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=TEXT_LENGTH)
    return tokenizer


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer that `stages.make_tokens` wrote into this work folder."""
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(
        folder / "tokenizer", model_max_length=TEXT_LENGTH
    )
    return tokenizer


def _byte_pairs(vocabulary: Iterable[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Letters, then merges that rebuild each word from the left.

    A word is first shortened by the merges there are; new ones rank after all of these, so that no
    earlier word is taken apart differently once a later one joins.
    """
    letters = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256))]
    # CLIP's stand-ins for unprintable bytes.
    letters += [chr(256 + i) for i in range(256 - len(letters))]
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    ranks: dict[tuple[str, str], int] = {}
    for word in vocabulary:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pairs = list(pairwise(parts))
            best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
            at = pairs.index(best)
            if best not in ranks:
                best, at = pairs[0], 0
                ranks[best] = len(ranks)
                tokens.append("".join(best))
            parts[at : at + 2] = ["".join(best)]
    return tokens, list(ranks)


def assemble(
    *,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
) -> StableDiffusionPipeline:
    """The parts as one pipeline without a safety checker."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
