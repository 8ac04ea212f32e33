"""Pipelines of the real classes with random weights, small enough for tests."""

import inspect
from typing import Any

import torch
from diffusers import (
    AnimateDiffSDXLPipeline,
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LEditsPPPipelineStableDiffusion,
    MotionAdapter,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    SemanticStableDiffusionPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionLatentUpscalePipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.modular_pipelines import StableDiffusionXLAutoBlocks
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from diffusers_erase.playground.building import networks


WORDS = (
    "a an the of in on at with photo picture image red blue green orange yellow purple pink cyan "
    "car truck van oak castle house dog cat beach night snow field painting style by thing"
)


def t5_tokenizer() -> T5TokenizerFast:
    """T5's own class, which knows these words and all letters."""
    pieces = [*(f"▁{word}" for word in WORDS.split()), "▁", *"abcdefghijklmnopqrstuvwxyz"]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((p, -float(len(p))) for p in pieces)]
    return T5TokenizerFast(vocab=vocab, extra_ids=0, model_max_length=64)


def t5(width: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(t5_tokenizer()),
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
    )
    return T5EncoderModel(config).eval()


def clip(tokenizer: Any, width: int, *, projects: bool = True) -> Any:
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=16,
        vocab_size=len(tokenizer),
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return (CLIPTextModelWithProjection if projects else CLIPTextModel)(config).eval()


def vae(channels: int = 4, **options: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(32,), latent_channels=channels, norm_num_groups=8, **options
    ).eval()


