"""Reports: what a run did, readable without knowing the program, and runs side by side.

`load` reads a run folder; `content` and `compare` turn it into a `document`; `html` and `markdown`
write that document, so both always hold the same numbers.
"""
