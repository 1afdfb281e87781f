"""FantasyTalking2 in plain PyTorch: audio-driven portrait animation with gated preference experts."""
