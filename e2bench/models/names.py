"""Names that `--dtype`, `--attn` and `--engine` take."""

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
FLASH = {  # flash-attn's generations, each with its package
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_interface",
    "flash_attention_4": "flash_attn.cute",
}
ATTENTIONS = ("sdpa", "eager", *FLASH, "flex_attention")
ENGINES = ("vllm", "sglang")
