"""Networks: heads and tails. Models know nothing of codecs."""
