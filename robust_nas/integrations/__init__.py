"""Adapters to other tools and to what their users are used to; nothing below the command line imports them."""
