"""The model shapes that have a name."""

from sft.config.model import ModelConfig

PRESETS: dict[str, ModelConfig] = {
    # The rows beyond the tokenizer's 50280 entries are the base models' own padding; they are never cut off.
    "stablelm_3b": ModelConfig(
        vocab_size=50688, hidden_size=4096, num_layers=16, num_heads=32, intermediate_size=16384
    ),
    "stablelm_7b": ModelConfig(
        vocab_size=50432, hidden_size=6144, num_layers=16, num_heads=48, intermediate_size=24576
    ),
    "small_cpu": ModelConfig(vocab_size=50432, hidden_size=256, num_layers=4, num_heads=4, intermediate_size=1024),
    "tiny": ModelConfig(
        vocab_size=1024, hidden_size=128, num_layers=4, num_heads=4, intermediate_size=512, max_positions=1024
    ),
}
