"""A spot check: five questions about one or two pictures, each with a verdict by rule."""
