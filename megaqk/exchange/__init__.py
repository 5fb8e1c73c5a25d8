"""In and out: models as transformers' architectures hold them, and their tokenizers."""
