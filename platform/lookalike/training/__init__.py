"""Training: curriculum, epoch plan, ZeRO-3 and plain engines, checkpoints by parameter name, export."""
