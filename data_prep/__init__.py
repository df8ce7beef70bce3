"""From raw text to token shards: the first stage of the pipeline.

Nothing here imports a deep-learning library, so preparing data needs no accelerator and no
DeepSpeed; the training side reads the results through `data_prep.shards`.
"""
