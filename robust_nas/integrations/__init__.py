"""Adapters to other tools and to their users' habits; nothing below the command line imports them."""
