"""Every key of an experiment's config, with its default; a config file sets the ones it changes."""

import functools

from ml_collections import ConfigDict, config_dict

from swin_jax.errors import UserError


def default_config() -> ConfigDict:
    """Return the locked config with every key; only `model` takes further keys, the model's constructor arguments.

    Tuples stand for sequences (ml_collections cannot override lists), `0` and `""` for "not set".
    """
    config = ConfigDict()
    config.seed = 0
    config.total_epochs = 1
    config.total_steps = 0  # 0: total_epochs; otherwise the length of the run in updates
    config.batch_size = 128  # over all devices
    config.accumulation_steps = 1  # microbatches of a batch, one after the other: less memory, the same update
    config.eval_every_epochs = 1  # 0: only at the end
    config.checkpoint_every_epochs = 1  # 0: only at the end
    config.keep_checkpoints = 2  # the newest ones, and the best one besides
    config.log_every_steps = 50
    config.max_skipped_updates = 10  # in a row, skipped since they are not finite, before the run stops
    config.hang_timeout_seconds = 1800.0  # without a step done, after the first: the run ends and says where; 0: never
    config.host_timeout_seconds = 60.0  # without a sign of life from a host: the others end
    config.ema_decay = 0.0  # 0: off; otherwise the averaged parameters are the ones evaluated
    config.init_from = ""  # published weights to start from: a file, or hf:ORG/NAME; "": the model's own initial values
    config.init_fresh_head = False  # keep the model's own head, for another number of classes
    config.init_resize = ""  # bicubic, geometric: for another resolution or window; "": an error if they differ
    config.init_class_map = ""  # file with the number of the checkpoint's class for each of ours, one a line

    config.model = ConfigDict()
    config.model.name = "swin"  # num_classes, image_size, in_channels (vocab_size, max_length) come from the data

    config.data = ConfigDict()
    config.data.kind = "images"  # images, text, text_pairs
    config.data.source = "digits"  # digits, fashion_mnist, synthetic, tfds:NAME, folder:PATH; of texts: see `text`
    config.data.data_dir = ""
    config.data.train_split = "train"
    config.data.eval_split = "test"
    config.data.image_size = config_dict.FieldReference(224, field_type=object)  # S or (H, W)
    config.data.channels = 3
    config.data.num_classes = 0  # 0: as many as the source has
    config.data.crop = "random_resized"  # resize, random_resized, center, none
    config.data.eval_crop = "center"  # resize, center, none
    config.data.crop_fraction = 0.875
    config.data.crop_scale = (0.08, 1.0)
    config.data.flip = False
    config.data.policy = ""  # as task.augment's, but on the host, for an accelerator that is the bottleneck
    config.data.color_jitter = 0.0
    config.data.repeats = 1  # repeated augmentation (DeiT: 3): an image comes so often in a row, an epoch stays as long
    config.data.interpolation = "bicubic"
    config.data.decoder = "pillow"  # turbo: random resized crops of files faster and nearly the same; see docs/data.md
    config.data.on_corrupt = "stop"  # stop at a record that cannot be read, or skip it and count it
    config.data.preflight = 256  # images of each split looked at before compilation, for a second at most; 0: off
    config.data.num_threads = 16
    config.data.worker_count = 0

    config.text = ConfigDict()  # of data.kind text and text_pairs
    config.text.tokenizer = "char"  # byte, char, bpe, unigram: learned from the training split; or a tokenizer.json
    config.text.vocab_size = 0  # of bpe and unigram
    config.text.sequence_length = 128  # tokens of an example; of pairs: of the target
    config.text.source_length = 0  # tokens of the source of pairs; 0: sequence_length
    config.text.packed = False  # short texts side by side in a row; off: windows at random places of long ones
    config.text.eval_stride = 0  # from window to window; the last eval_stride tokens of each count; 0: sequence_length
    config.text.held_out = 0.05  # the share that is the test split, where a source has none

    config.task = ConfigDict()  # a task takes those of these that are its own
    config.task.name = "classification"
    config.task.loss = "softmax"  # softmax, sigmoid (a yes-or-no question for each class: DeiT-III)
    config.task.target_threshold = -1.0  # sigmoid: targets above it count as 1, the others as 0; below 0: as they are
    config.task.label_smoothing = 0.0
    config.task.mean = (0.485, 0.456, 0.406)
    config.task.std = (0.229, 0.224, 0.225)
    config.task.mixup_alpha = 0.0
    config.task.cutmix_alpha = 0.0
    config.task.mix_prob = 1.0
    config.task.mix_switch_prob = 0.5
    config.task.objective = "next"  # next, masked, prefix; of language_modeling
    config.task.mask_rate = 0.15  # of the objective masked
    config.task.augment = ConfigDict()  # on the device; the arguments of data.augment.augment
    config.task.augment.policy = ""  # rand-m9-mstd0.5-inc1, randaug(2,10), original, v0, 3a; see data.policies
    config.task.augment.interpolation = "bicubic"  # of the policy: nearest, bilinear, bicubic, random (of the last two)
    config.task.augment.color_jitter = 0.0  # without effect beside a policy other than 3a, as in timm
    config.task.augment.crop_padding = 0
    config.task.augment.flip = False
    config.task.augment.degrees = 0.0
    config.task.augment.translate = 0.0
    config.task.augment.scale = 0.0
    config.task.augment.shear = 0.0
    config.task.augment.erasing = 0.0

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # adamw, sgd, lamb, lion, adafactor, muon
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"  # cosine, linear, polynomial, step, inverse_square_root, constant
    config.optimizer.final_learning_rate = 0.0  # cosine, linear, polynomial
    config.optimizer.power = 1.0  # polynomial
    config.optimizer.milestone_steps = ()  # step: in updates
    config.optimizer.milestone_epochs = ()  # step: or in epochs
    config.optimizer.milestone_factor = 0.1  # step: at each milestone
    config.optimizer.warmup_steps = 0  # of the linear warm-up before any schedule, in updates
    config.optimizer.warmup_epochs = 0.0  # or in epochs
    config.optimizer.warmup_learning_rate = 0.0
    config.optimizer.weight_decay = 0.05
    config.optimizer.independent_weight_decay = False  # True: weight_decay * schedule / its peak
    config.optimizer.weight_decay_multipliers = ()  # ((regular expression, factor), ...) over the parameters' paths
    config.optimizer.learning_rate_multipliers = ()  # the same; factor 0 freezes
    config.optimizer.layer_decay = 1.0  # of the learning rate, from each layer to the one below
    config.optimizer.b1 = 0.9  # adamw, lamb, lion, adafactor, muon's Adam
    config.optimizer.b2 = 0.999  # the same (lion's paper has 0.99); the upper bound of adafactor's
    config.optimizer.eps = 1e-8  # adamw, lamb, muon
    config.optimizer.momentum = 0.9  # sgd
    config.optimizer.nesterov = True  # sgd, muon
    config.optimizer.muon_momentum = 0.95
    config.optimizer.adam_learning_rate_share = 0.15  # muon: of the learning rate, for what is no matrix
    config.optimizer.adam_parameters = ()  # muon: (regular expression, ...) of kernels that are Adam's nevertheless
    config.optimizer.momentum_dtype = ""  # of the first moments: bfloat16 halves them; "": the parameters'
    config.optimizer.grad_clip_norm = 0.0  # 0: off

    config.mesh = ConfigDict()
    config.mesh.data = -1  # -1: all the devices that fsdp and tensor leave
    config.mesh.fsdp = 1
    config.mesh.tensor = 1

    config.lock()
    config.model.unlock()
    return config


