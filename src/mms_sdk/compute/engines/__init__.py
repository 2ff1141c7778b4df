"""Where jobs run: the protocol in `base.py`, and one engine a file."""
