"""Pretrained models: reading and writing weights, tokenizers, the hub, quantisation, body and head. No training."""
