"""What the commands do beside the daemon; `cli.py` reads their arguments."""
