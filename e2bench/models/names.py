"""Names that `--dtype`, `--attn` and `--engine` take."""

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
ATTENTIONS = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")
ENGINES = ("vllm", "sglang")
