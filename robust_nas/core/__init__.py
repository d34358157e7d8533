"""The ground: nothing here imports anything slow."""
