"""The command `tune`: finds the fastest settings for the operator's own device that paint the same pictures."""
