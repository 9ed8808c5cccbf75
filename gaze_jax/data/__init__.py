"""The data room: samples, tokenizer, packing, and the input pipeline."""
