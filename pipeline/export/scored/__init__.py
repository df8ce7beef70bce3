"""The export of a model whose head is not a plain softmax over its logits."""
