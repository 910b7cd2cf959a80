"""What a deployment would take and give, from a model's small files alone: `tilewise plan`."""
