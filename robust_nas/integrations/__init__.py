"""Adapters to other tools and to what their users are used to; nothing in the package imports them."""
