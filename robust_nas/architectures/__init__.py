"""What architectures are, as text and numbers; free of torch."""
