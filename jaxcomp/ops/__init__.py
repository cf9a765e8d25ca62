"""Array operations that know nothing of models, codecs or data."""
