"""A small encoder–decoder Transformer (arXiv 1706.03762) on Battle for Wesnoth's texts, English to German.

Measured: MEASURED
The corpus is small and loosely translated: this shows that translation trains, and is no figure of quality.

make wesnoth
python train.py --config=configs/text/wesnoth_translate.py --workdir=workdirs/wesnoth
python -m swin_jax.evaluate --workdir=workdirs/wesnoth
"""

from swin_jax.training.default_config import default_config


def get_config():
    config = default_config()
    config.total_epochs = 20
    config.batch_size = 32
    config.eval_every_epochs = 2
    config.checkpoint_every_epochs = 2
    config.log_every_steps = 50

    config.model.name = "transformer"
    config.model.embed_dim = 192
    config.model.depth = 3
    config.model.num_heads = 3
    config.model.post_norm = False
    config.model.dropout_rate = 0.1

    config.data.kind = "text_pairs"
    config.data.source = "wesnoth:de"
    config.text.tokenizer = "bpe"
    config.text.vocab_size = 4000
    config.text.sequence_length = 96
    config.text.source_length = 96

    config.task.name = "sequence_to_sequence"
    config.task.label_smoothing = 0.1

    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_epochs = 1.0
    config.optimizer.weight_decay = 0.01
    config.optimizer.b2 = 0.98
    config.optimizer.grad_clip_norm = 1.0
    return config
