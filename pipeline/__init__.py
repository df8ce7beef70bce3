"""The torch side: recipe, data order, models, heads, sparsity, optimizers, training and after."""
