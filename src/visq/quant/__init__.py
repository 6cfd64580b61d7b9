"""The vocabulary of quantization: sites, specs, granularities, codebooks, estimators, quantizers."""
