"""What the pipeline, the trainer and every reader of shards share: contract, stores, options."""

__version__ = "0.1.0"
