"""Model families as tiny random models: one row per family, with what must hold for it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from tests import tiny

RECURRENT = ("mamba", "falcon_mamba", "mamba2", "rwkv", "recurrent_gemma")
VOCABULARY = 258  # of the byte tokenizer
COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
LLAMA_LIKE = {
    **COMMON,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
GPT2_LIKE = {**COMMON, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128, "n_ctx": 128}
ENCODER = {
    **COMMON,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 1,
}
NEOX = {key: value for key, value in LLAMA_LIKE.items() if key not in ("num_key_value_heads", "head_dim")}
FALCON = {
    **COMMON,
    "hidden_size": 16,
    "ffn_hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


@dataclass(frozen=True)
class Family:
    """A family: how to build its model, and where it differs from most others."""

    name: str
    config: str
    settings: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    """Class of the model; left out, the causal one of the configuration."""
    refused: str = ""
    """A part of the error that refuses the model; "" if it is accepted."""
    state: bool = True
    """Whether generation continues from a cached state; otherwise every step reads all tokens again."""
    inside: bool = True
    """Whether TransformerLens computes what the model does, so that hook points inside blocks are available."""
    adds: bool | None = True
    """Whether resid_pre + attn_out + mlp_out = resid_post; None if no block has both parts."""
    effects: bool = True
    """Whether direct effects on the next token exist: the head after the final norm is linear."""
    quick: bool = False
    """Whether the default test run takes it through the whole workflow, from text to steering."""
    tokenizer: Callable[[], Any] = tiny.tokenizer
    """Builds a tokenizer with at most as many tokens as the model has embeddings."""

    def folder(self, path: Path) -> Path:
        """Save a random model and its tokenizer. Weights are scaled up so that leaving a part out would show."""
        torch.manual_seed(0)
        config = getattr(transformers, self.config)(**self.settings)
        kind = self.model or self.config.replace("Config", "ForCausalLM")
        made = getattr(transformers, kind)(config)
        for name, parameter in made.named_parameters():
            if parameter.ndim >= 2:
                parameter.data.mul_(3 if config.model_type in RECURRENT else 8)
            elif not name.endswith(("A_log", "dt_bias", "dt_proj.bias", "time_decay", "time_first")):
                parameter.data.add_(
                    torch.randn_like(parameter) * 0.2
                )  # ones and zeros would hide a gain or bias
        made.save_pretrained(path)
        self.tokenizer().save_pretrained(path)
        return path


# fmt: off
ROWS = [
    Family("GPT-2", "GPT2Config", GPT2_LIKE, "GPT2LMHeadModel", quick=True),
    Family("GPT-Neo", "GPTNeoConfig", {**COMMON, "hidden_size": 16, "num_layers": 2, "num_heads": 2,
           "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 128, "window_size": 6}),
    Family("GPT-NeoX (Pythia)", "GPTNeoXConfig", {**NEOX, "rotary_pct": 0.5}, quick=True),
    Family("GPT-NeoX, sequential blocks", "GPTNeoXConfig", {**NEOX, "use_parallel_residual": False}),
    Family("GPT-J", "GPTJConfig", {**GPT2_LIKE, "rotary_dim": 4}),
    Family("CodeGen", "CodeGenConfig", {**GPT2_LIKE, "n_head": 4, "rotary_dim": 4}),
    Family("GPT-BigCode", "GPTBigCodeConfig", GPT2_LIKE),
    Family("OpenAI GPT", "OpenAIGPTConfig", GPT2_LIKE, "OpenAIGPTLMHeadModel", state=False, adds=False,
           quick=True),
    Family("OPT, pre-norm", "OPTConfig", {**COMMON, "hidden_size": 16, "word_embed_proj_dim": 16,
           "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128}),
    Family("OPT, post-norm (OPT-350m)", "OPTConfig", {**COMMON, "hidden_size": 16,
           "word_embed_proj_dim": 8, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
           "max_position_embeddings": 128, "do_layer_norm_before": False}, adds=False, quick=True),
    Family("OPT, post-norm, no projection", "OPTConfig", {**COMMON, "hidden_size": 16,
           "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
           "max_position_embeddings": 128, "do_layer_norm_before": False}, adds=False, inside=False),
    Family("OPT, pre-norm, projection", "OPTConfig", {**COMMON, "hidden_size": 16,
           "word_embed_proj_dim": 8, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
           "max_position_embeddings": 128}),
    Family("Falcon, sequential, ALiBi", "FalconConfig", {**FALCON, "parallel_attn": False, "alibi": True},
           inside=False),
    Family("BLOOM", "BloomConfig", {**COMMON, "hidden_size": 16, "n_layer": 2, "n_head": 2}),
    Family("Falcon", "FalconConfig", {**FALCON, "multi_query": True}, quick=True),
    Family("Falcon, new decoder", "FalconConfig", {**FALCON, "new_decoder_architecture": True,
           "num_kv_heads": 1} ),
    Family("MPT", "MptConfig", {"vocab_size": VOCABULARY, "d_model": 16, "n_layers": 2, "n_heads": 2,
           "max_seq_len": 128, "expansion_ratio": 2}),
    Family("XGLM", "XGLMConfig", {**COMMON, "d_model": 16, "ffn_dim": 32, "num_layers": 2,
           "attention_heads": 2, "max_position_embeddings": 128, "pad_token_id": 1}),
    Family("Phi", "PhiConfig", {**LLAMA_LIKE, "num_key_value_heads": 2}),
    Family("Phi-3", "Phi3Config", LLAMA_LIKE),
    Family("Llama 2", "LlamaConfig", {**LLAMA_LIKE, "num_key_value_heads": 2}),
    Family("Llama 3", "LlamaConfig", {**LLAMA_LIKE, "rope_parameters": {"rope_type": "llama3",
           "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 32}}, quick=True),
    Family("Llama 4, text", "Llama4TextConfig", {**LLAMA_LIKE, **LOCAL_EXPERTS, "num_experts_per_tok": 1,
           "intermediate_size_mlp": 32, "interleave_moe_layer_step": 2, "attention_chunk_size": 8},
           "Llama4ForCausalLM"),
    Family("Mistral", "MistralConfig", {**LLAMA_LIKE, "sliding_window": 8}),
    Family("Mixtral", "MixtralConfig", {**LLAMA_LIKE, **LOCAL_EXPERTS}),
    Family("Qwen2", "Qwen2Config", LLAMA_LIKE),
    Family("Qwen2-MoE", "Qwen2MoeConfig", {**LLAMA_LIKE, **EXPERTS, "shared_expert_intermediate_size": 16}),
    Family("Qwen3", "Qwen3Config", LLAMA_LIKE),
    Family("Qwen3-MoE", "Qwen3MoeConfig", {**LLAMA_LIKE, **EXPERTS}),
    Family("Qwen3-Next", "Qwen3NextConfig", {**LLAMA_LIKE, **EXPERTS, "shared_expert_intermediate_size": 16,
           "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 2,
           "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}),
    Family("Gemma", "GemmaConfig", LLAMA_LIKE),
    Family("Gemma 2", "Gemma2Config", {**LLAMA_LIKE, "sliding_window": 8, "query_pre_attn_scalar": 8},
           quick=True),
    Family("Gemma 3, text", "Gemma3TextConfig", {**LLAMA_LIKE, "sliding_window": 8,
           "query_pre_attn_scalar": 8, "layer_types": ["sliding_attention", "full_attention"]},
           "Gemma3ForCausalLM"),
    Family("Gemma 4, text", "Gemma4TextConfig", {**LLAMA_LIKE, "sliding_window": 8,
           "layer_types": ["sliding_attention", "full_attention"], "vocab_size_per_layer_input": VOCABULARY,
           "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0, "global_head_dim": 8},
           "Gemma4ForCausalLM", adds=False),
    Family("Granite", "GraniteConfig", {**LLAMA_LIKE, "residual_multiplier": 0.5, "logits_scaling": 4.0,
           "embedding_multiplier": 3.0, "attention_multiplier": 0.3}, quick=True),
    Family("GraniteMoE", "GraniteMoeConfig", {**LLAMA_LIKE, **LOCAL_EXPERTS, "residual_multiplier": 0.5,
           "logits_scaling": 4.0, "embedding_multiplier": 3.0, "attention_multiplier": 0.3}),
    Family("GraniteMoE-Hybrid", "GraniteMoeHybridConfig", {**LLAMA_LIKE, **LOCAL_EXPERTS,
           "residual_multiplier": 0.5, "logits_scaling": 4.0, "shared_intermediate_size": 16,
           "layer_types": ["mamba", "attention"], "mamba_n_heads": 4, "mamba_d_state": 8, "mamba_d_head": 8,
           "mamba_chunk_size": 8}, inside=False, adds=None),
    Family("GraniteMoE-Hybrid, rotary", "GraniteMoeHybridConfig", {**LLAMA_LIKE, **LOCAL_EXPERTS,
           "residual_multiplier": 0.5, "logits_scaling": 4.0, "position_embedding_type": "rope", "shared_intermediate_size": 16,
           "layer_types": ["mamba", "attention"], "mamba_n_heads": 4, "mamba_d_state": 8, "mamba_d_head": 8,
           "mamba_chunk_size": 8}, adds=None),
    Family("Cohere", "CohereConfig", {**LLAMA_LIKE, "logit_scale": 0.25}, quick=True),
    Family("Cohere 2", "Cohere2Config", {**LLAMA_LIKE, "logit_scale": 0.25, "sliding_window": 8,
           "layer_types": ["sliding_attention", "full_attention"]}),
    Family("OLMo", "OlmoConfig", {**LLAMA_LIKE, "clip_qkv": 0.5}),
    Family("OLMo 2", "Olmo2Config", LLAMA_LIKE),
    Family("OLMo 3", "Olmo3Config", {**LLAMA_LIKE, "sliding_window": 8, "layer_types": ["sliding_attention",
           "full_attention"]}),
    Family("OLMoE", "OlmoeConfig", {**LLAMA_LIKE, "num_experts": 4, "num_experts_per_tok": 2}),
    Family("StableLM", "StableLmConfig", {**LLAMA_LIKE, "partial_rotary_factor": 0.5}),
    Family("StableLM, parallel", "StableLmConfig", {**LLAMA_LIKE, "use_parallel_residual": True,
           "qk_layernorm": True}),
    Family("StarCoder 2", "Starcoder2Config", {**LLAMA_LIKE, "sliding_window": 8}),
    Family("gpt-oss", "GptOssConfig", {**LLAMA_LIKE, **LOCAL_EXPERTS, "sliding_window": 8,
           "layer_types": ["sliding_attention", "full_attention"]}, quick=True),
    Family("SmolLM3", "SmolLM3Config", {**LLAMA_LIKE, "no_rope_layers": [1, 0]}),
    Family("DeepSeek-V2", "DeepseekV2Config", {**LLAMA_LIKE, "num_key_value_heads": 2,
           "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
           "n_shared_experts": 1, "first_k_dense_replace": 1, "kv_lora_rank": 8, "q_lora_rank": 8,
           "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "n_group": 1, "topk_group": 1}),
    Family("DeepSeek-V3", "DeepseekV3Config", {**{k: v for k, v in LLAMA_LIKE.items() if k != "head_dim"},
           "num_key_value_heads": 2, "n_routed_experts": 4, "num_experts_per_tok": 2,
           "moe_intermediate_size": 16, "n_shared_experts": 1, "first_k_dense_replace": 1,
           "kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
           "v_head_dim": 8, "n_group": 1, "topk_group": 1}, quick=True),
    Family("GLM", "GlmConfig", LLAMA_LIKE),
    Family("GLM-4", "Glm4Config", LLAMA_LIKE),
    Family("Nemotron", "NemotronConfig", LLAMA_LIKE),
    Family("EXAONE 4", "Exaone4Config", {**LLAMA_LIKE, "sliding_window": 8,
           "layer_types": ["sliding_attention", "full_attention"]}),
    Family("ERNIE 4.5", "Ernie4_5Config", LLAMA_LIKE),
    Family("Seed-OSS", "SeedOssConfig", LLAMA_LIKE),
    Family("Apertus", "ApertusConfig", LLAMA_LIKE),
    Family("Arcee", "ArceeConfig", LLAMA_LIKE),
    Family("HunYuan, dense", "HunYuanDenseV1Config", LLAMA_LIKE),
    Family("ModernBERT decoder", "ModernBertDecoderConfig", {**ENCODER, "pad_token_id": 1,
           "local_attention": 8, "layer_types": ["sliding_attention", "full_attention"]}, effects=False),
    Family("LFM2", "Lfm2Config", {**LLAMA_LIKE, "layer_types": ["conv", "full_attention"],
           "block_auto_adjust_ff_dim": False}),
    Family("Mamba", "MambaConfig", {**COMMON, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 8,
           "time_step_rank": 4}, adds=None, quick=True),
    Family("FalconMamba", "FalconMambaConfig", {**COMMON, "hidden_size": 16, "num_hidden_layers": 2,
           "state_size": 8, "time_step_rank": 4}, adds=None),
    Family("Mamba 2", "Mamba2Config", {**COMMON, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 8,
           "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 8}, adds=None),
    Family("RWKV", "RwkvConfig", {**COMMON, "hidden_size": 16, "attention_hidden_size": 16,
           "num_hidden_layers": 2, "context_length": 128}, state=False, adds=None, quick=True),
    Family("RecurrentGemma", "RecurrentGemmaConfig", {**LLAMA_LIKE, "lru_width": 16,
           "attention_window_size": 8, "num_hidden_layers": 3}, adds=None, state=False, quick=True),
    Family("Jamba", "JambaConfig", {**LLAMA_LIKE, "num_experts": 2, "num_experts_per_tok": 1,
           "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
           "expert_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False},
           quick=True),
    Family("Bamba", "BambaConfig", {**LLAMA_LIKE, "attn_layer_indices": [1], "mamba_n_heads": 4,
           "mamba_d_state": 8, "mamba_d_head": 8, "mamba_chunk_size": 8}, state=False),
    Family("Zamba2", "Zamba2Config", {**LLAMA_LIKE, "num_key_value_heads": 2, "num_hidden_layers": 3,
           "layers_block_type": ["mamba", "hybrid", "mamba"], "n_mamba_heads": 4, "mamba_d_state": 8,
           "mamba_headdim": 8, "mamba_ngroups": 1, "num_mem_blocks": 1, "chunk_size": 8,
           "use_mem_rope": False}, adds=None),
    Family("Falcon-H1", "FalconH1Config", {**LLAMA_LIKE, "mamba_n_heads": 4, "mamba_d_state": 8,
           "mamba_d_head": 8, "mamba_chunk_size": 8, "mamba_d_ssm": 32}, adds=False),
    Family("Nemotron-H", "NemotronHConfig", {**LLAMA_LIKE, "num_hidden_layers": 3,
           "layers_block_type": ["mamba", "attention", "moe"], "mamba_num_heads": 4, "mamba_head_dim": 8,
           "ssm_state_size": 8, "n_groups": 1, "chunk_size": 8, "n_routed_experts": 4,
           "num_experts_per_tok": 2, "moe_intermediate_size": 16, "moe_shared_expert_intermediate_size": 16,
           "n_group": 1, "topk_group": 1}, adds=None),
    Family("BERT, as a decoder", "BertConfig", {**ENCODER, "is_decoder": True}, "BertLMHeadModel",
           effects=False, adds=False),
    Family("Gemma 3, bidirectional", "Gemma3TextConfig", {**LLAMA_LIKE, "sliding_window": 8,
           "query_pre_attn_scalar": 8, "use_bidirectional_attention": True,
           "layer_types": ["sliding_attention", "full_attention"]}, "Gemma3ForCausalLM",
           refused="not causal"),
    Family("PhiMoE", "PhimoeConfig", {**LLAMA_LIKE, **LOCAL_EXPERTS}, refused="adapter"),
    Family("Gemma 3n, text", "Gemma3nTextConfig", {**LLAMA_LIKE, "num_hidden_layers": 4,
           "intermediate_size": [32] * 4, "sliding_window": 8, "layer_types": ["sliding_attention",
           "full_attention"] * 2, "vocab_size_per_layer_input": VOCABULARY,
           "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 2, "laurel_rank": 4,
           "activation_sparsity_pattern": [0.0] * 4, "altup_num_inputs": 2}, "Gemma3nForCausalLM",
           refused="adapter"),
    Family("xLSTM", "xLSTMConfig", {**COMMON, "hidden_size": 16, "num_heads": 2, "num_blocks": 2,
           "chunk_size": 16}, refused="adapter"),
    Family("BioGPT", "BioGptConfig", {**ENCODER}, refused="adapter"),
    Family("Persimmon", "PersimmonConfig", LLAMA_LIKE, refused="adapter"),
    Family("Llama, not causal", "LlamaConfig", {**LLAMA_LIKE, "is_causal": False}, refused="not causal"),
    Family("BERT", "BertConfig", ENCODER, "BertForMaskedLM", refused="not causal"),
    Family("RoBERTa", "RobertaConfig", ENCODER, "RobertaForMaskedLM", refused="not causal"),
    Family("ELECTRA", "ElectraConfig", {**ENCODER, "embedding_size": 16}, "ElectraForMaskedLM",
           refused="not causal"),
    Family("DistilBERT", "DistilBertConfig", {**COMMON, "dim": 16, "hidden_dim": 32, "n_layers": 2,
           "n_heads": 2, "max_position_embeddings": 128, "pad_token_id": 1}, "DistilBertForMaskedLM",
           refused="no causal language model"),
    Family("ModernBERT", "ModernBertConfig", ENCODER, "ModernBertForMaskedLM",
           refused="no causal language model"),
    Family("T5", "T5Config", {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 32,
           "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0, "eos_token_id": 1,
           "pad_token_id": 0}, "T5ForConditionalGeneration", refused="an encoder-decoder"),
    Family("BART", "BartConfig", {**COMMON, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2,
           "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32,
           "decoder_ffn_dim": 32, "max_position_embeddings": 128, "pad_token_id": 1},
           "BartForConditionalGeneration", refused="an encoder-decoder"),
]
# fmt: on


def table() -> str:
    """Return the rows as docs/families.md shows them."""
    lines = [
        "| family | harvest, steering, lens | generation continues from | hook points inside blocks | resid_pre + attn_out + mlp_out | direct effects |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    sums = {True: "= resid_post", False: "is not resid_post", None: "–"}
    for row in ROWS:
        if row.refused:
            lines.append(f"| {row.name} | refused: {REASONS[row.refused]} | | | | |")
            continue
        kept = "its cached state" if row.state else "the whole text, read again each step"
        inside = "yes" if row.inside else "refused"
        effects = "yes" if row.effects else "no"
        lines.append(f"| {row.name} | yes | {kept} | {inside} | {sums[row.adds]} | {effects} |")
    return "\n".join(lines)


REASONS = {
    "adapter": "TransformerLens has no adapter",
    "not causal": "bidirectional",
    "no causal language model": "an encoder",
    "an encoder-decoder": "an encoder-decoder",
}

if __name__ == "__main__":
    print(table())
