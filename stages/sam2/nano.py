"""A small SAM 2 built from the public package's classes, for 256-pixel images: no configuration files, no hydra.

The wiring is that of SAM 2.1 (object pointers, occlusion scores, high-resolution features, memory); the sizes are not.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field
from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam.transformer import RoPEAttention

from schemas.base import Record
from stages.sam2.predictor import Predictor


class NanoConfig(Record):
    """Sizes of the small SAM 2; the defaults are those of the weights in this package.

    `image_size` in pixels (a multiple of 64); `embed_dim` of the first of four Hiera stages; `d_model` of neck,
    memory and decoder; `memory_dim` of the stored memories; `memories` frames attended to, the prompted one included.
    """

    image_size: int = Field(default=256, multiple_of=64)
    embed_dim: int = 32
    stages: tuple[int, int, int, int] = (1, 2, 4, 1)
    windows: tuple[int, int, int, int] = (8, 4, 8, 4)
    global_blocks: tuple[int, ...] = (5,)
    d_model: int = Field(default=64, multiple_of=16)
    memory_dim: int = 32
    memory_layers: int = 2
    memories: int = 4


def build_nano(config: NanoConfig | None = None) -> Predictor:
    """The small SAM 2 with random weights, in eval mode on the CPU, fp32."""
    config = config or NanoConfig()
    model = Predictor(
        image_encoder=_image_encoder(config),
        memory_attention=_memory_attention(config),
        memory_encoder=_memory_encoder(config),
        num_maskmem=config.memories,
        image_size=config.image_size,
        backbone_stride=16,
        **_switches(),
    )
    model.eval()
    return model


def _image_encoder(config: NanoConfig) -> ImageEncoder:
    trunk = Hiera(
        embed_dim=config.embed_dim,
        num_heads=1,
        stages=config.stages,
        window_spec=config.windows,
        global_att_blocks=config.global_blocks,
        window_pos_embed_bkg_spatial_size=(7, 7),
    )
    neck = FpnNeck(
        position_encoding=_positions(config.d_model),
        d_model=config.d_model,
        backbone_channel_list=trunk.channel_list,
        fpn_top_down_levels=[2, 3],
        fpn_interp_model="nearest",
    )
    return ImageEncoder(trunk=trunk, neck=neck, scalp=1)


def _memory_attention(config: NanoConfig) -> MemoryAttention:
    side = config.image_size // 16
    common: dict[str, Any] = {"rope_theta": 10000.0, "feat_sizes": (side, side), "embedding_dim": config.d_model}
    layer = MemoryAttentionLayer(
        activation="relu",
        dim_feedforward=4 * config.d_model,
        dropout=0.0,
        pos_enc_at_attn=False,
        self_attention=RoPEAttention(num_heads=1, downsample_rate=1, dropout=0.0, **common),
        d_model=config.d_model,
        pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False,
        cross_attention=RoPEAttention(
            rope_k_repeat=True, num_heads=1, downsample_rate=1, dropout=0.0, kv_in_dim=config.memory_dim, **common
        ),
    )
    return MemoryAttention(d_model=config.d_model, pos_enc_at_input=True, layer=layer, num_layers=config.memory_layers)


def _memory_encoder(config: NanoConfig) -> MemoryEncoder:
    return MemoryEncoder(
        out_dim=config.memory_dim,
        position_encoding=_positions(config.memory_dim),
        mask_downsampler=MaskDownSampler(embed_dim=config.d_model, kernel_size=3, stride=2, padding=1),
        fuser=Fuser(CXBlock(config.d_model), num_layers=2),
        in_dim=config.d_model,
    )


def _positions(width: int) -> PositionEmbeddingSine:
    return PositionEmbeddingSine(num_pos_feats=width, normalize=True, warmup_cache=False)


def _switches() -> dict[str, Any]:
    """SAM 2.1's switches, with one mask a prompt when tracking (as the region captioner needs it)."""
    return {
        "sigmoid_scale_for_mem_enc": 20.0,
        "sigmoid_bias_for_mem_enc": -10.0,
        "use_mask_input_as_output_without_sam": True,
        "directly_add_no_mem_embed": True,
        "no_obj_embed_spatial": True,
        "use_high_res_features_in_sam": True,
        "multimask_output_in_sam": False,
        "iou_prediction_use_sigmoid": True,
        "use_obj_ptrs_in_encoder": True,
        "add_tpos_enc_to_obj_ptrs": True,
        "proj_tpos_enc_in_obj_ptrs": True,
        "use_signed_tpos_enc_to_obj_ptrs": True,
        "only_obj_ptrs_in_the_past_for_eval": True,
        "pred_obj_scores": True,
        "pred_obj_scores_mlp": True,
        "fixed_no_obj_ptr": True,
        "use_mlp_for_obj_ptr_proj": True,
        "binarize_mask_from_pts_for_mem_enc": True,
    }
