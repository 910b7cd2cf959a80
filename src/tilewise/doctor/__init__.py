"""What is right on a machine or at a server: the demo's golden answers, and the prompts that another server makes."""