def check_config(config: ConfigDict) -> None:
    """Raise a UserError for a value that no run can have."""
    size = config.data.image_size
    size = (size, size) if isinstance(size, int) else size
    if not (isinstance(size, tuple) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)):
        raise UserError(f"data.image_size={config.data.image_size!r} must be a positive number or two of them")
    bounds = (
        ("batch_size", 1, None),
        ("data.channels", 1, None),
        ("data.num_classes", 0, None),
        ("data.num_threads", 0, None),
        ("data.preflight", 0, None),
        ("data.worker_count", 0, None),
        ("data.repeats", 1, None),
        ("text.vocab_size", 0, None),
        ("text.sequence_length", 1, None),
        ("text.source_length", 0, None),
        ("text.eval_stride", 0, None),
        ("text.held_out", 0, 1),
        ("seed", 0, 2**31),
        ("total_epochs", 1, None),
        ("total_steps", 0, None),
        ("accumulation_steps", 1, None),
        ("eval_every_epochs", 0, None),
        ("checkpoint_every_epochs", 0, None),
        ("keep_checkpoints", 1, None),
        ("log_every_steps", 1, None),
        ("max_skipped_updates", 1, None),
        ("hang_timeout_seconds", 0, None),
        ("host_timeout_seconds", 1, None),
        ("ema_decay", 0, 1),
        ("optimizer.learning_rate", 0, None),
        ("optimizer.final_learning_rate", 0, None),
        ("optimizer.warmup_learning_rate", 0, None),
        ("optimizer.warmup_steps", 0, None),
        ("optimizer.warmup_epochs", 0, None),
        ("optimizer.milestone_factor", 0, None),
        ("optimizer.weight_decay", 0, None),
        ("optimizer.muon_momentum", 0, 1),
        ("optimizer.adam_learning_rate_share", 0, None),
        ("optimizer.grad_clip_norm", 0, None),
    )
    for key, low, high in bounds:
        value = functools.reduce(getattr, key.split("."), config)
        if not (value >= low and (high is None or value < high)):
            raise UserError(f"{key}={value} must be at least {low}" + (f" and less than {high}" if high else ""))
    host_policy, device_policy = config.data.policy, config.task.augment.policy
    if host_policy and device_policy:
        raise UserError(f"data.policy={host_policy} (host) and task.augment.policy={device_policy} would both act")
