"""What a run on many chips would cost, read from programs that XLA compiled for them without running them."""
