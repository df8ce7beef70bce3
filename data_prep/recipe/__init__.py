"""The recipe: one YAML file, one section per subject, read strictly.

`loader` reads and validates; `data` and `tokenizer` are the two sections this package owns.
"""
