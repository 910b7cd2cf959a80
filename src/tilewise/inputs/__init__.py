"""What happens to text and pixels outside the engine: templates, tokenizer, tiles, requests. No torch here."""
