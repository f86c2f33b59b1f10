"""Every engine on an NVIDIA GPU beside each other: `python -m aigc_compress.bench.gpu`."""
