"""Training: one file per stage, each `python -m train.<stage>`; the stages meet only through files."""
