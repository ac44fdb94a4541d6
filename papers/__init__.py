"""One package a replicated paper; `paper.yaml` says what each claims and how it is checked."""
