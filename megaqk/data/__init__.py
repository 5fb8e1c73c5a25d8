"""What training reads: tokenizers, memory-mapped corpora, blends, and the samples drawn from them."""
