"""The doctor: one real step of a stage, decoded and held against what it was made of, before any weight moves.

`cases` finds the documents, `findings` says what is sound and what is not, `examine` refuses or lets pass.
"""
