"""The quantization method ``tico`` of transformers, which is imported only where that is installed."""