def sdxl(tokenizer: Any, width: int = 24 + 40) -> StableDiffusionXLPipeline:
    """Two text encoders, side by side in the states' width, which the UNet reads."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
        use_linear_projection=True,
    )
    return _quiet(
        StableDiffusionXLPipeline(
            vae=vae(),
            text_encoder=clip(tokenizer, 24, projects=False),
            text_encoder_2=clip(tokenizer, 40),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            unet=unet.eval(),
            scheduler=DDIMScheduler(),
            add_watermarker=False,
        )
    )


def sd2(tokenizer: Any) -> StableDiffusionPipeline:
    """Predicts v, projects linearly, and reads wider states than Stable Diffusion 1."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=48,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
    )
    return _quiet(
        StableDiffusionPipeline(
            vae=vae(),
            text_encoder=clip(tokenizer, 48, projects=False),
            tokenizer=tokenizer,
            unet=unet.eval(),
            scheduler=DDIMScheduler(
                prediction_type="v_prediction", steps_offset=1, clip_sample=False
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def sd3(tokenizer: Any) -> StableDiffusion3Pipeline:
    """CLIP's tokens (of two encoders, filled up with zeros), and after them T5's."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=72,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
    )
    _listening(transformer)
    return _quiet(
        StableDiffusion3Pipeline(
            vae=vae(shift_factor=0.1, scaling_factor=1.5),
            text_encoder=clip(tokenizer, 24),
            text_encoder_2=clip(tokenizer, 40),
            text_encoder_3=t5(72),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            tokenizer_3=t5_tokenizer(),
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(),
        )
    )


def flux(tokenizer: Any) -> FluxPipeline:
    """T5's states as text, CLIP's pooled one beside the time."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=40,
        pooled_projection_dim=24,
        axes_dims_rope=(4, 4, 8),
    )
    _listening(transformer)
    return _quiet(
        FluxPipeline(
            vae=vae(shift_factor=0.1, scaling_factor=1.5),
            text_encoder=clip(tokenizer, 24, projects=False),
            text_encoder_2=t5(40),
            tokenizer=tokenizer,
            tokenizer_2=t5_tokenizer(),
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(),
        )
    )


def pixart(tokenizer: Any = None) -> PixArtAlphaPipeline:
    """T5's states, of which padding is masked."""
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        cross_attention_dim=32,
        caption_channels=40,
    )
    return _quiet(
        PixArtAlphaPipeline(
            vae=vae(),
            text_encoder=t5(40),
            tokenizer=t5_tokenizer(),
            transformer=transformer.eval(),
            scheduler=DDIMScheduler(),
        )
    )


def unet(width: int, **options: Any) -> UNet2DConditionModel:
    """A UNet that reads text states of this width, perhaps in an unusual way."""
    torch.manual_seed(0)
    usual = {
        "sample_size": 16,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": width,
        "attention_head_dim": 8,
    }
    return UNet2DConditionModel(**{**usual, **options}).eval()


def shallow_unet(width: int) -> UNet2DConditionModel:
    """Few modules, so that compiling them does not take long."""
    options = {
        "block_out_channels": (32,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "mid_block_type": None,
        "up_block_types": ("CrossAttnUpBlock2D",),
    }
    return unet(width, **options)


def narrow_unet() -> UNet2DConditionModel:
    """The playground's UNet with fewer channels."""
    config = networks.unet().config
    made = UNet2DConditionModel.from_config(
        config, block_out_channels=(16, 32, 32), norm_num_groups=4
    )
    return made.eval()


def load_image_prompt(unet: UNet2DConditionModel) -> None:
    """An IP-Adapter of random weights, for image embeddings of width 16."""
    width = unet.config.cross_attention_dim
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.1

    projection = {"proj.weight": normal(4 * width, 16), "proj.bias": normal(4 * width)}
    projection |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    attentions = [m for n, m in unet.named_modules() if n.endswith("attn2")]
    weights = {
        f"{2 * k + 1}.{part}.weight": normal(attention.to_k.out_features, width)
        for k, attention in enumerate(attentions)
        for part in ("to_k_ip", "to_v_ip")
    }
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": weights}])


def instruct_pix2pix(pipe: StableDiffusionPipeline) -> tuple[Any, Any]:
    """A pipeline that edits pictures, and the one whose parts it has, which encodes prompts."""
    return _with_parts(StableDiffusionInstructPix2PixPipeline, pipe), pipe


def semantic(pipe: StableDiffusionPipeline) -> tuple[Any, Any]:
    return _with_parts(SemanticStableDiffusionPipeline, pipe), pipe


def ledits(pipe: StableDiffusionPipeline) -> tuple[Any, Any]:
    return _with_parts(LEditsPPPipelineStableDiffusion, pipe), pipe


def latent_upscaler(pipe: StableDiffusionPipeline) -> tuple[Any, Any]:
    return _with_parts(StableDiffusionLatentUpscalePipeline, pipe), pipe


def modular(pipe: StableDiffusionPipeline) -> tuple[Any, Any]:
    usual, made = sdxl(pipe.tokenizer), StableDiffusionXLAutoBlocks().init_pipeline()
    parts = {k: v for k, v in usual.components.items() if k in made.component_names and v}
    made.update_components(**parts)
    return made, usual


def animated_sdxl(pipe: StableDiffusionPipeline) -> tuple[Any, Any]:
    usual = sdxl(pipe.tokenizer)
    motion = MotionAdapter(
        block_out_channels=(32, 64),
        motion_layers_per_block=1,
        motion_norm_num_groups=8,
        motion_num_attention_heads=4,
        use_motion_mid_block=False,
    )
    return AnimateDiffSDXLPipeline(**usual.components, motion_adapter=motion), usual


WITHOUT_ENCODE_PROMPT = (instruct_pix2pix, semantic, ledits, modular)
"""Pipelines that encode prompts in some way of their own."""


def _with_parts(kind: Any, pipe: Any) -> Any:
    """A pipeline of another class, with the parts of this one."""
    takes = inspect.signature(kind.__init__).parameters
    parts = {name: part for name, part in pipe.components.items() if name in takes}
    options = {"requires_safety_checker": False} if "requires_safety_checker" in takes else {}
    return _quiet(kind(**parts, **options))


def _listening(transformer: Any) -> None:
    """Random weights hear little of one word among so many tokens; these hear it."""
    for block in transformer.transformer_blocks:
        block.attn.add_k_proj.weight.data.mul_(12)
        block.attn.add_v_proj.weight.data.mul_(12)


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe
